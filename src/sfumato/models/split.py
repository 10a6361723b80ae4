"""Cut a network in two: the half on the device, what happens on the way, the half in the cloud."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from sfumato.errors import InputError, one_of
from sfumato.models.layers import Normalize


@dataclass(frozen=True)
class Feature:
    """What is known of the clean feature z' = edge(x).

    Args:
        shape: Without the batch axis.
        bounds: Smallest and largest possible value, ``None`` where there is no bound. Noise protects only a
            feature that the edge cannot scale up.
        noise_variance: Variance per element of the Gaussian noise that the channel adds (Σ_p = variance·I).
    """

    shape: tuple[int, ...]
    bounds: tuple[float, float] | None = None
    noise_variance: float = 0.0


class SplitModel(nn.Module):
    """A network in two halves.

    Args:
        edge: Images (N, C, H, W) in [0, 1] to the clean feature z'.
        channel: z' to what leaves the device, z: noise, dropout, quantization. It is on in training, under attack
            and in deployment alike, whatever the module's mode.
        cloud: z to logits (N, K).
        image_shape: (C, H, W).
        feature: What is known of z'.
        cut: Name of the last stage on the device.
    """

    def __init__(
        self,
        edge: nn.Module,
        channel: nn.Module,
        cloud: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        feature: Feature,
        cut: str,
    ) -> None:
        super().__init__()
        self.edge, self.channel, self.cloud = edge, channel, cloud
        self.image_shape, self.feature, self.cut = image_shape, feature, cut

    def send(self, x: Tensor) -> Tensor:
        """What an attacker can intercept: z = channel(edge(x))."""
        z: Tensor = self.channel(self.edge(x))
        return z

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K), through the channel."""
        logits: Tensor = self.cloud(self.send(x))
        return logits

    def with_parts(
        self,
        *,
        edge: nn.Module | None = None,
        channel: nn.Module | None = None,
        cloud: nn.Module | None = None,
        bounds: tuple[float, float] | None = None,
        noise_variance: float | None = None,
    ) -> Self:
        """The same split with some parts replaced; the feature's shape is measured again where the edge changed."""
        feature = self.feature
        if edge is not None:
            feature = replace(feature, shape=output_shape(edge, self.image_shape), bounds=bounds)
        if noise_variance is not None:
            feature = replace(feature, noise_variance=noise_variance)
        return type(self)(
            edge if edge is not None else self.edge,
            channel if channel is not None else self.channel,
            cloud if cloud is not None else self.cloud,
            image_shape=self.image_shape,
            feature=feature,
            cut=self.cut,
        )


def split(
    model: nn.Sequential,
    at: str,
    *,
    image_shape: tuple[int, int, int],
    normalization: _Normalization | None = None,
) -> SplitModel:
    """Cut a network of named stages after the stage ``at``.

    The halves share the model's modules; nothing is copied.

    Args:
        model: Named stages in order, e.g. a :class:`~sfumato.models.Backbone`.
        at: Name of the last stage on the device.
        image_shape: (C, H, W) of the images.
        normalization: Per-channel mean and standard deviation of [0, 1] pixels; becomes the edge's first layer.

    Raises:
        InputError: There is no such stage, nothing would be left for the cloud, or the network normalizes already.
    """
    # named_children() would leave out the second place of a module that is used twice, such as one shared ReLU.
    everything = model.named_modules(remove_duplicate=False)
    stages = OrderedDict((name, stage) for name, stage in everything if name and "." not in name)
    names = list(stages)
    if at not in names[:-1]:
        raise InputError("cut", at, one_of(names[:-1], at))
    position = names.index(at) + 1
    head: OrderedDict[str, nn.Module] = OrderedDict()
    if normalization is not None:
        if "normalize" in stages:
            raise InputError("normalization", normalization, "None: the network has a stage normalize of its own")
        head["normalize"] = Normalize(*normalization)
    head.update((name, stages[name]) for name in names[:position])
    edge = nn.Sequential(head)
    cloud = nn.Sequential(OrderedDict((name, stages[name]) for name in names[position:]))
    feature = Feature(output_shape(edge, image_shape))
    return SplitModel(edge, nn.Identity(), cloud, image_shape=image_shape, feature=feature, cut=at)


def output_shape(module: nn.Module, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of ``module``'s output for one input, without the batch axis; the module is left as it was."""
    tensor = next(module.parameters(), torch.empty(0))
    was_training = [layer for layer in module.modules() if layer.training]
    module.eval()
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, *input_shape, device=tensor.device, dtype=tensor.dtype))
    finally:
        for layer in was_training:
            layer.training = True
    return tuple(out.shape[1:])


_Normalization = tuple[Sequence[float], Sequence[float]]
