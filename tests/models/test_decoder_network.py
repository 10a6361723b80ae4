from __future__ import annotations

import math

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
        ((4, 12, 12), (3, 50, 50), 1, 3),  # 48, then resized
        ((4, 13, 13), (1, 50, 50), 0, 3),  # 52, then resized: nearer than 26
        ((4, 3, 3), (3, 8, 8), 1, 2),
        ((4, 2, 4), (3, 8, 8), 1, 2),  # the side that has less to go decides
        ((4, 3, 7), (3, 20, 29), 1, 2),
        ((4, 7, 7), (3, 8, 8), 1, 2),
    ],
)
@torch.no_grad()
def test_shape_and_range(feature: tuple[int, int, int], image: tuple[int, int, int], depth: int, width: int) -> None:
    network = decoder(feature, image, depth, width)
    out = network(10 * torch.randn(4, *feature, generator=seeded(1)))
    assert out.shape == (4, *image)
    assert 0 <= float(out.min()) < float(out.max()) <= 1
    assert sum(isinstance(layer, ResidualBlock) for layer in network) == depth + 2
    # The slow twin of the number of doublings: the k whose size is nearest by ratio, for the side with less to go.
    side = min((1, 2), key=lambda i: image[i] / feature[i])
    k = min(range(8), key=lambda k: abs(math.log(image[side] / (feature[side] << k))))
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in network) == k
    fits = (feature[1] << k, feature[2] << k) == image[1:]
    assert [isinstance(layer, nn.Upsample) for layer in network].count(True) == (not fits)


@torch.no_grad()
def test_resized_between_the_doublings_and_the_last_block() -> None:
    network = decoder((4, 3, 3), (3, 14, 13), depth=1, width=5).eval()
    *doubled, resize, last, squash = network
    z = torch.randn(2, 4, 3, 3, generator=seeded(1))
    x = z
    for layer in doubled:
        x = layer(x)
    assert isinstance(resize, nn.Upsample)
    assert x.shape == (2, 5, 12, 12)
    torch.testing.assert_close(network(z), squash(last(resized_twin(x, 14, 13))))


def resized_twin(x: torch.Tensor, height: int, breadth: int) -> torch.Tensor:
    """Bilinear between pixel centers, edges repeated, pixel by pixel."""
    h, w = x.shape[2:]
    out = torch.empty(*x.shape[:2], height, breadth)
    for i in range(height):
        for j in range(breadth):
            y, v = max((i + 0.5) * h / height - 0.5, 0), max((j + 0.5) * w / breadth - 0.5, 0)
            top, left = int(y), int(v)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = y - top, v - left
            upper = (1 - b) * x[..., top, left] + b * x[..., top, right]
            lower = (1 - b) * x[..., bottom, left] + b * x[..., bottom, right]
            out[..., i, j] = (1 - a) * upper + a * lower
    return out


def test_a_resized_decoder_has_the_parameters_of_the_published_one() -> None:
    network = Decoder((8, 12, 12), (3, 50, 50), generator=seeded())
    assert sum(p.numel() for p in network.parameters()) == 711_539


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
        ((4, 16, 16), (3, 8, 8)),  # larger than the image
        ((4, 9, 2), (3, 8, 8)),  # on one side
        ((4, 2, 2, 2), (3, 8, 8)),
    ],
)
def test_feature_that_does_not_fit(feature: tuple[int, ...], image: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"^feature shape: got .*no side longer") as caught:
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
