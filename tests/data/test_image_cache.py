from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import storage
from sfumato.data import decode, load, load_source
from sfumato.data.cache import default_cache_dir
from sfumato.data.decode import Encoded
from sfumato.errors import InputError, StorageError
from sfumato.progress import Silent


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were decoded."""
    names: list[str] = []
    original = decode.decode_one

    def count(encoded: Any, form: Any) -> Any:
        names.append(encoded.name)
        return original(encoded, form)

    monkeypatch.setattr(decode, "decode_one", count)
    return names


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Recorder(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def start(self, title: str, total: int, done: int = 0) -> None:
        self.told.append(("start", title, total, done))

    def advance(self, steps: int = 1) -> None:
        self.told.append(("advance", steps))

    def finish(self) -> None:
        self.told.append(("finish",))


@pytest.mark.parametrize("cache", [True, False])
def test_progress_is_told_of_every_image_that_is_decoded(image_folder: Path, cache_dir: Path, cache: bool) -> None:
    first, second = Recorder(), Recorder()
    load(str(image_folder), cache_dir=cache_dir, cache=cache, progress=first)
    assert first.told[0] == ("start", f"decode {image_folder.name}", 15, 0)
    assert sum(told[1] for told in first.told if told[0] == "advance") == 15  # type: ignore[misc]
    assert first.told[-1] == ("finish",)
    load(str(image_folder), cache_dir=cache_dir, cache=cache, progress=second)
    assert second.told == ([] if cache else first.told)
    quick = Recorder()
    load("digits", progress=quick)
    assert quick.told == []


def test_progress_moves_while_images_are_decoded() -> None:
    told = Recorder()
    encoded = (Encoded(str(i), np.zeros((2, 2), np.uint8)) for i in range(1300))
    decode.decode_images(encoded, 1300, decode.Form(), told)
    steps = [told[1] for told in told.told]
    assert sum(steps) == 1300  # type: ignore[arg-type]
    assert len(steps) >= 3


def test_decoded_once(image_folder: Path, cache_dir: Path, decoded: list[str]) -> None:
    first = load_source(str(image_folder), cache_dir=cache_dir)
    assert len(decoded) == 15
    second = load_source(str(image_folder), cache_dir=cache_dir)
    assert len(decoded) == 15
    assert second.test is None
    assert second.train.checksum() == first.train.checksum()
    assert second.train.name == first.train.name
    assert second.train.classes == first.train.classes
    (file,) = files_in(cache_dir)
    assert file.name.startswith("pets-")


def test_test_part_comes_back_too(tmp_path: Path, cache_dir: Path, write_parquet: Any, decoded: list[str]) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", [0, 1, 2])
    write_parquet(tmp_path / "set" / "test.parquet", [2, 1])
    first, second = (load_source(str(tmp_path / "set"), cache_dir=cache_dir) for _ in range(2))
    assert len(decoded) == 5
    assert first.test is not None
    assert second.test is not None
    assert second.test.checksum() == first.test.checksum()


def test_what_determines_the_images_determines_the_file(
    image_folder: Path, cache_dir: Path, decoded: list[str]
) -> None:
    variants: list[dict[str, Any]] = [{}, {"image_size": 4}, {"channels": 1}, {"top_classes": 2}]
    for variant in variants:
        load_source(str(image_folder), cache_dir=cache_dir, **variant)
    assert len(files_in(cache_dir)) == 4
    image = image_folder / "cat" / "0.png"
    stat = image.stat()
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    before = len(decoded)
    load_source(str(image_folder), cache_dir=cache_dir)
    assert len(decoded) == before + 15
    image.rename(image.with_name("9.png"))
    load_source(str(image_folder), cache_dir=cache_dir)
    assert len(decoded) == before + 30


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_noticed_and_replaced(
    image_folder: Path, cache_dir: Path, decoded: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    good = load_source(str(image_folder), cache_dir=cache_dir).train.checksum()
    (file,) = files_in(cache_dir)
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.unlink()
    file.write_bytes({"flip": bytes(content), "cut": bytes(content[:-100]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert load_source(str(image_folder), cache_dir=cache_dir).train.checksum() == good
    assert len(decoded) == 30
    (record,) = caplog.records
    assert "decoding pets again" in record.getMessage()
    assert "\n" not in record.getMessage()
    load_source(str(image_folder), cache_dir=cache_dir)
    assert len(decoded) == 30
    assert files_in(cache_dir) == [file]


def test_a_full_disk_leaves_nothing_behind(
    image_folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_file", full)
        with pytest.raises(StorageError, match="no space left on the disk") as error:
            load_source(str(image_folder), cache_dir=cache_dir)
        assert "\n" not in str(error.value)
    assert files_in(cache_dir) == []
    load_source(str(image_folder), cache_dir=cache_dir)
    assert len(files_in(cache_dir)) == 1


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_decoded(
    image_folder: Path, tmp_path: Path, decoded: list[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"^cannot write .*file/data: "):
        load_source(str(image_folder), cache_dir=tmp_path / "file")
    assert decoded == []


def test_a_damaged_source_writes_nothing(image_folder: Path, cache_dir: Path) -> None:
    (image_folder / "eel" / "4.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"pets/eel/4.png"):
        load_source(str(image_folder), cache_dir=cache_dir)
    assert files_in(cache_dir) == []


def test_switched_off(image_folder: Path, cache_dir: Path, decoded: list[str]) -> None:
    for _ in range(2):
        load_source(str(image_folder), cache=False, cache_dir=cache_dir)
    load_source("digits", cache_dir=cache_dir)
    assert len(decoded) == 2 * 15 + 1797
    assert files_in(cache_dir) == []


def test_cached_images_stay_memory_mapped(image_folder: Path, cache_dir: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc/self/maps to see what is mapped")
    load_source(str(image_folder), cache_dir=cache_dir)
    train = load_source(str(image_folder), cache_dir=cache_dir).train
    (file,) = files_in(cache_dir)
    (mapped,) = {line.split()[0] for line in maps.read_text().splitlines() if line.endswith(str(file))}
    start, end = (int(address, 16) for address in mapped.split("-"))
    assert start <= train.images.data_ptr() < end


def test_cached_images_can_be_changed_in_memory_without_changing_the_file(image_folder: Path, cache_dir: Path) -> None:
    load_source(str(image_folder), cache_dir=cache_dir)
    train = load_source(str(image_folder), cache_dir=cache_dir).train
    good = train.checksum()
    (file,) = files_in(cache_dir)
    content = file.read_bytes()
    copy = train.select(torch.arange(len(train)))
    copy.images.zero_()
    assert train.checksum() == good
    assert file.read_bytes() == content


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "mine"
    load_source(str(image_folder))
    assert len(files_in(tmp_path / "mine")) == 1
    monkeypatch.delenv("SFUMATO_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "sfumato"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "sfumato"
