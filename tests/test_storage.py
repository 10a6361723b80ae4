from __future__ import annotations

import errno
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sfumato import storage
from sfumato.errors import CorruptFileError, StorageError
from sfumato.storage import (
    atomic_path,
    digest_of,
    hash_of,
    load_state,
    save_state,
    state_digest,
    storage_errors,
    write_text,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@contextmanager
def folder() -> Iterator[Path]:
    """Fresh for each of Hypothesis's examples, which share a test's ``tmp_path``."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def equal(a: Any, b: Any) -> bool:
    """Same types, same values, same bits; −0 is not 0 and NaN is NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        same_form = a.dtype == b.dtype and a.shape == b.shape
        return same_form and a.reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()
    if isinstance(a, dict):
        keys = [(type(k), k) for k in a] == [(type(k), k) for k in b]
        return keys and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return a == b and repr(a) == repr(b)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    seed, dtype = draw(st.integers(0, 1000)), draw(st.sampled_from(DTYPES))
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10).to(dtype)


KEYS = st.one_of(
    st.text(max_size=4), st.sampled_from(["a", "a/b", "b", "/", "__tensor__", "__dict__", "1"]), st.integers()
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
STATES = st.recursive(
    st.one_of(SCALARS, tensors()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


@given(STATES)
@settings(max_examples=80, deadline=None)
def test_state_round_trip(state: Any) -> None:
    with folder() as at, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)  # slow, and a hundred files need not outlive a power cut
        first = save_state(at / "state", state)
        again = load_state(at / "state")
        assert equal(again, state)
        assert save_state(at / "again", again) == first
        assert sorted(p.name for p in at.iterdir()) == ["again", "state"]


@pytest.mark.parametrize(
    "state",
    [
        {"a": {"b": torch.zeros(2)}, "a/b": torch.ones(2)},
        {1: torch.zeros(2), "1": torch.ones(2)},
        {"a": [torch.zeros(2)], "a/0": torch.ones(2), "a/0'": torch.full((2,), 2.0)},
        {None: torch.zeros(2), "None": torch.ones(2), 0.5: 1},
    ],
)
def test_names_that_collide(tmp_path: Path, state: Any) -> None:
    save_state(tmp_path / "s", state)
    assert equal(load_state(tmp_path / "s"), state)


def test_tensors_that_share_memory_or_are_strided(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    state = {"whole": base, "same": base, "row": base[1], "turned": base.T, "grad": base.clone().requires_grad_()}
    save_state(tmp_path / "s", state)
    again = load_state(tmp_path / "s")
    assert all(torch.equal(again[name], value.detach()) for name, value in state.items())
    assert not again["grad"].requires_grad
    again["whole"].add_(1)  # writing into what was read touches neither its twin nor the file
    assert torch.equal(again["same"], base)
    assert torch.equal(load_state(tmp_path / "s")["whole"], base)


def test_optimizer_state_round_trip(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], 0.1, betas=(0.5, 0.9))
    weight.sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", optimizer.state_dict())
    assert equal(load_state(tmp_path / "s"), optimizer.state_dict())


@pytest.mark.parametrize("state", [{"a": object()}, [{1, 2}], {"a": {"b": b"bytes"}}, {(1, 2): 3}, {b"k": 1}])
def test_what_a_state_cannot_hold(tmp_path: Path, state: Any) -> None:
    with pytest.raises(TypeError, match=r"a state cannot hold a .* \(at /"):
        save_state(tmp_path / "s", state)
    assert not list(tmp_path.iterdir())


def test_device_of_what_is_read(tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"a": torch.ones(3), "b": 2})
    again = load_state(tmp_path / "s", device="meta")
    assert again["a"].device.type == "meta"
    assert again["b"] == 2


def small_file(at: Path) -> tuple[dict[str, Any], bytes]:
    state = {"w": torch.arange(3.0), "n": [1, (None, "x")]}
    save_state(at / "s", state)
    return state, (at / "s").read_bytes()


def test_any_byte_inverted_is_noticed(tmp_path: Path) -> None:
    _, raw = small_file(tmp_path)
    for i in range(len(raw)):
        changed = bytearray(raw)
        changed[i] ^= 0xFF
        (tmp_path / "c").write_bytes(changed)
        with pytest.raises(CorruptFileError, match="c "):
            load_state(tmp_path / "c")


@pytest.mark.parametrize("bit", [0, 1, 5, 7])
def test_any_bit_flipped_is_noticed_or_changes_nothing(tmp_path: Path, bit: int) -> None:
    """A blank of the header's padding may turn into another blank; nothing else may pass."""
    state, raw = small_file(tmp_path)
    passed = 0
    for i in range(len(raw)):
        changed = bytearray(raw)
        changed[i] ^= 1 << bit
        (tmp_path / "c").write_bytes(changed)
        try:
            assert equal(load_state(tmp_path / "c"), state)
        except CorruptFileError:
            continue
        assert raw[i : i + 1] == b" "
        passed += 1
    assert passed <= 8


def test_any_truncation_and_any_extension_is_noticed(tmp_path: Path) -> None:
    _, raw = small_file(tmp_path)
    for changed in [raw[:n] for n in range(len(raw))] + [raw + b"\0", raw + raw]:
        (tmp_path / "c").write_bytes(changed)
        with pytest.raises(CorruptFileError):
            load_state(tmp_path / "c")


def test_header_without_an_entry(tmp_path: Path) -> None:
    tree, tensor = '{"__tensor__":""}', {"": torch.ones(2)}
    whole = {"tree": tree, "sha256": state_digest(tree, tensor)}

    def load(header: str) -> Any:
        save_file(tensor, tmp_path / "s", metadata={"sfumato-state-1": header})
        return load_state(tmp_path / "s")

    assert torch.equal(load(json.dumps(whole)), torch.ones(2))
    for header in (json.dumps({"tree": tree}), json.dumps({"sha256": whole["sha256"]}), "{", "[]", "3"):
        with pytest.raises(CorruptFileError, match="damaged header"):
            load(header)
    with pytest.raises(CorruptFileError, match="does not match its checksum"):
        load(json.dumps(whole | {"tree": '{"__tensor__": ""}'}))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path)
    for content in (b"", b"not a state", b"\x80\x04\x95pickle"):
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(CorruptFileError, match="corrupted or was cut short"):
            load_state(tmp_path / "s")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(CorruptFileError, match="not a file of sfumato's"):
        load_state(tmp_path / "foreign")


