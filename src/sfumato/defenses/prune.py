"""Make the edge smaller while it learns: whole channels go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.defenses.base import BoundDefense, Change, Defense, Epoch
from sfumato.defenses.deeper_edge import ExtraLayers
from sfumato.errors import InputError
from sfumato.models import SplitModel, Stochastic, pruning, set_generator

_EDGE = "edge."


@dataclass(frozen=True)
class Prune(Defense):
    """Remove channels of the edge's convolutions, once, late in training (PATROL, Ding et al. 2024).

    A channel's importance is the first-order Taylor estimate of what its loss would cost (Molchanov et al. 2019): the
    mean over all training images of (Σ a·∂ℓ/∂a)², a the channel where the next convolution reads it, the sum over its
    positions, ℓ the image's cross-entropy through the channel, batch norm in evaluation mode. The least important go,
    whatever convolution they are of, until the edge has the wanted number of parameters, or comes as near as whole
    channels allow. The feature keeps its shape. The optimizer begins anew.

    The network is smaller from then on, and epochs before it are not kept, however accurate.

    Args:
        at: Fraction of the epochs after which it happens, from 0 to below 1.
        keep: Fraction of the edge's parameters that stay, above 0 and below 1. By default as many as the edge has
            without the layers of ``deeper_edge``.
    """

    name: ClassVar[str] = "prune"
    source: ClassVar[str] = "Ding et al. 2024 (PATROL); Molchanov et al. 2019"
    watches: ClassVar[bool] = True
    at: float = 0.75
    keep: float | None = None

    def __post_init__(self) -> None:
        self._require(0 <= self.at < 1, "at", "a fraction of the epochs from 0 to below 1")
        self._require(self.keep is None or 0 < self.keep < 1, "keep", "a fraction above 0 and below 1, or none")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        if not pruning.groups(split.edge):
            raise InputError("defense prune", "an edge of a single convolution", "two convolutions in a row, or more")
        total = _size(split.edge)
        extra = sum(_size(layer) for layer in split.edge.modules() if isinstance(layer, ExtraLayers))
        if self.keep is None and not extra:
            raise InputError("defense prune", "an edge of its usual depth", "keep, or deeper_edge in the same chain")
        target = total - extra if self.keep is None else round(self.keep * total)
        return _BoundPrune(self.at, target, int(torch.randint(2**31, (), generator=generator)))


class _BoundPrune(BoundDefense):
    def __init__(self, at: float, target: int, seed: int) -> None:
        super().__init__()
        self._at, self._target, self._seed = at, target, seed

    def epoch_start(self, epoch: Epoch) -> Change | None:
        if epoch.index != min(round(self._at * epoch.total), epoch.total - 1):
            return None
        assert epoch.split is not None
        split = epoch.split
        # A stream of its own, the same in each process.
        generator = torch.Generator(epoch.generator.device).manual_seed(self._seed)
        importance = taylor_importance(split, epoch.batches, generator)
        # Sums on a GPU may differ in the last digit, which decides between channels that are nearly alike.
        kept = epoch.agree(pruning.choose(split.edge, importance, self._target))
        if all(len(kept[group.producer]) == group.channels for group in pruning.groups(split.edge)):
            return None
        return Change("pruned", _with_edge(split, pruning.prune(split.edge, kept)))

    def restore(self, split: SplitModel, weights: Mapping[str, Tensor]) -> SplitModel:
        own = {name.removeprefix(_EDGE): value for name, value in weights.items() if name.startswith(_EDGE)}
        edge = pruning.reshape(split.edge, own)
        return split if edge is split.edge else _with_edge(split, edge)


def taylor_importance(
    split: SplitModel, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], generator: torch.Generator
) -> dict[str, Tensor]:
    """Importance (channels,) of each group of the edge's channels, by its producer; see :class:`Prune`.

    Args:
        split: The model; left in the mode and with the generators that it had.
        batches: Starts a pass over (image, label).
        generator: For the channel.
    """
    found = pruning.groups(split.edge)
    read: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, inputs: read.__setitem__(name, inputs[0])

    hooks = [
        split.edge.get_submodule(group.consumer).register_forward_pre_hook(remember(group.producer)) for group in found
    ]
    sources = [(layer, layer.generator) for layer in split.modules() if isinstance(layer, Stochastic)]
    was_training = split.training
    split.eval()
    set_generator(split, generator)
    total: dict[str, Tensor] = {}
    images = 0
    try:
        for x, y in batches():
            loss = F.cross_entropy(split(x), y, reduction="sum")
            gradients = torch.autograd.grad(loss, [read[group.producer] for group in found])
            for group, gradient in zip(found, gradients):
                change = (read[group.producer].detach() * gradient).sum((2, 3)).square().sum(0)
                total[group.producer] = total.get(group.producer, 0) + change
            images += len(y)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, source in sources:
            layer.generator = source
        split.train(was_training)
    return {name: value / images for name, value in total.items()}


def _with_edge(split: SplitModel, edge: nn.Module) -> SplitModel:
    return split.with_parts(edge=edge, bounds=split.feature.bounds)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
