"""What PATROL's pruning leaves of its deeper edge: parameters, work and latency against the reference encoder.

VGG-11 cut at ``conv2``. The reference is the edge of the recipe ``bottleneck``; PATROL's is measured before and after
pruning. Which channels go decides the multiply–accumulates, though the size is the same, so five networks of other
weights are pruned, by the importance of their channels on random images: trained ones are not to be had here. Forward
passes in evaluation mode on one image, the edges taking turns; ratios are of medians, the least, the middle and the
largest of five.

Memory that is freed stays with the process, see :mod:`benchmarks.allocator`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.allocator import keep_memory
from sfumato.defenses import Epoch, build
from sfumato.metrics.cost import macs
from sfumato.models import SplitModel, set_generator, split
from sfumato.models import build as build_backbone

ROUNDS, IMAGES, BATCH_SIZE, NETWORKS = 200, 64, 32, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(width: float, seed: int) -> SplitModel:
    model = build_backbone("vgg11", 10, (3, 32, 32), width=width, generator=seeded(seed))
    return split(model, "conv2", image_shape=(3, 32, 32))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    x = torch.rand(IMAGES, 3, 32, 32, generator=seeded(1))
    labels = torch.arange(IMAGES) % 10
    yield from zip(torch.split(x, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)


def patrol_edges(width: float, seed: int) -> tuple[nn.Module, nn.Module]:
    """PATROL's edge before and after pruning."""
    before = whole(width, seed)
    bound = build("patrol").bind(before, generator=seeded(seed))
    deep = bound.defend(before)
    set_generator(deep, seeded(seed + 100))
    change = bound.epoch_start(Epoch(3, 4, lambda: iter(()), seeded(seed + 200), batches, deep))
    assert change is not None
    return deep.edge, change.split.edge


def edges(width: float) -> dict[str, nn.Module]:
    """The reference encoder, PATROL's before pruning, and five after."""
    plain = whole(width, 0)
    found = {"reference": build("bottleneck").bind(plain, generator=seeded()).defend(plain).edge}
    for seed in range(NETWORKS):
        found["deep"], found[f"pruned {seed}"] = patrol_edges(width, seed)
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


def of_reference(figures: Mapping[str, float], names: Sequence[str], digits: int) -> list[float]:
    """Least, median and largest of some edges' figures over the reference's."""
    ratios = sorted(figures[name] / figures["reference"] for name in names)
    return [round(ratio, digits) for ratio in (ratios[0], statistics.median(ratios), ratios[-1])]


def main() -> None:
    allocator = keep_memory()
    said: dict[str, float | list[float]] = {}
    for width, title in ((1.0, "full"), (0.25, "quarter")):
        found = edges(width)
        took = milliseconds(found)
        pruned = [name for name in found if name.startswith("pruned")]
        size = {name: sum(p.numel() for p in edge.parameters()) for name, edge in found.items()}
        work = {name: macs(edge, torch.zeros(1, 3, 32, 32)) for name, edge in found.items()}
        said |= {
            f"{title}_parameters": of_reference(size, pruned, 4),
            f"{title}_macs": of_reference(work, pruned, 3),
            f"{title}_latency": of_reference(took, pruned, 3),
            f"{title}_latency_before_pruning": round(took["deep"] / took["reference"], 3),
            f"{title}_reference_ms": round(took["reference"], 3),
        }
    print(json.dumps(said | {"threads": torch.get_num_threads(), "allocator": allocator}))


if __name__ == "__main__":
    main()
