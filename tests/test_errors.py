from __future__ import annotations

import pickle

import pytest

from sfumato.errors import (
    CorruptFileError,
    InputError,
    InputErrors,
    Interrupted,
    SfumatoError,
    StorageError,
    one_of,
    raise_all,
    renamed,
    together,
)


def test_one_line_names_field_value_and_what_is_accepted() -> None:
    error = InputError("a.b", [1, "x"], "a number")
    assert str(error) == "a.b: got [1, 'x']; accepted: a number"
    assert (error.field, error.value, error.accepted) == ("a.b", [1, "x"], "a number")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("length", [50, 118, 119, 5000])
def test_long_values_are_shortened(length: int) -> None:
    value = "v" * length
    text = str(InputError("f", value, "x"))
    assert len(text) <= len("f: got ; accepted: x") + 120
    assert (repr(value) in text) == (length <= 118)
    assert ("…" in text) == (length > 118)


@pytest.mark.parametrize("kind", [CorruptFileError, StorageError, InputError, InputErrors, Interrupted])
def test_all_are_the_inputs_fault(kind: type[Exception]) -> None:
    assert issubclass(kind, SfumatoError)


def test_several_at_once() -> None:
    first, second = InputError("a", 1, "x"), InputError("b", 2, "y")
    both = InputErrors(iter([first, second]))
    assert str(both) == f"{first}\n{second}"
    assert both.errors == (first, second)
    assert (both.field, both.value, both.accepted) == ("a", 1, "x")
    assert isinstance(both, InputError)


def test_fields_are_called_as_where_they_were_written() -> None:
    first, second = InputError("a", 1, "x"), InputError("b", 2, "y")
    assert str(renamed(first, lambda own: f"place.{own}")) == "place.a: got 1; accepted: x"
    both = renamed(InputErrors([first, second]), lambda own: {"b": "c"}.get(own, own))
    assert str(both) == "a: got 1; accepted: x\nc: got 2; accepted: y"


def test_pickling_keeps_everything() -> None:
    one = pickle.loads(pickle.dumps(InputError("a", {"k": (1, 2)}, "x")))
    assert type(one) is InputError
    assert (one.field, one.value, one.accepted, str(one)) == (
        "a",
        {"k": (1, 2)},
        "x",
        "a: got {'k': (1, 2)}; accepted: x",
    )
    both = InputErrors([one, InputError("b", 2, "y")])
    again = pickle.loads(pickle.dumps(both))
    assert type(again) is InputErrors
    assert str(again) == str(both)
    assert [e.field for e in again.errors] == ["a", "b"]
    for kind in (CorruptFileError, StorageError, Interrupted):
        assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"


def test_together_and_raise_all() -> None:
    first, second = InputError("a", 1, "x"), InputError("b", 2, "y")
    assert together(first) == (first,)
    assert together(InputErrors([first, second])) == (first, second)
    raise_all([])
    with pytest.raises(InputError) as caught:
        raise_all([first])
    assert caught.value is first
    with pytest.raises(InputErrors) as several:
        raise_all([first, second])
    assert several.value.errors == (first, second)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("niose", "did you mean noise? one of dropout, noise"),
        ("zzz", "one of dropout, noise"),
        (None, "one of dropout, noise"),
        (3, "one of dropout, noise"),
    ],
)
def test_one_of(given: object, expected: str) -> None:
    assert one_of(["noise", "dropout"], given) == expected
    assert one_of(iter(["noise", "dropout"]), given) == expected
