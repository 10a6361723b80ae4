"""What a classifier's answers tell about the image beyond its class, and what information says about guessing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.errors import InputError

_SUM_TOLERANCE = 1e-2  # a thousand probabilities in half precision


def conditional_mutual_information(probabilities: Tensor, labels: Tensor) -> Tensor:
    """I(X; Ŷ | Y) = E_y E_x|y KL(f(x) ‖ E[f | y]) of a classifier's answers, in nats; between 0 and log K.

    0 if every image of a class gets the same answer: then an answer tells the class and nothing else (Yang et al.
    2024, "Conditional mutual information constrained deep learning"). Expectations are means over the given images,
    so few images of a class make it too small: a class of one counts as 0. Computed in double precision, with a
    finite gradient also where a probability is 0.

    Args:
        probabilities: (N, K), rows f(x) summing to 1.
        labels: (N,) integer class y of each image.

    Raises:
        InputError: Rows that are no probability vectors, labels that do not pair with them, or no image.
    """
    _check(probabilities, labels)
    f = probabilities.double()
    classes = int(labels.max()) + 1
    sums = f.new_zeros(classes, f.shape[1]).index_add(0, labels, f)
    counts = torch.bincount(labels, minlength=classes)
    means = (sums / counts.clamp_min(1).unsqueeze(1))[labels]
    # 0·log 0 is 0, and its gradient is finite; a mean is 0 only where all that it averages are.
    tiny = torch.finfo(f.dtype).tiny
    return (f * (f.clamp_min(tiny).log() - means.clamp_min(tiny).log())).sum(1).mean()


def fano_bound(information: float, alphabet_size: int) -> float:
    r"""P(error) ≥ 1 − (I(x; z) + log 2)/log\|X\| for any guess of x from z, x uniform on a finite set (Fano 1961).

    0 where the bound says nothing.

    Args:
        information: I(x; z) in nats, 0 or more; with an upper bound of it the result is still a bound.
        alphabet_size: \|X\|, 2 or more; may exceed what a float holds, as the number of all images does.

    Raises:
        InputError: Either is out of its range.
    """
    if not information >= 0:
        raise InputError("information", information, "0 nats or more")
    if not alphabet_size >= 2:
        raise InputError("alphabet_size", alphabet_size, "2 or more")
    return max(0.0, 1 - (information + math.log(2)) / math.log(alphabet_size))


def _check(probabilities: Tensor, labels: Tensor) -> None:
    if probabilities.ndim != 2 or probabilities.numel() == 0 or not probabilities.is_floating_point():
        raise InputError("shape of probabilities", tuple(probabilities.shape), "(N, K) floating point, not empty")
    if labels.shape != probabilities.shape[:1]:
        raise InputError("shape of labels", tuple(labels.shape), f"({len(probabilities)},), one of each row")
    if labels.is_floating_point() or labels.dtype == torch.bool or bool((labels < 0).any()):
        raise InputError("labels", labels.dtype, "integers, 0 or more")
    sums = probabilities.detach().double().sum(1)
    worst = float((sums - 1).abs().max())
    if not (worst <= _SUM_TOLERANCE and bool((probabilities >= 0).all())):
        raise InputError("probabilities (largest distance of a row's sum from 1)", worst, "rows of 0 or more, sum 1")
