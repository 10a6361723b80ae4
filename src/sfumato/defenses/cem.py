"""Conditional entropy maximization: make the feature's conditional mixture narrow against the channel's noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sfumato.defenses.base import BoundDefense, Context, Defense, Epoch
from sfumato.defenses.schedule import pressure
from sfumato.errors import InputError
from sfumato.information import ClassMixture
from sfumato.models import SplitModel, output_shape

_GAMMA = 0.01  # the authors' floor under both variances


@dataclass(frozen=True)
class CEM(Defense):
    """Minimize the rate of a Gaussian mixture over the features (Xia et al. 2025, CVPR; algorithm 1).

    The authors' isotropic form. Features of a class are assigned to the nearest of its M centers; for each component

        v = a·(mean squared distance per dimension) + (1 − a)·v_before,  a = min(0.99, 10·b_i / (n_class·weight)),
        loss = weight · relu(log(v + 0.01) − log(t·σ² + 0.01)),

    summed over components, averaged over the classes in the batch, times λ·w(t). Centers are refreshed once an epoch
    from one pass over the features. The loss is active from the second epoch, as in the authors' program; being a
    function of the edge alone, it is simply added to the model's loss (the authors run a second backward pass).

    Args:
        weight: λ ≥ 0 (paper: 16).
        components: M per class (authors: 5 with a sigmoid cut, 15 without).
        schedule: ``authors`` weights by 0.001/lr while lr > 0.0004 and by 1 after, so the pressure grows as the
            learning rate decays; ``constant`` by 1.
        threshold: t > 0; no pressure on variances below t·σ² (authors: 0.125; 0.0625 for TinyImageNet).
    """

    name: ClassVar[str] = "cem"
    source: ClassVar[str] = "Xia et al. 2025 (CEM), algorithm 1"
    watches: ClassVar[bool] = True
    weight: float = 16.0
    components: int = 5
    schedule: Literal["authors", "constant"] = "authors"
    threshold: float = 0.125

    def __post_init__(self) -> None:
        self._require(0 <= self.weight < float("inf"), "weight", "a weight of 0 or more")
        self._require(self.components >= 1, "components", "1 or more")
        self._require(self.schedule in ("authors", "constant"), "schedule", "one of authors, constant")
        self._require(0 < self.threshold < float("inf"), "threshold", "a fraction of the noise variance above 0")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        if split.feature.noise_variance == 0:
            raise InputError("defense cem", "a channel without Gaussian noise", "Gaussian noise in the same chain")
        num_classes = _number_of_classes(split)
        dim = torch.Size(split.feature.shape).numel()
        return BoundCEM(self, num_classes, dim, split.feature.noise_variance)


class BoundCEM(BoundDefense):
    """CEM at work: the mixture, and the loss from it.

    Attributes:
        mixture: The class-conditional mixture over clean features.
        noise_variance_sent: σ² of the channel.
    """

    def __init__(self, spec: CEM, num_classes: int, dim: int, noise_variance: float) -> None:
        super().__init__()
        self.spec = spec
        self.mixture = ClassMixture(num_classes, spec.components, dim)
        self.noise_variance_sent = noise_variance

    def epoch_start(self, epoch: Epoch) -> None:
        """Refresh the mixture, from the second epoch on."""
        if epoch.index >= 1:

            def features() -> Iterable[tuple[Tensor, Tensor]]:
                return ((z.flatten(1), y) for z, y in epoch.features())

            self.mixture.refresh(features, generator=epoch.generator)

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        """λ·w(t)·R of the batch; nothing in the first epoch."""
        if ctx.epoch == 0:
            return {}
        return {"cem": self.spec.weight * pressure(self.spec.schedule, ctx.lr) * self.rate(ctx.z_clean, ctx.y)}

    def rate(self, z: Tensor, y: Tensor) -> Tensor:
        """The authors' loss on one batch, before its weight; updates the running variances and weights."""
        mixture = self.mixture
        k, m, d = mixture.means.shape
        z = z.flatten(1)
        index = mixture.assign(z, y)
        distance = (z - mixture.means.view(k * m, d)[index]).square().mean(1)
        counts = torch.bincount(index, minlength=k * m).to(z.dtype)
        batch = distance.new_zeros(k * m).index_add(0, index, distance) / counts.clamp_min(1)

        # Copies: the running values below change before the backward pass reads these.
        weights, before = mixture.weights.flatten().clone(), mixture.variances.flatten().clone()
        expected = mixture.counts.repeat_interleave(m) * weights
        a = (10 * counts / expected.clamp_min(torch.finfo(z.dtype).tiny)).clamp_max(0.99) * (counts > 0)
        variance = a * batch + (1 - a) * before
        floor = torch.tensor(self.spec.threshold * self.noise_variance_sent + _GAMMA, device=z.device).log()
        loss = (weights * ((variance + _GAMMA).log() - floor).relu()).view(k, m).sum(1)
        present = counts.view(k, m).sum(1)
        self._track(variance.detach(), counts, present)
        return (loss * (present > 0)).sum() / (present > 0).sum()

    def theory(self) -> dict[str, float]:
        """The mixture's rate R under the isotropic model, in nats (CEM, theorem 2).

        R = Σ π_i(−log π_i + ½·D·log((v_i + σ²)/σ²)), an upper bound on I(z; z') for the mixture; π_i is the share of
        the class times the weight within it.
        """
        mixture = self.mixture
        if not bool(mixture.ready):
            return {}
        share = mixture.counts / mixture.counts.sum()
        pi = (share.unsqueeze(1) * mixture.weights).double()
        dim, noise = mixture.means.shape[2], self.noise_variance_sent
        growth = 0.5 * dim * torch.log1p(mixture.variances.double() / noise)
        rate = -torch.special.xlogy(pi, pi).sum() + (pi * growth).sum()
        return {"cem_rate_nats": float(rate), "cem_rate_nats_per_dimension": float(rate) / dim}

    @torch.no_grad()
    def _track(self, variance: Tensor, counts: Tensor, present: Tensor) -> None:
        mixture = self.mixture
        k, m = mixture.weights.shape
        mixture.variances.copy_(variance.view(k, m))
        # Equation 5 within each class: weights keep their sum of 1.
        step = counts.view(k, m) - present.unsqueeze(1) * mixture.weights
        # A class that the last pass saw less of than this batch holds would get a weight below 0.
        mixture.weights += step / mixture.counts.maximum(present).clamp_min(1).unsqueeze(1)


def _number_of_classes(split: SplitModel) -> int:
    return output_shape(split.cloud, split.feature.shape)[0]
