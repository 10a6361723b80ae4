"""The beds that `sfumato calibrate` measures against, and what they are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.information.beds import Bed, LinearChannel
from sfumato.information.testbeds import GaussianMixture, LinearGaussian

IMAGE_SHAPE = (1, 12, 12)
"""Unless told otherwise. 12 is the smallest even side of which SSIM can be judged."""
_GRAY = 0.5
_STD = 0.1
_GRAIN = 0.03
_BETWEEN_CHANNELS = 0.8
_PATCH = 4


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


def white(sigma: float, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> Bed:
    """Independent pixels, all of them sent: theorem 1 holds with equality."""
    mean, covariance = _gray(image_shape), stationary_covariance(image_shape, std=_STD, lengths=(0, 0))
    return LinearGaussian(mean, covariance, average_pooling(image_shape, 1, sigma))


def smooth(sigma: float, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> Bed:
    """Pixels that resemble their neighbors, pooled by two: neighboring features help each other."""
    mean = _gray(image_shape)
    alike = stationary_covariance(image_shape, std=_STD, lengths=(4.0, 4.0), between_channels=_BETWEEN_CHANNELS)
    grain = stationary_covariance(image_shape, std=_GRAIN, lengths=(0, 0))
    return LinearGaussian(mean, alike + grain, average_pooling(image_shape, 2, sigma))


def patches(sigma: float, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> Bed:
    """4×4 patches that are planes in the main, each sent as three mixed projections."""
    mean, covariance = _gray(image_shape), patch_covariance(image_shape, _plane_covariance(_STD))
    return LinearGaussian(mean, covariance, _plane_channel(image_shape, sigma))


def moods(sigma: float, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> Bed:
    """Patches of calm and of lively pictures: the best filter smooths as much as the whole picture is calm."""
    means = _gray(image_shape).expand(2, -1, -1, -1)
    covariances = torch.stack([patch_covariance(image_shape, _plane_covariance(std)) for std in (0.03, 0.12)])
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    return GaussianMixture(weights, means, covariances, _plane_channel(image_shape, sigma))


class Build(Protocol):
    """A bed of a noise level and of images (C, H, W)."""

    def __call__(self, sigma: float, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> Bed:
        """Build it.

        Args:
            sigma: Standard deviation of the channel's noise.
            image_shape: (C, H, W), H and W multiples of 4. ``smooth`` correlates its channels; in the others they are
                independent.

        Raises:
            InputError: A size that cannot be, or a noise level that is not positive.
        """


@dataclass(frozen=True)
class StandardBed:
    """A bed by name: what it is, and how it is built at a noise level and for images of any size."""

    summary: str
    build: Build


STANDARD_BEDS: dict[str, StandardBed] = {
    build.__name__: StandardBed((build.__doc__ or "").strip(), build) for build in (white, smooth, patches, moods)
}


def _decay(n: int, length: float) -> Tensor:
    place = torch.arange(n, dtype=torch.float64)
    distance = (place.unsqueeze(0) - place.unsqueeze(1)).abs()
    return torch.exp(-distance / length) if length > 0 else torch.eye(n, dtype=torch.float64)


def _gray(image_shape: tuple[int, int, int]) -> Tensor:
    if len(image_shape) != 3 or min(image_shape) < 1 or image_shape[1] % _PATCH or image_shape[2] % _PATCH:
        raise InputError("image_shape", image_shape, f"(C, H, W), H and W multiples of {_PATCH}")
    return torch.full(image_shape, _GRAY, dtype=torch.float64)


def _planes() -> Tensor:
    """Level and slopes of a 4×4 patch, orthonormal, (3, 16)."""
    ramp, one = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    made = torch.stack([torch.outer(one, one), torch.outer(ramp, one), torch.outer(one, ramp)]).flatten(1)
    return made / made.square().sum(1, keepdim=True).sqrt()


def _plane_covariance(std: float) -> Tensor:
    """Of a patch whose pixels vary with this standard deviation as a plane does, plus grain."""
    planes = _planes()
    return 16 / 3 * std**2 * planes.T @ planes + _GRAIN**2 * torch.eye(16, dtype=torch.float64)


def _plane_channel(image_shape: tuple[int, int, int], sigma: float) -> LinearChannel:
    """Three projections of each patch of each channel."""
    mixing = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    own = torch.eye(image_shape[0], dtype=torch.float64)
    kernels = torch.einsum("ce,kp->ckep", own, mixing @ _planes() / 4)
    return projection(image_shape, kernels.reshape(-1, len(own), 4, 4), sigma)


def _with(sigma: float, made: tuple[Tensor, tuple[int, ...]]) -> tuple[Tensor, float, tuple[int, ...]]:
    weight, shape = made
    return weight, sigma, shape
