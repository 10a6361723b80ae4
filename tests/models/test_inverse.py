"""Edges turned around: exactly the mirrored shapes, from any cut, and nothing of the weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from sfumato import models
from sfumato.defenses import Bottleneck
from sfumato.errors import InputError
from sfumato.models import Normalize, initialize
from sfumato.models.inverse import Branches, Inverse, Reshape, assumed_edge, is_linear, undo

NETWORKS = {"vgg11": (3, 32, 32), "resnet20": (3, 32, 32), "cnn": (3, 32, 32), "resnet18": (1, 33, 29)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str, seed: int = 0) -> models.Backbone:
    return models.build(name, 10, NETWORKS[name], width=0.1, generator=generator(seed))


CUTS = [(name, cut) for name in NETWORKS for cut in list(dict(network(name).named_children()))[:-1]]


def shapes(module: nn.Module, x: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[tuple[tuple[int, ...], ...]]:
    """(input, output) of every layer of these kinds, in the order in which they are called."""
    seen = []

    def note(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        seen.append((tuple(inputs[0].shape[1:]), tuple(out.shape[1:])))

    handles = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        module.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_mirrors_every_cut_exactly(name: str, cut: str) -> None:
    split = models.split(network(name), cut, image_shape=NETWORKS[name])
    inverse = Inverse(split.edge, NETWORKS[name], generator=generator(1))
    z = split.send(torch.rand(3, *NETWORKS[name], generator=generator(2)))
    image = inverse(z).detach()
    assert image.shape[1:] == NETWORKS[name]
    assert image.min() >= 0
    assert image.max() <= 1
    forth = shapes(split.edge, torch.zeros(1, *NETWORKS[name]), (nn.Conv2d, nn.MaxPool2d))
    back = shapes(inverse, z[:1], (nn.ConvTranspose2d, nn.Conv2d, nn.Upsample))
    assert sorted(back) == sorted((out, given) for given, out in forth)
    if "resnet" not in name:  # of a residual block the branches are called in the edge's order
        assert back == [(out, given) for given, out in reversed(forth)]


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "cnn"])
def test_keeps_normalizations_activations_and_residual_blocks(name: str) -> None:
    split = models.split(network(name), network(name).default_cut, image_shape=NETWORKS[name])
    inverse = Inverse(split.edge, NETWORKS[name], generator=generator(1))
    kinds = [type(layer) for layer in inverse.modules()]
    assert kinds.count(Branches) == {"vgg11": 0, "resnet20": 1, "cnn": 0}[name]
    assert kinds.count(nn.Sigmoid) == 1
    assert nn.ReLU in kinds
    assert nn.BatchNorm2d in kinds
    flat = [type(layer) for layer in inverse]
    first = min(i for i, kind in enumerate(flat) if kind in (nn.ConvTranspose2d, Branches))
    assert nn.ReLU not in flat[:first], "the feature has been through it"
    for before, after in itertools.pairwise(flat):
        assert (before, after) != (nn.ReLU, nn.BatchNorm2d), "in the edge's order"


def test_reads_no_weight() -> None:
    made = []
    for seed in (0, 1):
        split = models.split(network("resnet20", seed), "layer2_1", image_shape=(3, 32, 32))
        split.train()
        split(torch.rand(4, 3, 32, 32, generator=generator(seed)))  # other statistics too
        with torch.no_grad():
            for parameter in split.parameters():
                parameter.add_(seed)
        made.append(Inverse(split.requires_grad_(False).edge, (3, 32, 32), generator=generator(5)))
    ours, theirs = (inverse.state_dict() for inverse in made)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(p.requires_grad for p in made[0].parameters())
    other = Inverse(split.edge, (3, 32, 32), generator=generator(6)).state_dict()
    assert not torch.equal(ours["3.0.1.weight"], other["3.0.1.weight"])


def test_the_edge_and_the_global_generator_are_left_alone() -> None:
    edge = models.split(network("vgg11"), "conv2", image_shape=(3, 32, 32)).edge.train()
    before, state = {n: v.clone() for n, v in edge.state_dict().items()}, torch.get_rng_state()
    Inverse(edge, (3, 32, 32), generator=generator())
    assumed_edge((8, 8, 8), (3, 32, 32))
    assert all(torch.equal(before[n], v) for n, v in edge.state_dict().items())
    assert all(layer.training for layer in edge.modules())
    assert torch.equal(state, torch.get_rng_state())


class Odd(nn.Module):
    """A layer of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 5, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x).sin()
        return out


