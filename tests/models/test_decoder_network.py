from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models import Decoder, ResidualBlock


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoder(
    feature: tuple[int, ...] = (4, 2, 2),
    image: tuple[int, int, int] = (3, 8, 8),
    depth: int = 1,
    width: int = 5,
    seed: int = 0,
) -> Decoder:
    return Decoder(feature, image, depth=depth, width=width, generator=seeded(seed))


@pytest.mark.parametrize(("depth", "published"), [(8, 711_539), (4, 415_091)])
def test_published_parameter_counts(depth: int, published: int) -> None:
    network = Decoder((8, 8, 8), (3, 32, 32), depth=depth, generator=seeded())
    assert sum(p.numel() for p in network.parameters()) == published


def test_default_is_the_published_attacker() -> None:
    network = Decoder((8, 8, 8), (3, 32, 32), generator=seeded())
    assert sum(p.numel() for p in network.parameters()) == 711_539


@pytest.mark.parametrize(
    ("feature", "image", "depth", "width"),
    [
        ((8, 8, 8), (1, 32, 32), 2, 3),
        ((1, 4, 4), (3, 32, 32), 0, 1),
        ((128, 2, 3), (3, 4, 6), 1, 7),
        ((3, 8, 8), (3, 8, 8), 1, 2),  # nothing to double
    ],
)
@torch.no_grad()
def test_shape_and_range(feature: tuple[int, int, int], image: tuple[int, int, int], depth: int, width: int) -> None:
    network = decoder(feature, image, depth, width)
    out = network(10 * torch.randn(4, *feature, generator=seeded(1)))
    assert out.shape == (4, *image)
    assert 0 <= float(out.min()) < float(out.max()) <= 1
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in network) == (image[1] // feature[1]).bit_length() - 1
    assert sum(isinstance(layer, ResidualBlock) for layer in network) == depth + 2


def block_twin(block: ResidualBlock, x: Tensor) -> Tensor:
    norm1, _, conv1, norm2, _, conv2 = block.body
    out = conv2(torch.clamp(norm2(conv1(torch.clamp(norm1(x), min=0))), min=0))
    return out + (x if isinstance(block.shortcut, nn.Identity) else block.shortcut[1](block.shortcut[0](x)))


@torch.no_grad()
def test_residual_block_against_twin() -> None:
    for channels, out in ((4, 4), (4, 6)):
        block = ResidualBlock(channels, out).eval()
        assert isinstance(block.shortcut, nn.Identity) == (channels == out)
        x = torch.randn(2, channels, 5, 5, generator=seeded())
        torch.testing.assert_close(block(x), block_twin(block, x))


@pytest.mark.parametrize(
    ("feature", "image"),
    [
        ((128,), (3, 8, 8)),
        ((4, 3, 3), (3, 8, 8)),  # no power of two
        ((4, 2, 4), (3, 8, 8)),  # two powers
        ((4, 16, 16), (3, 8, 8)),  # larger than the image
    ],
)
def test_feature_that_does_not_fit(feature: tuple[int, ...], image: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"^feature shape: got .*2\^k") as caught:
        decoder(feature, image)
    assert caught.value.value == feature


@pytest.mark.parametrize(("depth", "width"), [(-1, 4), (2, 0)])
def test_size_that_is_none(depth: int, width: int) -> None:
    with pytest.raises(InputError, match="depth of 0 or more, width of 1 or more"):
        decoder(depth=depth, width=width)


@torch.no_grad()
def test_weights_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = decoder(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    same, other = decoder(seed=1), decoder(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters()))
    for (name, a), b in zip(first.named_parameters(), other.parameters()):
        assert torch.equal(a, b) != (a.ndim > 1), name


@torch.no_grad()
def test_state_round_trip() -> None:
    first, second = decoder(seed=1), decoder(seed=2)
    z = torch.rand(3, 4, 2, 2, generator=seeded())
    first(z)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(z), second.eval()(z))
