"""The fields of the settings as flags: the same names as in YAML, dotted, for every command that takes them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sfumato.audit.settings import Settings
from sfumato.errors import InputError

_ESCAPE = "__"


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every field of :class:`~sfumato.audit.settings.Settings`.

    The command gets what was given as one nested mapping, in its argument ``flags``. Values stay text: the settings
    validate them, so that everything wrong is reported at once and in the same words as for a YAML file.
    """
    own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "flags"]
    generated = list(_parameters(Settings, ()))

    def with_flags(*args: Any, **given: Any) -> None:
        flags: dict[str, Any] = {}
        for parameter in generated:
            value = given.pop(parameter.name, None)
            if value is not None:
                _put(flags, parameter.name.split(_ESCAPE), value)
        command(*args, flags=flags, **given)

    with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
    with_flags.__signature__ = inspect.Signature([*own, *generated])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in [*own, *generated]}
    return with_flags


def _parameters(section: type[BaseModel], path: tuple[str, ...]) -> Iterator[inspect.Parameter]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _parameters(kind, (*path, name))
            continue
        yield inspect.Parameter(
            _ESCAPE.join((*path, name)),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(field, (*path, name)),
        )


def _annotation(field: FieldInfo, path: tuple[str, ...]) -> Any:
    kind = _without_none(field.annotation)
    many = get_origin(kind) is tuple
    # Text wherever it is not a choice: cyclopts would validate it first, alone, and in other words.
    choice = get_origin(kind) is Literal
    description = " ".join((field.description or "").replace("``", "").split())
    parameter = Parameter(
        name="--" + ".".join(path),
        help=f"{description} [default: {_shown(field.default)}]" if field.default is not None else description,
        group=path[0] if len(path) > 1 else "Parameters",
        show_default=False,
        consume_multiple=many,
        negative=(),
        metavar=None if choice else "NAME..." if many else kind.__name__.upper(),
        converter=None if choice else _several if many else _one,
    )
    return Annotated[kind | None if choice else list[str | dict[str, Any]] | None if many else Any, parameter]


def _without_none(annotation: Any) -> Any:
    """The type itself, without ``| None`` and without the bounds that the settings check."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(member for member in get_args(annotation) if member is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _one(kind: Any, tokens: Sequence[Token]) -> str:
    return tokens[0].value


def _several(kind: Any, tokens: Sequence[Token]) -> list[Any]:
    return [_item(token) for token in tokens]


def _item(token: Token) -> Any:
    """A name, or a mapping in JSON."""
    if not token.value.startswith("{"):
        return token.value
    try:
        return json.loads(token.value)
    except ValueError as error:
        field = (token.keyword or "value").removeprefix("--")
        raise InputError(field, token.value, f'a name, or JSON such as {{"recipe": "noise"}} ({error})') from error


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for step in path[:-1]:
        tree = tree.setdefault(step, {})
    tree[path[-1]] = value


def only(flags: Mapping[str, Any], allowed: Sequence[str], command: str) -> None:
    """Refuse settings that a command does not read.

    Raises:
        InputError: A section outside ``allowed`` was given.
    """
    for name in flags:
        if name not in allowed:
            raise InputError(f"{command}: {name}", flags[name], f"only {', '.join(allowed)}: the rest is the run's")
