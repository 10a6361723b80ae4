"""Conditional entropy maximization: make the feature's conditional mixture narrow against the channel's noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from sfumato.defenses.base import BoundDefense, Context, Defense, Epoch
from sfumato.defenses.schedule import Schedule, pressure
from sfumato.errors import InputError
from sfumato.information import ClassMixture, RateLoss, reference_loss
from sfumato.information.grouping import Total, alone
from sfumato.models import SplitModel, output_shape

T = TypeVar("T")
_VARIANTS = ("reference", "isotropic", "diagonal", "full")
# Where nothing is said: the paper's, and those that the exact rate was measured with.
_AUTHORS = {"weight": 16.0, "schedule": "authors"}
_EXACT = {"weight": 0.3, "schedule": "constant"}


@dataclass(frozen=True)
class CEM(Defense):
    """Minimize the rate R of a Gaussian mixture over the features (Xia et al. 2025, CVPR; theorem 2, algorithm 1).

    Features are assigned to the nearest of M centers of their class. Centers are refreshed once an epoch from one pass
    over the features. The loss λ·w(t)·R is active from the second epoch, as in the authors' program; being a function
    of the edge alone, it is simply added to the model's loss (the authors run a second backward pass).

    ``reference`` is the loss of the authors' program, with which to reproduce their tables
    (:func:`~sfumato.information.reference_loss`). The other variants are R itself for that form of covariance, with
    the gradient normalized to the batch's share (:class:`~sfumato.information.RateLoss`), so that λ means the same on
    any number of images. Their R per dimension is of another size than the authors' loss, so they have a weight and a
    schedule of their own to begin with: 0.3, constant. On a narrow VGG-11 and 10,000 images of CIFAR-10 (five levels
    of noise) that left a decoder 25 ± 3 % more error than noise alone at matched accuracy under ``isotropic`` (four
    seeds) and 21 ± 4 % under ``full`` (two; 14 to 27 % on fewer images), and cost 1.0 to 6.8 and 0.7 to 8.7 points of
    accuracy at equal noise; ``diagonal`` was not measured.

    Args:
        weight: λ ≥ 0. By default the paper's 16 for ``reference`` and 0.3 for the other variants.
        components: M per class, or in all where not ``per_class`` (authors: 5 with a sigmoid cut, 15 without).
        schedule: ``authors`` weights by 0.001/lr while lr > 0.0004 and by 1 after, so the pressure grows as the
            learning rate decays; ``constant`` by 1. By default that of ``reference`` is the authors', and constant for
            the other variants.
        threshold: t > 0, of ``reference`` only: no pressure on variances below t·σ² (authors: 0.125; 0.0625 for
            TinyImageNet).
        variant: ``reference``, ``isotropic``, ``diagonal`` or ``full`` covariance.
        per_class: M components for each class (the authors' way), or M in all that know no classes; ``reference`` is
            per class.
        shrinkage: 0 to 1, of ``full`` only: how far covariances are drawn to isotropic ones. A component stands for
            fewer images than a feature has dimensions, and its sample covariance alone would be singular.
        per_dimension: Weight R/D rather than R, so that λ means the same for features of any size; ``reference`` always
            does.
    """

    name: ClassVar[str] = "cem"
    source: ClassVar[str] = "Xia et al. 2025 (CEM), algorithm 1"
    watches: ClassVar[bool] = True
    least_epochs: ClassVar[int] = 2
    weight: float | None = None
    components: int = 5
    schedule: Schedule | None = None
    threshold: float = 0.125
    variant: Literal["reference", "isotropic", "diagonal", "full"] = "reference"
    per_class: bool = True
    shrinkage: float = 0.1
    per_dimension: bool = True

    def __post_init__(self) -> None:
        # Filled in here, so that descriptions say what holds and the same settings have one address.
        for field, default in (_AUTHORS if self.variant == "reference" else _EXACT).items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, default)
        self._require(0 <= _given(self.weight) < math.inf, "weight", "a weight of 0 or more")
        self._require(self.components >= 1, "components", "1 or more")
        self._require(self.schedule in ("authors", "constant"), "schedule", "one of authors, constant")
        self._require(0 < self.threshold < math.inf, "threshold", "a fraction of the noise variance above 0")
        self._require(self.variant in _VARIANTS, "variant", f"one of {', '.join(_VARIANTS)}")
        self._require(0 <= self.shrinkage <= 1, "shrinkage", "from 0 to 1")
        if self.variant == "reference":
            self._require(self.per_class, "per_class", "true, for the authors' loss is averaged over classes")
            self._require(self.per_dimension, "per_dimension", "true, for the authors' loss is a mean over dimensions")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        if split.feature.noise_variance == 0:
            raise InputError("defense cem", "a channel without Gaussian noise", "Gaussian noise in the same chain")
        classes = output_shape(split.cloud, split.feature.shape)[0] if self.per_class else 1
        dim = torch.Size(split.feature.shape).numel()
        return BoundCEM(self, classes, dim, split.feature.noise_variance)


class BoundCEM(BoundDefense):
    """CEM at work: the mixture, and the loss from it.

    Attributes:
        mixture: The mixture over clean features.
        noise_variance_sent: σ² of the channel.
    """

    def __init__(self, spec: CEM, classes: int, dim: int, noise_variance: float) -> None:
        super().__init__()
        self.spec = spec
        self._weight: float = _given(spec.weight)
        self._schedule: Schedule = _given(spec.schedule)
        form = "isotropic" if spec.variant == "reference" else spec.variant
        self.mixture = ClassMixture(classes, spec.components, dim, form)
        self.noise_variance_sent = noise_variance
        self._exact = RateLoss(self.mixture, noise_variance, spec.shrinkage if spec.variant == "full" else 0.0)

    def epoch_start(self, epoch: Epoch) -> None:
        """Refresh the mixture, from the second epoch on."""
        if epoch.index >= 1:

            def features() -> Iterable[tuple[Tensor, Tensor]]:
                return ((z.flatten(1), self._component_class(y)) for z, y in epoch.features())

            self.mixture.refresh(features, generator=epoch.generator)
            # The first process's: the others' may differ in last bits, and an assignment or a new center by more.
            state = epoch.agree({name: value.cpu() for name, value in self.mixture.state_dict().items()})
            self.mixture.load_state_dict(state)

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        """λ·w(t)·R of the batch; nothing in the first epoch."""
        if ctx.epoch == 0:
            return {}
        # In the mixture's own precision: under automatic mixed precision the products would be in another one.
        with torch.autocast(ctx.z_clean.device.type, enabled=False):
            rate = self.rate(ctx.z_clean, ctx.y, total=ctx.total)
        return {"cem": self._weight * pressure(self._schedule, ctx.lr) * rate}

    def rate(self, z: Tensor, y: Tensor, *, total: Total = alone) -> Tensor:
        """The variant's loss on one batch, before its weight; follows the mixture's running values.

        Args:
            z: Clean features (N, ...).
            y: Labels (N,).
            total: Sums over the processes that share the batch.
        """
        z, y = z.flatten(1).to(self.mixture.means.dtype), self._component_class(y)
        if self.spec.variant == "reference":
            floor = self.spec.threshold * self.noise_variance_sent
            return reference_loss(self.mixture, z, y, floor, total=total)
        rate = self._exact(z, y, total=total)
        return rate / z.shape[1] if self.spec.per_dimension else rate

    def theory(self) -> dict[str, float]:
        """R of the mixture in nats (CEM, theorem 2), an upper bound on I(z; z') where features are such a mixture.

        A full covariance of fewer images than dimensions misses directions, and its R is too low; shrinkage helps.
        Nothing before the second epoch, and nothing where training diverged.
        """
        if not bool(self.mixture.ready & self.mixture.covariances.isfinite().all()):
            return {}
        rate = self.mixture.rate(self.noise_variance_sent, shrinkage=self._exact.shrinkage)
        return {"cem_rate_nats": rate, "cem_rate_nats_per_dimension": rate / self.mixture.means.shape[-1]}

    def _component_class(self, y: Tensor) -> Tensor:
        return y if self.spec.per_class else torch.zeros_like(y)


def _given(value: T | None) -> T:
    """A field that a made :class:`CEM` has filled in."""
    assert value is not None
    return value
