"""Functions on tensors that measure dependence and entropy; usable without the rest of the library."""

from sfumato.information.dependence import distance_correlation
from sfumato.information.mixture import ClassMixture

__all__ = ["ClassMixture", "distance_correlation"]
