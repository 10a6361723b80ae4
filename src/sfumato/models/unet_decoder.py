"""A U-Net-like image decoder: it works at the image's own size and looks far around each pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.models.decoder import ResidualBlock, doublings, require_size
from sfumato.models.layers import initialize, spare_global_generator


class UNet(nn.Module):
    """Residual blocks down and up again, with a shortcut at each size (after Ronneberger et al. 2015).

    Every level has a block before its size is halved and one after it has been restored, which also sees the shortcut.
    All levels have the same number of channels. Odd sizes are halved rounding up.

    Args:
        channels: Of input and output.
        levels: How often the size is halved.
        bottom: Blocks at the smallest size.
    """

    def __init__(self, channels: int, levels: int, bottom: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(levels))
        self.bottom = nn.Sequential(*(ResidualBlock(channels, channels) for _ in range(bottom)))
        self.up = nn.ModuleList(ResidualBlock(2 * channels, channels) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        shortcuts = []
        for block in self.down:
            x = block(x)
            shortcuts.append(x)
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = self.bottom(x)
        for block in self.up:
            shortcut = shortcuts.pop()
            x = block(torch.cat([F.interpolate(x, shortcut.shape[2:], mode="bilinear"), shortcut], dim=1))
        return x


class UNetDecoder(nn.Sequential):
    """Features (N, c, h, w) to images (N, C, H, W) in [0, 1].

    Batch norm and one transposed convolution whose kernel is its stride enlarge the map to the image's size at once;
    where the sides do not divide, to the next larger multiple, which is resized (bilinear). A :class:`UNet` works
    there, and a residual block to C channels and a sigmoid end it.

    With w channels, a kernel of p×q, L levels and B blocks at the bottom it has
    2c + w·(c·p·q + 1) + L·(47w² + 16w) + B·(18w² + 6w) parameters before the last block.

    Args:
        feature_shape: (c, h, w).
        image_shape: (C, H, W); H ≥ h and W ≥ w.
        depth: Residual blocks of the U-Net. Two of them make a level as long as one is left for the bottom and the
            smallest map has sides of 2 or more; the others are at the bottom.
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
        doublings(feature_shape, image_shape)
        channels, h, w = feature_shape
        scale = (-(-image_shape[1] // h), -(-image_shape[2] // w))
        levels = max(0, min((depth - 1) // 2, int(math.log2(min(image_shape[1:]))) - 1))
        with spare_global_generator():
            layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
            layers.append(nn.ConvTranspose2d(channels, width, scale, stride=scale))
            if (h * scale[0], w * scale[1]) != image_shape[1:]:
                layers.append(nn.Upsample(image_shape[1:], mode="bilinear"))
            layers.append(UNet(width, levels, depth - 2 * levels))
            super().__init__(*layers, ResidualBlock(width, image_shape[0]), nn.Sigmoid())
        initialize(self, generator)
