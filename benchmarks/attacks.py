"""What rMLE gains by attacking all victims at once, and what our loop costs a decoder that is trained to attack.

``rmle_speedup``: reconstructions per second of a batch of 32 features over one feature at a time, with the same steps
and weights; the edge is VGG-11 at a quarter of its width, cut at ``conv2``. ``decoder_overhead``: time of a step of
:func:`sfumato.training.fit` with the decoder attack's job, on queries of the same edge, over that of a minimal
hand-written loop, with the same images, batch size, optimizer and memory layout; ours draws the order, schedules the
learning rate, counts queries, sums losses, and keeps the epoch's weights. Validation is no part of a step and is kept
to a single image. The sides take turns, so that a busy machine slows both alike; ratios are medians over rounds.

Memory that is freed stays with the process, see :mod:`benchmarks.allocator`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.allocator import keep_memory
from sfumato.attacks import DecoderAttack, Knowledge, RMLEAttack, make_target
from sfumato.attacks.feature.fitting import NetworkJob, Recipe, squared_error
from sfumato.attacks.observations import observe
from sfumato.data import ImageSet
from sfumato.models import Decoder, SplitModel, build, split
from sfumato.training import Plan, Runtime, fit, make_fabric

VICTIMS, ALONE, ROUNDS = 32, 4, 7
IMAGES, BATCH_SIZE = 640, 128
RMLE = RMLEAttack(steps=40, tv=0.1)
DECODER = DecoderAttack(depth=4, width=32, epochs=ROUNDS + 1, batch_size=BATCH_SIZE)
Work = Callable[[], object]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_split() -> SplitModel:
    return split(build("vgg11", 10, (3, 32, 32), width=0.25, generator=seeded()), "conv2", image_shape=(3, 32, 32))


def make_knowledge() -> Knowledge:
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=seeded(1))
    images = ImageSet(pixels, torch.arange(IMAGES) % 10, tuple("0123456789"))
    return Knowledge(images, images.select(torch.zeros(1, dtype=torch.int64)), "train")


def rmle_sides(runtime: Runtime) -> tuple[Work, Work]:
    """All victims at once, and some of them one at a time; both give their pictures back."""
    model, knowledge = make_split().to(runtime.device), make_knowledge().to(runtime.device)
    target = make_target(model, "white-box", generator=runtime.generator(2))
    z = target.query(knowledge.train.images[:VICTIMS] / 255)
    learned = RMLE.run(target, knowledge, generator=runtime.generator(3), runtime=runtime)

    def together() -> Tensor:
        return learned.invert(z)

    def alone() -> Tensor:
        return torch.cat([learned.invert(z[i : i + 1]) for i in range(ALONE)])

    return together, alone


def make_decoder(model: SplitModel) -> nn.Module:
    return Decoder(
        model.feature.shape, model.image_shape, depth=DECODER.depth, width=DECODER.width, generator=seeded(3)
    )


def our_decoder(runtime: Runtime) -> tuple[Work, nn.Module]:
    """An epoch of our loop, and the network that it trains."""
    model, knowledge = make_split().to(runtime.device), make_knowledge().to(runtime.device)
    target = make_target(model, "black-box", generator=runtime.generator(2))
    pairs, decoder = observe(target, knowledge), make_decoder(model)
    recipe = Recipe(DECODER.epochs, BATCH_SIZE, DECODER.lr, weight_decay=DECODER.weight_decay)
    job = NetworkJob(
        decoder,
        squared_error,
        pairs,
        recipe,
        title="decoder",
        target=target,
        generator=runtime.generator(3),
        runtime=runtime,
    )

    def epoch() -> None:
        fit(job, pairs[0].images, Plan(1, BATCH_SIZE, seed=0), runtime)

    return epoch, decoder


def any_order(images: int) -> Tensor:
    return torch.randperm(images, generator=seeded())


def decoder_by_hand(runtime: Runtime, order: Callable[[int], Tensor] = any_order) -> tuple[Work, nn.Module]:
    """The same written by hand."""
    device, pixels = runtime.device, make_knowledge().to(runtime.device).train.images
    frozen = make_split().to(device).eval().requires_grad_(False)
    decoder = make_decoder(frozen).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=DECODER.lr, weight_decay=DECODER.weight_decay)

    def epoch() -> None:
        decoder.train()
        for part in torch.split(order(len(pixels)).to(device), BATCH_SIZE):
            x = pixels.index_select(0, part).float().div_(255).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                z = frozen.send(x)
            loss = F.mse_loss(decoder(z), x)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return epoch, decoder


def seconds(work: Work, device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turns(sides: tuple[Work, Work], device: torch.device, rounds: int = ROUNDS) -> list[tuple[float, float]]:
    """Seconds of both, round by round, after one that does not count."""
    for side in sides:
        seconds(side, device)
    times = []
    for turn in range(rounds):
        # The first of a pair changes, so that neither always has the warmer caches.
        first, second = (0, 1) if turn % 2 == 0 else (1, 0)
        pair = {first: seconds(sides[first], device), second: seconds(sides[second], device)}
        times.append((pair[0], pair[1]))
    return times


def main() -> None:
    allocator = keep_memory()
    runtime = Runtime(fabric=make_fabric())
    rmle = in_turns(rmle_sides(runtime), runtime.device)
    decoder = in_turns((our_decoder(runtime)[0], decoder_by_hand(runtime)[0]), runtime.device)
    steps = IMAGES // BATCH_SIZE
    print(
        json.dumps(
            {
                "rmle_speedup": round(statistics.median((b / ALONE) / (a / VICTIMS) for a, b in rmle), 2),
                "rmle_images_per_second": round(statistics.median(VICTIMS / a for a, _ in rmle), 2),
                "rmle_steps": RMLE.steps,
                "victims": VICTIMS,
                "decoder_overhead": round(statistics.median(a / b for a, b in decoder), 3),
                "decoder_step_ms": round(1000 * statistics.median(a for a, _ in decoder) / steps, 2),
                "hand_written_step_ms": round(1000 * statistics.median(b for _, b in decoder) / steps, 2),
                "batch_size": BATCH_SIZE,
                "rounds": ROUNDS,
                "device": str(runtime.device),
                "threads": torch.get_num_threads(),
                "allocator": allocator,
            }
        )
    )


if __name__ == "__main__":
    main()
