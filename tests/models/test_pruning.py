"""Structured pruning: what is left computes what the whole did without the channels that went."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models import build, pruning

SHAPE = (3, 16, 16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edge(name: str = "vgg11", stages: int = 3, width: float = 0.1, size: int = 32) -> nn.Module:
    """The first stages of a backbone with running statistics of their own, in evaluation mode."""
    shape = (3, size, size)
    whole = build(name, 4, shape, width=width, generator=seeded())
    module = nn.Sequential(OrderedDict(list(whole.named_children())[:stages]))
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.weight, layer.bias):
                tensor.data.normal_(generator=seeded(len(tensor)))
            layer.running_var.uniform_(0.5, 2, generator=seeded(1))
    return module.eval()


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def scores(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = seeded(seed)
    return {group.producer: torch.rand(group.channels, generator=generator) for group in pruning.groups(module)}


def with_zeros(module: nn.Module, kept: dict[str, list[int]], x: Tensor) -> Tensor:
    """The whole network's answer where the other channels are zero as the next convolution reads them."""
    hooks = []
    for group in pruning.groups(module):
        mask = torch.zeros(group.channels)
        mask[kept[group.producer]] = 1
        consumer = module.get_submodule(group.consumer)
        hooks.append(consumer.register_forward_pre_hook(lambda _, z, m=mask: (z[0] * m.view(-1, 1, 1),)))
    try:
        return module(x)
    finally:
        for hook in hooks:
            hook.remove()


NETWORKS = [("vgg11", 4), ("vgg16", 4), ("resnet20", 3), ("resnet20", 5), ("resnet18", 4), ("cnn", 2)]


def test_groups_are_what_only_the_next_convolution_reads() -> None:
    found = pruning.groups(edge("vgg11", 3, width=0.125))
    assert [(g.producer, g.norms, g.consumer, g.channels) for g in found] == [
        ("conv1.0", ("conv1.1",), "conv2.0", 8),
        ("conv2.0", ("conv2.1",), "conv3.0", 16),
    ]
    # The ends of a residual block are read by its shortcut too.
    found = pruning.groups(edge("resnet20", 3, width=0.5))
    assert [(g.producer, g.consumer) for g in found] == [(f"layer1_{i}.body.0", f"layer1_{i}.body.3") for i in (1, 2)]
    assert pruning.groups(edge("vgg11", 1)) == []


