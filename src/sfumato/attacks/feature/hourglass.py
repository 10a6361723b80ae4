"""Untrained hourglass networks, one for each image of a batch, run side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_SLOPE = 0.2
_SKIPPED = 4
_FLATTEST = 2
"""Least side in pixels of the smallest map; a map of one pixel has nothing left after its normalization."""


class Hourglasses:
    """The hourglass with skip connections of Ulyanov et al. 2018, with weights of its own for each image.

    Each of ``depth`` levels halves the map (a 3×3 convolution of stride 2 and another of stride 1), doubles what comes
    back (bilinear), joins four channels of a 1×1 convolution of its own input, and mixes them (3×3 and 1×1). Every
    convolution is followed by a normalization over the map, a gain and a shift for each channel, and a leaky ReLU; the
    last one, 1×1, by a sigmoid. All networks run as one: grouped convolutions, a group an image.

    Args:
        image_shape: (C, H, W).
        inputs: Channels of the input.
        width: Channels of each level.
        depth: Levels.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, inputs: int, width: int, depth: int) -> None:
        self._image_shape, self._depth = image_shape, depth
        self._shapes: list[tuple[int, int, int]] = []  # out, in, kernel; in the order of their use
        for level in range(depth):
            into = inputs if level == 0 else width
            self._shapes += [(_SKIPPED, into, 1), (width, into, 3), (width, width, 3)]
        self._shapes += [(width, width + _SKIPPED, 3), (width, width, 1)] * depth
        self._shapes.append((image_shape[0], width, 1))

    def weights(self, generator: torch.Generator) -> list[Tensor]:
        """Initial weights of one network, drawn on the generator's device: He normal, gains 1, shifts 0."""
        made = []
        for out, into, kernel in self._shapes:
            size, device = (out, into, kernel, kernel), generator.device
            drawn = torch.randn(size, generator=generator, device=device) * math.sqrt(2 / (into * kernel**2))
            made += [drawn, torch.ones(out, 1, 1, device=device), torch.zeros(out, 1, 1, device=device)]
        return made

    def __call__(self, weights: list[Tensor], x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] of inputs (N, inputs, H, W); all weights have a first axis of N."""
        triples = iter(zip(weights[::3], weights[1::3], weights[2::3]))
        skips = []
        for _ in range(self._depth):
            skips.append(_layer(triples, x))
            x = _layer(triples, _layer(triples, x, stride=2))
        for skip in reversed(skips):
            x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = _layer(triples, _layer(triples, torch.cat([x, skip], 1)))
        kernel, gain, shift = next(triples)
        return (_convolve(x, kernel) * gain + shift).sigmoid()


def deepest(image_shape: tuple[int, int, int]) -> int:
    """Most levels that an image of this shape has."""
    return max(0, int(math.log2(min(image_shape[1:]) / _FLATTEST)))


def _layer(triples: Iterator[tuple[Tensor, Tensor, Tensor]], x: Tensor, stride: int = 1) -> Tensor:
    kernel, gain, shift = next(triples)
    return F.leaky_relu(F.instance_norm(_convolve(x, kernel, stride)) * gain + shift, _SLOPE)


def _convolve(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Each of N images with its own kernel (N, out, in, k, k), its border mirrored."""
    n, out, into, size, _ = kernel.shape
    half = size // 2
    flat = x.reshape(1, n * into, *x.shape[2:])
    if half:
        flat = F.pad(flat, (half,) * 4, mode="reflect")
    y = F.conv2d(flat, kernel.reshape(n * out, into, size, size), stride=stride, groups=n)
    return y.view(n, out, *y.shape[2:])
