"""Pictures for the card: originals beside what an attack made of them."""

from __future__ import annotations

import base64
import io
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from sfumato.attacks import Reconstruction
from sfumato.audit import card as cards
from sfumato.data import ImageSet

_FIXED_EXAMPLES = 8


def examples(result: Reconstruction, victims: ImageSet) -> list[cards.Example]:
    """The attacker's best, median and worst test image by SSIM, and the first few, the same for every attack."""
    order = result.quality["test"].ssim.argsort(stable=True)
    ranks: list[tuple[Literal["best", "median", "worst", "fixed"], int]] = [
        ("best", int(order[-1])),
        ("median", int(order[len(order) // 2])),
        ("worst", int(order[0])),
        *(("fixed", i) for i in range(min(_FIXED_EXAMPLES, len(order)))),
    ]
    return [
        cards.Example(
            rank=rank,
            index=i,
            label=victims.classes[int(victims.labels[i])],
            mse=float(result.quality["test"].mse[i]),
            ssim=float(result.quality["test"].ssim[i]),
            original=_png(victims.images[i]),
            reconstruction=_png((result.images["test"][i] * 255).round().to(torch.uint8)),
        )
        for rank, i in ranks
    ]


def _png(pixels: Tensor) -> str:
    array = pixels.permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
