"""How much the channels of a feature repeat each other."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import InputError


def pearson_redundancy(z: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Mean squared Pearson correlation between the channel maps of a feature, in [0, 1].

    For each image and each pair of channels i ≠ j: r² = cov(i, j)²/((var(i) + ε)·(var(j) + ε)) over the H·W positions
    of the two maps; the mean over pairs and images (SiftFunnel, eq. 13). Zero if no map is a linear
    function of another, 1 if all are, up to ε.

    Args:
        z: (N, C, ...), at least two positions in a map.
        epsilon: Added to each variance, positive. A constant map correlates with nothing, and the gradient of one that
            is nearly constant stays below 4/√ε; maps with a variance far above ε do not feel it.

    Raises:
        InputError: Fewer than two channels or positions, no image, or an epsilon that is not positive.
    """
    if not epsilon > 0:
        raise InputError("epsilon", epsilon, "a positive number")
    if z.ndim < 3 or len(z) == 0 or z.shape[1] < 2 or z[0, 0].numel() < 2:
        raise InputError("shape of z", tuple(z.shape), "(N, C, ...) with 2 or more channels and positions")
    maps = z.flatten(2)
    maps = maps - maps.mean(2, keepdim=True)
    maps = maps / (maps.square().sum(2, keepdim=True) + epsilon * maps.shape[2]).sqrt()
    squares = (maps @ maps.transpose(1, 2)).square()
    channels = squares.shape[1]
    others = 1 - torch.eye(channels, dtype=z.dtype, device=z.device)
    return (squares * others).sum((1, 2)).mean() / (channels * (channels - 1))