@pytest.mark.parametrize(("name", "stages"), NETWORKS)
def test_what_is_left_computes_what_the_whole_did_without_the_rest(name: str, stages: int) -> None:
    module, x = edge(name, stages), torch.rand(3, 3, 32, 32, generator=seeded(5))
    before = copy.deepcopy(module.state_dict())
    kept = pruning.choose(module, scores(module), size(module) // 2)
    assert any(len(kept[group.producer]) < group.channels for group in pruning.groups(module))
    small = pruning.prune(module, kept)
    torch.testing.assert_close(small(x), with_zeros(module, kept, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small(x), module(x), rtol=1e-2)
    assert {group.producer: group.channels for group in pruning.groups(small)} == {k: len(v) for k, v in kept.items()}
    assert all(torch.equal(before[label], value) for label, value in module.state_dict().items())
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_features == len(layer.weight) == len(layer.running_mean)
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@given(seed=st.integers(0, 99), share=st.floats(0.02, 1.2), name=st.sampled_from(["vgg11", "resnet20", "cnn"]))
@settings(max_examples=12, deadline=None)
def test_choice_is_the_slow_twins(seed: int, share: float, name: str) -> None:
    """Channel by channel from the least important, each time counting what would really be left."""
    module = edge(name, 4 if name == "vgg11" else 3, width=0.05 if name != "resnet20" else 0.3)
    importance, target = scores(module, seed), round(share * size(module))
    kept = {group.producer: list(range(group.channels)) for group in pruning.groups(module)}
    ranked = sorted((float(s), name, i) for name, values in importance.items() for i, s in enumerate(values))
    for _, producer, channel in ranked:
        fewer = kept | {producer: [i for i in kept[producer] if i != channel]}
        if not fewer[producer]:
            continue
        now, then = (size(pruning.prune(module, k)) for k in (kept, fewer))
        if abs(then - target) < abs(now - target):
            kept = fewer
    assert pruning.choose(module, importance, target) == kept


def test_each_convolution_keeps_a_channel_and_nothing_goes_where_all_fit() -> None:
    module = edge("vgg11", 4)
    least = pruning.choose(module, scores(module), 0)
    assert [len(channels) for channels in least.values()] == [1, 1, 1]
    assert all(int(scores(module)[name].argmax()) == channels[0] for name, channels in least.items())
    for target in (size(module), 10 * size(module)):
        whole = pruning.choose(module, scores(module), target)
        assert [len(channels) for channels in whole.values()] == [group.channels for group in pruning.groups(module)]


@pytest.mark.parametrize(("name", "stages"), NETWORKS)
def test_saved_weights_give_their_widths_back(name: str, stages: int) -> None:
    module, x = edge(name, stages), torch.rand(2, 3, 32, 32, generator=seeded(5))
    small = pruning.prune(module, pruning.choose(module, scores(module), size(module) // 3))
    again = pruning.reshape(edge(name, stages), small.state_dict())
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    assert pruning.reshape(small, small.state_dict()) is small
    whole = pruning.reshape(small, module.state_dict())
    whole.load_state_dict(module.state_dict())
    assert torch.equal(whole(x), module(x))


@pytest.mark.parametrize(
    "other",
    [
        lambda: edge("vgg11", 2),  # no such layer
        lambda: edge("vgg16", 4),  # other numbers of channels that do not go together
        lambda: nn.Sequential(OrderedDict(conv1=nn.Sequential(nn.Conv2d(1, 6, 3)), conv2=edge("vgg11", 3).conv2)),
        lambda: nn.Sequential(OrderedDict((f"conv{i}", nn.Sequential(nn.BatchNorm2d(6))) for i in (1, 2, 3))),
    ],
)
def test_weights_of_another_network_are_refused(other: object) -> None:
    with pytest.raises(KeyError):
        pruning.reshape(edge("vgg11", 3), other().state_dict())  # type: ignore[operator]


def test_layers_keep_their_settings_and_the_rest_is_shared() -> None:
    shared = nn.ReLU()
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 5, stride=2, padding=4, dilation=2, bias=False), shared),
        nn.Sequential(nn.BatchNorm2d(6, eps=0.1, momentum=0.3), shared, nn.Conv2d(6, 5, 3)),
        nn.Sequential(nn.BatchNorm2d(5, affine=True)),
    ).double()
    module[0][0].weight.requires_grad_(False)
    small = pruning.prune(module, {"0.0": [1, 4, 5]})
    convolution, norm = small[0][0], small[1][0]
    assert (convolution.stride, convolution.padding, convolution.dilation, convolution.bias) == (
        (2, 2),
        (4, 4),
        (2, 2),
        None,
    )
    assert (norm.eps, norm.momentum, norm.num_features) == (0.1, 0.3, 3)
    assert convolution.weight.dtype == torch.float64
    assert not convolution.weight.requires_grad
    assert small[1][2].weight.requires_grad
    assert small[0][1] is small[1][1] is shared
    assert small[2] is module[2]
    assert torch.equal(small[1][2].weight, module[1][2].weight[:, [1, 4, 5]])


def test_global_generator_is_left_alone() -> None:
    module = edge()
    before = torch.get_rng_state()
    pruning.reshape(edge(), pruning.prune(module, pruning.choose(module, scores(module), 99)).state_dict())
    assert torch.equal(torch.get_rng_state(), before)


TWICE = nn.Conv2d(3, 3, 3, padding=1)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.GroupNorm(1, 3), "GroupNorm"),
        (nn.Linear(3, 3), "Linear"),
        (nn.Flatten(), "Flatten"),
        (nn.Conv2d(3, 3, 3, groups=3), "Conv2d"),
        (nn.Sequential(TWICE, TWICE), "a convolution used twice"),
    ],
)
def test_what_it_does_not_know_is_refused(layer: nn.Module, named: str) -> None:
    with pytest.raises(InputError, match=r"pruning \(a layer of the edge\): got .*; accepted: convolutions") as caught:
        pruning.groups(nn.Sequential(nn.Conv2d(3, 3, 3), layer, nn.Conv2d(3, 3, 3)))
    assert caught.value.value == named
