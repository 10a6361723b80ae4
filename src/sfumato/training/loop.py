"""The one training loop: epochs, steps, selection, checkpoints, log, progress. What a step does is the job's."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.data import Augment, Batches, ImageSet
from sfumato.errors import CorruptFileError, Interrupted
from sfumato.storage import load_state, save_state, write_text
from sfumato.training import tensorboard
from sfumato.training.runtime import Runtime

CHECKPOINT = "checkpoint.safetensors"
LOG = "metrics.jsonl"


class Job(Protocol):
    """Something that learns from batches."""

    @property
    def title(self) -> str:
        """For the progress bar."""

    def epoch_start(self, epoch: int) -> bool | None:
        """Before each epoch; a true answer says that weights kept of earlier epochs are no longer wanted."""

    def step(self, x: Tensor, y: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        """One step on images (N, C, H, W) in [0, 1]; named detached losses, left on the device."""

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """After each epoch: named figures on validation data, among them ``score``: higher is better."""

    def weights(self) -> dict[str, Any]:
        """What the selection keeps of an epoch."""

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Take the kept epoch back."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: weights, optimizers, schedules, generators."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, bit for bit."""


@dataclass(frozen=True)
class Plan:
    """How the loop walks over the images.

    Args:
        epochs: Passes.
        batch_size: Images a step, over all processes.
        seed: Of the order and the augmentation.
        augment: On the batch; ``None`` for none.
        select_from: First epoch that the selection considers; ``epochs − 1`` keeps the last.
        patience: Stop after so many epochs without a better one; ``None`` goes on to the end.
    """

    epochs: int
    batch_size: int
    seed: int
    augment: Augment | None = None
    select_from: int = 0
    patience: int | None = None


@dataclass
class Fit:
    """What a finished training left behind.

    Attributes:
        history: A row an epoch: ``epoch``, mean losses, validation figures; ``None`` where not finite.
        epoch_kept: From 0.
        diverged: A loss was not finite; training stopped there.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    epoch_kept: int = -1
    diverged: bool = False


@dataclass
class _Position:
    """Where the loop stands; with the job's state, all that a checkpoint holds."""

    epoch: int = 0
    batch: int = 0
    finished: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best_score: float = -math.inf
    best: dict[str, Any] | None = None


def fit(job: Job, images: ImageSet, plan: Plan, runtime: Runtime) -> Fit:
    """Train a job to the end, from its checkpoint where there is one.

    On the CPU, with the same number of threads, a run that was killed at any step and called again gives the same
    weights, log and result as one left alone, to the last bit: the checkpoint holds every generator, optimizer and
    running sum.

    Args:
        job: What learns; holds the kept epoch's weights afterwards.
        images: Training images, on the runtime's device.
        plan: How to walk over them.
        runtime: Where it runs; its folder holds the checkpoint and the log.

    Raises:
        Interrupted: The runtime was asked to stop; the checkpoint holds everything up to there.
        CorruptFileError: The checkpoint does not match its checksum.
        InputError: TensorBoard is wanted and not installed.
        StorageError: The disk refused.
    """
    if runtime.tensorboard:
        tensorboard.require()  # now, not after the first epoch
    fit_, position = Fit(), _Position()
    order = torch.Generator().manual_seed(plan.seed)
    _restore(job, fit_, position, order, runtime)
    steps = steps_per_epoch(len(images), plan.batch_size, runtime.fabric.world_size)
    runtime.progress.start(job.title, plan.epochs * steps, position.epoch * steps + position.batch)
    save = _Saver(job, fit_, position, order, runtime)
    while position.epoch < plan.epochs and not position.finished:
        stop = _run_epoch(job, images, plan, order, position, steps, runtime, save)
        _close_epoch(job, plan, position, fit_, runtime)
        save()
        if stop and position.epoch < plan.epochs and not position.finished:
            raise Interrupted(f"stopped after epoch {position.epoch} of {plan.epochs}")
    if position.best is not None:
        job.load_weights(position.best)
    runtime.progress.finish()
    return fit_


def _run_epoch(
    job: Job,
    images: ImageSet,
    plan: Plan,
    order: torch.Generator,
    position: _Position,
    steps: int,
    runtime: Runtime,
    save: _Saver,
) -> bool:
    """Whether it was asked to stop at the very end of the epoch."""
    if position.batch == 0:
        position.sums.clear()
        position.counts.clear()
        if job.epoch_start(position.epoch):
            position.best, position.best_score = None, -math.inf
    stop = False
    at_start = order.get_state()
    for x, y in training_batches(images, plan.batch_size, order, runtime, plan.augment, position.batch):
        x = x.contiguous(memory_format=torch.channels_last)
        losses = job.step(x, y, position.epoch, position.epoch * steps + position.batch)
        position.batch += 1
        for name, value in losses.items():
            # Sums stay on the device: reading them here would wait for it at every step.
            position.sums[name] = position.sums[name] + value if name in position.sums else value
            position.counts[name] = position.counts.get(name, 0) + 1
        runtime.progress.advance()
        # One process decides nothing alone: the others would wait for it forever.
        stop = runtime.fabric.strategy.reduce_boolean_decision(runtime.should_stop(), all=False)
        if (stop or save.due()) and position.batch < steps:
            save(order_state=at_start)
        if stop and position.batch < steps:
            raise Interrupted(f"stopped in epoch {position.epoch + 1} of {plan.epochs}")
    return stop


