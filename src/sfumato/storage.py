"""Files: written atomically, read with a checksum, never a pickle.

A *state* is any nesting of dicts, lists, tuples, tensors, numbers, strings, booleans and ``None``. It is
kept in one safetensors file: tensors as they are, the nesting as JSON in the header, and a SHA-256 over
both, so that a file that was cut short or altered is refused and never used.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import CorruptFileError, StorageError

_FORMAT = "sfumato-state-1"
_ABANDONED = 3600.0  # seconds: whoever is still at work on a file writes to it more often
_TENSOR, _TUPLE, _DICT = "__tensor__", "__tuple__", "__dict__"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never a half. The temporary file is removed on any error; that of a
    process which was killed, by a later one that writes the same file.

    Raises:
        StorageError: The disk is full, read-only or not permitted.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def _remove_abandoned(path: Path) -> None:
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says (full, read-only, not permitted) into a :class:`StorageError` naming ``path``."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space left on the disk" if full else (error.strerror or str(error))
        raise StorageError(f"cannot write {path}: {reason}") from error
    except SafetensorError as error:  # safetensors hides the errno of a failed write in its message
        text = str(error)
        reason = "no space left on the disk" if "No space left" in text or "os error 28" in text else text
        raise StorageError(f"cannot write {path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_state(path: Path, state: Any) -> str:
    """Write a state atomically and return its SHA-256 (of names, types, shapes and bytes).

    Raises:
        TypeError: The state holds something other than containers, tensors and JSON scalars.
        StorageError: The disk refused.
    """
    tree, tensors = _folded(state)
    digest = state_digest(tree, tensors)
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {_FORMAT: json.dumps({"sha256": digest, "tree": tree})}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return digest


def load_state(path: Path, *, device: str | torch.device = "cpu") -> Any:
    """Read a state back, bit for bit; tensors stay memory-mapped where the device is the CPU.

    Raises:
        CorruptFileError: The file is not a state, was cut short, or does not match its checksum.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is corrupted or was cut short ({error})") from error
    if _FORMAT not in metadata:
        raise CorruptFileError(f"{path} is not a file of sfumato's (it has no entry {_FORMAT})")
    try:
        header = json.loads(metadata[_FORMAT])
        tree, expected = header["tree"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} has a damaged header") from error
    if state_digest(tree, tensors) != expected:
        raise CorruptFileError(f"{path} does not match its checksum")
    return _unfold(json.loads(tree), {k: v.to(device) for k, v in tensors.items()})


def digest_of(state: Any) -> str:
    """SHA-256 of a state: of names, types, shapes and bytes.

    Raises:
        TypeError: It holds something other than containers, tensors and JSON scalars.
    """
    return state_digest(*_folded(state))


def state_digest(tree: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over a JSON text and named tensors (names, types, shapes, bytes)."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.as_strided((tensor.numel(),), (1,))  # a lone element may have any stride, and reshape keeps it
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path) -> None:
    """Find out whether a folder can be written to, or made, without making it.

    Raises:
        StorageError: It is a file, or the disk refuses.
    """
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    with storage_errors(folder), tempfile.TemporaryFile(dir=there):
        pass


def hash_of(description: Any, *, length: int = 16) -> str:
    """Hash of a JSON-able description: the same content gives the same address on any machine."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _folded(state: Any) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return json.dumps(_fold(state, "", tensors), separators=(",", ":")), tensors


def _fold(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        while name in tensors:  # {"a": {"b": ...}, "a/b": ...}, or the keys 1 and "1"
            name += "'"
        tensors[name] = node.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(node, dict):
        for key in node:
            if not (key is None or isinstance(key, (bool, int, float, str))):
                raise TypeError(f"a state cannot hold a key of type {type(key).__name__} (at {name or '/'})")
        # Items as pairs: JSON would turn the integer keys of an optimizer's state into strings.
        return {_DICT: [[key, _fold(value, f"{name}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, tuple):
        return {_TUPLE: [_fold(value, f"{name}/{i}", tensors) for i, value in enumerate(node)]}
    if isinstance(node, list):
        return [_fold(value, f"{name}/{i}", tensors) for i, value in enumerate(node)]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a state cannot hold a {type(node).__name__} (at {name or '/'})")


def _unfold(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unfold(value, tensors) for value in node]
    if isinstance(node, dict):
        if _TENSOR in node:
            return tensors[node[_TENSOR]]
        if _TUPLE in node:
            return tuple(_unfold(value, tensors) for value in node[_TUPLE])
        return {key: _unfold(value, tensors) for key, value in node[_DICT]}
    return node
