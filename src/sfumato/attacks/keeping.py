"""Parts of an attack's work, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfumato.attacks.threat import BlackBox
from sfumato.errors import CorruptFileError
from sfumato.storage import digest_of, load_state, save_state
from sfumato.training import Runtime
from sfumato.training.loop import checkpoint_name

_Made = TypeVar("_Made")


class Pieces:
    """What an attack finished before it was stopped, so that the same call does not do it again.

    A piece is known by everything that it depends on: who makes it and of what, the states of the generator and of the
    target (queries spent, the channel's randomness) when it begins. One that was kept under any other of these, or that
    is damaged, is made again and replaced. One that fits is taken, and generator and target go on as if it had been
    made just now: a result is the same to the last bit, and no query is spent twice or forgotten.

    Args:
        origin: Who makes the pieces and of what, as a state.
        target: Whose queries and channel are part of the state.
        generator: All else that is drawn.
        runtime: Its folder holds the pieces; without one nothing is kept.
    """

    def __init__(
        self, origin: Callable[[], Mapping[str, Any]], target: BlackBox, generator: torch.Generator, runtime: Runtime
    ) -> None:
        self._target, self._generator, self._runtime = target, generator, runtime
        # Images are hashed for it, which is for nothing where nothing is kept.
        self._origin = None if runtime.folder is None else digest_of(dict(origin()))
        self._fresh = False

    def __call__(self, name: str, make: Callable[[], _Made], *given: Any) -> _Made:
        """A piece: taken from the folder, or made and kept there.

        Args:
            name: Of its file; there is one piece of a name at a time.
            make: Makes it: a state, see :mod:`sfumato.storage`.
            given: What ``make`` works on, as states.

        Raises:
            StorageError: The disk refused.
        """
        if self._runtime.folder is None:
            self._fresh = True
            return make()
        path = Path(self._runtime.folder) / f"{name}.{checkpoint_name(self._runtime)}"
        key = digest_of([self._origin, name, self._state(), list(given)])
        kept = _read(path, key)
        if kept is None:
            made = make()
            save_state(path, {"key": key, "after": self._state(), "made": made})
            self._fresh = True
            return made
        self._fresh = False
        self._generator.set_state(kept["after"]["generator"].clone())
        self._target.load_state_dict(kept["after"]["target"])
        taken: _Made = _anew(kept["made"], self._runtime.device)
        return taken

    def stop_is_due(self) -> bool:
        """Whether the runtime was asked to stop; not before something was added to what is kept."""
        # One process decides nothing alone: the others would wait for it forever.
        asked = self._fresh and self._runtime.should_stop()
        return self._runtime.fabric.strategy.reduce_boolean_decision(asked, all=False)

    def _state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "target": self._target.state_dict()}


def _read(path: Path, key: str) -> Any:
    """``None`` where there is nothing, it is damaged, or it is another piece."""
    try:
        state = load_state(path)
    except (FileNotFoundError, CorruptFileError):
        return None
    return state if isinstance(state, dict) and state.get("key") == key else None


def _anew(node: Any, device: torch.device) -> Any:
    """The same in memory of its own: kernels may round differently on what is mapped from a file."""
    if isinstance(node, Tensor):
        return node.to(device, copy=True)
    if isinstance(node, dict):
        return {key: _anew(value, device) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_anew(value, device) for value in node)
    return node
