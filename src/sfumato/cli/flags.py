"""The fields of the settings as flags: the same names as in YAML, dotted, for every command that takes them."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from cyclopts import Argument, ArgumentCollection, CycloptsError, Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sfumato.audit.settings import Settings, preset
from sfumato.errors import InputError

DEFAULT_PRESET = "digits"
"""Where a call without ``--config`` starts from."""
_ESCAPE = "__"
_METAVARS = {"fail_if": "CONDITION..."}
_Result = TypeVar("_Result")


def takes_settings(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Give a command a flag for every field of :class:`~sfumato.audit.settings.Settings`.

    The command gets what was given as one nested mapping, in its argument ``flags``. Values stay text: the settings
    validate them, so that everything wrong is reported at once and in the same words as for a YAML file. The help
    shows what holds without a flag: the value of the preset :data:`DEFAULT_PRESET`, and the field's own default, which
    holds with ``--config``, where that is another.
    """
    return _with_flags(command, _parameters(Settings, (), Settings.model_validate(preset(DEFAULT_PRESET))))


def takes_sections(*sections: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Like :func:`takes_settings` for a command that reads some sections alone, and the rest from elsewhere.

    The help shows no defaults: what is not given comes from there too.
    """

    def decorate(command: Callable[..., _Result]) -> Callable[..., _Result]:
        every = _parameters(Settings, (), None)
        return _with_flags(command, (p for p in every if p.name.split(_ESCAPE)[0] in sections))

    return decorate


def _with_flags(command: Callable[..., _Result], flags: Iterable[inspect.Parameter]) -> Callable[..., _Result]:
    own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "flags"]
    generated = list(flags)

    def with_flags(*args: Any, **given: Any) -> _Result:
        rest = {name: value for name, value in given.items() if name not in _SETTINGS}
        return command(*args, flags=nested(given), **rest)

    with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
    with_flags.__signature__ = inspect.Signature([*own, *generated])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in [*own, *generated]}
    return with_flags


def nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among a command's arguments, as the mapping that a YAML file would hold."""
    tree: dict[str, Any] = {}
    for name, value in given.items():
        if name in _SETTINGS and value is not None:
            *path, last = name.split(_ESCAPE)
            section = tree
            for step in path:
                section = section.setdefault(step, {})
            section[last] = value
    return tree


def _parameters(
    section: type[BaseModel], path: tuple[str, ...], preset: BaseModel | None
) -> Iterator[inspect.Parameter]:
    for name, field in section.model_fields.items():
        kind, own = field.annotation, getattr(preset, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _parameters(kind, (*path, name), own)
            continue
        default = "" if preset is None else _default(own, field.default)
        yield inspect.Parameter(
            _ESCAPE.join((*path, name)),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(field, (*path, name), default),
        )


def _annotation(field: FieldInfo, path: tuple[str, ...], default: str) -> Any:
    kind = _without_none(field.annotation)
    many = get_origin(kind) is tuple
    choice = get_origin(kind) is Literal
    description = " ".join((field.description or "").replace("``", "").split())
    parameter = Parameter(
        name="--" + ".".join(path),
        help=f"{description} {default}".strip(),
        group=path[0] if len(path) > 1 else "Parameters",
        show_default=False,
        consume_multiple=many,
        negative=(),
        metavar="CHOICE" if choice else _METAVARS.get(path[-1], "NAME...") if many else kind.__name__.upper(),
        # Text for the settings to read: cyclopts would validate it first, alone, and in other words.
        converter=_choice if choice else _several if many else _one,
    )
    # With str beside the choices, cyclopts shows and completes them and takes any text.
    return Annotated[kind | str | None if choice else list[str | dict[str, Any]] | None if many else Any, parameter]


def _default(preset: object, plain: object) -> str:
    """What holds without the flag: without anything, and with ``--config``."""
    shown, own = _shown(preset), _shown(plain)
    if preset == plain:
        return f"[default: {shown}]" if plain not in (None, ()) else ""
    if shown == own:
        return f"[default: {shown} with the preset's arguments; with their own with --config]"
    return f"[default: {shown}; {own} with --config]"


def _without_none(annotation: Any) -> Any:
    """The type itself, without ``| None`` and without the bounds that the settings check."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(member for member in get_args(annotation) if member is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _shown(value: object) -> str:
    if isinstance(value, Mapping):  # a defense or an attack by its label or its name
        names = [str(value[key]) for key in ("label", "recipe", "part", "attack") if key in value]
        return names[0] if names else "chain"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_shown, value))
    return "unset" if value is None else str(value)


def _one(kind: Any, tokens: Sequence[Token]) -> str:
    return tokens[0].value


def _choice(kind: Any, tokens: Sequence[Token]) -> Any:
    """The choice that is written so, which may be a number; anything else is left for the settings to refuse."""
    choices = [choice for member in get_args(kind) for choice in get_args(member)]
    return next((choice for choice in choices if str(choice) == tokens[0].value), tokens[0].value)


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
        wrong = InputError(field, token.value, f'a name, or JSON such as {{"recipe": "noise"}} ({error})')
        # As a ValueError, cyclopts would catch it and name the flag before the field.
        raise CycloptsError(msg=str(wrong)) from error


def unknown_flags(words: Iterable[str], command: str, arguments: ArgumentCollection) -> dict[str, str]:
    """The flags among some words that a command does not have, each with a line about it.

    Args:
        words: What was written.
        command: The command's name.
        arguments: What it takes.
    """
    known = [name.removeprefix("--") for argument in arguments for name in argument.names]
    flags = [word for word in words if re.match(r"--?[A-Za-z]", word)]
    return {word: _about(word, command, known) for word in flags if not _matches(word, arguments)}


def _matches(word: str, arguments: ArgumentCollection) -> bool:
    try:
        arguments.match(word.partition("=")[0])
    except ValueError:
        return False
    return True


def _about(word: str, command: str, known: Collection[str]) -> str:
    """Whose flag it is that the command does not have, or what it may have been meant to be."""
    flag = word.partition("=")[0].removeprefix("--")
    line = f"Unknown option: {word.partition('=')[0]}"
    if _name(flag) in _SETTINGS:
        read = dict.fromkeys(name.partition(".")[0] for name in known if _name(name) in _SETTINGS)
        return f"{line}. Of the settings, {command} reads {' and '.join(read) or 'none'}; the rest is as the run has it"
    near = difflib.get_close_matches(flag, known, n=1)
    return f"{line}. Did you mean --{near[0]}?" if near else line


def without(words: Sequence[str], argument: Argument | None) -> list[str]:
    """The words of a command line but for those of one argument: its flag, with the values behind it, or its names."""
    tokens = argument.tokens if argument is not None else []
    flags, values = {token.keyword for token in tokens}, {token.value for token in tokens}
    kept, inside = [], False
    for word in words:
        # A name has no flag before it.
        inside = word.partition("=")[0] in flags or ((inside or None in flags) and word in values)
        if not inside:
            kept.append(word)
    return kept


def _name(flag: str) -> str:
    return flag.replace("-", "_").replace(".", _ESCAPE)


_SETTINGS = frozenset(parameter.name for parameter in _parameters(Settings, (), None))
