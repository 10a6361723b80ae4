"""The CEM paper's parameter and MMAC figures, reconciled with ours by arithmetic."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from sfumato.defenses import Bottleneck
from sfumato.metrics import macs, parameters, split_cost
from sfumato.models import Decoder, SplitModel, build, split


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def published_split() -> SplitModel:
    model = build("vgg11", 10, (3, 32, 32), generator=seeded())
    cut = split(model, "conv2", image_shape=(3, 32, 32))
    return Bottleneck(8).bind(cut, generator=seeded()).defend(cut)


def operations(module: nn.Module, x: Tensor) -> Counter[str]:
    """Operations by kind, layer by layer, a transposed convolution at its output's size."""
    found: Counter[str] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            found["multiplications"] += out.numel() * layer.in_channels * layer.kernel_size[0] ** 2
        elif isinstance(layer, nn.ConvTranspose2d):
            found["transposed"] += out.numel() * layer.in_channels * layer.kernel_size[0] ** 2
        elif isinstance(layer, nn.Linear):
            found["multiplications"] += layer.in_features * layer.out_features
        elif isinstance(layer, nn.BatchNorm2d):
            found["norm"] += 2 * out.numel()
        elif isinstance(layer, (nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d)):
            found["activation"] += inputs[0].numel()
        if getattr(layer, "bias", None) is not None and not isinstance(layer, nn.BatchNorm2d):
            found["bias"] += out.numel()

    handles = [layer.register_forward_hook(count) for layer in module.modules()]
    with torch.no_grad():
        module.eval()(x)
    for handle in handles:
        handle.remove()
    return found


def test_parameters(published_split: SplitModel) -> None:
    cost = split_cost(published_split)
    assert cost.edge_parameters == parameters(published_split.edge) == 85_256
    assert cost.cloud_parameters == 9_689_738
    assert cost.edge_parameters + cost.cloud_parameters == 9_774_994  # the paper's 9.78 M is the whole model
    assert cost.payload_bytes == 4 * 8 * 8 * 8


def test_edge_macs(published_split: SplitModel) -> None:
    by_hand = 9 * (3 * 64 * 32**2 + 64 * 128 * 16**2 + 128 * 8 * 8**2)
    assert split_cost(published_split).edge_macs == by_hand == 21_233_664
    found = operations(published_split.edge, torch.zeros(1, 3, 32, 32))
    assert found["multiplications"] == by_hand
    total = sum(found.values()) + found["activation"]
    assert total == pytest.approx(21.92e6, abs=0.005e6)
    assert total == pytest.approx(21.9e6, abs=0.05e6)  # published to one decimal
    assert found.total() < 21.85e6  # counted once, activations and pooling do not reach the published figure


def test_cloud_macs(published_split: SplitModel) -> None:
    planes = [(8, 128, 8), (128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4), (512, 512, 2), (512, 512, 2)]
    by_hand = sum(9 * a * b * size**2 for a, b, size in planes) + 2 * 512 * 512 + 512 * 10
    assert split_cost(published_split).cloud_macs == by_hand == 133_239_808
    found = operations(published_split.cloud, torch.zeros(1, 8, 8, 8))
    assert found["multiplications"] == by_hand
    total = sum(found.values()) + found["activation"]
    assert total == pytest.approx(133.57e6, abs=0.005e6)
    assert total == pytest.approx(133.59e6, abs=0.025e6)


def test_decoder_macs() -> None:
    network, z = Decoder((8, 8, 8), (3, 32, 32), generator=seeded()), torch.zeros(1, 8, 8, 8)
    found = operations(network, z)
    # Stride 2: of the nine taps of each output pixel a quarter meets an input pixel.
    assert macs(network, z) == found["multiplications"] + found["transposed"] // 4
    assert macs(network, z) == pytest.approx(54.3e6, abs=0.05e6)
    once, twice = found.total(), found.total() + found["activation"]
    assert once < 90.66e6 < twice
    assert twice == pytest.approx(90.66e6, abs=0.1e6)
