"""Decoded images on disk: decoded once, then memory-mapped."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfumato.data.dataset import ImageSet
from sfumato.data.decode import Form
from sfumato.data.listing import RawSplits, Source, decode
from sfumato.errors import CorruptFileError
from sfumato.progress import Progress
from sfumato.storage import hash_of, load_state, require_writable, save_state

_log = logging.getLogger(__name__)
_FORMAT = 1  # raise it when the same source would be decoded to other pixels


def default_cache_dir() -> Path:
    """``$SFUMATO_CACHE``, or else ``sfumato`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("SFUMATO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"


def decode_once(
    source: Source, form: Form, top_classes: int | None, cache_dir: Path, progress: Progress | None = None
) -> RawSplits:
    """Decode a source, or take what was decoded before.

    The file is found by a hash of the source's fingerprint and the other arguments, and is used only if
    its checksum is right; a damaged one is logged and replaced. Its tensors stay memory-mapped. ``progress`` is told of
    a decoding that takes long enough to be cached.

    Raises:
        InputError: The source cannot be read.
        StorageError: The decoded images cannot be written; nothing is left half-written.
    """
    fingerprint = source.fingerprint()
    if fingerprint is None:
        return decode(source.listing(), form, source.name, top_classes)
    what = {"format": _FORMAT, "source": fingerprint, "form": asdict(form), "top_classes": top_classes}
    readable = re.sub(r"[^\w.-]+", "-", source.name)
    path = cache_dir / "data" / f"{readable}-{hash_of(what, length=32)}.safetensors"
    try:
        return _unpack(load_state(path))
    except FileNotFoundError:
        pass
    except CorruptFileError as error:
        _log.warning("%s: decoding %s again", error, source.name)
    require_writable(path.parent)  # before the minutes of decoding, not after them
    raw = decode(source.listing(), form, source.name, top_classes, progress)
    save_state(path, _pack(raw))
    return raw


def _pack(raw: RawSplits) -> dict[str, Any]:
    parts = {"train": raw.train} | ({"test": raw.test} if raw.test else {})
    return {
        name: {"images": part.images, "labels": part.labels, "classes": list(part.classes), "name": part.name}
        for name, part in parts.items()
    }


def _unpack(state: dict[str, Any]) -> RawSplits:
    parts = {
        name: ImageSet(part["images"], part["labels"], tuple(part["classes"]), part["name"])
        for name, part in state.items()
    }
    return RawSplits(parts["train"], parts.get("test"))
