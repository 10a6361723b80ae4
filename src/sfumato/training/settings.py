"""How a model is trained: validated settings, and the optimizer and schedule they name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ScheduleName = Literal["step", "cosine", "one_cycle", "constant", "plateau"]


class Training(BaseModel):
    """The training recipe; the defaults are the CEM paper's for VGG-11 (Xia et al. 2025, section 5.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    epochs: Annotated[int, Field(ge=1)] = 240
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step, over all processes."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """``sgd`` (momentum, weight decay) or ``adam`` (β₁ = ``momentum``)."""
    lr: Positive = 0.05
    """Initial learning rate; the peak for ``one_cycle``."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD, or Adam's β₁."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty."""
    schedule: ScheduleName = "step"
    """``step`` (×0.2 at 1/4, 1/2, 3/4 and 7/8 of the epochs: 60, 120, 180, 210 of 240), ``cosine`` to 1 %
    of lr, ``one_cycle`` (up for the first 30 %, then down to 0), ``constant``, or ``plateau`` (×0.5
    once the validation loss has not fallen for ``patience`` epochs).
    """
    patience: Annotated[int, Field(ge=0)] = 25
    """Epochs that ``plateau`` waits."""
    select: Literal["best", "last"] = "best"
    """Keep the epoch of the ``best`` validation accuracy, or the ``last``."""
    select_from: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """``best`` looks at epochs after this fraction of the training only, for a defense whose pressure
    grows is not at work in early, more accurate epochs.
    """
    augment: Literal["preset", "none", "flip", "crop_flip", "crop_flip_rotate"] = "preset"
    """What is done to training images at random: what the ``preset`` of the data names (nothing for other data),
    ``none``, ``flip``, ``crop_flip`` or ``crop_flip_rotate`` (padding 4, 15°: CEM on CIFAR).
    """


class Schedule(Protocol):
    """Moves the learning rate."""

    def step(self) -> None:
        """After each step."""

    def epoch_end(self, validation_loss: float) -> None:
        """After each epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""


def make_optimizer(parameters: Iterable[nn.Parameter], training: Training) -> Optimizer:
    """The optimizer that the settings name."""
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
    betas = (training.momentum, 0.999)
    return torch.optim.Adam(parameters, lr=training.lr, betas=betas, weight_decay=training.weight_decay)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take an optimizer's state back, in the memory layout of the weights it belongs to.

    Files know no layout: momentum that came back in another one than its weight's would be slow to add to it.
    """
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_schedule(optimizer: Optimizer, training: Training, steps_per_epoch: int) -> Schedule:
    """The schedule that the settings name, for a run of ``epochs``·``steps_per_epoch`` steps."""
    if training.schedule == "plateau":
        return _Plateau(optimizer, training.patience)
    return _PerStep(optimizer, training.schedule, training.epochs, steps_per_epoch)


def factor(name: str, step: int, epochs: int, steps_per_epoch: int) -> float:
    """Learning rate at a step as a fraction of ``lr``."""
    total = epochs * steps_per_epoch
    done = step / total
    if name == "step":
        # Whole epochs, so that the rate never changes inside one.
        epoch = step // steps_per_epoch
        return 0.2 ** sum(epoch >= round(epochs * part) for part in (1 / 4, 1 / 2, 3 / 4, 7 / 8))
    if name == "cosine":
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if name == "one_cycle":
        up = 0.3
        if done < up:
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / up))
        return 0.5 * (1 + math.cos(math.pi * min((done - up) / (1 - up), 1.0)))
    return 1.0


class _PerStep:
    def __init__(self, optimizer: Optimizer, name: str, epochs: int, steps_per_epoch: int) -> None:
        self._inner = LambdaLR(optimizer, lambda step: factor(name, step, epochs, steps_per_epoch))

    def step(self) -> None:
        self._inner.step()

    def epoch_end(self, validation_loss: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self._inner.state_dict().items() if key != "lr_lambdas"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict({**state, "lr_lambdas": [None]})


class _Plateau:
    def __init__(self, optimizer: Optimizer, patience: int) -> None:
        self._inner = ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)

    def step(self) -> None:
        pass

    def epoch_end(self, validation_loss: float) -> None:
        self._inner.step(validation_loss)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._inner.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)
