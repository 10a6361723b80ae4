"""What conditional entropy maximization costs a training step, and what doing all components at once saves.

``step_*``: a step of our loop with CEM over the same step with the noisy bottleneck alone; VGG-11 at full width, 8×8×8
feature, batches of 128, 10 classes × 5 components. ``loss_speedup``: an obvious loop over classes and components for
the authors' loss, forward and backward, over ours on the same features. ``refresh_speedup``: the same for a pass that
refreshes the mixture. The sides take turns, so that a busy machine slows all alike; ratios are medians over rounds.
``refresh_memory_growth``: peak memory of a refresh on top of what the process held, with four times the features over
once; each in a process of its own, its features made batch by batch (Linux).

Memory that is freed stays with the process, see :mod:`benchmarks.allocator`.
"""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.allocator import keep_memory
from sfumato.data import ImageSet
from sfumato.defenses import CEM, Bottleneck, Defense, Noise, chain
from sfumato.information import ClassMixture, reference_loss
from sfumato.models import build, split
from sfumato.training import Runtime, SplitJob, Training, make_fabric

CLASSES, COMPONENTS, DIM, BATCH = 10, 5, 512, 128
SIGMA, FLOOR = 0.025, 0.125 * 0.025**2
STEP_ROUNDS, ROUNDS = 15, 15
REFRESH_FEATURES = 10_000
TRAINING = Training(epochs=2, batch_size=BATCH, augment="none", schedule="constant", select="last")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_step(defense: Defense, images: ImageSet, runtime: Runtime) -> Callable[[], None]:
    whole = split(build("vgg11", CLASSES, (3, 32, 32), generator=seeded()), "conv2", image_shape=(3, 32, 32))
    bound = defense.bind(whole, generator=seeded(1))
    job = SplitJob(bound.defend(whole), bound, TRAINING, images, images, seed=0, runtime=runtime)
    job.epoch_start(1)
    x = (images.images[:BATCH].float() / 255).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        job.step(x, images.labels[:BATCH], 1, 10)

    return step


def features(count: int) -> tuple[Tensor, Tensor]:
    """Features in [0, 1] that lie in groups, as those of a trained edge do."""
    labels = torch.randint(0, CLASSES, (count,), generator=seeded(2))
    centers = torch.randn(CLASSES, COMPONENTS, DIM, generator=seeded(3))
    group = torch.randint(0, COMPONENTS, (count,), generator=seeded(4))
    noise = torch.randn(count, DIM, generator=seeded(5))
    return torch.sigmoid(centers[labels, group] + 0.5 * noise), labels


def loss_by_loops(mixture: ClassMixture, z: Tensor, y: Tensor) -> Tensor:
    """The authors' loss, class by class and component by component."""
    total, classes = z.new_zeros(()), 0
    for c in range(CLASSES):
        own = z[y == c]
        if len(own) == 0:
            continue
        classes += 1
        nearest = torch.cdist(own.detach(), mixture.means[c]).argmin(1)
        for i in range(COMPONENTS):
            members = own[nearest == i]
            weight, variance = mixture.weights[c, i], mixture.covariances[c, i]
            if len(members) > 0:
                a = min(0.99, 10 * len(members) / max(float(mixture.counts[c] * weight), 1e-30))
                variance = a * (members - mixture.means[c, i]).square().mean() + (1 - a) * variance
            total = total + weight * (torch.log(variance + 0.01) - math.log(FLOOR + 0.01)).relu()
    return total / classes


