"""One call for every source: a preset, a folder, a Parquet file or a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.cache import decode_once, default_cache_dir
from sfumato.data.decode import Channels, Form
from sfumato.data.digits import DigitsSource
from sfumato.data.folder import FolderSource
from sfumato.data.hub import HubSource
from sfumato.data.listing import RawSplits, Source, decode
from sfumato.data.parquet import Columns, ParquetSource
from sfumato.data.presets import PRESETS, Preset
from sfumato.errors import InputError, one_of, renamed
from sfumato.progress import Progress

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_ANY = Columns()


def load_source(
    source: str = "digits",
    *,
    path: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: Channels | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_splits: Collection[str] | None = None,
    test_splits: Collection[str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    top_classes: int | None = None,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> RawSplits:
    """Read a source's images, divided as the source divides them.

    ``source`` is, in this order: the name of a preset; an existing folder (of Parquet in the hub's layout
    or else of images by class) or ``.parquet`` file; a hub id ``owner/name``. Arguments left at ``None``
    are the preset's, or else found out from the source.

    Args:
        source: What to read.
        path: For a preset: one's own copy, a folder or ``.parquet`` file, instead of the download. Its
            columns may be called as on the hub or ``image`` and ``label``.
        image_size: Side of the square or (H, W), in pixels; ``None`` keeps the images' size.
        channels: 1 (gray) or 3 (RGB); ``None`` keeps gray images gray if there are no others.
        image_column: Parquet and hub: the column with the images.
        label_column: Parquet and hub: the column with the labels.
        train_splits: Names of the splits that are joined for train.
        test_splits: Names of the splits that are joined for test; empty for none.
        config_name: Parquet and hub: the configuration.
        revision: Hub: branch, tag or commit.
        top_classes: Keep only so many classes, those with the most images.
        cache: Keep the decoded images on disk and use them the next time.
        cache_dir: Where; ``None`` for ``$SFUMATO_CACHE`` or ``sfumato`` in the user's cache folder.
        progress: Told how many images are decoded; of nothing where they are taken from the disk as decoded before.

    Raises:
        InputError: No such source, an argument that does not apply to it, or something in it that cannot be
            used (named: the file, row, folder or column).
        StorageError: The download or the decoded images cannot be written.
    """
    arguments = Arguments(
        columns=(image_column, label_column),
        splits=(_names(train_splits), _names(test_splits)),
        config_name=config_name,
        revision=revision,
    )
    preset = PRESETS.get(source)
    if preset is not None:
        image_size = preset.image_size if image_size is None else image_size
        channels = preset.channels if channels is None else channels
        top_classes = preset.top_classes if top_classes is None else top_classes
    try:
        found = resolve(source, None if path is None else Path(path), arguments)
        form = Form(_height_and_width(image_size), channels)
        if not cache:
            return decode(found.listing(), form, found.name, top_classes, progress)
        return decode_once(found, form, top_classes, Path(cache_dir) if cache_dir else default_cache_dir(), progress)
    except InputError as error:
        if path is None:
            raise
        # What reads files knows no presets: what it calls the source was written as the path.
        raise renamed(error, lambda own: "path" if own == "source" else own) from error


@dataclass(frozen=True)
class Arguments:
    """What the user said about the inside of a source; ``None`` where nothing was said.

    Args:
        columns: Image and label column.
        splits: Splits of train and of test.
        config_name: The configuration.
        revision: Branch, tag or commit.
    """

    columns: tuple[str | None, str | None] = (None, None)
    splits: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)
    config_name: str | None = None
    revision: str | None = None

    def refuse(self, *fields: str, why: str) -> None:
        """Say so rather than do nothing about an argument that the source has no use for.

        Raises:
            InputError: One of the fields was given.
        """
        given = {
            "image_column": self.columns[0],
            "label_column": self.columns[1],
            "train_splits": self.splits[0],
            "test_splits": self.splits[1],
            "config_name": self.config_name,
            "revision": self.revision,
        }
        for name in fields:
            if given[name] is not None:
                raise InputError(name, given[name], f"nothing, as {why}")


def resolve(source: str, path: Path | None, arguments: Arguments) -> Source:
    """Find the source that a name means, without reading its images.

    Raises:
        InputError: There is none, a preset needs a ``path``, or an argument does not apply.
    """
    preset = PRESETS.get(source)
    if preset is None:
        if path is not None:
            raise InputError("path", str(path), "nothing, as only a preset takes a path; give it as the source")
        if Path(source).exists():
            return _local(Path(source), None, arguments)
        if _HUB_ID.fullmatch(source):
            return _hub(source, source, None, arguments)
        raise InputError("source", source, f"{one_of(PRESETS, source)}, an existing folder, or a hub id owner/name")
    if path is not None:
        if not path.exists():
            raise InputError("path", str(path), preset.layout or "an existing folder or .parquet file")
        return _local(path, preset, arguments)
    if preset.layout is not None:
        raise InputError("path", None, preset.layout)
    if preset.hub_id is not None:
        return _hub(preset.hub_id, preset.name, preset, arguments)
    everything = ("image_column", "label_column", "train_splits", "test_splits", "config_name", "revision")
    arguments.refuse(*everything, why=f"{preset.name} comes as it is")
    return DigitsSource(preset.name)


def _local(path: Path, preset: Preset | None, arguments: Arguments) -> Source:
    name = preset.name if preset else path.resolve().stem
    train_splits, test_splits = arguments.splits
    arguments.refuse("revision", why="a local copy has none")
    if path.is_file() and path.suffix != ".parquet":
        raise InputError("source", str(path), "a folder or a .parquet file")
    if path.is_file():
        arguments.refuse("train_splits", "test_splits", "config_name", why="a single file has none")
        return ParquetSource(path, name, _columns(preset, arguments))
    if next(path.rglob("*.parquet"), None) is None:
        arguments.refuse("image_column", "label_column", "config_name", why="a folder of images has none")
        if preset and preset.train_splits and (path / preset.train_splits[0]).is_dir():
            train_splits, test_splits = _or_presets(preset, arguments)
        return FolderSource(path, name, train_splits, test_splits)
    config_name = arguments.config_name
    if preset and preset.config_name and (path / preset.config_name).is_dir():  # copies are often flat
        config_name = config_name or preset.config_name
    return ParquetSource(path, name, _columns(preset, arguments), *_or_presets(preset, arguments), config_name)


def _hub(repo_id: str, name: str, preset: Preset | None, arguments: Arguments) -> HubSource:
    config_name = arguments.config_name or (preset.config_name if preset else None)
    splits = _or_presets(preset, arguments)
    return HubSource(repo_id, name, _columns(preset, arguments), *splits, config_name, arguments.revision)


def _or_presets(preset: Preset | None, arguments: Arguments) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    train, test = arguments.splits
    if preset is None:
        return train, test
    return preset.train_splits if train is None else train, preset.test_splits if test is None else test


def _columns(preset: Preset | None, arguments: Arguments) -> Columns:
    """An argument is taken at its word; a preset's column may also have the usual name, as in a copy."""
    image, label = arguments.columns
    hub_image = (preset.image_column,) if preset and preset.image_column else ()
    hub_label = (preset.label_column,) if preset and preset.label_column else ()
    return Columns(
        (image,) if image else tuple(dict.fromkeys((*hub_image, *_ANY.image))),
        (label,) if label else tuple(dict.fromkeys((*hub_label, *_ANY.label))),
    )


def _height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)  # a configuration file gives a list
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise InputError("image_size", size, "a side, or a height and a width, in whole pixels")
    return sides[0], sides[1]


def _names(names: Collection[str] | None) -> tuple[str, ...] | None:
    if isinstance(names, str):  # or "train" would be five splits
        return (names,)
    return None if names is None else tuple(names)
