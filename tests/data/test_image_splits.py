from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.data import Fractions, Splits, make_splits
from sfumato.data.splits import stratified
from sfumato.errors import InputError

property_test = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def parts(splits: Splits) -> dict[str, Any]:
    names = ("train", "validation", "test", "auxiliary")
    return {name: getattr(splits, name) for name in names if getattr(splits, name) is not None}


@property_test
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_stratified_takes_each_classs_share(labels: list[int], share: float, seed: int) -> None:
    all_labels = torch.tensor(labels)
    pool = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    count = round(share * len(labels))
    taken, rest = stratified(all_labels, pool, count)
    assert len(taken) == count
    assert sorted(torch.cat([taken, rest]).tolist()) == list(range(len(labels)))
    for c in range(6):
        n = labels.count(c)
        assert abs(int((all_labels[taken] == c).sum()) - n * count / len(labels)) < 1
    position = {int(i): place for place, i in enumerate(pool)}
    for part in (taken, rest):
        assert [position[int(i)] for i in part] == sorted(position[int(i)] for i in part)


@property_test
@given(
    n=st.integers(60, 200),
    k=st.integers(1, 5),
    validation=st.floats(0.05, 0.3),
    auxiliary=st.just(0.0) | st.floats(0.05, 0.3),
    test_fraction=st.floats(0.05, 0.3),
    seed=st.integers(0, 10),
)
def test_parts_are_disjoint_complete_stratified_and_repeatable(
    make_images: Any,
    number_of: Any,
    n: int,
    k: int,
    validation: float,
    auxiliary: float,
    test_fraction: float,
    seed: int,
) -> None:
    images = make_images(n, k)
    arguments = {
        "validation": validation,
        "auxiliary": auxiliary,
        "test_fraction": test_fraction,
        "seed": seed,
    }
    splits = make_splits(images, **arguments)
    numbers = {name: number_of(part.images) for name, part in parts(splits).items()}
    assert sorted(i for part in numbers.values() for i in part) == list(range(n))
    assert (splits.auxiliary is None) == (auxiliary == 0)
    for name, fraction in (("validation", validation), ("test", test_fraction)):
        counts = torch.bincount(parts(splits)[name].labels, minlength=k)
        assert int(counts.sum()) == round(n * fraction)
        assert all(abs(int(counts[c]) - int((images.labels == c).sum()) * fraction) < 2.5 for c in range(k))
    again = parts(make_splits(images, **arguments))
    assert {name: number_of(part.images) for name, part in again.items()} == numbers


def test_seed_decides_and_other_parts_do_not_change_test(make_images: Any, number_of: Any) -> None:
    images = make_images(100)
    test = [
        number_of(make_splits(images, validation=v, auxiliary=a, seed=s).test.images)
        for v, a, s in [(0.1, 0.0, 0), (0.3, 0.2, 0), (0.1, 0.0, 1)]
    ]
    assert test[0] == test[1] != test[2]


def test_official_test_is_kept_apart(make_images: Any, number_of: Any) -> None:
    train, test = make_images(40), make_images(12)
    splits = make_splits(train, test, validation=0.25, test_fraction=0.9, seed=0)
    assert (len(splits.train), len(splits.validation)) == (30, 10)
    assert sorted(number_of(splits.test.images)) == list(range(12))


def test_limits_take_stratified_subsets(make_images: Any) -> None:
    train, test = make_images(100, 4), make_images(50, 4)
    splits = make_splits(train, test, validation=0.2, auxiliary=0.2, train_limit=40, test_limit=8, seed=3)
    assert {name: len(part) for name, part in parts(splits).items()} == {
        "train": 24,
        "validation": 8,
        "test": 8,
        "auxiliary": 8,
    }
    for part in parts(splits).values():
        assert torch.bincount(part.labels).unique().numel() == 1
    unlimited = make_splits(train, test, train_limit=1000, test_limit=1000, seed=3)
    assert (len(unlimited.train), len(unlimited.test)) == (90, 50)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("validation", {"validation": 0.0}),
        ("validation", {"validation": 1.0}),
        ("auxiliary", {"auxiliary": -0.1}),
        ("auxiliary", {"auxiliary": 0.001}),
        ("test", {"test_fraction": 1.5}),
        ("test", {"test_fraction": 0.0}),
        ("validation + auxiliary + test", {"validation": 0.5, "auxiliary": 0.3}),
        ("train_limit", {"train_limit": 0}),
        ("test_limit", {"test_limit": -1}),
        ("train", {"validation": 0.3, "auxiliary": 0.3, "test_fraction": 0.3, "train_limit": 2}),
    ],
)
def test_what_does_not_fit_is_refused(make_images: Any, field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        make_splits(make_images(20), **{"seed": 0} | arguments)
    assert error.value.field == field


def test_test_images_must_be_alike(make_images: Any) -> None:
    with pytest.raises(InputError, match="classes"):
        make_splits(make_images(20), make_images(20, k=3), seed=0)
    with pytest.raises(InputError, match="image_shape"):
        make_splits(make_images(20), make_images(20, shape=(1, 6, 5)), seed=0)


def test_fractions_are_checked_when_made() -> None:
    assert Fractions(0.2, 0.1, 0.3).test == 0.3
    with pytest.raises(InputError, match="less than 1"):
        Fractions(0.4, 0.3, 0.3)
