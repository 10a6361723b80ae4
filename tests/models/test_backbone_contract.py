"""One row for every registered backbone; a backbone without a row fails a test."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models import BACKBONES, Dropout, Feature, build, set_generator, split


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv(channels: int, out: int, size: int = 3, *, bias: bool = True) -> int:
    """Parameters of a convolution and the batch norm behind it."""
    return channels * out * size**2 + out * bias + 2 * out


def linear(width: int, out: int) -> int:
    return width * out + out


def plain(*channels: int) -> int:
    return sum(conv(a, b) for a, b in pairwise(channels))


def residual(channels: int, out: int, *, first: bool = False) -> int:
    shortcut = 0 if first or channels == out else conv(channels, out, 1, bias=False)
    return conv(channels, out, bias=False) + conv(out, out, bias=False) + shortcut


@dataclass(frozen=True)
class Row:
    """Figures at 10 classes, RGB, 32×32; ``whole`` and ``edge`` count parameters."""

    stages: int
    cut: str
    feature: tuple[int, int, int]
    edge: int
    whole: int


TABLE = {
    "vgg11": Row(
        9,
        "conv2",
        (128, 8, 8),
        plain(3, 64, 128),
        plain(3, 64, 128, 256, 256, 512, 512, 512, 512) + 2 * linear(512, 512) + linear(512, 10),
    ),
    "vgg16": Row(
        14,
        "conv4",
        (128, 8, 8),
        plain(3, 64, 64, 128, 128),
        plain(3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
        + 2 * linear(512, 512)
        + linear(512, 10),
    ),
    "resnet20": Row(
        11,
        "layer1_1",
        (16, 32, 32),
        conv(3, 16, bias=False) + residual(16, 16),
        conv(3, 16, bias=False)
        + 3 * residual(16, 16)
        + residual(16, 32)
        + 2 * residual(32, 32)
        + residual(32, 64)
        + 2 * residual(64, 64)
        + linear(64, 10),
    ),
    "resnet18": Row(10, "layer1_1", (64, 32, 32), conv(3, 64, bias=False) + residual(64, 64), 11_173_962),
    "cnn": Row(
        5,
        "block2",
        (256, 8, 8),
        299_520,
        plain(3, 128, 256, 512, 1024) + linear(1024 * 2 * 2, 50) + linear(50, 10),
    ),
}


@pytest.mark.parametrize("registered", BACKBONES)
def test_every_backbone_has_a_row(registered: str) -> None:
    assert registered in TABLE
    info = BACKBONES[registered]
    assert info.summary
    assert info.source


@pytest.mark.parametrize("name", TABLE)
def test_counts_stages_and_published_cut(name: str) -> None:
    row, model = TABLE[name], build(name, 10, (3, 32, 32), generator=seeded())
    assert len(model) == row.stages
    assert model.default_cut == row.cut
    assert model.image_shape == (3, 32, 32)
    cut = split(model, row.cut, image_shape=(3, 32, 32))
    assert cut.feature == Feature(row.feature, bounds=None, noise_variance=0.0)
    assert cut.cut == row.cut
    assert sum(p.numel() for p in cut.edge.parameters()) == row.edge
    assert sum(p.numel() for p in model.parameters()) == row.whole


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize(
    ("shape", "width", "classes"),
    [((1, 32, 32), 0.25, 2), ((3, 64, 64), 0.125, 5), ((1, 64, 32), 0.1, 3), ((3, 32, 48), 0.01, 1)],
)
def test_logits_of_any_image_and_width(name: str, shape: tuple[int, int, int], width: float, classes: int) -> None:
    model = build(name, classes, shape, width=width, generator=seeded()).eval()
    with torch.no_grad():
        logits = model(torch.rand(2, *shape, generator=seeded(1)))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()
    narrowest = min(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))
    full = {"resnet20": 16, "cnn": 128}.get(name, 64)
    assert narrowest == max(1, round(full * width))


@pytest.mark.parametrize("name", TABLE)
def test_smallest_image(name: str) -> None:
    smallest = BACKBONES[name].minimum_size
    model = build(name, 3, (1, smallest, smallest), width=0.1, generator=seeded()).eval()
    assert model(torch.rand(1, 1, smallest, smallest, generator=seeded())).shape == (1, 3)
    with pytest.raises(InputError, match=f"at least {smallest}×{smallest} for {name}"):
        build(name, 3, (1, smallest, smallest - 1), width=0.1, generator=seeded())


# Height and width behind each stage for 32×32 images, as the papers have them.
SIZES = {
    "vgg11": [16, 8, 8, 4, 4, 2, 2, 1],
    "vgg16": [32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1],
    "resnet20": [32, 32, 32, 32, 16, 16, 16, 8, 8, 8],
    "resnet18": [32, 32, 32, 16, 16, 8, 8, 4, 4],
    "cnn": [16, 8, 4, 2],
}


@pytest.mark.parametrize("name", TABLE)
@torch.no_grad()
def test_size_behind_each_stage(name: str) -> None:
    model = build(name, 2, (1, 32, 32), width=0.05, generator=seeded()).eval()
    x, sizes = torch.zeros(1, 1, 32, 32), []
    for stage in list(model)[:-1]:
        x = stage(x)
        sizes.append(tuple(x.shape[2:]))
    assert sizes == [(size, size) for size in SIZES[name]]


@pytest.mark.parametrize("name", TABLE)
@torch.no_grad()
def test_split_anywhere_is_the_whole_network(name: str) -> None:
    shape = (3, 32, 32)
    model = build(name, 4, shape, width=0.1, generator=seeded())
    x = torch.rand(3, *shape, generator=seeded(1))
    set_generator(model, seeded(2))
    model(x)  # batch statistics that are not the initial ones
    model.eval()
    expected = model(x)
    for stage, _ in list(model.named_children())[:-1]:
        cut = split(model, stage, image_shape=shape)
        assert torch.equal(cut(x), expected)
        assert cut.send(x).shape == (3, *cut.feature.shape)
        assert torch.equal(cut.cloud(cut.edge(x)), expected)


@pytest.mark.parametrize("name", TABLE)
def test_weights_come_from_the_generator_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(name, 4, (3, 32, 32), width=0.1, generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same = build(name, 4, (3, 32, 32), width=0.1, generator=seeded(5))
    other = build(name, 4, (3, 32, 32), width=0.1, generator=seeded(6))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), same.state_dict().values()))
    for (label, a), b in zip(first.named_parameters(), other.parameters()):
        drawn = a.ndim > 1
        assert torch.equal(a, b) != drawn, label


@pytest.mark.parametrize("name", TABLE)
@torch.no_grad()
def test_state_round_trip(name: str) -> None:
    model = build(name, 4, (3, 32, 32), width=0.1, generator=seeded(1))
    x = torch.rand(4, 3, 32, 32, generator=seeded(2))
    set_generator(model, seeded(3))
    model(x)
    copy = build(name, 4, (3, 32, 32), width=0.1, generator=seeded(4))
    assert not torch.equal(copy.eval()(x), model.eval()(x))
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(x), model(x))


@pytest.mark.parametrize("name", TABLE)
def test_every_weight_learns(name: str) -> None:
    model = build(name, 4, (3, 32, 32), width=0.1, generator=seeded())
    set_generator(model, seeded(1))
    y = torch.arange(8) % 4
    nn.functional.cross_entropy(model(torch.rand(8, 3, 32, 32, generator=seeded(2))), y).backward()
    for label, weight in model.named_parameters():
        assert weight.grad is not None, label
        assert weight.grad.isfinite().all(), label
        assert weight.requires_grad


def test_dropout_of_the_classifiers_is_ours() -> None:
    for name in TABLE:
        layers = list(build(name, 2, (3, 32, 32), width=0.01, generator=seeded()).modules())
        assert not any(isinstance(layer, nn.Dropout) for layer in layers)
        assert sum(isinstance(layer, Dropout) for layer in layers) == {"vgg11": 2, "vgg16": 2, "cnn": 1}.get(name, 0)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_width_that_is_none(width: float) -> None:
    with pytest.raises(InputError, match=r"^model.width: got .*above 0"):
        build("cnn", 4, (3, 32, 32), width=width, generator=seeded())


def test_unknown_backbone_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"got 'vg11'; accepted: did you mean vgg11\? one of cnn, ") as caught:
        build("vg11", 4, (3, 32, 32), generator=seeded())
    assert caught.value.field == "model.backbone"


def residual_twin(block: nn.Module, x: Tensor) -> Tensor:
    conv1, norm1, _, conv2, norm2 = block.body
    out = norm2(conv2(torch.clamp(norm1(conv1(x)), min=0)))
    beside = x if isinstance(block.shortcut, nn.Identity) else block.shortcut[1](block.shortcut[0](x))
    return torch.clamp(out + beside, min=0)


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
@torch.no_grad()
def test_residual_blocks_against_twin(name: str) -> None:
    model = build(name, 3, (3, 16, 16), width=0.2, generator=seeded()).eval()
    x = torch.rand(2, 3, 16, 16, generator=seeded(1))
    expected = x
    for stage, module in model.named_children():
        expected = residual_twin(module, expected) if stage.startswith("layer") else module(expected)
    torch.testing.assert_close(model(x), expected)
    assert [tuple(getattr(model, s).shortcut.__class__.__name__ for s in ("layer1_1", "layer2_1"))] == [
        ("Identity", "Sequential")
    ]


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "cnn"])
def test_the_classifiers_dropout_can_be_set_and_is_one_half_otherwise(name):
    from sfumato.models import Dropout, build

    def rates(**options):
        model = build(name, 10, (3, 32, 32), width=0.05, generator=torch.Generator().manual_seed(0), **options)
        return {layer.p for layer in model.modules() if isinstance(layer, Dropout)}

    assert rates() == {0.5}
    assert rates(dropout=0.1) == {0.1}
    with pytest.raises(InputError, match=r"model\.dropout"):
        rates(dropout=1.0)


@pytest.mark.parametrize("name", TABLE)
def test_dropout_rate_of_the_classifier(name: str) -> None:
    for given, rate in ((None, 0.5), (0.0, 0.0), (0.2, 0.2)):
        model = build(name, 2, (3, 32, 32), width=0.01, dropout=given, generator=seeded())
        assert all(layer.p == rate for layer in model.modules() if isinstance(layer, Dropout))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_rate_that_is_none(dropout: float) -> None:
    with pytest.raises(InputError, match=r"^model.dropout: got .*a rate from 0 to below 1"):
        build("cnn", 4, (3, 32, 32), dropout=dropout, generator=seeded())
