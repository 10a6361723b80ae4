"""What PATROL's pruning leaves of its deeper edge: parameters and latency against the reference encoder.

VGG-11 cut at ``conv2``. The reference is the edge of the recipe ``bottleneck``; PATROL's is measured before and after
pruning, which goes by the importance of channels on random images: which channels go is of no matter here, how many is
decided by the size. Forward passes in evaluation mode on one image, the edges taking turns; ratios are of medians.

Memory that is freed stays with the process, see :mod:`benchmarks.allocator`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.allocator import keep_memory
from sfumato.defenses import Epoch, build
from sfumato.models import SplitModel, set_generator, split
from sfumato.models import build as build_backbone

ROUNDS, IMAGES, BATCH_SIZE = 200, 64, 32


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(width: float) -> SplitModel:
    model = build_backbone("vgg11", 10, (3, 32, 32), width=width, generator=seeded())
    return split(model, "conv2", image_shape=(3, 32, 32))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    x = torch.rand(IMAGES, 3, 32, 32, generator=seeded(1))
    labels = torch.arange(IMAGES) % 10
    yield from zip(torch.split(x, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)


def edges(width: float) -> dict[str, nn.Module]:
    """The reference encoder, and PATROL's edge before and after."""
    before = whole(width)
    reference = build("bottleneck").bind(before, generator=seeded()).defend(before)
    bound = build("patrol").bind(before, generator=seeded())
    deep = bound.defend(before)
    set_generator(deep, seeded(2))
    change = bound.epoch_start(Epoch(3, 4, lambda: iter(()), seeded(3), batches, deep))
    assert change is not None
    found = {"reference": reference.edge, "deep": deep.edge, "pruned": change.split.edge}
    return {name: edge.eval().to(memory_format=torch.channels_last) for name, edge in found.items()}  # type: ignore[call-overload]


def milliseconds(found: dict[str, nn.Module]) -> dict[str, float]:
    """Median time of one image, the edges taking turns."""
    x = torch.rand(1, 3, 32, 32, generator=seeded(4)).contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in found}
    with torch.inference_mode():
        for turn in range(ROUNDS + 20):
            for name, edge in found.items():
                start = time.perf_counter()
                edge(x)
                if turn >= 20:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    allocator = keep_memory()
    said: dict[str, float | int] = {}
    for width, title in ((1.0, "full"), (0.25, "quarter")):
        found = edges(width)
        took = milliseconds(found)
        size = {name: sum(p.numel() for p in edge.parameters()) for name, edge in found.items()}
        said |= {
            f"{title}_parameters": round(size["pruned"] / size["reference"], 4),
            f"{title}_latency": round(took["pruned"] / took["reference"], 3),
            f"{title}_latency_before_pruning": round(took["deep"] / took["reference"], 3),
            f"{title}_reference_ms": round(took["reference"], 3),
        }
    print(json.dumps(said | {"threads": torch.get_num_threads(), "allocator": allocator}))


if __name__ == "__main__":
    main()
