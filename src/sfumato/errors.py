"""Errors that a user can act on.

Everything a user can get wrong raises an :class:`SfumatoError`: one line that names the field, the
value and what would be accepted. The command line prints that line and nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence


class SfumatoError(Exception):
    """Base of all errors that are the input's fault and not the program's."""


class InputError(SfumatoError, ValueError):
    """A value that cannot be used.

    Args:
        field: Name of the argument or configuration field, dotted where it is nested.
        value: What was given; shown with ``repr`` and shortened.
        accepted: What would have been accepted, in words.
    """

    def __init__(self, field: str, value: object, accepted: str) -> None:
        self.field, self.value, self.accepted = field, value, accepted
        super().__init__(f"{field}: got {_shorten(value)}; accepted: {accepted}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.accepted)


class BudgetError(InputError):
    """An attack needs more queries than it may send."""


class CorruptFileError(SfumatoError):
    """A file whose content does not match its checksum, or that cannot be read as what it claims to be."""


class StorageError(SfumatoError):
    """The disk refused: no space, no permission, or not a folder."""


class InputErrors(InputError):  # noqa: N818 (a plural)
    """Several bad values, reported at once, one line each."""

    def __init__(self, errors: Iterable[InputError]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        super().__init__(first.field, first.value, first.accepted)
        self.args = ("\n".join(str(error) for error in self.errors),)

    def __reduce__(self) -> tuple[type[InputErrors], tuple[tuple[InputError, ...]]]:  # type: ignore[override]
        return type(self), (self.errors,)


def together(error: InputError) -> tuple[InputError, ...]:
    """The single errors of one that may hold several."""
    return error.errors if isinstance(error, InputErrors) else (error,)


def renamed(error: InputError, name: Callable[[str], str]) -> InputError:
    """The same error, or the same errors, about fields that are called otherwise where the user wrote them.

    >>> str(renamed(InputError("sigma", -1, "0 or more"), lambda own: f"noise.{own}"))
    'noise.sigma: got -1; accepted: 0 or more'
    """
    errors = [InputError(name(one.field), one.value, one.accepted) for one in together(error)]
    return errors[0] if len(errors) == 1 else InputErrors(errors)


def raise_all(errors: Sequence[InputError]) -> None:
    """Raise one error as itself, several at once, none not at all."""
    if errors:
        raise errors[0] if len(errors) == 1 else InputErrors(errors)


def one_of(names: Iterable[str], given: object = None) -> str:
    """Describe a choice for :class:`InputError`, with the nearest name first if one is close.

    >>> one_of(["noise", "dropout"], "niose")
    'did you mean noise? one of dropout, noise'
    """
    names = sorted(names)
    text = f"one of {', '.join(names)}"
    near = difflib.get_close_matches(str(given), names, n=1) if given is not None else []
    return f"did you mean {near[0]}? {text}" if near else text


def _shorten(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class Interrupted(SfumatoError):  # noqa: N818 (it is no error of anybody's)
    """The user stopped the work; what was done is kept and resumes with the same call."""