class Gate(nn.Module):
    """Elementwise, without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5, 3, 2), nn.Conv2d(3, 6, (3, 5), (2, 1), (0, 2), groups=3)),
        *(
            nn.Conv2d(3, 4, 3, dilation=2),
            nn.Conv2d(3, 4, (3, 5), padding="same", dilation=2),
            nn.Conv2d(3, 4, 3, padding="valid"),
        ),
        *(nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3), nn.AvgPool2d(3, 1), nn.AdaptiveAvgPool2d(1)),
        *(nn.AdaptiveAvgPool2d((7, 17)), nn.AdaptiveMaxPool2d(9), nn.Upsample(scale_factor=2.0)),
        *(nn.ConvTranspose2d(3, 2, 2, 2), Odd(), Gate(), nn.Flatten(), nn.PReLU(), nn.GroupNorm(3, 3)),
        *(nn.Sequential(nn.Flatten(), nn.Linear(3 * 13 * 17, 6)), nn.Dropout(0.5), nn.InstanceNorm2d(3, affine=True)),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 13 * 17, 6), nn.LayerNorm(6), nn.Unflatten(1, (6, 1, 1))),
        nn.Sequential(nn.Flatten(2), nn.Linear(13 * 17, 6)),
        nn.Sequential(Normalize((0.5,) * 3, (0.2,) * 3), nn.Conv2d(3, 2, 1), nn.Sigmoid()),
    ],
    ids=str,
)
def test_undoes_any_layer(layer: nn.Module) -> None:
    shape = (3, 13, 17)
    x = torch.rand(2, *shape, generator=generator())
    z = layer(x)
    assert nn.Sequential(*undo(layer, shape))(z).shape == x.shape
    assert Inverse(layer, shape, generator=generator())(z).shape == x.shape


def test_an_unknown_layer_with_weights_becomes_a_layer_with_weights() -> None:
    assert undo(Gate(), (3, 8, 8)) == []
    kinds = [type(layer) for layer in undo(Odd(), (3, 9, 9))]
    assert kinds == [nn.Upsample, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_the_inverse_of_a_linear_edge_is_linear_but_for_the_last_sigmoid() -> None:
    edge = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Unflatten(1, (3, 2, 2)))
    inverse = Inverse(edge, (3, 4, 4), generator=generator())
    assert [type(layer) for layer in inverse] == [nn.BatchNorm2d, Reshape, nn.Linear, Reshape, nn.Sigmoid]
    inverse.eval()
    a, b = torch.randn(2, 1, 3, 2, 2, generator=generator())
    middle, ends = inverse((a + b) / 2), (inverse(a), inverse(b))
    torch.testing.assert_close(middle.logit(), (ends[0].logit() + ends[1].logit()) / 2, rtol=1e-4, atol=1e-5)


def test_activations_between_layers_stay() -> None:
    """Without normalization too, and only what stands in front of everything goes."""
    edge = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU())
    kinds = [type(layer) for layer in Inverse(edge, (3, 8, 8), generator=generator())]
    assert kinds == [nn.BatchNorm2d, nn.ConvTranspose2d, nn.Tanh, nn.ConvTranspose2d, nn.Sigmoid]


def test_a_bottleneck_is_mirrored_too() -> None:
    split = models.split(network("vgg11"), "conv2", image_shape=(3, 32, 32))
    narrow = Bottleneck(4).bind(split, generator=generator()).defend(split)
    inverse = Inverse(narrow.edge, (3, 32, 32), generator=generator())
    first = inverse[1]  # behind the normalization
    assert isinstance(first, nn.ConvTranspose2d)
    assert (first.in_channels, first.out_channels) == (4, 13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_always_single_precision(dtype: torch.dtype) -> None:
    edge = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.BatchNorm2d(2)).to(dtype)
    assert {p.dtype for p in Inverse(edge, (1, 8, 8), generator=generator()).parameters()} == {torch.float32}


class TestAssumedEdge:
    @pytest.mark.parametrize(
        ("feature", "image", "blocks", "pools"),
        [
            *(((8, 8, 8), (3, 32, 32), 2, 2), ((5, 32, 32), (3, 32, 32), 1, 0), ((8, 1, 1), (1, 32, 32), 5, 5)),
            *(((7, 12, 12), (3, 50, 50), 2, 2), ((2, 17, 9), (1, 33, 20), 1, 1), ((2, 4, 16), (1, 16, 16), 1, 0)),
            *(((10,), (3, 32, 32), 3, 3), ((3, 5), (1, 16, 20), 2, 2), ((6,), (1, 3, 3), 1, 0)),
        ],
    )
    def test_leads_from_image_to_feature(
        self, feature: tuple[int, ...], image: tuple[int, int, int], blocks: int, pools: int
    ) -> None:
        edge = assumed_edge(feature, image, width=4)
        x = torch.rand(2, *image, generator=generator())
        assert edge(x).shape[1:] == feature
        kinds = [type(layer) for layer in edge]
        assert (kinds.count(nn.BatchNorm2d), kinds.count(nn.MaxPool2d)) == (blocks, pools)
        widths = [layer.num_features for layer in edge if isinstance(layer, nn.BatchNorm2d)]
        assert widths == [4 * 2**i for i in range(blocks)]
        assert Inverse(edge, image, generator=generator())(edge(x)).shape == x.shape

    def test_refuses(self) -> None:
        with pytest.raises(InputError, match="no side longer"):
            assumed_edge((3, 9, 8), (3, 8, 8))
        with pytest.raises(InputError, match="width"):
            assumed_edge((3, 8, 8), (3, 8, 8), width=0)


def test_can_learn_to_undo_an_edge_that_loses_nothing() -> None:
    """A random orthogonal map of pixels: the inverse is a linear map, which Adam finds."""
    weight, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator()))
    edge = nn.Sequential(nn.Flatten(), nn.Linear(16, 16)).requires_grad_(False)
    edge[1].weight.copy_(weight)
    edge[1].bias.copy_(-0.5 * weight.sum(1))
    inverse = Inverse(edge, (1, 4, 4), generator=generator(1))
    x = 0.4 + 0.2 * torch.rand(256, 1, 4, 4, generator=generator(2))
    adam = torch.optim.Adam(inverse.parameters(), 0.02)
    for _ in range(300):
        loss = (inverse(edge(x)) - x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert float(loss.detach()) < 0.01 * float(x.var())
    assert initialize(inverse, generator(1)) is inverse


@pytest.mark.parametrize("shape", [(2, 4, 4), (32,)])
def test_the_scale_of_the_feature_is_nothing_to_it(shape: tuple[int, ...]) -> None:
    edge = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Unflatten(1, shape))
    inverse = Inverse(edge, (1, 8, 8), generator=generator())
    z = torch.randn(16, *shape, generator=generator(1))
    torch.testing.assert_close(inverse(z), inverse(1000 * z + 30), rtol=0, atol=1e-3)


def test_is_linear() -> None:
    flat = [nn.Flatten(), nn.Linear(64, 6)]
    for edge, linear in (
        (nn.Sequential(*flat), True),
        (nn.Sequential(*flat, nn.Linear(6, 3), nn.Dropout(0.5)), True),
        (nn.Sequential(*flat, nn.ReLU(), nn.Linear(6, 3)), False),
        (nn.Sequential(*flat, nn.Sigmoid()), True),  # what has been applied to the feature is not undone
    ):
        assert is_linear(Inverse(edge, (1, 8, 8), generator=generator())) == linear
