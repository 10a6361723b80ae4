"""glue"""

from __future__ import annotations
import torch
from torch import Tensor, nn
from sfumato.data import ImageSet, Splits
from sfumato.defenses.noise import AdditiveNoise
from sfumato.information import Bed
from sfumato.models import Feature, SplitModel


def images_of(bed: Bed, count: int, *, generator: torch.Generator, name: str = "bed") -> ImageSet:
    x, component = bed.draw(count, generator=generator)
    pixels = (x * 255).round().clamp(0, 255).to(torch.uint8)
    classes = tuple(f"component {i}" for i in range(int(component.max()) + 1))
    return ImageSet(pixels, component, classes, name)


def split_model_of(bed: Bed) -> SplitModel:
    channel = bed.channel
    d = channel.weight.shape[1]
    layer = nn.utils.skip_init(nn.Linear, d, len(channel.weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(channel.weight)
    edge = nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, channel.feature_shape))
    cloud = nn.Flatten()
    return SplitModel(
        edge,
        AdditiveNoise(channel.sigma, "gaussian"),
        cloud,
        image_shape=bed.image_shape,
        feature=Feature(channel.feature_shape, noise_variance=channel.sigma**2),
        cut="edge",
    )
