"""The image decoder: the CEM paper's attacker, and the adversary that several defenses train against."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.layers import initialize, spare_global_generator


class ResidualBlock(nn.Module):
    """Twice (batch norm, ReLU, 3×3 convolution) beside a shortcut, 1×1 where the width changes."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, out, 3, padding=1),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, out, H, W)."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class Decoder(nn.Sequential):
    """Features (N, c, h, w) to images (N, C, H, W) in [0, 1].

    A residual block to ``width`` channels, ``depth`` residual blocks, one transposed convolution (3×3, stride 2, batch
    norm, ReLU) for each doubling up to the image size, a residual block to C channels, sigmoid (CEM, supplement S.3).
    Where doubling does not lead to the image's size, the nearest is resized to it (bilinear) before the last block.
    With depth 8 and width 64 it has the published 711,539 parameters at 8×8×8 → 3×32×32, and 415,091 with depth 4.

    The paper's 90.66 MMAC count each transposed convolution at its output's size; a transposed convolution of stride 2
    does a quarter of that, so we count 54.3 MMAC for the same network.

    Args:
        feature_shape: (c, h, w).
        image_shape: (C, H, W); H ≥ h and W ≥ w.
        depth: Number of residual blocks before the upsampling.
        width: Channels.
        generator: Source of the initial weights.

    Raises:
        InputError: The feature is no map (c, h, w), it is larger than the image, depth < 0 or width < 1.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        image_shape: tuple[int, int, int],
        *,
        depth: int = 8,
        width: int = 64,
        generator: torch.Generator,
    ) -> None:
        require_size(depth, width)
        times = doublings(feature_shape, image_shape)
        with spare_global_generator():
            layers: list[nn.Module] = [ResidualBlock(feature_shape[0], width)]
            layers += [ResidualBlock(width, width) for _ in range(depth)]
            for _ in range(times):
                up = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1)
                layers += [up, nn.BatchNorm2d(width), nn.ReLU()]
            if tuple(side << times for side in feature_shape[1:]) != image_shape[1:]:
                layers.append(nn.Upsample(image_shape[1:], mode="bilinear"))
            super().__init__(*layers, ResidualBlock(width, image_shape[0]), nn.Sigmoid())
        initialize(self, generator)


def require_size(depth: int, width: int, least: int = 1) -> None:
    """Check a decoder's depth and width.

    Raises:
        InputError: depth < 0, or width below ``least``.
    """
    if depth < 0 or width < least:
        raise InputError("decoder (depth, width)", (depth, width), f"depth of 0 or more, width of {least} or more")


def doublings(feature_shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> int:
    """How often (h, w) of a feature doubles to come nearest, by ratio, to (H, W) of an image.

    The side that has less to go decides, where the two differ.

    Raises:
        InputError: The feature is no map (c, h, w), or larger than the image.
    """
    sides = list(zip(image_shape[1:], feature_shape[1:]))
    if len(feature_shape) != 3 or any(image < feature for image, feature in sides):
        accepted = f"(c, h, w) with no side longer than the image's {image_shape[1:]}"
        raise InputError("feature shape", tuple(feature_shape), accepted)
    return round(math.log2(min(image / feature for image, feature in sides)))
