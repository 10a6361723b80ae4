"""What a source lists before anything is decoded, and how that becomes images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.data.dataset import ImageSet
from sfumato.data.decode import Encoded, Form, decode_images
from sfumato.errors import InputError
from sfumato.progress import Progress, Silent

Labels: TypeAlias = NDArray[np.int64]
Keep: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Part:
    """The images of a part of a source, not decoded yet.

    Args:
        labels: int64, shape (N,), in [0, K).
        encoded: Gives the images at which the mask (bool, shape (N,)) is true, in order.
    """

    labels: Labels
    encoded: Callable[[Keep], Iterator[Encoded]]


@dataclass(frozen=True, eq=False)
class Listing:
    """The parts of a source and its K class names; ``test`` is ``None`` where the source has none."""

    classes: tuple[str, ...]
    train: Part
    test: Part | None = None


@dataclass(frozen=True, eq=False)
class RawSplits:
    """A source's images as it divides them itself: train, and test where it has one."""

    train: ImageSet
    test: ImageSet | None = None


class Source(Protocol):
    """Where images come from."""

    @property
    def name(self) -> str:
        """What people call it; never a path of this machine."""
        ...

    def fingerprint(self) -> dict[str, Any] | None:
        """What determines the images, as JSON-able values: arguments, and the files' names, sizes and times.

        ``None`` for a source that is quicker to decode than to cache.
        """
        ...

    def listing(self) -> Listing:
        """List the images without decoding any.

        Raises:
            InputError: The source is not what it should be; names the file, folder or column.
        """
        ...


def decode(
    listing: Listing, form: Form, name: str, top_classes: int | None = None, progress: Progress | None = None
) -> RawSplits:
    """Decode what is listed.

    Args:
        listing: What there is.
        form: What every image is brought to.
        name: The name of the source.
        top_classes: Keep only so many classes, those with the most images (first listed where equal),
            relabeled from 0 in their old order; ``None`` keeps all.
        progress: Told of a task of as many steps as there are images.

    Raises:
        InputError: An image that cannot be read, a part without images, or more classes asked for than
            there are.
    """
    parts = {"train": listing.train} | ({"test": listing.test} if listing.test else {})
    new_label = _relabeling(listing, top_classes)
    classes = tuple(label for label, new in zip(listing.classes, new_label) if new >= 0)
    kept = {part_name: new_label[part.labels] >= 0 for part_name, part in parts.items()}
    counts = {part_name: int(keep.sum()) for part_name, keep in kept.items()}
    for part_name, count in counts.items():
        if count == 0:
            raise InputError(f"{name}.{part_name}", "no image", "a part with at least one image")
    progress = progress or Silent()
    progress.start(f"decode {name}", sum(counts.values()))
    images: dict[str, ImageSet] = {}
    for part_name, part in parts.items():
        keep = kept[part_name]
        pixels = decode_images(part.encoded(keep), counts[part_name], form, progress)
        labels = torch.from_numpy(new_label[part.labels[keep]])
        images[part_name] = ImageSet(pixels, labels, classes, f"{name} {part_name}")
    progress.finish()
    return _matching_channels(RawSplits(images["train"], images.get("test")))


def _relabeling(listing: Listing, top_classes: int | None) -> Labels:
    """New label of each old one, -1 where the class is left out."""
    k = len(listing.classes)
    if top_classes is None:
        return np.arange(k)
    if not 1 <= top_classes <= k:
        raise InputError("top_classes", top_classes, f"1 to {k} (the number of classes)")
    parts = [listing.train] + ([listing.test] if listing.test else [])
    counts = np.bincount(np.concatenate([part.labels for part in parts]), minlength=k)
    kept = np.sort(np.argsort(-counts, kind="stable")[:top_classes])
    new_label = np.full(k, -1, np.int64)
    new_label[kept] = np.arange(top_classes)
    return new_label


def _matching_channels(raw: RawSplits) -> RawSplits:
    """Give both parts three channels if one of them has color."""
    if raw.test is None or raw.test.image_shape[0] == raw.train.image_shape[0]:
        return raw
    train, test = (
        part if part.image_shape[0] == 3 else replace(part, images=part.images.repeat(1, 3, 1, 1))
        for part in (raw.train, raw.test)
    )
    return RawSplits(train, test)
