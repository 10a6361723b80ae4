"""Encoded images to one uint8 tensor: one size, one number of channels, decoded in parallel threads."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sfumato.errors import InputError
from sfumato.progress import Progress

Pixels: TypeAlias = NDArray[np.uint8]
Channels: TypeAlias = Literal[1, 3]

SUFFIXES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".pbm",
        ".pgm",
        ".ppm",
        ".jp2",
    )
)
# Only these of Pillow's formats: some of the others run programs (EPS) or are no pictures.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
_GRAY_MODES = ("1", "L", "LA")
_CHUNK = 512
_READABLE = "a whole image that Pillow can read"


@dataclass(frozen=True)
class Encoded:
    """One image before decoding.

    Args:
        name: How an error should call it: a file, or a file and a row.
        data: The file's content, the file, or pixels of shape (H, W) or (H, W, 3).
    """

    name: str
    data: bytes | Path | Pixels


@dataclass(frozen=True)
class Form:
    """What every image is brought to.

    Another size is reached by resizing until the image covers it and cutting what stands out, equally on
    both sides: for a square, the shorter side is resized and the center kept. Resizing is bilinear, with
    antialiasing where it makes smaller. Transparency is dropped, 16-bit gray keeps its upper 8 bits.

    Args:
        image_size: (H, W) in pixels; ``None`` keeps the images' own, which must then be the same for all.
        channels: 1 (gray, ITU-R 601 luma) or 3 (RGB); ``None`` gives 3 if any image has color, else 1.

    Raises:
        InputError: A size below 1 pixel or a number of channels other than 1 or 3.
    """

    image_size: tuple[int, int] | None = None
    channels: Channels | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and min(self.image_size) < 1:
            raise InputError("image_size", self.image_size, "1 pixel or more")
        if self.channels not in (None, 1, 3):
            raise InputError("channels", self.channels, "1 (gray) or 3 (RGB)")


def decode_images(images: Iterable[Encoded], count: int, form: Form, progress: Progress | None = None) -> Tensor:
    """Decode ``count`` images into one uint8 tensor of shape (N, C, H, W).

    Only a few hundred encoded images are held at a time, and the decoded ones once. ``progress`` is advanced by one for
    each, a few hundred at a time.

    Raises:
        InputError: An image that cannot be read, or images of several sizes where no size was asked for.
    """
    stack: Pixels | None = None
    # Pillow lets go of the interpreter's lock while it decodes and resizes, so threads are enough.
    with ThreadPoolExecutor() as pool:
        filled = 0
        for chunk in _chunks(images):
            for encoded, pixels in zip(chunk, pool.map(partial(decode_one, form=form), chunk), strict=True):
                if stack is None:
                    stack = np.empty((count, *pixels.shape), np.uint8)
                if pixels.shape[1:] != stack.shape[2:]:
                    raise InputError("image_size", None, f"a size, as images differ: {_differ(encoded, pixels, stack)}")
                if len(pixels) > stack.shape[1]:  # the first image with color after gray ones
                    stack = np.repeat(stack, 3, axis=1)
                stack[filled] = pixels
                filled += 1
            if progress is not None:
                progress.advance(len(chunk))
    if stack is None or filled != count:
        raise InputError("images", filled, f"{count} images" if count else "at least one image")
    return torch.from_numpy(stack)


def decode_one(encoded: Encoded, form: Form) -> Pixels:
    """Decode one image.

    Returns:
        uint8, shape (C, H, W).

    Raises:
        InputError: The image cannot be read; names it.
    """
    try:
        with _open(encoded.data) as opened:
            image = _eight_bits(ImageOps.exif_transpose(opened))
            gray = image.mode in _GRAY_MODES
            if image.mode == "P":  # Pillow warns where it takes a palette with transparency straight to RGB
                image = image.convert("RGBA")
            image = image.convert("L" if (form.channels or (1 if gray else 3)) == 1 else "RGB")
            if form.image_size is not None and image.size != form.image_size[::-1]:
                image = ImageOps.fit(image, form.image_size[::-1], Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:  # its text is Pillow's object for the file, and no reason
        raise InputError("image", encoded.name, _READABLE) from error
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("image", encoded.name, f"{_READABLE} ({reason})") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _open(data: bytes | Path | Pixels) -> Image.Image:
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=_FORMATS)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # 16 bits a pixel; older Pillow keeps them in 32. convert("L") would clip
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image


def _chunks(images: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _differ(encoded: Encoded, pixels: Pixels, stack: Pixels) -> str:
    (h, w), (first_h, first_w) = pixels.shape[1:], stack.shape[2:]
    return f"{encoded.name} is {h}x{w}, the first is {first_h}x{first_w}"
