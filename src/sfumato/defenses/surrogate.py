"""What the learned surrogates of CEM's rate share: arguments, schedule, loss, player, figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from sfumato.defenses.base import BoundDefense, Context, Defense, Player
from sfumato.defenses.schedule import Schedule, pressure
from sfumato.errors import InputError
from sfumato.information import log_variance_penalty
from sfumato.information.attention import class_mean, class_spread, class_uniform
from sfumato.information.grouping import group_sizes
from sfumato.information.pooling import Side
from sfumato.information.running import ClassAverage
from sfumato.models import SplitModel, output_shape


class Path(Protocol):
    """A learned view of the variance of every class, per dimension, kept as running averages."""

    def variance(self, z: Tensor, y: Tensor, *, side: Side, generator: torch.Generator | None = None) -> Tensor:
        """Running variances (K, D) with this batch in them, for one of the two sides to learn from."""

    def objective(self, z: Tensor, y: Tensor, *, gamma: float, generator: torch.Generator | None = None) -> Tensor:
        """What its own parameters minimize."""

    def tracked(self) -> Tensor:
        """Running variances (K, D)."""

    def figures(self) -> dict[str, float]:
        """What else it reports."""


@dataclass(frozen=True)
class Surrogate(Defense):
    """Loss λ·w(t)·mean of relu(log(v + γ) − log(t·σ² + γ)) over the classes in the batch and the feature's dimensions.

    v is what a learned path sees of the variance within a class. The feature learns from the loss, with what the path
    has learned held constant: it is to shrink its deviations, not to steer the attention. The path's own parameters
    are a player with an optimizer of its own (Adam), so that neither λ nor the schedule changes how fast they learn.
    The loss is active from the second epoch, as CEM's is; the path learns and keeps its averages from the first.

    Where processes share a batch, each one's attention sees its own share alone: gradients are means over the shares,
    and every step starts at the first process's averages.

    Args:
        weight: λ ≥ 0.
        hidden: Width of the attention.
        gamma: γ > 0, floor under both variances.
        threshold: t > 0; no pressure on variances below t·σ².
        schedule: ``authors`` weights by 0.001/lr while lr > 0.0004 and by 1 after; ``constant`` by 1.
        momentum: Of the running averages, in [0, 1); the batch's share of them, about 1 − momentum, is its share of the
            gradient.
        attention_lr: Learning rate of the attention.
    """

    watches: ClassVar[bool] = True
    least_epochs: ClassVar[int] = 2
    weight: float = 16.0
    hidden: int = 64
    gamma: float = 0.01
    threshold: float = 0.125
    schedule: Schedule = "authors"
    momentum: float = 0.9
    attention_lr: float = 0.001

    def __post_init__(self) -> None:
        positive = "a finite number above 0"
        self._require(0 <= self.weight < float("inf"), "weight", "a weight of 0 or more")
        self._require(self.hidden >= 1, "hidden", "1 or more")
        self._require(0 < self.gamma < float("inf"), "gamma", positive)
        self._require(0 < self.threshold < float("inf"), "threshold", "a fraction of the noise variance above 0")
        self._require(self.schedule in ("authors", "constant"), "schedule", "one of authors, constant")
        self._require(0 <= self.momentum < 1, "momentum", "a number from 0 to below 1")
        self._require(0 < self.attention_lr < float("inf"), "attention_lr", positive)

    def _require_gate(self, uniform: float, objective: str) -> None:
        self._require(0 <= uniform <= 1, "uniform", "a share from 0 to 1")
        self._require(objective in ("adversarial", "joint"), "objective", "one of adversarial, joint")

    def _require_slots(self, slots: int, iterations: int, slot_noise: float) -> None:
        self._require(slots >= 1, "slots", "1 or more")
        self._require(iterations >= 1, "iterations", "1 or more")
        self._require(0 <= slot_noise < float("inf"), "slot_noise", "a standard deviation of 0 or more")


def watched(split: SplitModel, name: str) -> tuple[int, int]:
    """Number of classes K and dimension D of the feature that a surrogate watches.

    Raises:
        InputError: The channel adds no Gaussian noise to measure it against.
    """
    if split.feature.noise_variance == 0:
        raise InputError(f"defense {name}", "a channel without Gaussian noise", "Gaussian noise in the same chain")
    return output_shape(split.cloud, split.feature.shape)[0], torch.Size(split.feature.shape).numel()


class BoundSurrogate(BoundDefense):
    """A surrogate at work.

    Attributes:
        path: What it learns; its parameters are the player's.
        centers: Plain running means of the classes, to compare with.
        spreads: Plain running variances around them.
        counts: (K,) features seen of each class, over all steps.
        noise_variance_sent: σ² of the channel.
    """

    counts: Tensor

    def __init__(self, spec: Surrogate, path: nn.Module, num_classes: int, dim: int, noise_variance: float) -> None:
        super().__init__()
        self.spec, self.noise_variance_sent = spec, noise_variance
        self.path = path
        self.centers = ClassAverage(num_classes, dim, spec.momentum)
        self.spreads = ClassAverage(num_classes, dim, spec.momentum)
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        """λ·w(t)·the penalty of the batch; in the first epoch nothing, and the averages are kept all the same."""
        # In the averages' own precision: under automatic mixed precision the products would be in another one.
        whole = torch.autocast(ctx.z_clean.device.type, enabled=False)
        with whole, torch.set_grad_enabled(ctx.epoch > 0 and torch.is_grad_enabled()):
            rate = self.rate(ctx.z_clean, ctx.y, generator=ctx.generator)
        if ctx.epoch == 0:
            return {}
        return {self.spec.name: self.spec.weight * pressure(self.spec.schedule, ctx.lr) * rate}

    def rate(self, z: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The penalty of one batch, before its weight; the batch enters all running averages."""
        z = z.flatten(1).to(self.spreads.value.dtype)
        variances = self._path().variance(z, y, side="feature", generator=generator)
        self._track(z.detach(), y)
        present = group_sizes(y, len(self.counts)) > 0
        floor = self.spec.threshold * self.noise_variance_sent
        return log_variance_penalty(variances, present, floor=floor, gamma=self.spec.gamma)

    def players(self) -> tuple[Player, ...]:
        """The attention, once a step."""

        def loss(ctx: Context) -> Tensor:
            z = ctx.z_clean.flatten(1)
            return self._path().objective(z, ctx.y, gamma=self.spec.gamma, generator=ctx.generator)

        lr = self.spec.attention_lr
        return (Player(self.spec.name, self.path, lambda parameters: torch.optim.Adam(parameters, lr=lr), loss),)

    def theory(self) -> dict[str, float]:
        """The surrogate of CEM's rate R, in nats, and how much of the plain variance the path sees.

        Σ π_k(−log π_k + ½·Σ_d log(1 + v_kd/σ²)), v being the path's. It bounds I(z; z') only where v is no less than
        the plain variance of the class, which ``seen_variance``, Σ v over Σ of the plain one, tells: below 1 the
        surrogate reports less than there is.
        """
        if not bool(self.counts.any()):
            return {}
        v, plain = self._path().tracked().double(), self.spreads.value.double()
        pi = self.counts.double() / self.counts.sum()
        rate = float((-torch.special.xlogy(pi, pi) + pi * 0.5 * torch.log1p(v / self.noise_variance_sent).sum(1)).sum())
        figures = {
            "surrogate_rate_nats": rate,
            "surrogate_rate_nats_per_dimension": rate / v.shape[1],
            "seen_variance": float(v.sum() / plain.sum()) if bool(plain.any()) else 1.0,
            **self._path().figures(),
        }
        return {f"{self.spec.name}_{name}": value for name, value in figures.items()}

    def _path(self) -> Path:
        return self.path  # type: ignore[return-value]

    @torch.no_grad()
    def _track(self, z: Tensor, y: Tensor) -> None:
        counts, even = group_sizes(y, len(self.counts)), class_uniform(y, len(self.counts), z.dtype)
        centers = self.centers.blend(class_mean(z, even, y, len(self.counts)), counts)
        self.spreads.keep(self.spreads.blend(class_spread(z, centers, even, y), counts), counts)
        self.centers.keep(centers, counts)
        self.counts += counts
