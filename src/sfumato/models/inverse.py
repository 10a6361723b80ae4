"""Networks that undo an edge layer by layer: the shape of an attacker's inverse network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import singledispatch
from itertools import chain, groupby

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.decoder import doublings
from sfumato.models.decoders import Standardize
from sfumato.models.layers import Dropout, Normalize, Stochastic, initialize, spare_global_generator
from sfumato.models.resnet import BasicBlock
from sfumato.models.split import output_shape

_SMALLEST_MAP = 4
_LARGEST_STRIDE = 4  # beyond it a transposed convolution has more weights than it can use
_Shape = tuple[int, ...]
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_BETWEEN = (*_NORMALIZATIONS, *_ACTIVATIONS)
_NOTHING_TO_UNDO = (nn.Identity, Normalize, Dropout, nn.Dropout, nn.Dropout2d, Stochastic)


class Inverse(nn.Sequential):
    """An edge backwards: features to images (N, C, H, W) in [0, 1].

    The edge's layers are gone through from the last to the first, each replaced by one from the shape of its output to
    that of its input (He et al. 2020, Yang et al. 2019): a convolution by a transposed one, a pooling by a transposed
    convolution of its stride with batch norm and ReLU before it, a linear layer by a linear layer, a residual block by
    a residual block. Normalizations and activations stay, in the edge's order. A layer of another kind becomes a
    convolution of 3×3 (or a linear layer) with batch norm and ReLU between the two shapes. The last layer is a sigmoid;
    there is no activation in front of the first, as the edge's has been applied to the feature already. Where the edge
    does not end with a normalization, the feature is standardized first (batch norm): its scale is the edge's choice,
    and tells nothing of how long a step should be.

    Only the edge's structure is read, never its weights.

    Args:
        edge: In any mode; left as it was.
        image_shape: (C, H, W) that the edge takes.
        generator: Source of the initial weights.
    """

    def __init__(self, edge: nn.Module, image_shape: tuple[int, int, int], *, generator: torch.Generator) -> None:
        with spare_global_generator():
            layers = _tidied(undo(edge, tuple(image_shape)))
            first = next((i for i, layer in enumerate(layers) if not isinstance(layer, _BETWEEN)), 0)
            head = [layer for layer in layers[:first] if not isinstance(layer, _ACTIVATIONS)]
            head = head or _standardized(output_shape(edge, image_shape))
            super().__init__(*head, *layers[first:], nn.Sigmoid())
        # Copied layers come as the edge has them: perhaps frozen, on another device, in another precision.
        self.to("cpu", torch.float32).requires_grad_(True).train()
        initialize(self, generator)


def assumed_edge(feature_shape: _Shape, image_shape: tuple[int, int, int], *, width: int = 64) -> nn.Sequential:
    """The edge that the shapes alone suggest: what an attacker assumes who knows nothing else.

    As many blocks (3×3 convolution, batch norm, ReLU, 2×2 max pool) as the image's sides halve to come nearest to the
    feature's, of ``width`` channels, doubling from block to block; then a convolution to the feature's channels. A
    feature that stays at the image's size is taken to be two convolutions; one that is no map, four by four pixels
    through a linear layer. The weights are PyTorch's and mean nothing.

    Args:
        feature_shape: Of what is sent, without the batch axis.
        image_shape: (C, H, W).
        width: Channels of the first block.

    Raises:
        InputError: The feature is a map that is larger than the image, or width < 1.
    """
    if width < 1:
        raise InputError("width", width, "1 or more")
    is_map = len(feature_shape) == 3
    halvings = doublings(feature_shape, image_shape) if is_map else _halvings(image_shape)
    layers: list[nn.Module] = []
    channels = image_shape[0]
    with spare_global_generator():
        for i in range(max(1, halvings)):
            out = width << i
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if halvings else []
            channels = out
        if is_map:
            layers.append(nn.Conv2d(channels, feature_shape[0], 3, padding=1))
            if output_shape(nn.Sequential(*layers), image_shape) != tuple(feature_shape):
                layers.append(nn.AdaptiveAvgPool2d(feature_shape[1:]))
        else:
            flat = math.prod(output_shape(nn.Sequential(*layers), image_shape))
            layers += [nn.Flatten(), nn.Linear(flat, math.prod(feature_shape)), nn.Unflatten(1, feature_shape)]
    return nn.Sequential(*layers)


def is_linear(inverse: Inverse) -> bool:
    """Whether there is no activation in an inverse but the sigmoid at its end."""
    return sum(isinstance(layer, _ACTIVATIONS) for layer in inverse.modules()) == 1


@singledispatch
def undo(layer: nn.Module, shape: _Shape) -> list[nn.Module]:
    """Layers from the shape of ``layer``'s output back to that of its input.

    Args:
        layer: Of the edge.
        shape: Of its input, without the batch axis.
    """
    if isinstance(layer, _NOTHING_TO_UNDO):
        return []
    if isinstance(layer, _BETWEEN):
        return [_fresh(layer)]
    out = output_shape(layer, shape)
    plain = out == shape and not any(True for _ in layer.parameters())
    return [] if plain else _between(out, shape)


@undo.register
def _(layer: nn.Sequential, shape: _Shape) -> list[nn.Module]:
    undone = []
    for inner in layer:
        undone.append(undo(inner, shape))
        shape = output_shape(inner, shape)
    return list(chain.from_iterable(reversed(undone)))


@undo.register
def _(layer: nn.Conv2d, shape: _Shape) -> list[nn.Module]:
    if isinstance(layer.padding, str):
        back = _to_channels(layer.out_channels, shape[0], layer.kernel_size)
        return [*_resized(output_shape(layer, shape), shape), back]
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    sides = zip(shape[1:], output_shape(layer, shape)[1:], layer.kernel_size, stride, padding, dilation)
    missing = [side - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for side, out, k, s, p, d in sides]
    return [
        nn.ConvTranspose2d(
            layer.out_channels,
            layer.in_channels,
            _pair(layer.kernel_size),
            _pair(stride),
            _pair(padding),
            _pair(missing),
            layer.groups,
            dilation=_pair(dilation),
        )
    ]


@undo.register(nn.MaxPool2d)
@undo.register(nn.AvgPool2d)
@undo.register(nn.AdaptiveAvgPool2d)
@undo.register(nn.AdaptiveMaxPool2d)
def _(layer: nn.Module, shape: _Shape) -> list[nn.Module]:
    out = output_shape(layer, shape)
    ratio = tuple(max(1, side // small) for side, small in zip(shape[1:], out[1:]))
    if max(ratio) > _LARGEST_STRIDE:
        return [nn.Upsample(shape[1:])]
    if max(ratio) == 1:
        return _resized(out, shape)
    enlarged = (shape[0], *(small * r for small, r in zip(out[1:], ratio)))
    # Cells overlap as far as an even number of pixels too many allows.
    kernel = _pair(2 * r - r % 2 for r in ratio)
    padding = _pair((k - r) // 2 for k, r in zip(kernel, ratio))
    unpool = nn.ConvTranspose2d(shape[0], shape[0], kernel, _pair(ratio), padding)
    return [nn.BatchNorm2d(shape[0]), nn.ReLU(), unpool, *_resized(enlarged, shape)]


@undo.register
def _(layer: nn.Linear, shape: _Shape) -> list[nn.Module]:
    return [nn.Linear(layer.out_features, layer.in_features)]


@undo.register(nn.Flatten)
@undo.register(nn.Unflatten)
def _(layer: nn.Module, shape: _Shape) -> list[nn.Module]:
    return [Reshape(shape)]


@undo.register
def _(layer: BasicBlock, shape: _Shape) -> list[nn.Module]:
    return [
        nn.ReLU(),
        Branches(*(nn.Sequential(*_tidied(undo(branch, shape))) for branch in (layer.body, layer.shortcut))),
    ]


class Branches(nn.ModuleList):
    """The sum of what several modules make of the same input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to whatever shape all branches give."""
        total: Tensor = sum(branch(x) for branch in self)
        return total


class Reshape(nn.Module):
    """Gives each sample another shape.

    Args:
        shape: Without the batch axis.
    """

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, *shape)."""
        return x.reshape(len(x), *self.shape)

    def extra_repr(self) -> str:
        """Show the shape."""
        return f"{self.shape}"


