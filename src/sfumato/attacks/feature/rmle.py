"""Optimize a picture until its feature is the one intercepted: rMLE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.feature.matching import Matcher, watched
from sfumato.attacks.feature.minimize import Minimum, minimize
from sfumato.attacks.keeping import Pieces
from sfumato.attacks.threat import BlackBox, ThreatModel, WhiteBox
from sfumato.training import Runtime

WEIGHTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Weights of the total variation that the attacker tries on its own images."""
STEPS = {"sgd": 0.05, "adam": 0.1, "lbfgs": 0.1}
"""Step lengths where none is given."""
_EASED = 50.0
_LAST = 0.4
_CORNER = 1e-3


@dataclass(frozen=True)
class RMLEAttack(Attack):
    """Minimize the error of the feature plus total variation over all images in [0, 1] (He et al. 2019, section 4).

    For each victim by itself, whatever is reconstructed beside it:

        mean (E[channel(edge(x))] − z)² / energy  +  tv·TV(x)  +  l2·mean x²

    All three are means, as in the authors' program: over the feature's elements, and over the image's; so weights mean
    the same for every size. The energy, one number for all victims, is the mean square of a feature's element over the
    attacker's images: so they mean the same for every edge. TV(x) = Σ √(‖right − x‖² + ‖below − x‖²) / (C·H·W) is
    isotropic, the paper's with exponent β = 1 (their program squares it, β = 2, which blurs edges), and takes the norm
    over colors, so that edges of all colors fall together; its corner is rounded by 0.001.

    Images are kept in [0, 1] by projection, which can start from black and leaves a solution inside as it is, where a
    sigmoid would flatten the slope towards 0 and 1.

    Edges with rectifiers and pooling have many local minima; a picture that starts out too smooth misses most of them.
    So the weight of TV falls from 50·tv to tv in ``stages``, the last of which alone is judged. What one does to the
    others, and where an image is left alone early, says :func:`~sfumato.attacks.feature.minimize.minimize`.

    Args:
        steps: At most, over all stages; the last has 40 % of them.
        optimizer: ``sgd`` (with momentum), ``adam``, or ``lbfgs``.
        lr: First step length; by default 0.05 for ``sgd``, 0.1 for ``adam`` and ``lbfgs``.
        tv: Weight of the total variation; by default the best of 0, 0.01, 0.03, 0.1, 0.3, 1 and 3, by mean squared
            error on up to 16 images that the attacker selects on, sent through its own copy of the device.
        l2: Weight of the mean square.
        start: From the ``mean`` of the attacker's images, ``zeros``, or uniform ``noise``.
        restarts: Runs; those after the first start from noise. The best objective is kept, of each victim.
        stages: Of the falling weight; 1 leaves it out.
    """

    name: ClassVar[str] = "rmle"
    source: ClassVar[str] = "He et al. 2019, section 4 (white-box)"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset({"white-box"})
    cost: ClassVar[str] = "no queries; steps × restarts passes forth and back through the edge an image"
    query_free: ClassVar[bool] = True
    steps: int = 600
    optimizer: Literal["sgd", "adam", "lbfgs"] = "sgd"
    lr: float | None = None
    tv: float | None = None
    l2: float = 0.0
    start: Literal["mean", "zeros", "noise"] = "mean"
    restarts: int = 1
    stages: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.optimizer in STEPS, "optimizer", f"one of {', '.join(sorted(STEPS))}")
        self._require(self.lr is None or 0 < self.lr < math.inf, "lr", "a step length above 0, or none for the default")
        self._require(self.tv is None or 0 <= self.tv < math.inf, "tv", "0 or more, or none to select it")
        self._require(0 <= self.l2 < math.inf, "l2", "0 or more")
        self._require(self.start in ("mean", "zeros", "noise"), "start", "one of mean, noise, zeros")
        self._require(self.restarts >= 1, "restarts", "1 or more")
        self._require(self.stages >= 1, "stages", "1 or more")
        self._require(self.steps >= self.stages, "steps", "1 or more for each stage")

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Try itself on the attacker's own images, selecting the weight of TV where none is given."""
        assert isinstance(target, WhiteBox)  # checked by __call__
        pieces = self.pieces(target, knowledge, generator=generator, runtime=runtime)
        matcher = Matcher(target, knowledge)
        search = _Search(self, matcher, generator, runtime, pieces)
        weight, figures = pieces("rehearsal", search.rehearse, matcher.sent)
        return Learned(
            lambda z: search(z, weight).images.float(), figures, not math.isfinite(figures["objective_after"])
        )


