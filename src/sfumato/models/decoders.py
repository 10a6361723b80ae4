"""The decoders by name, for features that are maps and for those that are vectors."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import InputError, one_of
from sfumato.models.decoder import Decoder, doublings, require_size
from sfumato.models.layers import initialize, spare_global_generator
from sfumato.models.transformer_decoder import TransformerDecoder
from sfumato.models.unet_decoder import UNetDecoder

Architecture = Literal["residual", "unet", "transformer"]
_SMALLEST = 8


class _Builder(Protocol):
    def __call__(
        self,
        feature_shape: tuple[int, ...],
        image_shape: tuple[int, int, int],
        *,
        depth: int,
        width: int,
        generator: torch.Generator,
    ) -> nn.Module: ...


DECODERS: dict[str, _Builder] = {"residual": Decoder, "unet": UNetDecoder, "transformer": TransformerDecoder}


class Standardize(nn.BatchNorm1d):
    """Batch norm of vectors (N, d); a batch of one vector, which has no variance, takes the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Each element by itself."""
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def make_decoder(
    architecture: Architecture,
    feature_shape: tuple[int, ...],
    image_shape: tuple[int, int, int],
    *,
    depth: int = 8,
    width: int = 64,
    generator: torch.Generator,
) -> nn.Module:
    """A network from features (N, c, h, w) or (N, d) to images (N, C, H, W) in [0, 1].

    A vector is first made a map, by batch norm and a linear layer: of ``width`` channels, and of the image's size
    halved until its shorter side is below 8.

    Args:
        architecture: ``residual``, ``unet`` or ``transformer``.
        feature_shape: Without the batch axis.
        image_shape: (C, H, W).
        depth: Blocks: residual ones, or of the transformer.
        width: Channels.
        generator: Source of the initial weights.

    Raises:
        InputError: No such architecture, the feature is neither a vector nor a map that fits into the image, depth < 0
            or width below :func:`least_width`.
    """
    if architecture not in DECODERS:
        raise InputError("decoder architecture", architecture, one_of(DECODERS, architecture))
    check_decodable(feature_shape, image_shape)
    build = DECODERS[architecture]
    if len(feature_shape) == 3:
        return build(feature_shape, image_shape, depth=depth, width=width, generator=generator)
    require_size(depth, width, least_width(architecture))
    map_shape = (width, *_small(*image_shape[1:]))
    with spare_global_generator():
        stem = nn.Linear(feature_shape[0], math.prod(map_shape))
    initialize(stem, generator)
    decoder = build(map_shape, image_shape, depth=depth, width=width, generator=generator)
    return nn.Sequential(Standardize(feature_shape[0]), stem, nn.Unflatten(1, map_shape), decoder)


def least_width(architecture: Architecture) -> int:
    """1, and 2 for a transformer: what a layer norm makes of a single channel is a constant."""
    return 2 if architecture == "transformer" else 1


def check_decodable(feature_shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> None:
    """Whether there is a decoder for such features.

    Raises:
        InputError: Neither a vector (d,) nor a map (c, h, w) that fits into the image.
    """
    if len(feature_shape) == 1:
        return
    try:
        doublings(feature_shape, image_shape)
    except InputError as error:
        raise InputError(error.field, error.value, f"(d,), or {error.accepted}") from error


def _small(height: int, breadth: int) -> tuple[int, int]:
    while min(height, breadth) >= _SMALLEST:
        height, breadth = -(-height // 2), -(-breadth // 2)
    return height, breadth
