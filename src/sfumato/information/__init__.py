"""Functions on tensors that measure dependence and entropy; usable without the rest of the library."""

from sfumato.information.beds import Bed, Estimate, Figures, LinearChannel
from sfumato.information.dependence import distance_correlation
from sfumato.information.gaussian import add_variance, log_densities, log_determinants, shrink
from sfumato.information.mixture import ClassMixture
from sfumato.information.rate import (
    conditional_entropy_bound,
    feature_utility,
    mixture_rate,
    mmse_bound,
    relative_conditional_entropy,
)
from sfumato.information.rate_loss import RateLoss, reference_loss
from sfumato.information.standard_beds import (
    STANDARD_BEDS,
    StandardBed,
    matrix_of,
    patch_covariance,
    pooling,
    projection,
    stationary_covariance,
)
from sfumato.information.testbeds import GaussianMixture, LinearGaussian

__all__ = [
    "STANDARD_BEDS",
    "Bed",
    "ClassMixture",
    "Estimate",
    "Figures",
    "GaussianMixture",
    "LinearChannel",
    "LinearGaussian",
    "RateLoss",
    "StandardBed",
    "add_variance",
    "conditional_entropy_bound",
    "distance_correlation",
    "feature_utility",
    "log_densities",
    "log_determinants",
    "matrix_of",
    "mixture_rate",
    "mmse_bound",
    "patch_covariance",
    "pooling",
    "projection",
    "reference_loss",
    "relative_conditional_entropy",
    "shrink",
    "stationary_covariance",
]
