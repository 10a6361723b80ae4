"""Parquet files with images, as the Hugging Face hub stores them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sfumato.data.decode import Encoded
from sfumato.data.listing import Keep, Labels, Listing, Part
from sfumato.data.naming import choose_splits, find_shards
from sfumato.errors import InputError, raise_all

_ROWS = 256  # encoded images read at a time


@dataclass(frozen=True)
class Columns:
    """Names of the two columns; the first that a file has is taken."""

    image: tuple[str, ...] = ("image", "img")
    label: tuple[str, ...] = ("label", "labels")


@dataclass(frozen=True)
class ParquetSource:
    """Images in Parquet files.

    The image column holds encoded images: binary, or the hub's struct of ``bytes`` and ``path``. The label
    column holds integers, whose class names are those of the ``ClassLabel`` in the schema's metadata; where
    there is none, integers or strings, and the classes are the distinct ones, sorted.

    Args:
        root: A Parquet file, or a folder as :func:`~sfumato.data.naming.find_shards` understands it.
        name: What people call the data set.
        columns: The accepted names of the columns.
        train_splits: Splits that make up train; see :func:`~sfumato.data.naming.choose_splits`.
        test_splits: Splits that make up test.
        config_name: The configuration, where the folder has several.
    """

    root: Path
    name: str
    columns: Columns = field(default_factory=Columns)
    train_splits: tuple[str, ...] | None = None
    test_splits: tuple[str, ...] | None = None
    config_name: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Arguments, and the name, size and time of change of every file."""
        train, test = self._files()
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (*train, *test)]
        return asdict(self) | {"root": str(self.root.resolve()), "files": stats}

    def listing(self) -> Listing:
        """Read the labels of all files.

        Raises:
            InputError: A file that cannot be read, a column that is missing or of another type, or a label
                that is missing or out of range.
        """
        train, test = self._files()
        return list_files(train, test, self.columns)

    def _files(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        if self.root.is_file():
            return (self.root,), ()
        names = (file.relative_to(self.root).as_posix() for file in self.root.rglob("*.parquet"))
        shards = find_shards(names, self.config_name)
        train, test = (
            tuple(self.root / name for split in splits for name in shards[split])
            for splits in choose_splits(shards, self.train_splits, self.test_splits)
        )
        return train, test


def list_files(train: tuple[Path, ...], test: tuple[Path, ...], columns: Columns) -> Listing:
    """List the images of some files as train and of others (there may be none) as test.

    Raises:
        InputError: As :meth:`ParquetSource.listing`.
    """
    tables = [_Labels.read(file, columns) for file in (*train, *test)]
    named = {table.classes for table in tables if table.classes is not None}
    if len(named) > 1:
        raise InputError("label_column", sorted(map(str, named)), "the same class names in all files")
    if named:
        classes = next(iter(named))
        labels = [_in_range(table, len(classes)) for table in tables]
    else:
        distinct = _distinct(tables)
        classes = tuple(str(value) for value in distinct)
        labels = [np.searchsorted(distinct, table.values).astype(np.int64) for table in tables]
    n = len(train)
    return Listing(
        classes,
        _part(train, labels[:n], columns),
        _part(test, labels[n:], columns) if test else None,
    )


@dataclass(frozen=True, eq=False)
class _Labels:
    """The label column of one file as it is, with the class names its metadata gives."""

    file: Path
    column: str
    values: np.ndarray[Any, Any]
    classes: tuple[str, ...] | None

    @classmethod
    def read(cls, file: Path, columns: Columns) -> _Labels:
        with _opened(file) as parquet:
            schema = parquet.schema_arrow
            column = _label_column(file, columns, schema)
            values = parquet.read(columns=[column]).column(column)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if values.null_count:
            row = pc.index(values.is_null(), True).as_py()
            raise InputError("label_column", f"no label in {file.name} row {row}", "a label in every row")
        kind = values.type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError("label_column", f"{column} of type {kind} in {file.name}", "integers or strings")
        return cls(file, column, values.to_numpy(), _class_names(schema, column))


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][column]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):  # absent, or not a ClassLabel: the labels speak for themselves
        return None


def _in_range(table: _Labels, k: int) -> Labels:
    try:
        labels = table.values.astype(np.int64)
    except ValueError:
        labels = np.full(len(table.values), -1)
    wrong = np.flatnonzero((labels < 0) | (labels >= k))
    if len(wrong):
        given = f"{table.values[wrong[0]]} in {table.file.name} row {wrong[0]}"
        raise InputError("label_column", given, f"0 to {k - 1} (there are {k} classes)")
    return labels


def _distinct(tables: list[_Labels]) -> np.ndarray[Any, Any]:
    try:
        distinct = np.unique(np.concatenate([table.values for table in tables]))
    except TypeError as error:
        raise InputError("label_column", tables[0].column, "labels of one type in all files") from error
    if distinct.dtype.kind == "i" and distinct.size and distinct[0] < 0:  # the usual mark of an image without a label
        raise InputError(f"label_column {tables[0].column}", int(distinct[0]), "labels of 0 or more")
    return distinct


def _part(files: tuple[Path, ...], labels: list[Labels], columns: Columns) -> Part:
    def encoded(keep: Keep) -> Iterator[Encoded]:
        ends = np.cumsum([len(part) for part in labels])
        for file, kept in zip(files, np.split(keep, ends[:-1])):
            yield from _read_images(file, kept, columns)

    return Part(np.concatenate(labels), encoded)


def _read_images(file: Path, keep: Keep, columns: Columns) -> Iterator[Encoded]:
    with _opened(file) as parquet:
        column = _column("image_column", file, columns.image, parquet.schema_arrow)
        row = 0
        for batch in parquet.iter_batches(_ROWS, columns=[column]):
            images = batch.column(0)
            if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
                images = pc.struct_field(images, "bytes")
            if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
                given = f"{column} of type {images.type} in {file.name}"
                raise InputError("image_column", given, "encoded images: binary, or a struct with bytes")
            for i in range(len(images)):
                if keep[row + i]:
                    yield Encoded(f"{file.name} row {row + i}", _bytes(images[i], file, row + i))
            row += len(images)


def _bytes(cell: Any, file: Path, row: int) -> bytes:
    data: bytes | None = cell.as_py()
    if data is None:  # a bare path is not followed: a data set has no say in which of our files are read
        raise InputError("image_column", f"no bytes in {file.name} row {row}", "images embedded in the file")
    return data


def _label_column(file: Path, columns: Columns, schema: Any) -> str:
    """The label column of a file that has both; what is missing is told at once."""
    found, errors = [], []
    for argument, accepted in (("image_column", columns.image), ("label_column", columns.label)):
        try:
            found.append(_column(argument, file, accepted, schema))
        except InputError as error:
            errors.append(error)
    raise_all(errors)
    return found[-1]


def _column(argument: str, file: Path, accepted: tuple[str, ...], schema: Any) -> str:
    for name in accepted:
        if name in schema.names:
            return name
    found = ", ".join(schema.names)
    raise InputError(argument, " or ".join(accepted), f"a column of {file.name}, which has {found}")


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a Parquet file; whatever pyarrow finds wrong with it is an :class:`InputError` that names it."""
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError("source", file.name, f"a whole Parquet file ({reason})") from error
