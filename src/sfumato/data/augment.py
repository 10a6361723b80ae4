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
        if self.crop_padding:
            places = 2 * self.crop_padding + 1
            images = crop(images, (top * places).long(), (left * places).long(), self.crop_padding)
        mirrored = mirror < 0.5 if self.flip else torch.zeros_like(mirror, dtype=torch.bool)
        if self.rotation:
            return mirror_and_rotate(to_unit(images), mirrored, (2 * angle - 1) * math.radians(self.rotation))
        if self.flip:
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return to_unit(images)


def to_unit(images: Tensor) -> Tensor:
    """Turn uint8 pixels 0 to 255 into float32 in [0, 1]; always a new tensor."""
    return images.to(torch.float32).div_(255)


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Cut a window of the original size out of each zero-padded image.

    Args:
        images: Any type, shape (N, C, H, W).
        top: int64, shape (N,): first row of the window, 0 to 2 * ``padding``.
        left: int64, shape (N,): first column, likewise.
        padding: Pixels of zeros on each side.

    Returns:
        Same type and shape as ``images``.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    height, width = padded.shape[2:]
    planes = torch.arange(n * c, device=images.device).reshape(n, c, 1) * (height * width)
    rows = (top[:, None] + torch.arange(h, device=images.device)) * width + left[:, None]
    # Every run of w pixels, as overlapping views: a row of a window is one of them and is copied whole,
    # which is three times as fast as gathering pixels.
    runs = padded.reshape(-1).unfold(0, w, 1)
    return runs.index_select(0, (planes + rows[:, None]).reshape(-1)).reshape(n, c, h, w)


def mirror_and_rotate(images: Tensor, mirrored: Tensor, angles: Tensor) -> Tensor:
    """Mirror images left to right where asked, then rotate each about its center; one sampling.

    Args:
        images: Floating point, shape (N, C, H, W).
        mirrored: bool, shape (N,): which images to mirror.
        angles: Radians, shape (N,); counter-clockwise as seen. Bilinear, zeros outside.

    Returns:
        Same type and shape as ``images``.
    """
    n, _, h, w = images.shape
    # Pixel centers in grid_sample's coordinates.
    x = (2 * torch.arange(w, device=images.device, dtype=images.dtype) + 1) / w - 1
    y = ((2 * torch.arange(h, device=images.device, dtype=images.dtype) + 1) / h - 1)[:, None]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    side = torch.where(mirrored, -1.0, 1.0).to(images.dtype)[:, None, None]
    # Written in place: affine_grid takes ten times as long, and stacking three times. The two axes are
    # scaled by different lengths: without h / w an oblong image would be sheared.
    grid = images.new_empty(n, h, w, 2)
    torch.sub(side * cos * x, side * sin * (h / w) * y, out=grid[..., 0])
    torch.add(sin * (w / h) * x, cos * y, out=grid[..., 1])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
