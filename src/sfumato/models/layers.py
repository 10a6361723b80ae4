"""Layers shared by the backbones, and the rule for randomness inside a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

_DRAWS = 16
_AFFINE = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Linear, nn.Conv2d, nn.AvgPool2d)


class Stochastic(nn.Module):
    """A layer that draws random numbers from a generator it was given, and from nothing else.

    The generator is no part of the state: whoever runs the model sets it with :func:`set_generator`, so that
    training, an attack and a server each have a stream of their own.
    """

    generator: torch.Generator | None = None

    def expected(self, z: Tensor) -> Tensor:
        """Mean of the output given the input; estimated from 16 draws where a layer does not know better."""
        return torch.stack([self(z) for _ in range(_DRAWS)]).mean(0)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) of the shape, device and floating type of ``like``."""
        source = self._source()
        return torch.rand(like.shape, generator=source, device=source.device, dtype=like.dtype).to(like.device)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, device and floating type of ``like``."""
        source = self._source()
        return torch.randn(like.shape, generator=source, device=source.device, dtype=like.dtype).to(like.device)

    def _source(self) -> torch.Generator:
        if self.generator is None:
            raise RuntimeError(f"{type(self).__name__} has no generator: call set_generator(model, generator) first")
        return self.generator


def expected(channel: nn.Module, z: Tensor) -> Tensor:
    """Mean of what a channel sends for the clean feature z, differentiable where the channel is.

    Layers in a row each pass on the mean of the one before, which is exact as long as those behind a random one are
    affine, as noise and dropout are. Where they are not (noise, then rounding) it is the mean of 16 draws.

    Args:
        channel: A layer, or several in a row.
        z: (N, ...).
    """
    if not isinstance(channel, nn.Sequential):
        sent: Tensor = channel.expected(z) if isinstance(channel, Stochastic) else channel(z)
        return sent
    layers = list(channel)
    for i, layer in enumerate(layers):
        if _is_random(layer) and not all(map(_is_affine, layers[i + 1 :])):
            rest = nn.Sequential(*layers[i:])
            return torch.stack([rest(z) for _ in range(_DRAWS)]).mean(0)
        z = expected(layer, z)
    return z


def _is_random(layer: nn.Module) -> bool:
    return any(isinstance(part, Stochastic) for part in layer.modules())


def _is_affine(layer: nn.Module) -> bool:
    """Whether it is known that a mean passes through it unchanged, if random in the mean."""
    if isinstance(layer, nn.Sequential):
        return all(map(_is_affine, layer))
    # A random layer that knows its mean is noise or a mask.
    knows = isinstance(layer, Stochastic) and type(layer).expected is not Stochastic.expected
    return knows or isinstance(layer, _AFFINE)


def set_generator(module: nn.Module, generator: torch.Generator | None) -> None:
    """Make every stochastic layer inside ``module`` draw from ``generator``."""
    for layer in module.modules():
        if isinstance(layer, Stochastic):
            layer.generator = generator


class Dropout(Stochastic):
    """Dropout of a classifier (Srivastava et al. 2014): on in training only, rescaled, from a generator."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability p and scale the rest by 1/(1 − p); nothing in evaluation."""
        if not self.training or self.p == 0:
            return x
        return x * ((self.uniform(x) >= self.p).to(x.dtype) / (1 - self.p))

    def expected(self, z: Tensor) -> Tensor:
        """The input: what is kept is rescaled."""
        return z

    def extra_repr(self) -> str:
        """Show p."""
        return f"p={self.p}"


class Normalize(nn.Module):
    """Pixels in [0, 1] to (x − mean)/std per channel: the first thing an edge does, so that it travels with it.

    Args:
        mean: C values in [0, 1].
        std: C positive values.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return (x - self.mean) / self.std


def initialize(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw all weights from ``generator``, in the order of the modules.

    Convolutions: He normal, fan out (He et al. 2015). Linear layers: normal with standard deviation 1/√fan_in.
    Biases zero; normalization layers one and zero. PyTorch's constructors draw from the global generator, which the
    library leaves alone: build under :func:`spare_global_generator`.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 1 / math.sqrt(layer.in_features), generator=generator)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()  # draws nothing: ones and zeros
                continue
            else:
                continue
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def spare_global_generator() -> AbstractContextManager[None]:
    """A block after which the global generator is as it was: PyTorch's constructors draw weights from it."""
    return torch.random.fork_rng(devices=[])


def scaled(channels: int, width: float) -> int:
    """``channels`` times a width multiplier, at least 1."""
    return max(1, round(channels * width))
