"""What the theory of conditional entropy says of a trained split model, whatever defended it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.data import Batches, ImageSet
from sfumato.errors import InputError
from sfumato.information import ClassMixture, add_variance, dfil, feature_utility
from sfumato.models import SplitModel

_BATCH = 512
_COMPONENTS, _IMAGES_PER_COMPONENT = 5, 20
_PASSES = 4
_MOST, _JUDGED, _PROBED = 10_000, 1_000, 64


@torch.no_grad()
def theory(split: SplitModel, images: ImageSet, *, generator: torch.Generator) -> dict[str, float]:
    """Rate and utility of a Gaussian mixture fitted to the clean features, and their Fisher information leakage.

    Five components with diagonal covariances for each class, fitted in four passes over at most 10,000 images; fewer
    where a component would stand for less than 20 images, whose variance about their own mean is too small. The rate
    bounds I(z; z') from above as far as features are such a mixture; differences of rates between models are
    differences of conditional entropy, for H(x) is the same for all (CEM, theorem 2 and equation 4). All of it is of
    the channel's Gaussian noise alone: what else the channel does, such as dropping elements, counts in none. The
    Fisher information leakage (Maeng et al. 2023) is a mean over 64 images and tells how sharply a small change of
    the image shows in what is sent; an attack without bias has a mean squared error of at least 1/dFIL, and attacks
    have bias.

    Args:
        split: Put into evaluation mode.
        images: That the model was trained on, on its device.
        generator: Starts the mixture and draws the noise.

    Returns:
        ``mixture_rate_nats``, ``mixture_rate_nats_per_dimension``, ``feature_utility`` in [0, 1] and ``dfil`` per
        pixel; empty where the channel adds no Gaussian noise, for all but the utility are infinite then, and where
        features are not finite, as those of a model whose training diverged.
    """
    variance = split.feature.noise_variance
    if variance == 0:
        return {}
    split.eval()
    chosen = torch.randperm(len(images), generator=generator, device=generator.device)[:_MOST]
    sample = images.select(chosen.to(images.images.device))

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in Batches(sample, _BATCH, shuffle=False):
            yield split.edge(x).flatten(1).float(), y

    dim = torch.Size(split.feature.shape).numel()
    components = max(1, min(_COMPONENTS, len(sample) // (_IMAGES_PER_COMPONENT * images.num_classes)))
    mixture = ClassMixture(images.num_classes, components, dim, "diagonal").to(sample.images.device)
    try:
        for _ in range(_PASSES):
            mixture.refresh(features, generator=generator)
    except InputError:  # not finite: all else of them is as the mixture wants it
        return {}
    rate = mixture.rate(variance)
    probed = (sample.images[:_PROBED].float() / 255).to(next(split.edge.parameters(), torch.empty(0)).dtype)
    return {
        "mixture_rate_nats": rate,
        "mixture_rate_nats_per_dimension": rate / dim,
        "feature_utility": _utility(mixture, features(), variance, generator),
        "dfil": float(dfil(split.edge, probed, variance, generator=generator, probes=8).mean()),
    }


def _utility(
    mixture: ClassMixture, features: Iterator[tuple[Tensor, Tensor]], variance: float, generator: torch.Generator
) -> float:
    means, covariances = mixture.means.flatten(0, 1), add_variance(mixture.covariances.flatten(0, 1), variance)
    shares = mixture.shares / mixture.shares.sum()
    total, seen = 0.0, 0
    for z, y in features:
        noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        sent, own = z + variance**0.5 * noise, mixture.assign(z, y)
        total += float(feature_utility(sent, own, shares, means, covariances)) * len(z)
        seen += len(z)
        if seen >= _JUDGED:
            break
    return total / seen
