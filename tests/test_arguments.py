from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from sfumato.arguments import call, from_pydantic, signature_of
from sfumato.errors import InputError, InputErrors


def paint(color: str, layers: int = 3, thickness: float = 0.5, kind: Literal["oil", "egg"] = "oil") -> tuple[Any, ...]:
    return color, layers, thickness, kind


@dataclass(frozen=True)
class Canvas:
    source: ClassVar[str] = "here"
    width: int = 4
    name: str | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError("canvas.width", self.width, "1 or more")


def test_function_gets_what_was_written() -> None:
    assert call(paint, {"color": "red"}, field="f") == ("red", 3, 0.5, "oil")
    assert call(paint, {"color": "red", "layers": 9, "thickness": 2, "kind": "egg"}, field="f") == (
        "red",
        9,
        2.0,
        "egg",
    )


def test_numbers_in_strings_are_read() -> None:
    found = call(paint, {"color": "red", "layers": "7", "thickness": "1e-3"}, field="f")
    assert found == ("red", 7, 0.001, "oil")
    assert isinstance(found[1], int)


def test_dataclass_with_class_variables() -> None:
    assert call(Canvas, {"width": 2}, field="f") == Canvas(2)
    assert call(Canvas, {"name": "x"}, field="f") == Canvas(name="x")
    assert call(Canvas, {"name": None}, field="f") == Canvas()
    with pytest.raises(InputError, match=r"^f.source: got 'x'; accepted: one of name, width"):
        call(Canvas, {"source": "x"}, field="f")


def test_errors_of_the_function_itself_come_through() -> None:
    with pytest.raises(InputError, match=r"^canvas.width: got 0; accepted: 1 or more"):
        call(Canvas, {"width": 0}, field="f")


def test_bugs_inside_the_function_are_no_input_errors() -> None:
    def broken(x: int = 1) -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        call(broken, {}, field="f")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color": "red", "layrs": 3}, r"^f.layrs: got 3; accepted: did you mean layers\? one of "),
        ({}, r"^f.color: got 'nothing'; accepted: a value$"),
        ({"color": "red", "layers": 2.5}, r"^f.layers: got 2.5; accepted: a valid integer"),
        ({"color": "red", "layers": "many"}, r"^f.layers: got 'many'; accepted: a valid integer"),
        ({"color": "red", "thickness": float("nan")}, r"^f.thickness: got nan; accepted: a finite number"),
        ({"color": "red", "thickness": "inf"}, r"^f.thickness: got 'inf'; accepted: a finite number"),
        ({"color": "red", "kind": "water"}, r"^f.kind: got 'water'; accepted: 'oil' or 'egg'"),
        ({"color": ["red"]}, r"^f.color: got \['red'\]; accepted: a valid string"),
        ({"color": "red", "layers": None}, r"^f.layers: got None; accepted: a valid integer"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(paint, arguments, field="f")
    assert not isinstance(caught.value, InputErrors)


def test_function_without_arguments() -> None:
    assert call(lambda: 3, {}, field="f") == 3
    with pytest.raises(InputError, match=r"^f.x: got 1; accepted: no argument$"):
        call(lambda: 3, {"x": 1}, field="f")


def test_all_errors_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        call(paint, {"layers": "many", "kind": "water", "colr": "red", "x": 1}, field="f")
    assert {error.field for error in caught.value.errors} == {"f.color", "f.layers", "f.kind", "f.colr", "f.x"}
    assert str(caught.value).count("\n") == 4
    assert "did you mean color?" in str(caught.value)


def test_pydantic_errors_keep_ours_whole() -> None:
    class Page(BaseModel):
        canvas: int
        title: str

        @field_validator("title")
        @classmethod
        def check(cls, value: str) -> str:
            if value == "two":
                raise InputErrors([InputError("a", 1, "x"), InputError("b", 2, "y")])
            if value == "one":
                raise InputError("c", 3, "z")
            raise ValueError("be a title")

    def found(title: str, field: str = "") -> list[tuple[str, object, str]]:
        with pytest.raises(ValidationError) as caught:
            Page.model_validate({"canvas": "x", "title": title})
        return [(e.field, e.value, e.accepted) for e in from_pydantic(caught.value, field)]

    number = "a valid integer, unable to parse string as an integer"
    assert found("two") == [("canvas", "x", number), ("a", 1, "x"), ("b", 2, "y")]
    assert found("one", "page") == [("page.canvas", "x", number), ("c", 3, "z")]
    assert found("other") == [("canvas", "x", number), ("title", "other", "be a title")]


def test_types_are_told_in_the_words_of_yaml() -> None:
    class Frame(BaseModel):
        width: int = 1

    class Picture(BaseModel):
        sizes: tuple[int, ...]
        names: dict[str, int]
        frame: Frame

    with pytest.raises(ValidationError) as caught:
        Picture.model_validate({"sizes": 3, "names": "x", "frame": "oak"})
    assert [str(error) for error in from_pydantic(caught.value)] == [
        "sizes: got 3; accepted: a list",
        "names: got 'x'; accepted: a mapping",
        "frame: got 'oak'; accepted: a mapping of fields",
    ]


def test_signature() -> None:
    assert signature_of(paint) == {
        "color": ("str", None),
        "layers": ("int", 3),
        "thickness": ("float", 0.5),
        "kind": ("oil | egg", "oil"),
    }
    assert signature_of(Canvas) == {"width": ("int", 4), "name": ("str | None", None)}

    def nested(x: list[int], y: dict[str, Any] | None = None) -> None: ...

    assert signature_of(nested) == {"x": ("list[int]", None), "y": ("dict[str, Any] | None", None)}
