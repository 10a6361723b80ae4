from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data import Augment
from sfumato.data.augment import crop, mirror_and_rotate, to_unit
from sfumato.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_crop(image: np.ndarray, top: int, left: int, padding: int) -> np.ndarray:
    _, h, w = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    return padded[:, top : top + h, left : left + w]


def slow_rotate(image: np.ndarray, angle: float) -> np.ndarray:
    """Pixel by pixel: turn back about the center, mix the four neighbors, zeros outside."""
    _, h, w = image.shape
    rotated = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            y, x = i - (h - 1) / 2, j - (w - 1) / 2
            from_x = math.cos(angle) * x - math.sin(angle) * y + (w - 1) / 2
            from_y = math.sin(angle) * x + math.cos(angle) * y + (h - 1) / 2
            for row in (math.floor(from_y), math.floor(from_y) + 1):
                for column in (math.floor(from_x), math.floor(from_x) + 1):
                    if 0 <= row < h and 0 <= column < w:
                        weight = (1 - abs(from_y - row)) * (1 - abs(from_x - column))
                        rotated[:, i, j] += weight * image[:, row, column]
    return rotated


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_crop_equals_the_slow_twin(data: st.DataObject) -> None:
    n, c = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 3]))
    h, w = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    padding = data.draw(st.integers(0, 4))
    images = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=seeded(n))
    offsets = st.lists(st.integers(0, 2 * padding), min_size=n, max_size=n)
    top, left = data.draw(offsets), data.draw(offsets)
    fast = crop(images, torch.tensor(top), torch.tensor(left), padding)
    assert fast.dtype == torch.uint8
    for i in range(n):
        assert np.array_equal(fast[i].numpy(), slow_crop(images[i].numpy(), top[i], left[i], padding))


@settings(max_examples=25, deadline=None)
@given(
    angles=st.lists(st.floats(-math.pi, math.pi), min_size=3, max_size=3),
    mirrored=st.lists(st.booleans(), min_size=3, max_size=3),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_mirroring_and_rotation_equal_the_slow_twin(
    angles: list[float], mirrored: list[bool], h: int, w: int, seed: int
) -> None:
    images = torch.rand(3, 3, h, w, dtype=torch.float64, generator=seeded(seed))
    fast = mirror_and_rotate(images, torch.tensor(mirrored), torch.tensor(angles, dtype=torch.float64))
    for image, angle, mirror, rotated in zip(images.numpy(), angles, mirrored, fast.numpy()):
        slow = slow_rotate(image[:, :, ::-1] if mirror else image, angle)
        np.testing.assert_allclose(rotated, slow, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    padding=st.integers(0, 3),
    flip=st.booleans(),
    rotation=st.sampled_from([0.0, 10.0, 180.0]),
    seed=st.integers(0, 99),
)
def test_a_whole_batch_equals_the_slow_twin(padding: int, flip: bool, rotation: float, seed: int) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8, generator=seeded(seed))
    fast = Augment(padding, flip, rotation)(images, seeded(seed)).numpy()
    draws = torch.rand(4, 4, generator=seeded(seed)).tolist()
    for image, (top, left, mirror, angle), augmented in zip(images.numpy(), draws, fast):
        places = 2 * padding + 1
        slow = slow_crop(image, int(top * places), int(left * places), padding)
        slow = slow[:, :, ::-1] if flip and mirror < 0.5 else slow
        slow = slow_rotate(slow / 255, math.radians(rotation) * (2 * angle - 1))
        np.testing.assert_allclose(augmented, slow, atol=2e-5)


def test_a_quarter_turn_is_counter_clockwise() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    turned = mirror_and_rotate(image, torch.tensor([False]), torch.tensor([math.pi / 2]))
    torch.testing.assert_close(turned, image.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_all_off_is_the_identity_and_draws_nothing() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    generator = seeded()
    before = generator.get_state()
    off = Augment(crop_padding=0, flip=False, rotation=0)
    assert off.is_identity
    assert torch.equal(off(images, generator), images.float() / 255)
    assert torch.equal(generator.get_state(), before)


def test_default_is_the_papers_and_stays_in_range() -> None:
    assert Augment() == Augment(crop_padding=4, flip=True, rotation=15.0)
    images = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    kept = images.clone()
    x = Augment()(images, seeded())
    assert x.shape == images.shape
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1 + 1e-6
    assert torch.equal(images, kept)


def test_each_part_alone_does_only_its_own() -> None:
    images = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=seeded(1))
    unit = to_unit(images)
    flipped = Augment(crop_padding=0, flip=True, rotation=0)(images, seeded())
    same = (flipped == unit).flatten(1).all(1)
    mirror = (flipped == unit.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirror).all())
    assert 60 < int(mirror.sum()) < 140

    cropped = Augment(crop_padding=1, flip=False, rotation=0)(images, seeded())
    windows = torch.nn.functional.pad(unit, (1,) * 4).unfold(2, 8, 1).unfold(3, 8, 1)
    matches = (windows == cropped[:, :, None, None]).flatten(4).all(4).squeeze(1)
    assert matches.flatten(1).sum(1).eq(1).all()
    assert matches.any(0).all()  # every offset occurs

    turned = Augment(crop_padding=0, flip=False, rotation=30)(images, seeded())
    assert not torch.equal(turned, unit)
    torch.testing.assert_close(turned[:, :, 3:5, 3:5].mean(), unit[:, :, 3:5, 3:5].mean(), atol=0.02, rtol=0)


def test_same_seed_same_images_and_switching_rotation_off_keeps_the_crops() -> None:
    images = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8, generator=seeded(1))
    assert torch.equal(Augment()(images, seeded(3)), Augment()(images, seeded(3)))
    assert not torch.equal(Augment()(images, seeded(3)), Augment()(images, seeded(4)))
    tiny = Augment(rotation=1e-6)(images, seeded(3))
    torch.testing.assert_close(tiny, Augment(rotation=0)(images, seeded(3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("arguments", [{"crop_padding": -1}, {"rotation": -1.0}, {"rotation": 181.0}])
def test_bad_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        Augment(**arguments)  # type: ignore[arg-type]


def test_images_smaller_than_the_padding_are_refused() -> None:
    with pytest.raises(InputError, match="less than the image's shorter side"):
        Augment(crop_padding=4)(torch.zeros(1, 1, 4, 9, dtype=torch.uint8), seeded())
