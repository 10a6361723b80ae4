"""Data sets of the Hugging Face hub: their Parquet files, downloaded when they are first needed."""

from __future__ import annotations

import errno
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sfumato.data.listing import Listing
from sfumato.data.naming import choose_splits, find_shards
from sfumato.data.parquet import Columns, list_files
from sfumato.errors import InputError, StorageError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONVERTED = "refs/convert/parquet"  # where the hub keeps its own conversion of other formats


@dataclass(frozen=True)
class HubSource:
    """A data set ``owner/name`` of the hub, at one commit.

    Where the data set itself holds no Parquet files, the hub's automatic conversion is used. Without a
    network, what ``huggingface_hub`` has already downloaded is used.

    Args:
        repo_id: ``owner/name``.
        name: What people call the data set.
        columns: The accepted names of the columns.
        train_splits: Splits that make up train; see :func:`~sfumato.data.naming.choose_splits`.
        test_splits: Splits that make up test.
        config_name: The configuration, where there are several.
        revision: Branch, tag or commit; ``None`` for the newest. With a whole commit, nothing is asked of
            the hub once the images are cached.
    """

    repo_id: str
    name: str
    columns: Columns = field(default_factory=Columns)
    train_splits: tuple[str, ...] | None = None
    test_splits: tuple[str, ...] | None = None
    config_name: str | None = None
    revision: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Arguments and the commit, which determines all files."""
        pinned = self.revision is not None and _COMMIT.fullmatch(self.revision)
        return asdict(self) | {"commit": self.revision if pinned else self._snapshot[0]}

    def listing(self) -> Listing:
        """Download the files of the wanted splits and read their labels.

        Raises:
            InputError: No such data set, revision, configuration, split or column, no access, or the hub
                cannot be reached and nothing was downloaded before.
            StorageError: No space for the download.
        """
        commit, files = self._snapshot
        shards = find_shards(files, self.config_name)
        train, test = (
            tuple(self._download(file, commit) for split in splits for file in shards[split])
            for splits in choose_splits(shards, self.train_splits, self.test_splits)
        )
        return list_files(train, test, self.columns)

    @cached_property
    def _snapshot(self) -> tuple[str, list[str]]:
        """The commit and the names of its files."""
        commit, files = self._look_up(self.revision)
        if self.revision is None and not any(file.endswith(".parquet") for file in files):
            return self._look_up(_CONVERTED)
        return commit, files

    def _look_up(self, revision: str | None) -> tuple[str, list[str]]:
        hub = _huggingface_hub()
        try:
            info = hub.HfApi().dataset_info(self.repo_id, revision=revision)
        except hub.errors.GatedRepoError as error:
            raise InputError("source", self.repo_id, "a data set you may read (ask for access on its page)") from error
        except hub.errors.RepositoryNotFoundError as error:
            raise InputError("source", self.repo_id, "a data set of the hub, or an existing folder") from error
        except hub.errors.RevisionNotFoundError as error:
            raise InputError("revision", revision, f"a branch, tag or commit of {self.repo_id}") from error
        except Exception as error:  # no network shows in as many ways as there are HTTP clients
            return self._downloaded_before(revision, error)
        return info.sha, [file.rfilename for file in info.siblings]

    def _downloaded_before(self, revision: str | None, reason: Exception) -> tuple[str, list[str]]:
        hub = _huggingface_hub()
        try:
            folder = hub.snapshot_download(self.repo_id, repo_type="dataset", revision=revision, local_files_only=True)
        except hub.errors.LocalEntryNotFoundError:
            accepted = f"a hub that can be reached, or a local copy by path ({_line(reason)})"
            raise InputError("source", self.repo_id, accepted) from reason
        root = Path(folder)
        return root.name, [file.relative_to(root).as_posix() for file in root.rglob("*.parquet")]

    def _download(self, file: str, commit: str) -> Path:
        try:
            return Path(_huggingface_hub().hf_hub_download(self.repo_id, file, repo_type="dataset", revision=commit))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"cannot download {self.repo_id}/{file}: no space left on the disk") from error
            given = f"{self.repo_id}/{file}"
            raise InputError("source", given, f"a file that can be downloaded ({_line(error)})") from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError("source", "a data set of the hub", "pip install 'sfumato[hub]', or a local copy") from error
    return huggingface_hub


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
