"""Structured pruning: convolutions lose whole output channels, and what comes after them the same inputs.

Works on chains of convolutions with batch norm, activations and pooling between them, and inside residual blocks,
whose ends keep their width because the shortcut is added there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models.layers import Dropout, Normalize
from sfumato.models.resnet import BasicBlock

# Layers that treat every channel by itself, so that one can go without the others noticing.
_CHANNELWISE = (
    *(nn.BatchNorm2d, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Identity),
    *(nn.MaxPool2d, nn.AvgPool2d, Dropout, Normalize),
)
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Group:
    """Channels that can go: outputs of one convolution that nothing but the next one reads. Qualified names.

    Attributes:
        producer: The convolution whose outputs they are.
        norms: Batch norms between the two.
        consumer: The convolution that reads them.
        channels: How many there are.
    """

    producer: str
    norms: tuple[str, ...]
    consumer: str
    channels: int


def groups(module: nn.Module) -> list[Group]:
    """All channels of a network that can go, a group for each convolution that another one follows.

    Raises:
        InputError: A layer of which it is not known how its channels hang together.
    """
    runs: list[list[tuple[str, nn.Module]]] = [[]]
    _collect(module, "", runs)
    used = [layer for run in runs for _, layer in run if isinstance(layer, nn.Conv2d)]
    if len(set(used)) < len(used):
        raise InputError("pruning (a layer of the edge)", "a convolution used twice", "convolutions used once each")
    found = []
    for run in runs:
        places = [i for i, (_, layer) in enumerate(run) if isinstance(layer, nn.Conv2d)]
        for start, end in pairwise(places):
            producer, layer = run[start]
            assert isinstance(layer, nn.Conv2d)
            norms = tuple(name for name, between in run[start:end] if isinstance(between, nn.BatchNorm2d))
            found.append(Group(producer, norms, run[end][0], layer.out_channels))
    return found


def choose(module: nn.Module, importance: Mapping[str, Tensor], target: int) -> dict[str, list[int]]:
    """Which channels to keep so that the number of parameters comes as near ``target`` as it can.

    The least important go first, whatever convolution they are of; one whose loss would lead further away from the
    target is passed over, and each convolution keeps at least one.

    Args:
        module: As for :func:`groups`.
        importance: A score (channels,) for each group, by its producer.
        target: Wanted number of parameters.

    Returns:
        Kept channels of each group, in order, by its producer.
    """
    found = groups(module)
    kept = {group.producer: set(range(group.channels)) for group in found}
    scores = [(float(s), group.producer, i) for group in found for i, s in enumerate(importance[group.producer])]
    size = sum(p.numel() for p in module.parameters())
    for _, name, channel in sorted(scores):
        smaller = size - _cost(module, found, kept, name)
        if len(kept[name]) > 1 and abs(smaller - target) < abs(size - target):
            kept[name].remove(channel)
            size = smaller
    return {name: sorted(channels) for name, channels in kept.items()}


def prune(module: nn.Module, kept: Mapping[str, list[int]]) -> nn.Module:
    """The network without the other channels: what it gave before with their values at the next convolution zero.

    Args:
        module: As for :func:`groups`; left as it was.
        kept: Channels to keep of each group, by its producer.

    Returns:
        A smaller network of new layers, with the kept weights and running statistics; untouched layers are shared.
    """
    named = dict(module.named_modules())
    values: dict[str, dict[str, Tensor]] = {}

    def select(name: str, axis: int, channels: list[int]) -> None:
        tensors = values.setdefault(name, dict(named[name].state_dict()))
        for kind in _PER_CHANNEL if axis == 0 else ("weight",):
            if kind in tensors:
                index = tensors[kind].new_tensor(channels).long()
                tensors[kind] = tensors[kind].index_select(axis, index)

    for group in groups(module):
        for name in (group.producer, *group.norms):
            select(name, 0, kept[group.producer])
        select(group.consumer, 1, kept[group.producer])
    return _replaced(module, {named[name]: _with(named[name], tensors) for name, tensors in values.items()})


def reshape(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network at the widths that saved weights have; the module itself where it has them already.

    Args:
        module: As for :func:`groups`.
        weights: Its state, from before or after :func:`prune`.

    Raises:
        KeyError: They are of another network.
    """
    axes: dict[str, set[int]] = {}
    for group in groups(module):
        ends = [(name, 0) for name in (group.producer, *group.norms)] + [(group.consumer, 1)]
        for name, axis in ends:
            axes.setdefault(name, set()).add(axis)
        if len({weights[f"{name}.weight"].shape[axis:][:1] for name, axis in ends}) > 1:
            raise KeyError(group.producer)
    changed: dict[nn.Module, nn.Module] = {}
    for name, free in axes.items():
        layer = module.get_submodule(name)
        own = layer.state_dict()
        saved = {kind: weights[f"{name}.{kind}"].to(tensor) for kind, tensor in own.items()}
        here, there = own["weight"].shape, saved["weight"].shape
        differing = {axis for axis, (a, b) in enumerate(zip(here, there)) if a != b}
        if len(here) != len(there) or not differing <= free:
            raise KeyError(name)
        if differing:
            changed[layer] = _with(layer, saved)
    return _replaced(module, changed) if changed else module


