"""Registered things built from plain data: names looked up, arguments checked against the signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from sfumato.errors import InputError, one_of, raise_all, together

T = TypeVar("T")
_IN_WORDS = {
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "dict_type": "a mapping",
    "tuple_type": "a list",
}
"""What pydantic says in Python's words, by its type of error."""


def call(function: Callable[..., T], arguments: Mapping[str, Any], *, field: str) -> T:
    """Call a function (or a dataclass) with arguments that a user wrote.

    Args:
        function: Its type hints say what is accepted; numbers in strings are read.
        arguments: By name.
        field: Where they were written, for the error.

    Raises:
        InputError: Unknown arguments (the nearest name is suggested), missing ones, or wrong types; all at once.
    """
    known = inspect.signature(function).parameters
    errors = [
        InputError(f"{field}.{name}", value, one_of(known, name) if known else "no argument")
        for name, value in arguments.items()
        if name not in known
    ]
    named = {name: value for name, value in arguments.items() if name in known}
    try:
        checked = _model(function)(**named)
    except ValidationError as error:
        errors += from_pydantic(error, field)
    raise_all(errors)
    return function(**{name: getattr(checked, name) for name in named})


def from_pydantic(error: ValidationError, field: str = "") -> list[InputError]:
    """What pydantic found wrong, as our one-line errors."""
    found: list[InputError] = []
    for detail in error.errors():
        where = ".".join([*([field] if field else []), *(str(part) for part in detail["loc"])])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            found.extend(together(cause))
            continue
        kind, text = detail["type"], detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if kind == "missing":
            found.append(InputError(where, "nothing", "a value"))
        else:
            found.append(InputError(where, detail["input"], _IN_WORDS.get(kind, text)))
    return found


def signature_of(function: Callable[..., Any]) -> dict[str, tuple[str, Any]]:
    """Argument name to (type as text, default; ``None`` where it has none)."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    return {
        name: (_type_name(hints[name]), None if p.default is p.empty else p.default) for name, p in parameters.items()
    }


def _model(function: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(function)
    fields: dict[str, Any] = {
        name: (hints[name], ... if p.default is p.empty else p.default)
        for name, p in inspect.signature(function).parameters.items()
    }
    return create_model("Arguments", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
