"""What the model is good for."""

from __future__ import annotations

import torch

from sfumato.data import Batches, ImageSet
from sfumato.models import SplitModel, set_generator

_BATCH = 512


@torch.no_grad()
def accuracy(split: SplitModel, images: ImageSet, *, generator: torch.Generator) -> float:
    """Fraction of images classified right, through the deployed channel.

    Args:
        split: Put into evaluation mode; its stochastic layers draw from ``generator`` from here on.
        images: On the model's device.
        generator: Source of the channel's noise.
    """
    split.eval()
    set_generator(split, generator)
    right = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    for x, y in Batches(images, _BATCH, shuffle=False):
        right += (split(x).argmax(1) == y).sum()
    return int(right) / len(images)