def _tidied(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Between two other layers one normalization and then one activation, which reversal has put the wrong way."""
    tidy: list[nn.Module] = []
    for between, run in groupby(layers, lambda layer: isinstance(layer, _BETWEEN)):
        found = list(run)
        kinds = [[layer for layer in found if isinstance(layer, kind)] for kind in (_NORMALIZATIONS, _ACTIVATIONS)]
        tidy += [kind[0] for kind in kinds if kind] if between else found
    return tidy


def _between(out: _Shape, shape: _Shape) -> list[nn.Module]:
    """A generic layer from one shape to another."""
    if len(out) == len(shape) == 3:
        layers = [_to_channels(out[0], shape[0], (3, 3)), nn.BatchNorm2d(shape[0]), nn.ReLU()]
        return [*_resized(out, shape), *layers]
    linear = nn.Linear(math.prod(out), math.prod(shape))
    return [nn.Flatten(), linear, nn.BatchNorm1d(math.prod(shape)), nn.ReLU(), Reshape(shape)]


def _to_channels(channels: int, out: int, kernel: tuple[int, ...]) -> nn.Module:
    odd = _pair(k | 1 for k in kernel)  # of even kernels PyTorch warns that they are slow
    return nn.Conv2d(channels, out, odd, padding="same")


def _resized(have: _Shape, wanted: _Shape) -> list[nn.Module]:
    return [] if have[1:] == wanted[1:] else [nn.Upsample(wanted[1:], mode="bilinear")]


def _standardized(shape: _Shape) -> list[nn.Module]:
    """Batch norm for what is a vector or a map."""
    if len(shape) == 1:
        return [Standardize(shape[0])]
    return [nn.BatchNorm2d(shape[0])] if len(shape) == 3 else []


def _pair(values: Iterable[int]) -> tuple[int, int]:
    down, across = values
    return down, across


def _fresh(layer: nn.Module) -> nn.Module:
    made = copy.deepcopy(layer)
    if hasattr(made, "reset_parameters"):
        made.reset_parameters()  # type: ignore[operator]
    return made


def _halvings(image_shape: tuple[int, int, int]) -> int:
    return max(0, int(math.log2(min(image_shape[1:]) / _SMALLEST_MAP)))
