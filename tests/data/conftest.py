from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sfumato.data import ImageSet

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

MakeImages = Callable[..., ImageSet]


@pytest.fixture
def cifar_small() -> Path:
    folder = SHARED / "cifar10-small"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/cifar10-small beside the repository")
    return folder


@pytest.fixture
def make_images() -> MakeImages:
    """Random images; image i has i in its first pixels, so that each can be told from the others."""

    def make(n: int = 20, k: int = 4, shape: tuple[int, int, int] = (3, 6, 5), name: str = "images") -> ImageSet:
        generator = torch.Generator().manual_seed(n)
        pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
        index = torch.arange(n)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (index % 256).byte(), (index // 256).byte()
        return ImageSet(pixels, index % k, tuple(f"class {i}" for i in range(k)), name)

    return make


@pytest.fixture
def number_of() -> Callable[[torch.Tensor], list[int]]:
    """The numbers that ``make_images`` wrote into the pixels (uint8 or float)."""

    def read(pixels: torch.Tensor) -> list[int]:
        if pixels.is_floating_point():
            pixels = (pixels * 255).round()
        first = pixels.reshape(len(pixels), -1)[:, :2].long()
        return (first[:, 0] + 256 * first[:, 1]).tolist()

    return read


def encode(pixels: np.ndarray, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def noise(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def write_parquet() -> Callable[..., list[np.ndarray]]:
    """Write a Parquet file in the hub's layout; returns the pixels."""

    def write(
        file: Path,
        labels: list[object],
        *,
        image: str = "image",
        label: str = "label",
        metadata: bytes | None = None,
        images: list[np.ndarray] | None = None,
        plain: bool = False,
    ) -> list[np.ndarray]:
        images = [noise(100 + i) for i in range(len(labels))] if images is None else images
        encoded = [encode(pixels) for pixels in images]
        column = encoded if plain else [{"bytes": data, "path": None} for data in encoded]
        kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table({image: pa.array(column, kind), label: pa.array(labels)})
        if metadata is not None:
            table = table.replace_schema_metadata({b"huggingface": metadata})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
        return images

    return write


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for i, name in enumerate(("cat", "dog", "eel")):
        (root / name).mkdir(parents=True)
        for j in range(5):
            Image.fromarray(noise(10 * i + j)).save(root / name / f"{j}.png")
    return root
