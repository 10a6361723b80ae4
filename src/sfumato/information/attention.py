"""Attention within the classes of a batch, for all classes at once: weights, means, spreads, and a penalty on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.information.checks import require_floors
from sfumato.information.grouping import group_sizes


def class_softmax(scores: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Softmax of scores among the members of the same class.

    Args:
        scores: (N,), of any size: the largest of each class is taken off first.
        y: (N,) class of each, in [0, K).
        num_classes: K; a class may be absent.

    Returns:
        (N,) weights that sum to 1 within every class that is present.
    """
    largest = scores.detach().new_full((num_classes,), -math.inf).scatter_reduce(0, y, scores.detach(), "amax")
    raised = (scores - largest[y]).exp()
    return raised / raised.new_zeros(num_classes).index_add(0, y, raised)[y]


def class_uniform(y: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """The weights (N,) of a plain mean within every class: 1/n."""
    return group_sizes(y, num_classes).to(dtype)[y].reciprocal()


def gated_scores(z: Tensor, value: Tensor, gate: Tensor, mixer: Tensor) -> Tensor:
    """Scores wᵀ(tanh(V·z) ⊙ sigmoid(U·z)) of gated attention (Ilse et al. 2018, equation 9).

    Args:
        z: (N, D).
        value: V (H, D).
        gate: U (H, D).
        mixer: w (H,).

    Returns:
        (N,).
    """
    return (F.linear(z, value).tanh() * F.linear(z, gate).sigmoid()) @ mixer


def class_mean(z: Tensor, weights: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Weighted mean of every class (K, D) of features (N, D) under weights (N,); 0 for an absent class."""
    return z.new_zeros(num_classes, z.shape[1]).index_add(0, y, weights.unsqueeze(1) * z)


def class_spread(z: Tensor, centers: Tensor, weights: Tensor, y: Tensor) -> Tensor:
    """Weighted squared deviation of every class from its center, per dimension (K, D); 0 for an absent class.

    Args:
        z: (N, D).
        centers: (K, D).
        weights: (N,), summing to 1 within a class.
        y: (N,) class of each.
    """
    return class_mean((z - centers[y]).square(), weights, y, len(centers))


def effective_sample_size(weights: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Kish's 1/Σ a² of every class (K,): from 1, all weight on one, to n, all alike; 0 for an absent class."""
    squares = weights.new_zeros(num_classes).index_add(0, y, weights.square())
    return torch.where(squares > 0, squares, torch.inf).reciprocal()


def log_variance_penalty(variances: Tensor, present: Tensor, *, floor: float, gamma: float) -> Tensor:
    """Mean over classes and dimensions of relu(log(v + γ) − log(floor + γ)).

    Args:
        variances: v (K, D).
        present: (K,) bool; other classes are left out.
        floor: Variance below which there is no pressure, 0 or more.
        gamma: γ > 0.

    Returns:
        A scalar in nats; 0 where no class is present.

    Raises:
        InputError: A floor below 0, or a γ that is not above it.
    """
    require_floors(floor, gamma)
    excess = ((variances + gamma).log() - math.log(floor + gamma)).relu().mean(1)
    return torch.where(present, excess, 0.0).sum() / present.sum().clamp_min(1)


def mean_log_variance(variances: Tensor, present: Tensor, *, gamma: float) -> Tensor:
    """Mean over present classes and dimensions of log(v + γ): what an attention learns from, with no threshold."""
    require_floors(0.0, gamma)
    return torch.where(present, (variances + gamma).log().mean(1), 0.0).sum() / present.sum().clamp_min(1)
