"""How close a reconstruction comes to the original, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sfumato.errors import InputError

SMALLEST_IMAGE = 11
"""Side in pixels of the smallest image that can be judged: the window of SSIM."""
_BATCH = 512


@dataclass(frozen=True, eq=False)
class Quality:
    """Per-image figures, each of shape (N,).

    Attributes:
        mse: Mean squared error over channels and pixels, on [0, 1] pixels.
        psnr: 10·log10(1/mse) in dB; infinite where a reconstruction is exact.
        ssim: Structural similarity (Wang et al. 2004), Gaussian window 11, σ 1.5, per channel, data range 1.
            As torchmetrics computes it: averaged over the whole image with mirrored borders, where the original
            averages over windows inside the image only.
    """

    mse: Tensor
    psnr: Tensor
    ssim: Tensor


@torch.no_grad()
def quality(reconstruction: Tensor, original: Tensor) -> Quality:
    """Compare images (N, C, H, W) in [0, 1], one by one, on the CPU.

    Raises:
        InputError: Shapes differ, or images are smaller than 11×11 (SSIM's window).
    """
    if reconstruction.shape != original.shape or original.ndim != 4:
        given = (tuple(reconstruction.shape), tuple(original.shape))
        raise InputError("reconstruction and original", given, "the same shape (N, C, H, W)")
    if min(original.shape[2:]) < SMALLEST_IMAGE:
        raise InputError("image size", tuple(original.shape[2:]), "at least 11×11, the window of SSIM")
    reconstruction, original = reconstruction.float().cpu(), original.float().cpu()
    mse = (reconstruction - original).square().mean((1, 2, 3))
    similarities = [
        structural_similarity_index_measure(a, b, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none")
        for a, b in zip(torch.split(reconstruction, _BATCH), torch.split(original, _BATCH))
    ]
    ssim = torch.cat([s.reshape(-1) for s in similarities if isinstance(s, Tensor)])
    return Quality(mse, -10 * mse.log10(), ssim)
