"""Slot attention and gated cross-attention in place of CEM's mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sfumato.defenses.base import BoundDefense
from sfumato.defenses.surrogate import BoundSurrogate, Surrogate, watched
from sfumato.information import SlotReadout
from sfumato.models import SplitModel


@dataclass(frozen=True)
class SlotAttention(Surrogate):
    """Variance of what each feature leaves over its read-out from the slots of its class.

    Slots are soft centers where the mixture has hard ones. They are fitted by likelihood, as those are, and cannot
    leave a feature of the class out. But a soft read-out moves between the slots as the feature does, so what varies
    within the slots' hull need not be seen; ``slot_attention_seen_variance`` says how much of the plain variance is.
    The gate of the read-out starts closed: the loss starts at the plain variance of the class.

    Args:
        weight, hidden, gamma, threshold, schedule, momentum, attention_lr: See :class:`Surrogate`.
        slots: S per class.
        iterations: Rounds of slot attention.
        slot_noise: Standard deviation of the noise on the learned starting slots.
    """

    name: ClassVar[str] = "slot_attention"
    source: ClassVar[str] = (
        "Locatello et al. 2020; Alayrac et al. 2022 (Flamingo); in place of the mixture of Xia et al. 2025 (CEM)"
    )
    slots: int = 4
    iterations: int = 3
    slot_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_slots(self.slots, self.iterations, self.slot_noise)

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        classes, dim = watched(split, self.name)
        path = SlotReadout(
            classes,
            dim,
            self.hidden,
            slots=self.slots,
            iterations=self.iterations,
            noise=self.slot_noise,
            momentum=self.momentum,
            generator=generator,
        )
        return BoundSurrogate(self, path, classes, dim, split.feature.noise_variance)
