"""Where and how work runs: device, precision, processes, folder, progress, and the wish to stop."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed

from sfumato.errors import InputError
from sfumato.progress import Progress, Silent


@dataclass(frozen=True, eq=False)
class Runtime:
    """What a piece of work needs to run, and nothing that changes its result on a given machine.

    Args:
        fabric: Device, precision and data parallelism, decided here and nowhere else.
        folder: Where checkpoints and logs go; ``None`` keeps nothing.
        progress: Told what is going on.
        should_stop: Asked after every step; a true answer saves a checkpoint and raises
            :class:`~sfumato.errors.Interrupted`.
        checkpoint_seconds: Save at least this often, besides at the end of each epoch.
        tensorboard: Also write the log for TensorBoard (extra ``tensorboard``).
    """

    fabric: Fabric = field(default_factory=lambda: make_fabric())
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)
    should_stop: Callable[[], bool] = lambda: False
    checkpoint_seconds: float = 60.0
    tensorboard: bool = False

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.fabric.device

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, which must all call it; a tensor of its own where there are several."""
        if self.fabric.world_size == 1:
            return tensor
        summed = tensor.clone()
        distributed.all_reduce(summed)  # Fabric's would first wait for every process and device
        return summed

    def at(self, folder: Path | None) -> Runtime:
        """The same in another folder."""
        return replace(self, folder=folder)

    def generator(self, seed: int, *, shared: bool = False) -> torch.Generator:
        """A generator on the device, of its own stream in each process unless ``shared``."""
        rank = 0 if shared else self.fabric.global_rank
        return torch.Generator(self.device).manual_seed(seed * 1009 + rank)


def make_fabric(device: str = "auto", precision: str = "32-true", processes: int = 1) -> Fabric:
    """Decide device, precision and number of processes.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: As Lightning Fabric names it: ``32-true``, ``bf16-mixed``, ``16-mixed``, ``64-true``.
        processes: Devices (or CPU processes) to spread a batch over.

    Raises:
        InputError: The machine has no such device, or a name is unknown.
    """
    try:
        with warnings.catch_warnings():
            # It would warn and take bfloat16 in its place, ten times slower.
            warnings.filterwarnings("error", message=".*fp16 is not supported on CPU", category=UserWarning)
            fabric = Fabric(accelerator=device, devices=processes, precision=precision)  # type: ignore[arg-type]
    except (UserWarning, TypeError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        given = f"{device}, {precision}, {processes}"
        raise InputError("device, precision, processes", given, f"what this machine has: {reason}") from error
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """Join the threads of the process group while Python still runs.

    Fabric does so for NCCL alone. Gloo's threads that live until the C++ runtime is torn down can end the process with
    ``terminate called without an active exception`` after all work is done.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
