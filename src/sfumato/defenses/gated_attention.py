"""Gated attention in place of CEM's mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sfumato.defenses.base import BoundDefense
from sfumato.defenses.surrogate import BoundSurrogate, Surrogate, watched
from sfumato.information import GatedPooling
from sfumato.information.pooling import Objective
from sfumato.models import SplitModel


@dataclass(frozen=True)
class GatedAttention(Surrogate):
    """Variance within a class around a prototype that gated attention weights (Ilse et al. 2018).

    Which weights the attention learns decides what the loss can see. ``adversarial``, the default, looks for the
    weights under which the variance is largest, so the feature is pressed where it still spreads. ``joint`` minimizes
    the same variance as the feature does, end to end; it learns to look away from what spreads, and only ``uniform``
    keeps it from seeing nothing at all: at 0 it ends with all weight on one feature a class, whose variance is 0.

    The gate sees the whole feature, flattened; pooled or projected ones, which would make it smaller, are not offered.

    Args:
        weight, hidden, gamma, threshold, schedule, momentum, attention_lr: See :class:`Surrogate`.
        uniform: ε in [0, 1], share of equal weights in the weights; no variance falls below ε times the plain one.
        objective: What the attention learns.
    """

    name: ClassVar[str] = "gated_attention"
    source: ClassVar[str] = "Ilse et al. 2018; in place of the mixture of Xia et al. 2025 (CEM)"
    uniform: float = 0.5
    objective: Objective = "adversarial"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_gate(self.uniform, self.objective)

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        classes, dim = watched(split, self.name)
        path = GatedPooling(
            classes,
            dim,
            self.hidden,
            momentum=self.momentum,
            uniform=self.uniform,
            objective=self.objective,
            generator=generator,
        )
        return BoundSurrogate(self, path, classes, dim, split.feature.noise_variance)
