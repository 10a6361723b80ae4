"""Functions on tensors that measure dependence and entropy; usable without the rest of the library."""

from sfumato.information.attention import (
    class_softmax,
    effective_sample_size,
    gated_scores,
    log_variance_penalty,
)
from sfumato.information.dependence import distance_correlation
from sfumato.information.fusion import FusedPooling
from sfumato.information.mixture import ClassMixture
from sfumato.information.pooling import GatedPooling
from sfumato.information.running import ClassAverage
from sfumato.information.slots import SlotAttention, SlotReadout

__all__ = [
    "ClassAverage",
    "ClassMixture",
    "FusedPooling",
    "GatedPooling",
    "SlotAttention",
    "SlotReadout",
    "class_softmax",
    "distance_correlation",
    "effective_sample_size",
    "gated_scores",
    "log_variance_penalty",
]
