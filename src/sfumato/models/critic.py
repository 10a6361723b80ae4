"""The critic of a Wasserstein GAN: one number for how much an image looks like a real one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.layers import initialize, spare_global_generator

_SMALLEST = 8
_MOST_TIMES = 8
_SLOPE = 0.2


class Critic(nn.Module):
    """Images (N, C, H, W) to scores (N,), of any sign; higher is more real.

    A 3×3 convolution to ``width`` channels, then 4×4 convolutions of stride 2 until the shorter side is below 8, each
    twice as wide as the one before up to eight times ``width``, and a linear layer; leaky rectifiers between. The
    gradient penalty is one of each image, so that no layer may mix the images of a batch: the strided convolutions
    are normalized over each image by itself (Gulrajani et al. 2017, section 4).

    Args:
        image_shape: (C, H, W).
        width: Channels of the first convolution.
        generator: Source of the initial weights.

    Raises:
        InputError: width < 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, width: int = 64, generator: torch.Generator) -> None:
        super().__init__()
        if width < 1:
            raise InputError("critic width", width, "1 or more")
        channels, height, breadth = width, *image_shape[1:]
        with spare_global_generator():
            layers: list[nn.Module] = [nn.Conv2d(image_shape[0], width, 3, padding=1), nn.LeakyReLU(_SLOPE)]
            while min(height, breadth) >= _SMALLEST:
                wider = min(2 * channels, _MOST_TIMES * width)
                layers += [nn.Conv2d(channels, wider, 4, stride=2, padding=1), nn.GroupNorm(1, wider)]
                layers.append(nn.LeakyReLU(_SLOPE))
                channels, height, breadth = wider, height // 2, breadth // 2
            layers += [nn.Flatten(), nn.Linear(math.prod((channels, height, breadth)), 1)]
            self.layers = nn.Sequential(*layers)
        initialize(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Scores."""
        scores: Tensor = self.layers(images)
        return scores.squeeze(1)
