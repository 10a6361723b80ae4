from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sfumato.data import load, load_source
from sfumato.errors import InputError, StorageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves the folders under ``root`` as repositories, at one commit."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.downloaded = root, [], []  # type: ignore[var-annotated]
        self.failure: Exception | None = None

    def dataset_info(self, repo_id: str, *, revision: str | None = None) -> Any:
        self.asked.append((repo_id, revision))
        if self.failure is not None:
            raise self.failure
        folder = self.root / (f"{repo_id}@converted" if revision == "refs/convert/parquet" else repo_id)
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=file) for file in files])

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str, revision: str) -> str:
        assert (repo_type, revision) == ("dataset", COMMIT)
        self.downloaded.append(filename)
        if self.failure is not None:
            raise self.failure
        converted = self.root / f"{repo_id}@converted" / filename
        return str(converted if converted.exists() else self.root / repo_id / filename)

    def snapshot_download(self, repo_id: str, *, repo_type: str, revision: str | None, local_files_only: bool) -> str:
        assert repo_type == "dataset"
        assert local_files_only
        folder = self.root / "snapshots" / COMMIT
        if not folder.exists():
            raise LocalEntryNotFoundError("nothing here")
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_shards_of_the_wanted_splits_are_downloaded(hub: FakeHub, write_parquet: Any, tmp_path: Path) -> None:
    repo = hub.root / "me" / "pets"
    write_parquet(repo / "data" / "train-00000-of-00002.parquet", [0, 1])
    write_parquet(repo / "data" / "train-00001-of-00002.parquet", [1, 0])
    write_parquet(repo / "data" / "test-00000-of-00001.parquet", [1])
    write_parquet(repo / "data" / "unlabeled-00000-of-00001.parquet", [0])
    (repo / "README.md").write_text("# Pets")
    raw = load_source("me/pets", cache_dir=tmp_path)
    assert (len(raw.train), len(raw.test)) == (4, 1)
    assert raw.train.name == "me/pets train"
    assert [Path(file).name for file in hub.downloaded] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "test-00000-of-00001.parquet",
    ]
    load_source("me/pets", cache_dir=tmp_path)
    assert len(hub.downloaded) == 3
    load_source("me/pets", cache_dir=tmp_path, test_splits=())
    assert len(hub.downloaded) == 5


def test_a_whole_commit_asks_nothing_once_cached(hub: FakeHub, write_parquet: Any, tmp_path: Path) -> None:
    write_parquet(hub.root / "me" / "pets" / "train.parquet", [0, 1])
    for _ in range(2):
        load_source("me/pets", revision=COMMIT, cache_dir=tmp_path)
        assert hub.asked == [("me/pets", COMMIT)]


def test_presets_name_repository_config_columns_and_splits(hub: FakeHub, write_parquet: Any) -> None:
    repo = hub.root / "uoft-cs" / "cifar100" / "cifar100"
    write_parquet(repo / "train-00000-of-00001.parquet", [i % 5 for i in range(50)], image="img", label="fine_label")
    write_parquet(repo / "test-00000-of-00001.parquet", [i % 5 for i in range(10)], image="img", label="fine_label")
    splits = load("cifar100", cache=False, image_size=16, channels=1)
    assert hub.asked == [("uoft-cs/cifar100", None)]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (45, 5, 10)
    assert splits.train.image_shape == (1, 16, 16)


def test_celeba_pools_all_splits_and_keeps_the_most_frequent_identities(hub: FakeHub, write_parquet: Any) -> None:
    repo = hub.root / "flwrlabs" / "celeba" / "img_align+identity+attr"
    for i, split in enumerate(("train", "valid", "test")):
        identities = [100 + i] * 20 + [200 + i] * 10
        write_parquet(repo / f"{split}-00000-of-00001.parquet", identities, label="celeb_id")
    splits = load("celeba", cache=False, top_classes=3)
    assert splits.train.classes == ("100", "101", "102")
    for part, n in ((splits.train, 16), (splits.validation, 2), (splits.test, 2)):
        assert part.labels.bincount().tolist() == [n] * 3
    assert splits.train.image_shape == (3, 64, 64)


def test_the_hubs_own_conversion_where_there_is_no_parquet(hub: FakeHub, write_parquet: Any) -> None:
    (hub.root / "me" / "zip").mkdir(parents=True)
    (hub.root / "me" / "zip" / "images.zip").write_bytes(b"")
    write_parquet(hub.root / "me" / "zip@converted" / "default" / "train" / "0000.parquet", [0, 1])
    assert len(load_source("me/zip", cache=False).train) == 2
    assert hub.asked == [("me/zip", None), ("me/zip", "refs/convert/parquet")]


def test_without_network_what_was_downloaded_before(hub: FakeHub, write_parquet: Any) -> None:
    hub.failure = ConnectionError("Name or service not known")
    with pytest.raises(InputError, match=r"a hub that can be reached, or a local copy by path.*Name or service"):
        load_source("me/pets", cache=False)
    write_parquet(hub.root / "snapshots" / COMMIT / "train.parquet", [0, 1])
    hub.failure = None
    write_parquet(hub.root / "me" / "pets" / "train.parquet", [0, 1])
    hub.dataset_info = _refuse  # type: ignore[method-assign]
    assert len(load_source("me/pets", cache=False).train) == 2


def _refuse(*_: Any, **__: Any) -> Any:
    raise ConnectionError("offline")


@pytest.mark.parametrize(
    ("kind", "field", "accepted"),
    [
        (RepositoryNotFoundError, "source", "a data set of the hub"),
        (GatedRepoError, "source", "ask for access"),
        (RevisionNotFoundError, "revision", "a branch, tag or commit of me/pets"),
    ],
)
def test_what_the_hub_refuses(hub: FakeHub, kind: Any, field: str, accepted: str) -> None:
    response = SimpleNamespace(headers={}, request=None)
    hub.failure = kind("no\nway", response=response)
    with pytest.raises(InputError, match=accepted) as error:
        load_source("me/pets", revision="v9", cache=False)
    assert error.value.field == field
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "no space left on the disk"),
        (TimeoutError("too slow"), InputError, r"me/pets/train.parquet.*\(too slow\)"),
    ],
)
def test_a_download_that_fails(
    hub: FakeHub,
    write_parquet: Any,
    monkeypatch: Any,
    failure: Exception,
    kind: type[Exception],
    message: str,
) -> None:
    write_parquet(hub.root / "me" / "pets" / "train.parquet", [0, 1])

    def fail(*_: Any, **__: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(kind, match=message):
        load_source("me/pets", cache=False)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'sfumato\[hub\]'"):
        load_source("cifar10", cache=False)