def _collect(module: nn.Module, prefix: str, runs: list[list[tuple[str, nn.Module]]]) -> None:
    if not isinstance(module, nn.Sequential):
        raise _unknown(module)
    for name, child in module._modules.items():
        assert child is not None
        path = prefix + name
        if isinstance(child, BasicBlock):
            # What enters and leaves it is read by the shortcut too.
            runs.append([])
            _collect(child.body, f"{path}.body.", runs)
            runs.append([])
        elif isinstance(child, _CHANNELWISE) or (isinstance(child, nn.Conv2d) and child.groups == 1):
            runs[-1].append((path, child))
        else:
            _collect(child, f"{path}.", runs)


def _unknown(module: nn.Module) -> InputError:
    known = "convolutions, batch norm, ReLU, pooling, bounded activations, dropout and residual blocks in a row"
    return InputError("pruning (a layer of the edge)", type(module).__name__, known)


def _cost(module: nn.Module, found: list[Group], kept: Mapping[str, set[int]], name: str) -> int:
    """Parameters that one channel less of a group saves at the present widths."""
    group = next(group for group in found if group.producer == name)
    producer, consumer = module.get_submodule(group.producer), module.get_submodule(group.consumer)
    assert isinstance(producer, nn.Conv2d)
    assert isinstance(consumer, nn.Conv2d)
    # The producer's inputs and the consumer's outputs may have shrunk themselves.
    inputs = next((len(kept[g.producer]) for g in found if g.consumer == name), producer.in_channels)
    outputs = len(kept[group.consumer]) if group.consumer in kept else consumer.out_channels
    own = inputs * producer.weight[0, 0].numel() + (producer.bias is not None)
    norms = sum(p.numel() // group.channels for norm in group.norms for p in module.get_submodule(norm).parameters())
    return int(own + norms + outputs * consumer.weight[0, 0].numel())


def _with(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A layer like ``layer`` with other weights and running statistics."""
    twin = copy.deepcopy(layer)
    for name, tensor in tensors.items():
        if name in dict(layer.named_parameters()):
            trained = getattr(layer, name).requires_grad
            setattr(twin, name, nn.Parameter(tensor.detach().clone(), requires_grad=trained))
        else:
            setattr(twin, name, tensor.detach().clone())
    if isinstance(twin, nn.Conv2d):
        twin.out_channels, twin.in_channels = twin.weight.shape[:2]
    elif isinstance(twin, nn.BatchNorm2d):
        twin.num_features = len(tensors["running_mean"])
    return twin


def _replaced(module: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The same containers around other layers; what is not replaced is shared."""
    if module in layers:
        return layers[module]
    if all(inner not in layers for inner in module.modules()):
        return module
    twin = copy.copy(module)
    # Not named_children(), which leaves out the second place of a layer that is used twice, such as a shared ReLU.
    twin._modules = {name: child and _replaced(child, layers) for name, child in module._modules.items()}
    return twin
