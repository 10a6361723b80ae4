"""Step time of our loop over that of a minimal hand-written one: what checkpoints, logs and generality cost.

Both train VGG-11 at a quarter of its width, cut at ``conv2`` without a defense, on the same uint8 images in memory,
with the same batches' size, optimizer and memory layout, without augmentation. The hand-written loop indexes,
converts to float and steps; ours runs :func:`sfumato.training.fit` whole, with the order drawn, the learning rate
scheduled, losses summed and the epoch's weights copied for the selection; nothing is written to disk. Validation is no
part of a step and is kept to a single image on our side. They take turns epoch by epoch, so that a busy machine slows
both alike.

Memory that is freed stays with the process, see :mod:`benchmarks.allocator`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.allocator import keep_memory
from sfumato.data import ImageSet
from sfumato.defenses import chain
from sfumato.models import SplitModel, build, set_generator, split
from sfumato.training import Plan, Runtime, SplitJob, Training, fit, make_fabric

IMAGES, BATCH_SIZE, ROUNDS = 2_560, 128, 9
TRAINING = Training(epochs=1, batch_size=BATCH_SIZE, augment="none", schedule="constant", select="last")


def make_split() -> SplitModel:
    model = build("vgg11", 10, (3, 32, 32), width=0.25, generator=torch.Generator().manual_seed(0))
    return split(model, "conv2", image_shape=(3, 32, 32))


def ours(images: ImageSet, runtime: Runtime) -> Callable[[], None]:
    defense, model = chain().bind(make_split(), generator=torch.Generator()), make_split()
    one = images.select(torch.zeros(1, dtype=torch.int64))
    job = SplitJob(model, defense, TRAINING, images, one, seed=0, runtime=runtime)

    def epoch() -> None:
        fit(job, images, Plan(1, BATCH_SIZE, seed=0), runtime)

    return epoch


def by_hand(images: ImageSet, device: torch.device) -> Callable[[], None]:
    model = make_split().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=TRAINING.lr, momentum=TRAINING.momentum, weight_decay=TRAINING.weight_decay
    )
    set_generator(model, torch.Generator(device).manual_seed(0))
    pixels, labels = images.images, images.labels

    def epoch() -> None:
        model.train()
        order = torch.randperm(len(pixels)).to(device)
        for part in torch.split(order, BATCH_SIZE):
            x = pixels.index_select(0, part).float().div_(255).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x), labels[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return epoch


def seconds(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    allocator = keep_memory()
    runtime = Runtime(fabric=make_fabric())
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(IMAGES) % 10, tuple("0123456789")).to(runtime.device)
    sides = (ours(images, runtime), by_hand(images, runtime.device))
    for side in sides:
        seconds(side, runtime.device)
    times: list[tuple[float, float]] = []
    for turn in range(ROUNDS):
        # The first of a pair changes, so that neither always has the warmer caches.
        first, second = (0, 1) if turn % 2 == 0 else (1, 0)
        pair = {first: seconds(sides[first], runtime.device), second: seconds(sides[second], runtime.device)}
        times.append((pair[0], pair[1]))
    steps = IMAGES // BATCH_SIZE
    print(
        json.dumps(
            {
                "overhead": round(statistics.median(a / b for a, b in times), 3),
                "step_ms": round(1000 * statistics.median(a for a, _ in times) / steps, 2),
                "hand_written_step_ms": round(1000 * statistics.median(b for _, b in times) / steps, 2),
                "model": "vgg11 x 0.25, cut at conv2",
                "batch_size": BATCH_SIZE,
                "steps": steps,
                "rounds": ROUNDS,
                "device": str(runtime.device),
                "threads": torch.get_num_threads(),
                "allocator": allocator,
            }
        )
    )


if __name__ == "__main__":
    main()