def _close_epoch(job: Job, plan: Plan, position: _Position, fit_: Fit, runtime: Runtime) -> None:
    if runtime.fabric.world_size > 1:
        # Gradients are shared, running statistics (batch norm's, a surrogate's) are not: the first process's are kept.
        job.load_weights(runtime.fabric.broadcast(job.weights()))
    # By its own count: a player that waits for its turn reports no loss.
    means = {name: _mean(total, position.counts[name], runtime) for name, total in position.sums.items()}
    # The first process's, lest two of them keep different epochs.
    figures = runtime.fabric.broadcast(job.epoch_end(position.epoch))
    score = figures["score"]
    # The validation loss too: it alone shows what the epoch's last step did.
    fit_.diverged = not all(map(math.isfinite, (*means.values(), *figures.values())))
    row = {"epoch": position.epoch, **means, **{k: v for k, v in figures.items() if k != "score"}}
    fit_.history.append({k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()})
    considered = position.epoch >= plan.select_from or fit_.diverged
    if considered and (position.best is None or (score > position.best_score and not fit_.diverged)):
        position.best_score, position.best, fit_.epoch_kept = score, job.weights(), position.epoch
    stale = plan.patience is not None and considered and position.epoch - fit_.epoch_kept >= plan.patience
    position.epoch, position.batch, position.finished = position.epoch + 1, 0, fit_.diverged or stale
    _log(fit_, runtime)
    runtime.progress.note(f"{score:.4f}")


def _mean(total: Tensor, count: int, runtime: Runtime) -> float:
    if runtime.fabric.world_size > 1:
        total = torch.as_tensor(runtime.fabric.all_reduce(total, reduce_op="mean"))
    return float(total) / count


def steps_per_epoch(images: int, batch_size: int, processes: int = 1) -> int:
    """Steps that one pass takes: full batches only, or one step where the images do not fill one."""
    return max(1, images // processes // max(1, batch_size // processes))


def training_batches(
    images: ImageSet,
    batch_size: int,
    order: torch.Generator,
    runtime: Runtime,
    augment: Augment | None = None,
    start: int = 0,
) -> Batches:
    """This process's share of an epoch's batches, shuffled by ``order``, which is the same in all of them."""
    world = runtime.fabric.world_size
    return Batches(
        images,
        max(1, batch_size // world),
        shuffle=True,
        augment=augment,
        generator=order,
        # A last batch of one image would break batch norm; the next epoch sees what this one leaves out.
        drop_last=len(images) >= batch_size,
        rank=runtime.fabric.global_rank,
        world_size=world,
        start=start,
    )


def _log(fit_: Fit, runtime: Runtime) -> None:
    if runtime.folder is None or not runtime.fabric.is_global_zero:
        return
    # Written whole from the checkpoint's history, so that a resumed run's log has no row twice.
    write_text(runtime.folder / LOG, "".join(json.dumps(row) + "\n" for row in fit_.history))
    if runtime.tensorboard:
        tensorboard.write_row(runtime.folder, fit_.history[-1])


class _Saver:
    """Writes the checkpoint, and knows when it is time to."""

    def __init__(self, job: Job, fit_: Fit, position: _Position, order: torch.Generator, runtime: Runtime) -> None:
        self._job, self._fit, self._position = job, fit_, position
        self._order, self._runtime = order, runtime
        self._saved = time.monotonic()

    def due(self) -> bool:
        # One process decides nothing alone: all would have to save at the same step.
        alone = self._runtime.fabric.world_size == 1
        return alone and time.monotonic() - self._saved >= self._runtime.checkpoint_seconds

    def __call__(self, order_state: Tensor | None = None) -> None:
        self._saved = time.monotonic()
        if self._runtime.folder is None:
            return
        state = {
            "position": {**vars(self._position)},
            "fit": {**vars(self._fit)},
            "order": self._order.get_state() if order_state is None else order_state,
            "job": self._job.state_dict(),
        }
        path = self._runtime.folder / checkpoint_name(self._runtime)
        save_state(path, state)


def checkpoint_name(runtime: Runtime) -> str:
    """File name of this process's checkpoint."""
    rank = runtime.fabric.global_rank
    return CHECKPOINT if rank == 0 else f"rank{rank}.{CHECKPOINT}"


def _restore(job: Job, fit_: Fit, position: _Position, order: torch.Generator, runtime: Runtime) -> None:
    if runtime.folder is None:
        return
    path = Path(runtime.folder) / checkpoint_name(runtime)
    if path.is_file():
        _read(path, job, fit_, position, order)
        position.sums = {name: value.to(runtime.device) for name, value in position.sums.items()}
    here = (position.epoch, position.batch)
    together = here == runtime.fabric.broadcast(here)
    if not runtime.fabric.strategy.reduce_boolean_decision(together):
        raise CorruptFileError(f"{path}: the processes' checkpoints are of different steps; remove them")


def _read(path: Path, job: Job, fit_: Fit, position: _Position, order: torch.Generator) -> None:
    try:
        state = load_state(path)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error}; remove it to start this training again") from error
    try:
        job.load_state_dict(state["job"])
        vars(position).update(state["position"])
        vars(fit_).update(state["fit"])
        order.set_state(state["order"].clone())
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CorruptFileError(f"{path} does not fit this run ({reason}); remove it") from error
