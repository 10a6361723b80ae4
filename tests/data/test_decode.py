from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.decode import Encoded, Form, decode_images, decode_one
from sfumato.errors import InputError


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes | np.ndarray | Path, size: tuple[int, int] | None = None, channels: Any = None) -> np.ndarray:
    return decode_one(Encoded("picture", data), Form(size, channels))


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    pixels = random_pixels(5, 7, 3)
    assert np.array_equal(decode(saved(Image.fromarray(pixels), kind)), pixels.transpose(2, 0, 1))


def test_lossless_webp_and_lossy_jpeg() -> None:
    pixels = np.full((8, 8, 3), 130, np.uint8)
    assert np.array_equal(decode(saved(Image.fromarray(pixels), "webp", lossless=True)), pixels.transpose(2, 0, 1))
    assert np.abs(decode(saved(Image.fromarray(pixels), "jpeg")).astype(int) - 130).max() < 3


def test_gray_and_color_by_argument() -> None:
    gray, color = random_pixels(4, 4), random_pixels(4, 4, 3)
    assert np.array_equal(decode(gray), gray[None])
    assert np.array_equal(decode(gray, channels=3), np.stack([gray] * 3))
    luma = (color @ np.array([0.299, 0.587, 0.114])).round()
    assert np.abs(decode(color, channels=1)[0] - luma).max() <= 1


def test_palette_transparency_and_bits() -> None:
    gray = random_pixels(4, 4)
    bits = Image.fromarray(gray).convert("1")
    assert set(np.unique(decode(saved(bits)))) <= {0, 255}
    palette = Image.fromarray(random_pixels(4, 4, 3)).quantize(4)
    assert decode(saved(palette, transparency=b"\x00\x80\xff\xff")).shape == (3, 4, 4)
    rgba = np.dstack([random_pixels(4, 4, 3), gray])
    assert np.array_equal(decode(saved(Image.fromarray(rgba))), rgba[:, :, :3].transpose(2, 0, 1))


def test_sixteen_bit_gray_keeps_its_upper_eight() -> None:
    deep = np.array([[0, 255, 256], [32768, 40000, 65535]], np.uint16)
    assert np.array_equal(decode(saved(Image.fromarray(deep))), (deep >> 8)[None])


def test_exif_orientation_is_followed() -> None:
    pixels = random_pixels(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = decode(saved(Image.fromarray(pixels), "tiff", exif=exif))
    assert np.array_equal(turned, np.rot90(pixels, -1).transpose(2, 0, 1))


def test_resized_until_covered_then_cut_to_the_center() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 200
    assert np.array_equal(decode(pixels, (8, 8)), np.full((3, 8, 8), 200))
    assert np.array_equal(decode(pixels, (4, 4)), np.full((3, 4, 4), 200)) is False  # antialiasing sees the rim
    assert np.array_equal(decode(pixels, (4, 4))[:, :, 1:3], np.full((3, 4, 2), 200))
    assert decode(pixels, (3, 5)).shape == (3, 3, 5)
    assert decode(pixels, (32, 32)).shape == (3, 32, 32)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode(stripes, (8, 8)).astype(int) - 127)[:, 1:-1, 1:-1].max() < 12


def test_color_after_gray_makes_all_of_them_color() -> None:
    gray, color = random_pixels(4, 4), random_pixels(4, 4, 3)
    images = decode_images([Encoded("a", gray), Encoded("b", color), Encoded("c", gray)], 3, Form())
    assert images.shape == (3, 3, 4, 4)
    assert torch.equal(images[0], torch.from_numpy(gray).expand(3, 4, 4))
    assert torch.equal(images[1], torch.from_numpy(color).permute(2, 0, 1))
    assert torch.equal(images[2], images[0])


def test_more_images_than_are_held_at_a_time_stay_in_order() -> None:
    encoded = [Encoded(str(i), np.full((2, 2), i % 256, np.uint8)) for i in range(1300)]
    images = decode_images(iter(encoded), 1300, Form())
    assert torch.equal(images[:, 0, 0, 0], (torch.arange(1300) % 256).byte())


def test_several_sizes_need_a_size() -> None:
    images = [Encoded("first", random_pixels(4, 4)), Encoded("second", random_pixels(6, 5))]
    with pytest.raises(InputError, match="second is 6x5, the first is 4x4"):
        decode_images(images, 2, Form())
    assert decode_images(images, 2, Form((4, 4))).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_truncated_images_are_named(kind: str) -> None:
    whole = saved(Image.fromarray(random_pixels(40, 40, 3)), kind)
    with pytest.raises(InputError, match=r"picture.*a whole image") as error:
        decode(whole[: len(whole) // 2])
    assert "\n" not in str(error.value)


def test_what_is_no_image_at_all_is_told_without_pillows_words(tmp_path: Path) -> None:
    (file := tmp_path / "no.png").write_bytes(b"no image")
    for data in (b"no image", b"", file):
        with pytest.raises(InputError) as error:
            decode(data)
        assert error.value.accepted == "a whole image that Pillow can read"
    with pytest.raises(InputError, match=r"can read \(.*No such file"):
        decode(tmp_path / "absent.png")


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    deep = saved(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff")
    for data in (b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", deep, tmp_path / "absent.png"):
        with pytest.raises(InputError, match="'picture'"):
            decode(data)


def test_bad_forms_and_counts() -> None:
    with pytest.raises(InputError, match="image_size"):
        Form(image_size=(0, 4))
    with pytest.raises(InputError, match="channels"):
        Form(channels=2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one image"):
        decode_images([], 0, Form())
