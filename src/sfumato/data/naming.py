"""The names of splits and shards, as the Hugging Face hub lays them out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import TypeAlias

from sfumato.errors import InputError, one_of

Shards: TypeAlias = Mapping[str, tuple[str, ...]]  # split -> files, in order

_SHARD = re.compile(r"(?P<split>\w[\w.]*?)(-\d+-of-(?P<count>\d+))?\.parquet")
_NUMBERED = re.compile(r"\d+\.parquet")
_TEST_NAMES = ("test", "validation", "valid", "val")
_DEFAULT = ("", "data")


def find_shards(files: Iterable[str], config_name: str | None = None) -> Shards:
    """Find the Parquet files of a configuration and sort them by split.

    Understood are ``SPLIT.parquet``, ``SPLIT-00000-of-00002.parquet`` and ``SPLIT/0000.parquet``, each at
    the top, in ``data/`` (both: the configuration ``default``) or in a folder named by the configuration.

    Args:
        files: Paths relative to the data set, with forward slashes; others than Parquet are passed over.
        config_name: The configuration; ``None`` where there is only one.

    Raises:
        InputError: No Parquet file, no such configuration, several and none chosen, or a shard is missing.
    """
    configs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    announced: dict[str, int] = {}
    for file in sorted(files):
        path = PurePosixPath(file)
        if path.suffix != ".parquet":
            continue
        folder, match = path.parent, _SHARD.fullmatch(path.name)
        if _NUMBERED.fullmatch(path.name):
            folder, split = path.parent.parent, path.parent.name
        elif match:
            split = match["split"]
            announced[file] = int(match["count"] or 1)
        else:
            continue
        name = "" if folder == PurePosixPath(".") else folder.as_posix()
        configs["default" if name in _DEFAULT else name][split].append(file)
    if not configs:
        raise InputError(
            "source", "no Parquet file", "Parquet files named by split, such as train-00000-of-00001.parquet"
        )
    if config_name is None and len(configs) > 1:
        raise InputError("config_name", None, one_of(configs))
    chosen = next(iter(configs)) if config_name is None else config_name
    if chosen not in configs:
        raise InputError("config_name", chosen, one_of(configs, chosen))
    for names in configs[chosen].values():  # half a download must not pass for a smaller data set
        if len(names) != announced.get(names[0], len(names)):
            raise InputError("source", f"{len(names)} of the files of {names[0]}", f"all {announced[names[0]]} of them")
    return {split: tuple(names) for split, names in configs[chosen].items()}


def choose_splits(
    available: Collection[str],
    train: Collection[str] | None,
    test: Collection[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Say which splits make up train and which test.

    Args:
        available: What there is.
        train: Splits to join for train; ``None`` for ``train``, or the only split there is.
        test: Splits to join for test, none if empty; ``None`` for ``test`` or, if there is no such split,
            for a validation split. (An official validation split beside a test split is left out.)

    Returns:
        The splits of train and of test (empty if there is none).

    Raises:
        InputError: A split that is not there, or that is in both.
    """
    if train is None:
        train = ("train",) if len(available) > 1 else tuple(available)
    if test is None:
        test = [name for name in _TEST_NAMES if name in available and name not in train][:1]
    for field, names in (("train_splits", train), ("test_splits", test)):
        for name in names:
            if name not in available:
                raise InputError(field, name, one_of(available, name))
    if not train:
        raise InputError("train_splits", train, f"at least one of {', '.join(sorted(available))}")
    if both := set(train) & set(test):
        raise InputError("test_splits", sorted(both), "splits that are not in train_splits too")
    return tuple(train), tuple(test)
