from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sfumato.errors import InputError
from sfumato.models import Critic


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("image", [(3, 32, 32), (1, 12, 12), (3, 50, 50), (1, 1, 1), (3, 20, 29), (1, 8, 40)])
@torch.no_grad()
def test_a_number_an_image_which_other_images_do_not_change(image: Any) -> None:
    critic = Critic(image, width=4, generator=seeded())
    x = torch.rand(5, *image, generator=seeded(1))
    scores = critic(x)
    assert scores.shape == (5,)
    torch.testing.assert_close(critic(x[2:3]), scores[2:3])
    assert len(scores.unique()) == 5


@pytest.mark.parametrize(
    ("image", "w", "channels", "area"),
    [
        ((3, 32, 32), 64, (128, 256, 512), 4 * 4),
        ((3, 7, 9), 5, (), 7 * 9),
        ((1, 12, 13), 5, (10,), 6 * 6),
        ((1, 130, 128), 2, (4, 8, 16, 16, 16), 4 * 4),
    ],
)
def test_parameters(image: Any, w: int, channels: tuple[int, ...], area: int) -> None:
    """3×3 convolution, then 4×4 ones with a scale and a shift each, then a linear layer."""
    expected = 9 * image[0] * w + w
    for before, after in zip((w, *channels), channels):
        expected += 16 * before * after + after + 2 * after
    expected += (w, *channels)[-1] * area + 1
    assert sum(p.numel() for p in Critic(image, width=w, generator=seeded()).parameters()) == expected


def test_default_width() -> None:
    assert Critic((3, 32, 32), generator=seeded()).layers[0].out_channels == 64


def test_no_layer_mixes_images() -> None:
    assert not any(
        isinstance(layer, nn.modules.batchnorm._NormBase) for layer in Critic((3, 32, 32), generator=seeded()).modules()
    )


def test_weights_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (Critic((1, 16, 16), width=3, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters()))
    for (name, a), b in zip(first.named_parameters(), other.parameters()):
        assert torch.equal(a, b) != (a.ndim > 1), name


def test_width_that_is_none() -> None:
    with pytest.raises(InputError, match="critic width: got 0"):
        Critic((1, 8, 8), width=0, generator=seeded())
