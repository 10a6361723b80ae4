"""Train the network of a variational measure on some pairs and read the measure off others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information.estimate import Estimate

_CHECKS = 20
_FEWEST_PAIRS = 2  # in each of the three parts: a shuffled pair needs another row

OnPairs = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fitting:
    """How long a measure's network is trained, and on how much.

    Args:
        steps: Optimizer steps (Adam).
        batch: Pairs in a step; all training pairs where there are fewer.
        learning_rate: Adam's, at the start; falls to 0 along half a cosine.
        held_out: Fraction of the pairs that the answer comes from, in (0, 1). The same fraction of the others chooses
            the best of 20 states along the way.
    """

    steps: int = 2000
    batch: int = 256
    learning_rate: float = 1e-3
    held_out: float = 0.25

    def __post_init__(self) -> None:
        for name, smallest in (("steps", 1), ("batch", 2)):
            if getattr(self, name) < smallest:
                raise InputError(name, getattr(self, name), f"{smallest} or more")
        if not 0 < self.learning_rate < math.inf:
            raise InputError("learning_rate", self.learning_rate, "a positive number")
        if not 0 < self.held_out < 1:
            raise InputError("held_out", self.held_out, "a fraction in (0, 1)")


def fit_and_score(
    module: nn.Module,
    x: Tensor,
    z: Tensor,
    *,
    loss: OnPairs,
    validate: OnPairs,
    score: Callable[[Tensor, Tensor], Estimate],
    fitting: Fitting,
    generator: torch.Generator,
) -> Estimate:
    """Train ``module``, keep its best state on validation pairs, and answer with the score on held-out pairs.

    Elements are standardized by the training pairs, which changes no mutual information: it is an invertible map.

    Args:
        module: What is trained; left in its best state.
        x: (N, D) rows.
        z: (N, E) rows.
        loss: Of a batch; minimized.
        validate: Of the validation pairs; the lowest wins.
        score: Of the held-out pairs.
        fitting: How.
        generator: Draws the parts and the batches.

    Raises:
        InputError: Too few pairs for three parts.
    """
    training, validation, held_out = _parts(x.detach(), z.detach(), fitting, generator)
    optimizer = torch.optim.Adam(module.parameters(), fitting.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fitting.steps)
    best, state = math.inf, _copy(module)
    size, every = min(fitting.batch, len(training[0])), math.ceil(fitting.steps / _CHECKS)
    for step in range(1, fitting.steps + 1):
        rows = torch.randperm(len(training[0]), generator=generator, device=generator.device)[:size].to(x.device)
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss(training[0][rows], training[1][rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == fitting.steps:
            with torch.no_grad():
                value = float(validate(*validation))
            if value < best:
                best, state = value, _copy(module)
    module.load_state_dict(state)
    with torch.no_grad():
        return score(*held_out)


def _parts(
    x: Tensor, z: Tensor, fitting: Fitting, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    n = len(x)
    held_out = round(n * fitting.held_out)
    validation = round((n - held_out) * fitting.held_out)
    training = n - held_out - validation
    if min(training, validation, held_out) < _FEWEST_PAIRS:
        accepted = f"enough for {_FEWEST_PAIRS} training, {_FEWEST_PAIRS} validation and {_FEWEST_PAIRS} held-out pairs"
        raise InputError("N (number of pairs)", n, accepted)
    order = torch.randperm(n, generator=generator, device=generator.device).to(x.device)
    rows = torch.split(order, [training, validation, held_out])
    x, z = (_standardized(v, rows[0]) for v in (x, z))
    first, second, third = ((x[r], z[r]) for r in rows)
    return first, second, third


def _standardized(v: Tensor, training: Tensor) -> Tensor:
    mean, deviation = v[training].mean(0), v[training].std(0, correction=0)
    # An element that is constant in training stays as it is: divided by nothing, a rare value would be infinite.
    return (v - mean) / torch.where(deviation > 0, deviation, 1.0)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
