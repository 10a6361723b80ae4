"""Gated pooling and slots side by side in place of CEM's mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sfumato.defenses.base import BoundDefense
from sfumato.defenses.surrogate import BoundSurrogate, Surrogate, watched
from sfumato.information import FusedPooling
from sfumato.information.pooling import Objective
from sfumato.models import SplitModel


@dataclass(frozen=True)
class FusedAttention(Surrogate):
    """Mixture of the variances of :class:`GatedAttention` and :class:`SlotAttention` by a learned weight sigmoid(β).

    What the slots do not see, gated pooling does. The gated attention and β share the objective, the slots keep theirs;
    an entropy term keeps the weight from settling on one path.

    Args:
        weight, hidden, gamma, threshold, schedule, momentum, attention_lr: See :class:`Surrogate`.
        slots, iterations, slot_noise: See :class:`SlotAttention`.
        uniform, objective: See :class:`GatedAttention`.
    """

    name: ClassVar[str] = "fused_attention"
    source: ClassVar[str] = "Ilse et al. 2018 and Locatello et al. 2020, in parallel"
    slots: int = 4
    iterations: int = 3
    slot_noise: float = 0.0
    uniform: float = 0.5
    objective: Objective = "adversarial"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_slots(self.slots, self.iterations, self.slot_noise)
        self._require_gate(self.uniform, self.objective)

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        classes, dim = watched(split, self.name)
        path = FusedPooling(
            classes,
            dim,
            self.hidden,
            slots=self.slots,
            iterations=self.iterations,
            noise=self.slot_noise,
            momentum=self.momentum,
            uniform=self.uniform,
            objective=self.objective,
            generator=generator,
        )
        return BoundSurrogate(self, path, classes, dim, split.feature.noise_variance)
