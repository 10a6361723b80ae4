"""Images per second of augmented batches, against a DataLoader that augments image by image.

Both crop (4 pixels of padding), flip and rotate (up to 15 degrees) each image of random 32x32 RGB and give
float batches in random order. They take turns, so that a busy machine slows both alike. Ours has one thread
against two workers: threads that wait for each other would measure who else uses the machine.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sfumato.data import Augment, Batches, ImageSet

IMAGES, BATCH_SIZE, WORKERS, ROUNDS = 10_000, 128, 2, 5
AUGMENT = Augment(crop_padding=4, flip=True, rotation=15.0)


class PerImage(Dataset[tuple[Tensor, int]]):
    """The usual way: one image at a time, with NumPy and Pillow."""

    def __init__(self, images: ImageSet) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        pad = AUGMENT.crop_padding
        height, width, _ = self.pixels[i].shape
        padded = np.pad(self.pixels[i], ((pad, pad), (pad, pad), (0, 0)))
        top, left = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        pixels = padded[top : top + height, left : left + width]
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        angle = random.uniform(-AUGMENT.rotation, AUGMENT.rotation)
        rotated = Image.fromarray(np.ascontiguousarray(pixels)).rotate(angle, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(rotated).transpose(2, 0, 1).copy()).float().div_(255), self.labels[i]


def images_per_second(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    start, seen = time.perf_counter(), 0
    for x, _ in batches:
        seen += len(x)
    return seen / (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(IMAGES) % 10, tuple("0123456789"))
    ours = Batches(images, BATCH_SIZE, shuffle=True, augment=AUGMENT, generator=generator)
    # Workers that stay and have prefetched once: neither side is charged for starting up.
    loader = DataLoader(PerImage(images), BATCH_SIZE, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    for warm_up in (ours, loader):
        images_per_second(warm_up)
    speeds = [(images_per_second(ours), images_per_second(loader)) for _ in range(ROUNDS)]
    print(
        json.dumps(
            {
                "speedup": round(statistics.median(a / b for a, b in speeds), 2),
                "images_per_second": round(statistics.median(a for a, _ in speeds)),
                "loader_images_per_second": round(statistics.median(b for _, b in speeds)),
                "images": IMAGES,
                "image_shape": list(images.image_shape),
                "batch_size": BATCH_SIZE,
                "loader_workers": WORKERS,
                "rounds": ROUNDS,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
