"""A transformer as image decoder: every place of the feature looks at every other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.models.decoder import ResidualBlock, doublings, require_size
from sfumato.models.layers import initialize, spare_global_generator

_MOST_TOKENS = 1024
"""Attention costs the square of it."""
_HEAD = 16
_DRAWN = 16
_POSITION_STD = 0.02


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017).

    Args:
        width: Channels of a token.
        heads: Divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, width) to the same."""
        query, key, value = self.project(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        merged: Tensor = self.merge(seen.transpose(1, 2).flatten(2))
        return merged


class TransformerBlock(nn.Module):
    """Attention, then two linear layers of four times the width; each behind a layer norm, beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, width) to the same."""
        tokens = tokens + self.attention(tokens)
        out: Tensor = tokens + self.mix(tokens)
        return out


class Tokens(nn.Module):
    """A map (N, c, h, w) as h·w tokens (N, h·w, c), with what their positions have learned added."""

    def __init__(self, places: int, channels: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(places, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Row by row."""
        return x.flatten(2).transpose(1, 2) + self.position


class Patches(nn.Module):
    """Tokens (N, rows·columns, k·p·q) as patches of p×q pixels in their places: (N, k, rows·p, columns·q)."""

    def __init__(self, grid: tuple[int, int], patch: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch

    def forward(self, tokens: Tensor) -> Tensor:
        """Row by row, pixels of a patch too."""
        (rows, columns), (p, q) = self.grid, self.patch
        blocks = tokens.reshape(len(tokens), rows, columns, -1, p, q).permute(0, 3, 1, 4, 2, 5)
        return blocks.reshape(len(tokens), -1, rows * p, columns * q)


class TransformerDecoder(nn.Sequential):
    """Features (N, c, h, w) to images (N, C, H, W) in [0, 1].

    After batch norm each place of the feature becomes a token (of maps of more than 1024 places, s×s of them together)
    with a learned position. ``depth`` transformer blocks (layer norm first, as in Dosovitskiy et al. 2021) let tokens
    look at each other. A linear layer draws the patch of pixels that each stands for, in 16 channels; a residual block
    to C channels smooths over the seams, and a sigmoid ends it. Where the image's sides do not divide, patches are of
    the next larger size and the whole is resized (bilinear). Heads have 16 channels where that divides ``width``.

    With w channels, T tokens and patches of p×q it has 2c + c·w·s² + w + T·w + depth·(12w² + 13w) + 2w + 16pq·(w + 1)
    parameters before the last block.

    Args:
        feature_shape: (c, h, w).
        image_shape: (C, H, W); H ≥ h and W ≥ w.
        depth: Transformer blocks.
        width: Channels of a token.
        generator: Source of the initial weights.

    Raises:
        InputError: The feature is no map (c, h, w), it is larger than the image, depth < 0 or width < 2.
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
        require_size(depth, width, least=2)
        doublings(feature_shape, image_shape)
        channels, h, w = feature_shape
        side = _taken_together(h, w)
        rows, columns = -(-h // side), -(-w // side)
        p, q = -(-image_shape[1] // rows), -(-image_shape[2] // columns)
        with spare_global_generator():
            tokens = Tokens(rows * columns, width)
            layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
            if (rows * side, columns * side) != (h, w):
                layers.append(nn.ZeroPad2d((0, columns * side - w, 0, rows * side - h)))
            layers += [nn.Conv2d(channels, width, side, stride=side), tokens]
            layers += [TransformerBlock(width, _heads(width)) for _ in range(depth)]
            layers += [nn.LayerNorm(width), nn.Linear(width, _DRAWN * p * q), Patches((rows, columns), (p, q))]
            if (rows * p, columns * q) != image_shape[1:]:
                layers.append(nn.Upsample(image_shape[1:], mode="bilinear"))
            super().__init__(*layers, ResidualBlock(_DRAWN, image_shape[0]), nn.Sigmoid())
        initialize(self, generator)
        nn.init.normal_(tokens.position, std=_POSITION_STD, generator=generator)


def _taken_together(h: int, w: int) -> int:
    """Smallest s such that s×s places a token leave few enough tokens."""
    side = 1
    while -(-h // side) * -(-w // side) > _MOST_TOKENS:
        side += 1
    return side


def _heads(width: int) -> int:
    return next(heads for heads in range(max(1, width // _HEAD), 0, -1) if width % heads == 0)
