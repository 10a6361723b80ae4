"""Whether a picture still tells what, or who, it shows: an independent classifier looks at it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.errors import InputError

_BATCH = 512


@torch.no_grad()
def recognized(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, top: int = 1) -> float:
    """Share of the images in which a classifier finds their class among its ``top`` first guesses.

    Of reconstructions it means something only beside the same figure of the originals, which is the classifier's own
    accuracy, and beside :func:`chance`. The classifier has to be independent of the audited model: that model's own
    cloud half sees what its edge kept, and not what a person would see.

    Args:
        classifier: Images (N, C, H, W) in [0, 1], where ``images`` are, to logits (N, K); in evaluation mode.
        images: (N, C, H, W) in [0, 1]; looked at in batches.
        labels: int64, shape (N,): the classes of the originals.
        top: How many guesses count, 1 to K.

    Raises:
        InputError: Not one label for each image, no image, or ``top`` out of range.
    """
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise InputError("labels", tuple(labels.shape), f"one for each of {len(images)} images, at least one")
    found = 0
    for x, y in zip(torch.split(images, _BATCH), torch.split(labels, _BATCH)):
        logits = classifier(x)
        if not 1 <= top <= logits.shape[1]:
            raise InputError("top", top, f"1 to {logits.shape[1]}, the number of classes")
        guesses = logits.topk(top, dim=1).indices
        found += int((guesses == y[:, None].to(guesses.device)).any(1).sum())
    return found / len(images)


def chance(labels: Tensor) -> float:
    """Share of the most frequent class: the most that the same picture for everyone can get.

    Args:
        labels: int64, shape (N,), N at least 1.
    """
    return int(labels.bincount().max()) / len(labels)
