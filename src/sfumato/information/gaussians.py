"""Densities of Gaussian components, and integrals over mixtures of them along a line."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.errors import InputError

_REACH = 12.0
_POINTS_PER_SPREAD = 16
_MOST_POINTS = 2**21
_CHUNK = 2048


def log_densities(points: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """Log densities of Gaussian components at points.

    Args:
        points: (N, D).
        means: (M, D).
        factors: Lower Cholesky factors of the covariances, (M, D, D).

    Returns:
        (M, N).
    """
    centered = (points.unsqueeze(0) - means.unsqueeze(1)).mT  # (M, D, N)
    squared = torch.linalg.solve_triangular(factors, centered, upper=False).square().sum(1)
    logs = factors.diagonal(dim1=1, dim2=2).log().sum(1)
    return -squared / 2 - (logs + points.shape[1] / 2 * math.log(2 * math.pi)).unsqueeze(1)


def on_line(
    functions: Callable[[Tensor], tuple[Tensor, ...]], weights: Tensor, means: Tensor, spreads: Tensor
) -> tuple[float, ...]:
    """Expectations under a mixture of Gaussians on the line, by the trapezoidal rule.

    The rule converges faster than any power of the step for what decays as a Gaussian does. The grid reaches 12
    standard deviations beyond every component, with 16 points to the narrowest one's.

    Args:
        functions: Of points (N,); gives tensors (N,), whose expectations are wanted.
        weights: (M,).
        means: (M,).
        spreads: Standard deviations, (M,).

    Raises:
        InputError: Components so narrow and far apart that the grid would not fit into memory.
    """
    low, high = float((means - _REACH * spreads).min()), float((means + _REACH * spreads).max())
    count = math.ceil((high - low) / float(spreads.min()) * _POINTS_PER_SPREAD) + 1
    if count > _MOST_POINTS:
        raise InputError("method", "quadrature", "monte_carlo: the components are too narrow and too far apart")
    grid = torch.linspace(low, high, count, dtype=torch.float64)
    total: list[Tensor] = []
    for points in grid.split(_CHUNK):
        logs = log_densities(points.unsqueeze(1), means.unsqueeze(1), spreads.view(-1, 1, 1))
        density = weights @ logs.exp() * (high - low) / (count - 1)
        parts = torch.stack([density @ values for values in functions(points)])
        total.append(parts)
    return tuple(torch.stack(total).sum(0).tolist())


def component_entropy_on_line(weights: Tensor, means: Tensor, spreads: Tensor) -> float:
    """H(c | x) in nats: what a point of a mixture on the line leaves open about its component.

    Args:
        weights: (M,).
        means: (M,).
        spreads: Standard deviations, (M,).

    Raises:
        InputError: See :func:`on_line`.
    """

    def entropy(points: Tensor) -> tuple[Tensor, ...]:
        logs = log_densities(points.unsqueeze(1), means.unsqueeze(1), spreads.view(-1, 1, 1))
        share = (weights.log().unsqueeze(1) + logs).softmax(0)
        return (torch.special.entr(share).sum(0),)

    return on_line(entropy, weights, means, spreads)[0]