def test_digest_knows_name_type_shape_and_bytes() -> None:
    tensor = torch.arange(6.0)
    digests = {
        state_digest("t", {"a": tensor}),
        state_digest("u", {"a": tensor}),
        state_digest("t", {"b": tensor}),
        state_digest("t", {"a": tensor.view(2, 3)}),
        state_digest("t", {"a": tensor.view(torch.int32)}),
        state_digest("t", {"a": tensor + 1}),
        state_digest("t", {}),
    }
    assert len(digests) == 7
    pair = {"a": tensor, "b": tensor + 1}
    assert state_digest("t", pair) == state_digest("t", dict(reversed(pair.items())))
    assert state_digest("t", {"a": tensor.view(2, 3).T.contiguous().T}) == state_digest("t", {"a": tensor.view(2, 3)})


def test_digest_of_a_state() -> None:
    state = {"a": (torch.arange(3.0), [1, None]), "b": 0.5}
    assert digest_of(state) == digest_of({"a": (torch.arange(3.0), [1, None]), "b": 0.5})
    others = [{**state, "b": 0.25}, {**state, "a": [torch.arange(3.0), [1, None]]}, {**state, "a": torch.arange(3.0)}]
    assert len({digest_of(other) for other in (state, *others)}) == 4
    with pytest.raises(TypeError, match="cannot hold"):
        digest_of({"a": object()})


def test_a_lone_element_of_any_stride(tmp_path: Path) -> None:
    lone = torch.tensor(0.1).expand(1)
    assert lone.stride() == (0,)
    assert digest_of(lone) == digest_of(torch.tensor([0.1]))
    save_state(tmp_path / "s", lone)
    assert torch.equal(load_state(tmp_path / "s"), lone)


def test_hash_of_content() -> None:
    assert hash_of({"a": 1, "b": [2.5, None]}) == hash_of({"b": [2.5, None], "a": 1})
    assert hash_of({"a": 1}) == "015abd7f5cc57a2d"  # the same on any machine
    assert len({hash_of(x) for x in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, [], {})}) == 6
    assert len(hash_of(1)) == 16
    assert hash_of(1, length=40).startswith(hash_of(1, length=8))
    assert len(hash_of(1, length=40)) == 40


def test_atomic_path_replaces_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "new"
    with atomic_path(target) as temporary:
        temporary.write_text("newer")
        assert target.read_text() == "new"
    assert target.read_text() == "newer"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o644


class _StopError(Exception):
    pass


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt, SystemExit])
def test_atomic_path_keeps_the_old_file_on_any_error(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half() -> NoReturn:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_of_the_same_file_is_removed(tmp_path: Path) -> None:
    old, of_another, fresh = (
        tmp_path / f".{name}.partial" for name in ("file[1].txt.abc", "file1.txt.abc", "file[1].txt.x")
    )
    for path in (old, of_another, fresh):
        path.write_text("half")
    for path in (old, of_another):
        os.utime(path, (time.time() - 7200,) * 2)
    write_text(tmp_path / "file[1].txt", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([of_another, fresh, tmp_path / "file[1].txt"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    target = tmp_path / "file"
    save_state(target, {"old": 1})

    def refuse(handle: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=rf"cannot write .*file: {words}") as caught:
        save_state(target, {"new": torch.ones(5)})
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StorageError, match=words):
        write_text(target, "new")
    assert load_state(target) == {"old": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_as_safetensors_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    for message, words in (
        ("I/O error: No space left on device", "no space left on the disk$"),
        ("I/O error: (os error 28)", "no space left on the disk$"),
        ("something else", "something else$"),
    ):

        def refuse(*args: object, text: str = message, **kwargs: object) -> NoReturn:
            raise SafetensorError(text)

        monkeypatch.setattr(storage, "save_file", refuse)
        with pytest.raises(StorageError, match=words):
            save_state(tmp_path / "s", {"a": 1})
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_writing_to_a_full_device() -> None:
    def write() -> None:
        with storage_errors(Path("/dev/full")), Path("/dev/full").open("w") as file:
            file.write("x" * 10)

    with pytest.raises(StorageError, match="cannot write /dev/full: no space left on the disk"):
        write()


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "y")
    assert (tmp_path / "file").read_text() == "x"


def test_write_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "σ² → Ü\n")
    assert (tmp_path / "t").read_bytes() == "σ² → Ü\n".encode()
