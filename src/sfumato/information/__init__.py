"""Functions on tensors that measure dependence and entropy; usable without the rest of the library."""

from sfumato.information.club import Club, estimate_upper_bound
from sfumato.information.conditional import conditional_mutual_information, fano_bound
from sfumato.information.dependence import distance_correlation
from sfumato.information.effective import EffectiveInformation, effective_information
from sfumato.information.fisher import (
    dfil,
    gaussian_prior_information,
    jacobian_trace,
    unbiased_mse_bound,
    van_trees_bound,
)
from sfumato.information.fitting import Fitting
from sfumato.information.kernel_dependence import GaussianKernel, Kernel, LinearKernel, coco, hsic
from sfumato.information.mine import Mine, estimate_mutual_information
from sfumato.information.mixture import ClassMixture
from sfumato.information.redundancy import pearson_redundancy

__all__ = [
    "ClassMixture",
    "Club",
    "EffectiveInformation",
    "Fitting",
    "GaussianKernel",
    "Kernel",
    "LinearKernel",
    "Mine",
    "coco",
    "conditional_mutual_information",
    "dfil",
    "distance_correlation",
    "effective_information",
    "estimate_mutual_information",
    "estimate_upper_bound",
    "fano_bound",
    "gaussian_prior_information",
    "hsic",
    "jacobian_trace",
    "pearson_redundancy",
    "unbiased_mse_bound",
    "van_trees_bound",
]
