"""A folder of images, one subfolder a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.decode import SUFFIXES, Encoded
from sfumato.data.listing import Keep, Listing, Part
from sfumato.data.naming import choose_splits
from sfumato.errors import InputError

LAYOUT = "class folders of images (root/cat/1.png) or splits of them (root/train/cat/1.png, root/test/cat/2.png)"


@dataclass(frozen=True)
class FolderSource:
    """Images under ``root/CLASS/`` or, already split, under ``root/SPLIT/CLASS/``.

    The second layout is taken where ``root/train`` (or a split named in the arguments) has subfolders and no
    images of its own. Class names are the folders' names, sorted. Hidden files and files that are no images
    by their ending are passed over.

    Args:
        root: The folder.
        name: What people call the data set.
        train_splits: Splits that make up train; ``None`` for ``train``.
        test_splits: Splits that make up test; ``None`` for ``test`` if there is one, else a validation split.
    """

    root: Path
    name: str
    train_splits: tuple[str, ...] | None = None
    test_splits: tuple[str, ...] | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Arguments, and the name, size and time of change of every image."""
        arguments = asdict(self) | {"root": str(self.root.resolve())}
        files = sorted((file.relative_to(self.root).as_posix(), file.stat()) for file in _images(self.root))
        return arguments | {"files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]}

    def listing(self) -> Listing:
        """List the images of every class.

        Raises:
            InputError: No class folders, a class without an image, a test class that train does not have, or
                a split that is not there.
        """
        train_roots, test_roots = self._roots()
        classes = tuple(sorted({folder.name for root in train_roots for folder in _folders(root)}))
        if not classes:
            raise InputError("source", str(self.root), LAYOUT)
        train = self._part(train_roots, classes)
        return Listing(classes, train, self._part(test_roots, classes) if test_roots else None)

    def _roots(self) -> tuple[list[Path], list[Path]]:
        names = [folder.name for folder in _folders(self.root)]
        first = self.train_splits[0] if self.train_splits else "train"
        # A class may be called "train" too; then its folder holds pictures.
        is_split = first in names and _folders(self.root / first) and not _own_images(self.root / first)
        if not is_split and not self.train_splits and not self.test_splits:
            return [self.root], []
        train, test = choose_splits(names, self.train_splits, self.test_splits)
        return [self.root / name for name in train], [self.root / name for name in test]

    def _part(self, roots: list[Path], classes: tuple[str, ...]) -> Part:
        label_of = {name: label for label, name in enumerate(classes)}
        files: list[tuple[Path, int]] = []
        for root in roots:
            for folder in _folders(root):
                if folder.name not in label_of:
                    raise InputError("source", self._shown(folder), f"a class that train has: {', '.join(classes)}")
                images = _images(folder)
                if not images:
                    raise InputError("source", self._shown(folder), "at least one image in each class folder")
                files.extend((image, label_of[folder.name]) for image in images)

        def encoded(keep: Keep) -> Iterator[Encoded]:
            return (Encoded(self._shown(files[i][0]), files[i][0]) for i in np.flatnonzero(keep))

        return Part(np.array([label for _, label in files], np.int64), encoded)

    def _shown(self, path: Path) -> str:
        return f"{self.name}/{path.relative_to(self.root).as_posix()}"


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _own_images(folder: Path) -> bool:
    return any(_is_image(path) for path in folder.iterdir())


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
