"""Images in memory: what every source gives and every part takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.data.augment import Augment
from sfumato.errors import InputError
from sfumato.storage import state_digest


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, all of one size.

    Args:
        images: uint8, shape (N, C, H, W), C = 1 (gray) or 3 (RGB).
        labels: int64, shape (N,), in [0, K).
        classes: The K class names.
        name: Where the images come from, for people.

    Raises:
        InputError: Wrong type or shape, no image, or a label out of range.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str = "images"

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            given = f"{self.images.dtype}, shape {tuple(self.images.shape)}"
            raise InputError(f"{self.name}.images", given, "uint8 of shape (N, C, H, W) with C = 1 or 3")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            given = f"{self.labels.dtype}, shape {tuple(self.labels.shape)}"
            raise InputError(f"{self.name}.labels", given, f"int64 of shape ({len(self.images)},)")
        if len(self.images) == 0:
            raise InputError(f"{self.name}.images", "no image", "at least one")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise InputError(
                f"{self.name}.labels",
                low if low < 0 else high,
                f"0 to {len(self.classes) - 1} (there are {len(self.classes)} classes)",
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.images.shape
        return c, h, w

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def select(self, index: Tensor) -> ImageSet:
        """The images at ``index`` (int64), as a copy."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> ImageSet:
        """All pixels and labels on ``device``, moved once."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def checksum(self) -> str:
        """SHA-256 of pixels, labels and class names; the same on any machine."""
        return state_digest("\n".join(self.classes), {"images": self.images, "labels": self.labels})


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint parts of a data set.

    ``train`` teaches the model, ``validation`` selects it, ``test`` is touched only to report, and
    ``auxiliary`` is what an attacker owns that the model never saw (``None`` where none was set aside).
    ``augment`` is what the data set's paper does to training images (``None`` where it does nothing, or no paper is
    known).
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    auxiliary: ImageSet | None = None
    augment: Augment | None = None
