"""Gated attention over the members of a class, and the spread around its prototype."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information.attention import (
    class_mean,
    class_softmax,
    class_spread,
    class_uniform,
    gated_scores,
    mean_log_variance,
)
from sfumato.information.checks import require_choice, require_counts
from sfumato.information.grouping import group_sizes
from sfumato.information.running import ClassAverage

Objective = Literal["adversarial", "joint"]
Side = Literal["feature", "attention"]


class GatedPooling(nn.Module):
    """Prototype and variance per dimension of every class under gated attention, as running averages.

    The weights are (1 − ε)·softmax + ε/n, uniform at the start (w = 0). So a variance is never below ε times the plain
    one around the same center, whatever the attention has learned: its logarithm hides log(1/ε) at most. Without that,
    an attention that profits from small variances puts all weight on one feature of a class, whose variance is 0.

    Args:
        num_classes: K.
        dim: D.
        hidden: H, rows of V and U.
        momentum: Of the running averages, in [0, 1).
        uniform: ε in [0, 1]; 1 is the plain variance of the class.
        objective: What V, U and w learn: ``adversarial`` the largest variance, ``joint`` the smallest.
        generator: Draws V and U.

    Raises:
        InputError: A number of things below 1, a share or momentum out of its range, or an unknown objective.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        hidden: int,
        *,
        momentum: float = 0.9,
        uniform: float = 0.5,
        objective: Objective = "adversarial",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        require_counts(num_classes=num_classes, dim=dim, hidden=hidden)
        require_choice("objective", objective, get_args(Objective))
        if not 0 <= uniform <= 1:
            raise InputError("uniform", uniform, "a share from 0 to 1")
        self.num_classes, self.uniform = num_classes, uniform
        self.sign = -1.0 if objective == "adversarial" else 1.0
        self.value = nn.Parameter(torch.randn(hidden, dim, generator=generator) / math.sqrt(dim))
        self.gate = nn.Parameter(torch.randn(hidden, dim, generator=generator) / math.sqrt(dim))
        self.mixer = nn.Parameter(torch.zeros(hidden))
        self.prototypes = ClassAverage(num_classes, dim, momentum)
        self.variances = ClassAverage(num_classes, dim, momentum)

    def weights(self, z: Tensor, y: Tensor) -> Tensor:
        """Weights (N,) of features (N, D), summing to 1 within a class."""
        learned = class_softmax(gated_scores(z, self.value, self.gate, self.mixer), y, self.num_classes)
        return (1 - self.uniform) * learned + self.uniform * class_uniform(y, self.num_classes, z.dtype)

    def variance(self, z: Tensor, y: Tensor, *, side: Side, generator: torch.Generator | None = None) -> Tensor:
        """Running variances (K, D) with this batch in them.

        Args:
            z: (N, D).
            y: (N,).
            side: Who is to learn from it. ``feature``: the weights are constants, and the batch enters the running
                averages. ``attention``: the features are constants, and nothing is kept.
            generator: Not used; nothing is drawn.

        Raises:
            InputError: There is no such side.
        """
        require_choice("side", side, get_args(Side))
        with torch.set_grad_enabled(side == "attention" and torch.is_grad_enabled()):
            weights = self.weights(z.detach(), y)
        z = z if side == "feature" else z.detach()
        counts = group_sizes(y, self.num_classes)
        prototypes = self.prototypes.blend(class_mean(z, weights, y, self.num_classes), counts)
        variances = self.variances.blend(class_spread(z, prototypes, weights, y), counts)
        if side == "feature":
            self.prototypes.keep(prototypes, counts)
            self.variances.keep(variances, counts)
        return variances

    def objective(self, z: Tensor, y: Tensor, *, gamma: float, generator: torch.Generator | None = None) -> Tensor:
        """What the attention minimizes: the mean of log(v + γ), or its negative."""
        present = group_sizes(y, self.num_classes) > 0
        return self.sign * mean_log_variance(self.variance(z, y, side="attention"), present, gamma=gamma)

    def tracked(self) -> Tensor:
        """Running variances (K, D)."""
        return self.variances.value

    def figures(self) -> dict[str, float]:
        """Nothing beside the variances."""
        return {}
