"""Defenses from plain data."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.defenses import CEM, Bottleneck, Dropout, Noise, build, chain
from sfumato.errors import InputError, InputErrors


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("noise", chain(Bottleneck(8), Noise(0.025))),
        ("none", chain()),
        ([], chain()),
        ({"recipe": "noise", "sigma": 0.5}, chain(Bottleneck(8), Noise(0.5))),
        ({"part": "noise", "sigma": 0.5}, Noise(0.5)),
        ([{"part": "noise"}], Noise(0.025)),
        (["noise", {"part": "cem", "weight": "2"}], chain(Bottleneck(8), Noise(0.025), CEM(2.0))),
        (({"part": "bottleneck", "channels": "4"}, "none", {"part": "dropout"}), chain(Bottleneck(4), Dropout(0.2))),
    ],
)
def test_what_is_read(spec: Any, expected: Any) -> None:
    assert build(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("niose", r"^defense.recipe: got 'niose'; accepted: did you mean noise\? one of "),
        ({"part": "drpout"}, r"^defense.part: got 'drpout'; .*did you mean dropout\?"),
        ({"part": "noise", "sigmma": 1}, r"^defense.noise.sigmma: got 1; .*did you mean sigma\?"),
        ({"recipe": "none", "x": 1}, r"^defense.none.x: got 1; accepted: no argument"),
        ({"sigma": 1}, "a mapping with the key recipe or part"),
        ({}, "a mapping with the key recipe or part"),
        (None, "a recipe's name, a mapping .* or a list of these"),
        (3, "a recipe's name, a mapping .* or a list of these"),
        ({"part": ["noise"]}, r"^defense.part: got \['noise'\]; accepted: did you mean noise\? one of"),
        ({"part": None}, r"^defense.part: got None; accepted: one of"),
        ([{"part": "noise"}, {"part": "nose"}], r"^defense\[1\].part: got 'nose'"),
        ([["noise", 5]], r"^defense\[0\]\[1\]: got 5"),
        ({"recipe": "noise", "sigma": -1}, r"^defense.noise.sigma: got -1.0; accepted: a standard deviation of 0"),
        (["none", [{"part": "noise", "sigma": -1}]], r"^defense\[1\]\[0\].noise.sigma: got -1.0"),
    ],
)
def test_what_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(spec)
    assert "\n" not in str(caught.value)


def test_field_names_where_it_was_written() -> None:
    with pytest.raises(InputError, match=r"^rows\[2\].defense\[0\].noise.sigma: got 'x'"):
        build([{"part": "noise", "sigma": "x"}], field="rows[2].defense")


def test_all_errors_of_a_list_at_once() -> None:
    spec = [{"part": "noise", "sigma": "loud", "knd": 1}, "none", {"part": "dropout", "p": 1}, {"part": "x"}]
    with pytest.raises(InputErrors) as caught:
        build(spec)
    fields = [error.field for error in caught.value.errors]
    assert fields == ["defense[0].noise.knd", "defense[0].noise.sigma", "defense[2].dropout.p", "defense[3].part"]
    assert str(caught.value).count("\n") == 3


def test_spec_is_left_as_it_was() -> None:
    spec = {"part": "noise", "sigma": 0.5}
    build(spec)
    assert spec == {"part": "noise", "sigma": 0.5}
