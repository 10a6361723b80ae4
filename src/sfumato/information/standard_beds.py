"""The beds that `sfumato calibrate` measures against, and what they are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.information.beds import Bed, LinearChannel
from sfumato.information.testbeds import GaussianMixture, LinearGaussian

IMAGE_SHAPE = (1, 12, 12)
"""12 is the smallest even side of which SSIM can be judged."""
_GRAY = 0.5
_STD = 0.1
_GRAIN = 0.03


def stationary_covariance(
    image_shape: tuple[int, int, int], *, std: float, lengths: tuple[float, float], between_channels: float = 0.0
) -> Tensor:
    """Covariance of pixels that are alike where they are near: std²·exp(−rows/length − columns/length) apart.

    Args:
        image_shape: (C, H, W).
        std: Standard deviation of every pixel.
        lengths: Correlation lengths in pixels along columns (from row to row) and along rows; 0 for none.
        between_channels: Correlation of two channels in one place, in [0, 1).

    Returns:
        (d, d) in float64, positive definite.

    Raises:
        InputError: A standard deviation or length below 0, or a correlation out of range.
    """
    c, h, w = image_shape
    if not std > 0 or min(lengths) < 0:
        raise InputError("std, lengths", (std, lengths), "a std above 0, lengths of 0 or more")
    if not 0 <= between_channels < 1:
        raise InputError("between_channels", between_channels, "a correlation from 0 to below 1")
    colors = torch.full((c, c), between_channels, dtype=torch.float64).fill_diagonal_(1.0)
    rows, columns = _decay(h, lengths[0]), _decay(w, lengths[1])
    return std**2 * torch.kron(colors, torch.kron(rows, columns))


def patch_covariance(image_shape: tuple[int, int, int], within: Tensor) -> Tensor:
    """Covariance of images of independent patches, all of one covariance.

    Args:
        image_shape: (C, H, W); every channel by itself.
        within: (p·p, p·p) covariance of a patch of p×p pixels; p divides H and W.

    Returns:
        (d, d) in float64.

    Raises:
        InputError: The patches do not fill the image.
    """
    c, h, w = image_shape
    p = round(len(within) ** 0.5)
    if within.shape != (p * p, p * p) or h % p or w % p:
        raise InputError("within (shape)", tuple(within.shape), f"(p·p, p·p) with p dividing {h} and {w}")
    blocks = within.double().view(p, p, p, p)
    # Row i of patch row a is row a·p + i; two pixels are related if they share channel and patch.
    one = [torch.eye(n, dtype=torch.float64) for n in (c, h // p, w // p)]
    whole = torch.einsum("ce,af,bg,ijkl->caibjefkgl", *one, blocks)
    return whole.reshape(c * h * w, c * h * w)


def matrix_of(
    function: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int]
) -> tuple[Tensor, tuple[int, ...]]:
    """A linear map of images as a matrix (D, d), and the shape of what it gives for one image.

    Args:
        function: (N, C, H, W) to (N, ...), linear.
        image_shape: (C, H, W).
    """
    c, h, w = image_shape
    answers = function(torch.eye(c * h * w, dtype=torch.float64).view(-1, c, h, w))
    return answers.flatten(1).T.contiguous(), tuple(answers.shape[1:])


def average_pooling(image_shape: tuple[int, int, int], size: int, sigma: float) -> LinearChannel:
    """Means of size×size pixels, with noise."""
    return LinearChannel(*_with(sigma, matrix_of(lambda x: F.avg_pool2d(x, size), image_shape)))


def projection(image_shape: tuple[int, int, int], kernels: Tensor, sigma: float) -> LinearChannel:
    """Each p×p patch onto kernels (K, C, p, p), with noise; the feature is (K, H/p, W/p)."""
    stride = kernels.shape[-1]
    made = matrix_of(lambda x: F.conv2d(x, kernels.double(), stride=stride), image_shape)
    return LinearChannel(*_with(sigma, made))


def white(sigma: float) -> Bed:
    """Independent pixels, all of them sent: theorem 1 holds with equality."""
    channel = average_pooling(IMAGE_SHAPE, 1, sigma)
    return LinearGaussian(_gray(), stationary_covariance(IMAGE_SHAPE, std=_STD, lengths=(0, 0)), channel)


def smooth(sigma: float) -> Bed:
    """Pixels that resemble their neighbors, pooled by two: neighboring features help each other."""
    covariance = stationary_covariance(IMAGE_SHAPE, std=_STD, lengths=(4.0, 4.0)) + _grain()
    return LinearGaussian(_gray(), covariance, average_pooling(IMAGE_SHAPE, 2, sigma))


def patches(sigma: float) -> Bed:
    """4×4 patches that are planes in the main, each sent as three mixed projections."""
    return LinearGaussian(_gray(), patch_covariance(IMAGE_SHAPE, _plane_covariance(_STD)), _plane_channel(sigma))


def moods(sigma: float) -> Bed:
    """Patches of calm and of lively pictures: the best filter smooths as much as the whole picture is calm."""
    covariances = torch.stack([patch_covariance(IMAGE_SHAPE, _plane_covariance(std)) for std in (0.03, 0.12)])
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    return GaussianMixture(weights, _gray().expand(2, -1, -1, -1), covariances, _plane_channel(sigma))


@dataclass(frozen=True)
class StandardBed:
    """A bed by name: what it is, and how it is built at a noise level."""

    summary: str
    build: Callable[[float], Bed]


STANDARD_BEDS: dict[str, StandardBed] = {
    build.__name__: StandardBed((build.__doc__ or "").strip(), build) for build in (white, smooth, patches, moods)
}


def _decay(n: int, length: float) -> Tensor:
    place = torch.arange(n, dtype=torch.float64)
    distance = (place.unsqueeze(0) - place.unsqueeze(1)).abs()
    return torch.exp(-distance / length) if length > 0 else torch.eye(n, dtype=torch.float64)


def _gray() -> Tensor:
    return torch.full(IMAGE_SHAPE, _GRAY, dtype=torch.float64)


def _planes() -> Tensor:
    """Level and slopes of a 4×4 patch, orthonormal, (3, 16)."""
    ramp, one = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    made = torch.stack([torch.outer(one, one), torch.outer(ramp, one), torch.outer(one, ramp)]).flatten(1)
    return made / made.square().sum(1, keepdim=True).sqrt()


def _plane_covariance(std: float) -> Tensor:
    """Of a patch whose pixels vary with this standard deviation as a plane does, plus grain."""
    planes = _planes()
    return 16 / 3 * std**2 * planes.T @ planes + _GRAIN**2 * torch.eye(16, dtype=torch.float64)


def _plane_channel(sigma: float) -> LinearChannel:
    mixing = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    return projection(IMAGE_SHAPE, (mixing @ _planes()).view(3, 1, 4, 4) / 4, sigma)


def _grain() -> Tensor:
    return stationary_covariance(IMAGE_SHAPE, std=_GRAIN, lengths=(0, 0))


def _with(sigma: float, made: tuple[Tensor, tuple[int, ...]]) -> tuple[Tensor, float, tuple[int, ...]]:
    weight, shape = made
    return weight, sigma, shape
