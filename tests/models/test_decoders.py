"""The decoders by name: sizes, ranges, parameter counts, what they see, and where their weights come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.metrics import macs
from sfumato.models import (
    DECODERS,
    Decoder,
    TransformerDecoder,
    UNetDecoder,
    check_decodable,
    least_width,
    make_decoder,
)
from sfumato.models.transformer_decoder import Attention, Patches, Tokens, TransformerBlock
from sfumato.models.unet_decoder import UNet

SIZES = [
    ((8, 8, 8), (1, 32, 32), 3, 6),
    ((1, 4, 4), (3, 32, 32), 0, 2),
    ((5, 2, 3), (3, 4, 6), 1, 7),
    ((3, 8, 8), (3, 8, 8), 2, 2),
    ((4, 12, 12), (3, 50, 50), 5, 3),
    ((4, 3, 7), (3, 20, 29), 7, 4),
    ((4, 7, 7), (3, 8, 8), 1, 2),
    ((6, 1, 1), (1, 9, 5), 1, 3),
    ((2, 1, 1), (1, 1, 1), 4, 2),
    ((17,), (3, 20, 29), 2, 5),
    ((3,), (1, 7, 9), 0, 2),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(
    architecture: Any, feature: Any = (4, 3, 3), image: Any = (3, 12, 12), seed: int = 0, **size: int
) -> nn.Module:
    return make_decoder(architecture, feature, image, **{"depth": 1, "width": 5, **size}, generator=seeded(seed))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def last_block(w: int, c: int) -> int:
    """Two batch norms, two 3×3 convolutions, and the shortcut where the width changes."""
    return 2 * w + 9 * w * c + c + 2 * c + 9 * c * c + c + (w * c + 2 * c if w != c else 0)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize(("feature", "image", "depth", "width"), SIZES)
@torch.no_grad()
def test_shape_and_range(architecture: str, feature: Any, image: Any, depth: int, width: int) -> None:
    network = make(architecture, feature, image, depth=depth, width=width)
    z = 10 * torch.randn(4, *feature, generator=seeded(1))
    made = network(z)
    assert made.shape == (4, *image)
    assert 0 <= float(made.min()) < float(made.max()) <= 1
    assert bool(made.isfinite().all())


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("feature", [(4, 3, 3), (7,)])
@torch.no_grad()
def test_one_image_in_evaluation_is_as_among_others(architecture: str, feature: Any) -> None:
    network = make(architecture, feature, depth=3).eval()
    z = torch.randn(3, *feature, generator=seeded(1))
    torch.testing.assert_close(network(z)[1:2], network(z[1:2]))


def test_by_name() -> None:
    kinds = {name: type(make(name)) for name in DECODERS}
    assert kinds == {"residual": Decoder, "unet": UNetDecoder, "transformer": TransformerDecoder}
    size = {"depth": 2, "width": 6}
    for name, kind in kinds.items():
        alone = kind((4, 3, 3), (3, 12, 12), **size, generator=seeded(3))
        named = make(name, seed=3, **size)
        for a, b in zip(alone.parameters(), named.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("architecture", DECODERS)
def test_documented_sizes(architecture: str) -> None:
    """The table of docs/attacks.md; of the residual one, the paper's."""
    network = make_decoder(architecture, (8, 8, 8), (3, 32, 32), generator=seeded())  # type: ignore[arg-type]
    text = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{architecture}` |"))
    multiplications = macs(network, torch.zeros(1, 8, 8, 8)) / 1e6
    assert row.endswith(f"| {count(network):,} | {multiplications:.1f} M |")
    assert architecture != "residual" or count(network) == 711_539


@pytest.mark.parametrize(
    ("feature", "image", "depth", "w", "kernel", "levels", "bottom"),
    [
        ((8, 8, 8), (3, 32, 32), 8, 64, 16, 3, 2),
        ((8, 8, 8), (3, 32, 32), 7, 64, 16, 3, 1),
        ((8, 8, 8), (3, 32, 32), 0, 64, 16, 0, 0),
        ((4, 8, 8), (3, 32, 32), 2, 5, 16, 0, 2),
        ((4, 8, 16), (1, 32, 32), 3, 5, 8, 1, 1),
        ((4, 2, 2), (3, 12, 12), 9, 6, 36, 2, 5),  # 12, 6, 3: no further
        ((4, 7, 7), (3, 8, 8), 1, 3, 4, 0, 1),
        ((4, 1, 2), (3, 2, 2), 5, 3, 2, 0, 5),
    ],
)
def test_parameters_of_the_unet(
    feature: Any, image: Any, depth: int, w: int, kernel: int, levels: int, bottom: int
) -> None:
    c = feature[0]
    expected = 2 * c + w * (c * kernel + 1) + levels * (47 * w * w + 16 * w) + bottom * (18 * w * w + 6 * w)
    assert count(make("unet", feature, image, depth=depth, width=w)) == expected + last_block(w, image[0])


@pytest.mark.parametrize(
    ("feature", "image", "depth", "w", "side", "tokens", "patch"),
    [
        ((8, 8, 8), (3, 32, 32), 8, 64, 1, 64, 16),
        ((8, 8, 8), (3, 32, 32), 0, 64, 1, 64, 16),
        ((3, 2, 5), (1, 9, 10), 2, 7, 1, 10, 10),
        ((2, 32, 32), (3, 32, 32), 1, 4, 1, 1024, 1),
        ((2, 33, 32), (3, 33, 32), 1, 4, 2, 17 * 16, 4),
        ((2, 70, 70), (3, 70, 71), 1, 4, 3, 24 * 24, 9),
    ],
)
def test_parameters_of_the_transformer(
    feature: Any, image: Any, depth: int, w: int, side: int, tokens: int, patch: int
) -> None:
    c = feature[0]
    expected = 2 * c + c * w * side**2 + w + tokens * w
    expected += depth * (12 * w * w + 13 * w) + 2 * w + 16 * patch * (w + 1)
    assert count(make("transformer", feature, image, depth=depth, width=w)) == expected + last_block(16, image[0])


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize(
    ("image", "start"), [((3, 32, 32), (4, 4)), ((1, 12, 12), (6, 6)), ((3, 50, 20), (13, 5)), ((1, 7, 9), (7, 9))]
)
def test_a_vector_becomes_a_small_map(architecture: str, image: Any, start: tuple[int, int]) -> None:
    network = make(architecture, (17,), image, depth=2, width=5)
    stem = 2 * 17 + 17 * 5 * math.prod(start) + 5 * math.prod(start)
    assert count(network) == stem + count(make(architecture, (5, *start), image, depth=2, width=5))


@torch.no_grad()
def test_a_batch_of_one_vector_can_be_learned_from() -> None:
    network = make("residual", (17,)).train()
    made = network(torch.ones(1, 17))
    assert bool(made.isfinite().all())
    fresh = make("residual", (17,)).train()
    network[0](torch.randn(4, 17, generator=seeded()))
    assert not torch.equal(network[0].running_mean, fresh[0].running_mean)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("feature", [(4, 3, 3), (17,)])
@torch.no_grad()
def test_weights_come_from_the_generator_alone(architecture: str, feature: Any) -> None:
    before = torch.get_rng_state()
    first = make(architecture, feature, depth=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        same, other = make(architecture, feature, depth=3, seed=1), make(architecture, feature, depth=3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters()))
    for (name, a), b in zip(first.named_parameters(), other.parameters()):
        assert torch.equal(a, b) != (a.ndim > 1), name


@pytest.mark.parametrize(("architecture", "far"), [("residual", False), ("unet", True), ("transformer", True)])
@pytest.mark.parametrize("depth", [1, 7])
def test_how_far_a_pixel_looks(architecture: str, far: bool, depth: int) -> None:
    """Whether the first pixel depends on the last place of a 24×24 map."""
    network = make(architecture, (2, 24, 24), (1, 24, 24), depth=depth, width=4).eval()
    z = torch.randn(1, 2, 24, 24, generator=seeded(1), requires_grad=True)
    (gradient,) = torch.autograd.grad(network(z)[0, 0, 0, 0], z)
    sees_all = far and (architecture == "transformer" or depth == 7)
    assert bool(gradient[0, :, -1, -1].abs().sum() > 0) == sees_all
    assert float(gradient[0, :, 0, 0].abs().sum()) > 0


@torch.no_grad()
def test_attention_against_torch() -> None:
    ours, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias, generator=seeded(2))
    ours.project.load_state_dict({"weight": theirs.in_proj_weight, "bias": theirs.in_proj_bias})
    ours.merge.load_state_dict(theirs.out_proj.state_dict())
    tokens = torch.randn(2, 5, 12, generator=seeded(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens, need_weights=False)[0])


@torch.no_grad()
def test_transformer_block_against_torch() -> None:
    ours = TransformerBlock(12, 3)
    theirs = nn.TransformerEncoderLayer(12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    (norm, attention), (norm2, first, _, second) = ours.attention, ours.mix
    for mine, other in ((norm, theirs.norm1), (norm2, theirs.norm2), (first, theirs.linear1), (second, theirs.linear2)):
        for p in other.parameters():
            nn.init.normal_(p, generator=seeded(p.numel()))
        mine.load_state_dict(other.state_dict())
    attention.project.load_state_dict(
        {"weight": theirs.self_attn.in_proj_weight, "bias": theirs.self_attn.in_proj_bias}
    )
    attention.merge.load_state_dict(theirs.self_attn.out_proj.state_dict())
    tokens = torch.randn(2, 5, 12, generator=seeded(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (48, 3), (16, 1), (8, 1), (40, 2), (50, 2), (51, 3), (67, 1)])
def test_heads_divide_the_width(width: int, heads: int) -> None:
    network = make("transformer", depth=1, width=width)
    assert [layer.heads for layer in network.modules() if isinstance(layer, Attention)] == [heads]


@torch.no_grad()
def test_tokens_and_patches_are_in_their_places() -> None:
    tokens = Tokens(6, 4)
    tokens.position.normal_(generator=seeded())
    x = torch.randn(2, 4, 2, 3, generator=seeded(1))
    made = tokens(x)
    drawn = torch.randn(2, 6, 5 * 2 * 4, generator=seeded(2))
    picture = Patches((2, 3), (2, 4))(drawn)
    assert picture.shape == (2, 5, 4, 12)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(made[:, 3 * i + j], x[:, :, i, j] + tokens.position[3 * i + j])
            patch = picture[:, :, 2 * i : 2 * i + 2, 4 * j : 4 * j + 4]
            assert torch.equal(patch, drawn[:, 3 * i + j].view(2, 5, 2, 4))


@torch.no_grad()
def test_unet_against_twin() -> None:
    unet = UNet(3, 2, 1).eval()
    x = torch.randn(2, 3, 7, 10, generator=seeded(1))

    def halved(a: Tensor) -> Tensor:
        h, w = a.shape[2:]
        rows = [a[:, :, i : i + 2] for i in range(0, h, 2)]
        return torch.stack(
            [torch.stack([r[..., j : j + 2].mean((2, 3)) for j in range(0, w, 2)], dim=-1) for r in rows], dim=2
        )

    def enlarged(a: Tensor, like: Tensor) -> Tensor:
        return nn.Upsample(like.shape[2:], mode="bilinear")(a)

    outer = unet.down[0](x)
    inner = unet.down[1](halved(outer))
    assert (outer.shape[2:], inner.shape[2:]) == ((7, 10), (4, 5))
    low = unet.bottom(halved(inner))
    assert low.shape[2:] == (2, 3)
    up = unet.up[0](torch.cat([enlarged(low, inner), inner], 1))
    torch.testing.assert_close(unet(x), unet.up[1](torch.cat([enlarged(up, outer), outer], 1)))


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("feature", [(4, 13, 2), (4, 2, 13), (4, 2), (4, 2, 2, 2), ()])
def test_feature_that_does_not_fit(architecture: str, feature: Any) -> None:
    with pytest.raises(InputError, match=r"^feature shape: got .*accepted: \(d,\), or \(c, h, w\) with no side longer"):
        make(architecture, feature)
    with pytest.raises(InputError, match="feature shape"):
        check_decodable(feature, (3, 12, 12))


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("feature", [(4, 3, 3), (17,)])
def test_size_that_is_none(architecture: str, feature: Any) -> None:
    least = 2 if architecture == "transformer" else 1
    assert least_width(architecture) == least  # type: ignore[arg-type]
    make(architecture, feature, depth=0, width=least)
    for depth, width in ((-1, 4), (2, least - 1)):
        with pytest.raises(InputError, match=rf"depth of 0 or more, width of {least} or more"):
            make(architecture, feature, depth=depth, width=width)


def test_one_channel_is_enough_without_layer_norm() -> None:
    for architecture in ("residual", "unet"):
        made = make(architecture, (1, 4, 4), (1, 8, 8), depth=0, width=1)(torch.randn(4, 1, 4, 4, generator=seeded(1)))
        assert float(made.detach().std()) > 0.01


def test_architecture_that_is_none() -> None:
    with pytest.raises(InputError, match=r"decoder architecture.*did you mean transformer"):
        make("transfromer")
