"""Random crop, flip and rotation of a whole batch at once, where the batch is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import InputError

_DRAWS = 4  # per image: crop row, crop column, flip, angle


@dataclass(frozen=True)
class Augment:
    """Crop, flip and rotate each image of a batch by its own random amount.

    The random numbers are drawn where the generator is and then moved, so a generator on the CPU gives
    the same augmentation on every device. Each image takes four numbers whatever is switched on: turning
    the rotation off leaves the crops as they were.

    Args:
        crop_padding: Pixels of zeros added on each side before a crop of the original size; 0 is off.
        flip: Mirror left to right with probability one half.
        rotation: Largest angle in degrees, either way, uniformly drawn; bilinear, zeros outside; 0 is off.

    Raises:
        InputError: A negative padding, or an angle outside 0 to 180.
    """

    crop_padding: int = 4
    flip: bool = True
    rotation: float = 15.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise InputError("augment.crop_padding", self.crop_padding, "0 or more pixels")
        if not 0 <= self.rotation <= 180:
            raise InputError("augment.rotation", self.rotation, "0 to 180 degrees")

    @property
    def is_identity(self) -> bool:
        """Whether everything is switched off."""
        return not (self.crop_padding or self.flip or self.rotation)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment one batch.

        Args:
            images: uint8, shape (N, C, H, W); not changed.
            generator: Where the random numbers come from; untouched if everything is switched off.

        Returns:
            float32 in [0, 1], shape (N, C, H, W), on the images' device.

        Raises:
            InputError: The images are so small that a crop could miss them.
        """
        if self.is_identity:
            return to_unit(images)
        height, width = images.shape[-2:]
        if self.crop_padding >= min(height, width):
            raise InputError(
                "augment.crop_padding",
                self.crop_padding,
                f"less than the image's shorter side ({height}x{width})",
            )
        draws = torch.rand(len(images), _DRAWS, generator=generator, device=generator.device)
        top, left, mirror, angle = draws.to(images.device, non_blocking=True).unbind(1)
        if self.crop_padding or self.flip:
            places = 2 * self.crop_padding + 1
            mirrored = mirror < 0.5 if self.flip else torch.zeros_like(mirror, dtype=torch.bool)
            images = crop_and_flip(
                images, (top * places).long(), (left * places).long(), mirrored, self.crop_padding
            )
        unit = to_unit(images)
        if not self.rotation:
            return unit
        return rotate(unit, (2 * angle - 1) * math.radians(self.rotation))


def to_unit(images: Tensor) -> Tensor:
    """Turn uint8 pixels 0 to 255 into float32 in [0, 1]; always a new tensor."""
    return images.to(torch.float32).div_(255)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Cut a window of the original size out of each zero-padded image, mirrored where asked; one gather.

    Args:
        images: Any type, shape (N, C, H, W).
        top: int64, shape (N,): first row of the window, 0 to 2 * ``padding``.
        left: int64, shape (N,): first column, likewise.
        mirrored: bool, shape (N,): which windows to mirror left to right.
        padding: Pixels of zeros on each side.

    Returns:
        Same type and shape as ``images``.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    across = torch.arange(w, device=images.device)
    rows = top[:, None] + torch.arange(h, device=images.device)
    columns = left[:, None] + torch.where(mirrored[:, None], across.flip(0), across)
    index = rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]
    window = padded.reshape(n, c, -1).gather(2, index.reshape(n, 1, h * w).expand(n, c, h * w))
    return window.reshape(n, c, h, w)


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate each image about its center, counter-clockwise as seen; bilinear, zeros outside.

    Args:
        images: Floating point, shape (N, C, H, W).
        angles: Radians, shape (N,).

    Returns:
        Same type and shape as ``images``.
    """
    n, _, h, w = images.shape
    # Pixel centers in grid_sample's coordinates.
    x = (2 * torch.arange(w, device=images.device, dtype=images.dtype) + 1) / w - 1
    y = ((2 * torch.arange(h, device=images.device, dtype=images.dtype) + 1) / h - 1)[:, None]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    # Written in place: affine_grid takes ten times as long, and stacking three times. The two axes are
    # scaled by different lengths: without h / w an oblong image would be sheared.
    grid = images.new_empty(n, h, w, 2)
    torch.sub(cos * x, sin * (h / w) * y, out=grid[..., 0])
    torch.add(sin * (w / h) * x, cos * y, out=grid[..., 1])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
