"""Functions on tensors that measure dependence and entropy; usable without the rest of the library."""

from sfumato.information.attention import class_softmax, effective_sample_size, gated_scores, log_variance_penalty
from sfumato.information.beds import Bed, Figures, LinearChannel
from sfumato.information.club import Club, estimate_upper_bound
from sfumato.information.conditional import conditional_mutual_information, fano_bound
from sfumato.information.dependence import distance_correlation
from sfumato.information.effective import EffectiveInformation, effective_information
from sfumato.information.estimate import Estimate
from sfumato.information.fisher import (
    dfil,
    gaussian_prior_information,
    jacobian_trace,
    unbiased_mse_bound,
    van_trees_bound,
)
from sfumato.information.fitting import Fitting
from sfumato.information.fusion import FusedPooling
from sfumato.information.gaussian import add_variance, log_densities, log_determinants, shrink
from sfumato.information.kernel_dependence import GaussianKernel, Kernel, LinearKernel, coco, hsic
from sfumato.information.mine import Mine, estimate_mutual_information
from sfumato.information.mixture import ClassMixture
from sfumato.information.pooling import GatedPooling
from sfumato.information.rate import (
    conditional_entropy_bound,
    feature_utility,
    mixture_rate,
    mmse_bound,
    relative_conditional_entropy,
)
from sfumato.information.rate_loss import RateLoss, reference_loss
from sfumato.information.redundancy import pearson_redundancy
from sfumato.information.running import ClassAverage
from sfumato.information.slots import SlotAttention, SlotReadout
from sfumato.information.standard_beds import (
    STANDARD_BEDS,
    StandardBed,
    average_pooling,
    matrix_of,
    patch_covariance,
    projection,
    stationary_covariance,
)
from sfumato.information.testbeds import GaussianMixture, LinearGaussian

__all__ = [
    "STANDARD_BEDS",
    "Bed",
    "ClassAverage",
    "ClassMixture",
    "Club",
    "EffectiveInformation",
    "Estimate",
    "Figures",
    "Fitting",
    "FusedPooling",
    "GatedPooling",
    "GaussianKernel",
    "GaussianMixture",
    "Kernel",
    "LinearChannel",
    "LinearGaussian",
    "LinearKernel",
    "Mine",
    "RateLoss",
    "SlotAttention",
    "SlotReadout",
    "StandardBed",
    "add_variance",
    "average_pooling",
    "class_softmax",
    "coco",
    "conditional_entropy_bound",
    "conditional_mutual_information",
    "dfil",
    "distance_correlation",
    "effective_information",
    "effective_sample_size",
    "estimate_mutual_information",
    "estimate_upper_bound",
    "fano_bound",
    "feature_utility",
    "gated_scores",
    "gaussian_prior_information",
    "hsic",
    "jacobian_trace",
    "log_densities",
    "log_determinants",
    "log_variance_penalty",
    "matrix_of",
    "mixture_rate",
    "mmse_bound",
    "patch_covariance",
    "pearson_redundancy",
    "projection",
    "reference_loss",
    "relative_conditional_entropy",
    "shrink",
    "stationary_covariance",
    "unbiased_mse_bound",
    "van_trees_bound",
]