def total_variation(x: Tensor) -> Tensor:
    """(N,) Σ √(‖right − x‖² + ‖below − x‖²) / (C·H·W) of images (N, C, H, W), norms over channels, the corner rounded.

    Differences across the border are 0. Rudin, Osher & Fatemi 1992; Blomgren & Chan 1998 for the norm over channels.
    """
    right = F.pad((x[..., 1:] - x[..., :-1]).square(), (0, 1))
    below = F.pad((x[..., 1:, :] - x[..., :-1, :]).square(), (0, 0, 0, 1))
    length = ((right + below).sum(1) + _CORNER**2).sqrt() - _CORNER
    return length.sum((1, 2)) / x[0].numel()


class _Search:
    """One attack on one target."""

    def __init__(
        self, attack: RMLEAttack, matcher: Matcher, generator: torch.Generator, runtime: Runtime, pieces: Pieces
    ) -> None:
        self._attack, self._matcher, self._generator, self._runtime = attack, matcher, generator, runtime
        self._pieces = pieces

    def __call__(self, z: Tensor, tv: Tensor | float) -> Minimum:
        """Images for features z (N, ...) under weights of TV, (N,) or one for all."""
        z = self._matcher.take(z)
        weights = torch.as_tensor(tv, dtype=z.dtype, device=z.device).expand(len(z))
        with watched(self._runtime, f"attack: {self._attack.name}", self._attack.steps * self._attack.restarts) as tick:
            best = self._restart(0, z, weights, tick)
            for number in range(1, self._attack.restarts):
                other = self._restart(number, z, weights, tick)
                better = other.values < best.values
                best = Minimum(
                    torch.where(better.view(-1, 1, 1, 1), other.images, best.images),
                    torch.where(better, other.values, best.values),
                    torch.where(better, other.steps, best.steps),
                )
        return best

    def objective(self, x: Tensor, z: Tensor, tv: Tensor) -> Tensor:
        """(N,) for images x, features z and weights of TV (N,)."""
        value = self._matcher.error(x, z) + tv * total_variation(x)
        return value + self._attack.l2 * x.square().flatten(1).mean(1) if self._attack.l2 else value

    def rehearse(self) -> tuple[float, dict[str, float]]:
        """The weight of TV, and figures of how it goes on the attacker's own images."""
        x, z = self._matcher.own, self._matcher.sent
        tried = WEIGHTS if self._attack.tv is None else (self._attack.tv,)
        weights = torch.tensor(tried, dtype=x.dtype, device=x.device).repeat_interleave(len(x))
        found = self(z.repeat(len(tried), *[1] * (z.ndim - 1)), weights)
        errors = (found.images.view(len(tried), *x.shape) - x).square().mean((1, 2, 3, 4))
        chosen = int(errors.nan_to_num(math.inf).argmin())
        start = self._matcher.start(self._attack.start, len(x), self._generator).requires_grad_()
        before = self.objective(start, z, weights.view(len(tried), -1)[chosen])
        (gradient,) = torch.autograd.grad(self._matcher.error(start, z).sum(), start)
        return tried[chosen], {
            "tv": tried[chosen],
            "objective_before": float(before.detach().mean()),
            "objective_after": float(found.values.view(len(tried), -1)[chosen].mean()),
            "gradient_at_start": float(gradient.flatten(1).norm(dim=1).mean()),
            "mse_before": float((start.detach() - x).square().mean()),
            "mse_after": float(errors[chosen]),
        }

    def _restart(self, number: int, z: Tensor, weights: Tensor, tick: Callable[[], None]) -> Minimum:
        def run() -> tuple[Tensor, ...]:
            found = self._once(z, weights, "noise" if number else self._attack.start, tick)
            return found.images, found.values, found.steps

        last = number == self._attack.restarts - 1  # kept with all that it is a part of
        return Minimum(*(run() if last else self._pieces(f"restart{number}", run, z, weights)))

    def _once(self, z: Tensor, weights: Tensor, start: str, tick: Callable[[], None]) -> Minimum:
        attack = self._attack
        found = Minimum(self._matcher.start(start, len(z), self._generator), weights, weights)
        for stage, steps in enumerate(_shares(attack.steps, attack.stages)):
            eased = weights * _EASED ** (1 - stage / (attack.stages - 1)) if attack.stages > 1 else weights

            def objective(x: Tensor, rows: Tensor, eased: Tensor = eased) -> Tensor:
                return self.objective(x, z[rows], eased[rows])

            found = minimize(
                objective,
                found.images,
                method=attack.optimizer,
                steps=steps,
                lr=attack.lr or STEPS[attack.optimizer],
                tick=tick,
            )
        return found


def _shares(steps: int, stages: int) -> list[int]:
    """Steps of each stage."""
    if stages == 1:
        return [steps]
    last = max(1, round(_LAST * steps))
    early = [(steps - last) * (i + 1) // (stages - 1) - (steps - last) * i // (stages - 1) for i in range(stages - 1)]
    return [*early, last]
