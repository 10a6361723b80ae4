from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.data import Augment, Batches
from sfumato.errors import InputError

AUGMENT = Augment(crop_padding=1, flip=True, rotation=5.0)
property_test = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_in_order_without_shuffling(make_images: Any, number_of: Any) -> None:
    images = make_images(10)
    batches = Batches(images, 4, shuffle=False)
    got = list(batches)
    assert len(batches) == len(got) == 3
    assert [len(x) for x, _ in got] == [4, 4, 2]
    x, y = torch.cat([x for x, _ in got]), torch.cat([y for _, y in got])
    assert x.dtype == torch.float32
    assert torch.equal(x, images.images.float() / 255)
    assert torch.equal(y, images.labels)


@property_test
@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), world_size=st.integers(1, 5), shuffle=st.booleans())
def test_ranks_give_every_image_once_and_equally_many_batches(
    make_images: Any, number_of: Any, n: int, batch_size: int, world_size: int, shuffle: bool
) -> None:
    world_size = min(world_size, n)
    shares = [
        list(
            Batches(
                make_images(n),
                batch_size,
                shuffle=shuffle,
                generator=seeded(5) if shuffle else None,
                rank=r,
                world_size=world_size,
            )
        )
        for r in range(world_size)
    ]
    seen = [i for share in shares for x, _ in share for i in number_of(x)]
    assert sorted(seen) == list(range(n))
    assert len({len(share) for share in shares}) == 1
    sizes = [[len(x) for x, _ in share] for share in shares]
    assert all(size == batch_size for share in sizes for size in share[:-1])
    assert all(1 <= share[-1] <= batch_size + (world_size > 1) for share in sizes)


def test_ranks_take_strided_shares_of_one_order(make_images: Any, number_of: Any) -> None:
    def order(rank: int, world_size: int) -> list[int]:
        batches = Batches(make_images(12), 3, shuffle=True, generator=seeded(2), rank=rank, world_size=world_size)
        return [i for x, _ in batches for i in number_of(x)]

    whole = order(0, 1)
    assert whole != sorted(whole)
    assert [order(r, 2) for r in (0, 1)] == [whole[0::2], whole[1::2]]


def test_drop_last(make_images: Any) -> None:
    batches = Batches(make_images(11), 4, shuffle=True, generator=seeded(), drop_last=True)
    assert [len(x) for x, _ in batches] == [4, 4]
    ranked = Batches(make_images(11), 5, shuffle=False, drop_last=True, rank=1, world_size=2)
    assert [len(x) for x, _ in ranked] == [5]


@pytest.mark.parametrize("consumed", [0, 1, 3])
def test_each_epoch_takes_one_number_from_the_generator(make_images: Any, consumed: int) -> None:
    generator, reference = seeded(), seeded()
    iterator = iter(Batches(make_images(20), 5, shuffle=True, augment=AUGMENT, generator=generator))
    for _ in range(consumed):
        next(iterator)
    torch.randint(2**62, (), generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())


def test_epochs_differ_and_repeat_with_the_seed(make_images: Any, number_of: Any) -> None:
    def epochs() -> list[list[int]]:
        batches = Batches(make_images(20), 5, shuffle=True, generator=seeded(1))
        return [[i for x, _ in batches for i in number_of(x)] for _ in range(2)]

    first, second = epochs()
    assert first != second
    assert [first, second] == epochs()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resuming_within_an_epoch_gives_the_same_remaining_batches(
    make_images: Any, start: int, world_size: int
) -> None:
    generator = seeded(7)
    batches = Batches(
        make_images(40),
        10 // world_size,
        shuffle=True,
        augment=AUGMENT,
        generator=generator,
        rank=world_size - 1,
        world_size=world_size,
    )
    list(batches)
    state = generator.get_state()
    whole, following = list(batches), list(batches)

    generator.set_state(state)
    resumed = replace(batches, start=start)
    assert len(resumed) == 4 - start
    rest = list(resumed)
    assert len(rest) == 4 - start
    for (x, y), (again_x, again_y) in zip(whole[start:] + following, rest + list(batches), strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)


def test_batches_and_ranks_are_augmented_differently(make_images: Any) -> None:
    images = make_images(1)
    same = replace(images, images=images.images.repeat(8, 1, 1, 1), labels=images.labels.repeat(8))
    shares = [
        [x for x, _ in Batches(same, 2, shuffle=True, augment=AUGMENT, generator=seeded(), rank=r, world_size=2)]
        for r in (0, 1)
    ]
    batches = [x for share in shares for x in share]
    assert all(not torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("batch_size", {"batch_size": 0}),
        ("world_size", {"world_size": 11}),
        ("world_size", {"world_size": 0}),
        ("rank", {"rank": 2, "world_size": 2}),
        ("batch_size", {"batch_size": 11, "drop_last": True}),
        ("start", {"start": 4}),
        ("start", {"start": -1}),
        ("generator", {"shuffle": True}),
        ("generator", {"augment": AUGMENT}),
    ],
)
def test_bad_arguments(make_images: Any, field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        Batches(make_images(10), **{"batch_size": 4, "shuffle": False} | arguments)
    assert error.value.field == field
