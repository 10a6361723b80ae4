"""How much two batches of vectors depend on each other."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.information.rows import paired_rows


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """Distance correlation of two paired samples, in [0, 1]; 0 in the limit of large N iff independent.

    Székely, Rizzo & Bakirov 2007: Euclidean distance matrices A and B, double-centered;
    dCov² = mean(A∘B), dCor = √(dCov²(x, z) / √(dVar²(x)·dVar²(z))). The biased (V-statistic) form, as NoPeek
    (Vepakomma et al. 2020) uses it. Zero where either sample is constant. The gradient is finite everywhere,
    also where two rows coincide. NaN where an element is NaN or infinite.

    Args:
        x: (N, ...), flattened behind the first axis; half precision and integers are computed in single.
        z: (N, ...), likewise; may be of another shape.

    Raises:
        InputError: The two differ in N, N < 2, a row is empty, or numbers are complex.
    """
    x, z = paired_rows("distance_correlation", x, z)
    a, b = _centered_distances(x), _centered_distances(z)
    covariance, variances = (a * b).mean(), a.square().mean() * b.square().mean()
    # Below the smallest normal number a sample is constant: the ratio is 0 and the root has no gradient there.
    tiny = torch.finfo(variances.dtype).tiny
    ratio = covariance.clamp_min(0) / variances.clamp_min(tiny).sqrt()
    # Not "above tiny", which NaN is not: a feature that is not finite would look like one that tells nothing.
    constant = ratio <= tiny
    return torch.where(constant, tiny, ratio).sqrt() * ~constant


def _centered_distances(x: Tensor) -> Tensor:
    # The matrix-product shortcut cancels catastrophically for close rows, and its root then has a wild gradient.
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    # dCor does not depend on the scale, so a constant one changes no gradient; the fourth powers in it would overflow.
    largest = d.detach().max()
    d = d / torch.where(largest > 0, largest, 1.0)
    return d - d.mean(0, keepdim=True) - d.mean(1, keepdim=True) + d.mean()
