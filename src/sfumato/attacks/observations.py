"""What an attacker who learns from pairs of image and feature pays for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sfumato.attacks.base import Knowledge
from sfumato.attacks.threat import BlackBox
from sfumato.data import Batches, ImageSet
from sfumato.errors import BudgetError

_BATCH = 512
_HELD = 10


class Observations:
    """Features of an attacker's images: sent anew each time where queries are free, else kept from the first time.

    An attack that sees a random channel anew in every epoch learns its distribution, and not one draw of it. Under a
    budget all images are sent once; what is left of the budget goes to the first batches that ask.

    Args:
        target: To query.
        images: The attacker's.
        anew: Whether what is left of a budget may be spent on sending an image again.

    Attributes:
        images: The same images; their labels are the indices that :meth:`__call__` takes.
    """

    def __init__(self, target: BlackBox, images: ImageSet, *, anew: bool = True) -> None:
        index = torch.arange(len(images), device=images.labels.device)
        self.images = replace(images, labels=index, classes=(images.name,) * len(images))
        self._target, self._anew = target, anew
        self._kept: Tensor | None = None
        if target.remaining is not None:
            batches = Batches(images, _BATCH, shuffle=False)
            self._kept = torch.cat([target.query(x) for x, _ in batches])

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            x: (N, C, H, W) in [0, 1].
            index: (N,) where they stand among :attr:`images`.
        """
        left = self._target.remaining
        if self._kept is None or (self._anew and left is not None and left >= len(x) * self._target.observations):
            return self._target.query(x)
        return self._kept[index]

    def state_dict(self) -> dict[str, Any]:
        """Features kept so far."""
        return {} if self._kept is None else {"kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        if self._kept is not None:
            self._kept.copy_(state["kept"])


def observe(target: BlackBox, knowledge: Knowledge) -> tuple[Observations, Observations]:
    """Pairs to learn from and pairs to select on, within the target's budget.

    Where not all images can be sent even once, the first ones are; a tenth of the budget at most goes to validation.

    Raises:
        BudgetError: Less than two images can be sent.
    """
    train, validation = knowledge.train, knowledge.validation
    if target.remaining is not None:
        affordable = target.remaining // target.observations
        if affordable < 2:
            least = 2 * target.observations
            raise BudgetError(
                "queries", target.remaining, f"at least {least}: one image to learn from, one to select on"
            )
        held = min(len(validation), max(1, affordable // _HELD))
        validation = _first(validation, held)
        train = _first(train, affordable - held)
    # Validation first: what is left is then all for learning.
    selecting = Observations(target, validation, anew=False)
    return Observations(target, train), selecting


def _first(images: ImageSet, count: int) -> ImageSet:
    return images if count >= len(images) else images.select(torch.arange(count, device=images.labels.device))
