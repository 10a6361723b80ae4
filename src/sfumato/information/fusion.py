"""Two views of a class's variance, mixed by a learned weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.information.attention import mean_log_variance
from sfumato.information.grouping import group_sizes
from sfumato.information.pooling import GatedPooling, Objective, Side
from sfumato.information.slots import SlotReadout


class FusedPooling(nn.Module):
    """sigmoid(β)·(variance under gated pooling) + (1 − sigmoid(β))·(variance that slots leave); β starts at 0.

    The slots keep their own objective. The gated attention and β share the other one: what they minimize is ∓ the mean
    of log(v + γ) of the mixture, less the entropy of (sigmoid(β), 1 − sigmoid(β)). The entropy keeps both paths in
    use: without it β would go on to one of them forever.

    Args:
        num_classes: K.
        dim: D.
        hidden: H of both paths.
        slots: S per class.
        iterations: Of slot attention.
        noise: Standard deviation of the noise on the starting slots.
        momentum: Of the running averages, in [0, 1).
        uniform: Least share of the uniform weights in gated pooling.
        objective: ``adversarial`` or ``joint``, see :class:`GatedPooling`.
        generator: Draws all weights.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        hidden: int,
        *,
        slots: int = 4,
        iterations: int = 3,
        noise: float = 0.0,
        momentum: float = 0.9,
        uniform: float = 0.5,
        objective: Objective = "adversarial",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        common: dict[str, Any] = {"momentum": momentum, "generator": generator}
        self.gated = GatedPooling(num_classes, dim, hidden, uniform=uniform, objective=objective, **common)
        self.slotted = SlotReadout(num_classes, dim, hidden, slots=slots, iterations=iterations, noise=noise, **common)
        self.beta = nn.Parameter(torch.zeros(()))

    def variance(self, z: Tensor, y: Tensor, *, side: Side, generator: torch.Generator | None = None) -> Tensor:
        """Mixed running variances (K, D) with this batch in them; see the two paths."""
        beta = self.beta.detach() if side == "feature" else self.beta
        gated = self.gated.variance(z, y, side=side)
        return _mixed(beta, gated, self.slotted.variance(z, y, side=side, generator=generator))

    def objective(self, z: Tensor, y: Tensor, *, gamma: float, generator: torch.Generator | None = None) -> Tensor:
        """What both paths and β minimize; the slots do not see the mixture."""
        present = group_sizes(y, self.gated.num_classes) > 0
        slotted = self.slotted.variance(z, y, side="attention", generator=generator)
        mixed = _mixed(self.beta, self.gated.variance(z, y, side="attention"), slotted.detach())
        share = self.beta.sigmoid()
        entropy = -share * F.logsigmoid(self.beta) - (1 - share) * F.logsigmoid(-self.beta)
        own = mean_log_variance(slotted, present, gamma=gamma)
        return own + self.gated.sign * mean_log_variance(mixed, present, gamma=gamma) - entropy

    def tracked(self) -> Tensor:
        """Mixed running variances (K, D)."""
        return _mixed(self.beta.detach(), self.gated.tracked(), self.slotted.tracked())

    def figures(self) -> dict[str, float]:
        """``gated_share``: sigmoid(β); ``gate``: the slots'."""
        return {"gated_share": float(self.beta.detach().sigmoid()), **self.slotted.figures()}


def _mixed(beta: Tensor, gated: Tensor, slotted: Tensor) -> Tensor:
    return beta.sigmoid() * gated + (1 - beta.sigmoid()) * slotted