def refresh_by_loops(mixture: ClassMixture, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One Lloyd pass, class by class and component by component: new means and variances."""
    sums, squares = torch.zeros(CLASSES, COMPONENTS, DIM), torch.zeros(CLASSES, COMPONENTS)
    counts = torch.zeros(CLASSES, COMPONENTS)
    for z, y in batches:
        for c in range(CLASSES):
            own = z[y == c]
            if len(own) == 0:
                continue
            nearest = torch.cdist(own, mixture.means[c]).argmin(1)
            for i in range(COMPONENTS):
                residual = own[nearest == i] - mixture.means[c, i]
                sums[c, i] += residual.sum(0)
                squares[c, i] += residual.square().sum()
                counts[c, i] += len(residual)
    shift = sums / counts.clamp_min(1).unsqueeze(-1)
    return mixture.means + shift, squares / counts.clamp_min(1) / DIM - shift.square().mean(-1)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in every round; the order rotates, so that none always follows the same one."""
    names = list(sides)
    for name in names:
        seconds(sides[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(sides[name]))
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    return round(statistics.median(a / b for a, b in zip(times[above], times[below])), 3)


def step_times() -> dict[str, list[float]]:
    pixels = torch.randint(0, 256, (2_560, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    images = ImageSet(pixels, torch.arange(len(pixels)) % CLASSES, tuple("0123456789"))
    runtime = Runtime(fabric=make_fabric("cpu"))
    noisy = chain(Bottleneck(8), Noise(SIGMA))
    defenses = {
        "none": noisy,
        "reference": chain(noisy, CEM()),
        "diagonal": chain(noisy, CEM(variant="diagonal")),
        "full": chain(noisy, CEM(variant="full")),
    }
    return in_turns({name: make_step(d, images, runtime) for name, d in defenses.items()}, STEP_ROUNDS)


def loss_times() -> dict[str, list[float]]:
    z, y = features(4_096)
    mixture = ClassMixture(CLASSES, COMPONENTS, DIM)
    mixture.refresh(lambda: iter([(z, y)]), generator=seeded())
    leaf = z[:BATCH].clone().requires_grad_()

    def ours() -> None:
        reference_loss(mixture, leaf, y[:BATCH], FLOOR).backward()  # type: ignore[no-untyped-call]

    def loops() -> None:
        loss_by_loops(mixture, leaf, y[:BATCH]).backward()  # type: ignore[no-untyped-call]

    return in_turns({"ours": ours, "loops": loops}, 5 * ROUNDS)


def refresh_times() -> dict[str, list[float]]:
    z, y = features(REFRESH_FEATURES)
    batches = list(zip(torch.split(z, 512), torch.split(y, 512)))
    mixture = ClassMixture(CLASSES, COMPONENTS, DIM)
    mixture.refresh(lambda: batches, generator=seeded())
    return in_turns(
        {
            "ours": lambda: mixture.refresh(lambda: batches, generator=seeded()),
            "loops": lambda: refresh_by_loops(mixture, batches),
        },
        ROUNDS,
    )


def refresh_memory(count: int) -> int:
    """Bytes that a refresh over so many features takes at its peak on top of what the process held."""

    def stream(most: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = seeded(6)
        for _ in range(most // 512):
            y = torch.randint(0, CLASSES, (512,), generator=generator)
            yield torch.rand(512, DIM, generator=generator), y

    torch.set_num_threads(1)
    mixture = ClassMixture(CLASSES, COMPONENTS, DIM)
    mixture.refresh(lambda: stream(2_048), generator=seeded())  # whatever a first call loads and keeps
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide as much of what follows
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = peak_resident_bytes()
    mixture.refresh(lambda: stream(count), generator=seeded())
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """Of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory_growth() -> tuple[float, float]:
    """Ratio, and megabytes at once the features."""
    # What is freed goes back to the system at once, so that the peak is that of what is alive.
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MALLOC_")}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        once, four = (
            min(pool.apply(refresh_memory, (count,)) for _ in range(4))  # whatever else a process does only adds
            for count in (REFRESH_FEATURES, 4 * REFRESH_FEATURES)
        )
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    os.environ.update(kept)
    return round(four / once, 3), round(once / 2**20, 1)


def main() -> None:
    allocator = keep_memory()
    steps, losses, refreshes = step_times(), loss_times(), refresh_times()
    growth, megabytes = memory_growth()
    print(
        json.dumps(
            {
                **{f"step_{name}": ratio(steps, name, "none") for name in ("reference", "diagonal", "full")},
                "loss_speedup": ratio(losses, "loops", "ours"),
                "refresh_speedup": ratio(refreshes, "loops", "ours"),
                "refresh_memory_growth": growth,
                "step_ms_without": round(1000 * statistics.median(steps["none"]), 1),
                "loss_ms": round(1000 * statistics.median(losses["ours"]), 3),
                "refresh_ms": round(1000 * statistics.median(refreshes["ours"]), 1),
                "refresh_megabytes": megabytes,
                "model": "vgg11, cut at conv2, feature 8x8x8",
                "batch_size": BATCH,
                "mixture": f"{CLASSES} x {COMPONENTS}",
                "rounds": STEP_ROUNDS,
                "threads": torch.get_num_threads(),
                "allocator": allocator,
            }
        )
    )


if __name__ == "__main__":
    main()
