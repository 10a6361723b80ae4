"""Minimize one function of each image of a batch over [0, 1], all images at once and each on its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]
"""Images (M, C, H, W) and their positions (M,) in the whole batch, to one value each (M,), differentiable."""
Method = Literal["adam", "sgd", "lbfgs"]

_MOMENTUM = 0.9
_BETAS = (0.9, 0.999)
_PATIENCE = 20
"""Steps without progress after which an image's step length is halved."""
_PROGRESS = 3e-4
_SHORTEST = 2.0**-7
"""Step length, relative to the first, below which an image is done."""
_STATIONARY = 1e-6
"""Projected gradient, relative to the first, below which an image is done."""
_PAIRS = 10
_TRIALS = 20
_ARMIJO = 1e-4


@dataclass(frozen=True, eq=False)
class Minimum:
    """The best of what was seen of each image.

    Attributes:
        images: (N, C, H, W) in [0, 1].
        values: (N,) of the objective there; infinite where no value was finite.
        steps: (N,) steps taken before it could not improve, or there were no more.
    """

    images: Tensor
    values: Tensor
    steps: Tensor


def minimize(
    objective: Objective,
    start: Tensor,
    *,
    method: Method = "adam",
    steps: int,
    lr: float,
    tick: Callable[[], None] = lambda: None,
) -> Minimum:
    """Descend from ``start``, keeping within [0, 1] by projection after each step.

    No image influences another: each has its own step length, history and end. The step length of ``adam`` and ``sgd``
    is halved whenever 20 steps gain less than 0.03 %, and whenever the value rises by more than the size of the best,
    from where it then goes on. An image is left alone once its projected gradient has vanished (a millionth of the
    first), once its step length has been halved more than seven times, or, for ``lbfgs``, once no step along the
    steepest descent improves it. Where the objective or its gradient is not finite it stays where it was.

    Args:
        objective: What to minimize. Its values may be means: gradients are scaled by the elements of an image, so that
            ``lr`` does not depend on their number.
        start: (N, C, H, W) in [0, 1].
        method: ``adam``; ``sgd``, gradient steps with momentum 0.9; ``lbfgs``, limited-memory BFGS with ten pairs over
            the pixels that are free to move, and backtracking (Bertsekas 1982; Liu & Nocedal 1989).
        steps: At most.
        lr: Step length of the first; it falls to 1 % along half a cosine. For ``lbfgs`` the most that a pixel changes
            along the first steepest descent.
        tick: Called after each step.
    """
    problem = _Problem(objective, start)
    if method == "lbfgs":
        _quasi_newton(problem, steps, lr, tick)
    else:
        _first_order(problem, _RULES[method](start), steps, lr, tick)
    return Minimum(problem.best, problem.values, problem.steps)


class _Problem:
    """The images that still move, and the best that was seen of all."""

    def __init__(self, objective: Objective, start: Tensor) -> None:
        self._objective, self._scale = objective, start[0].numel()
        self.best = start.detach().clone()
        self.slopes = torch.zeros_like(self.best)  # gradients there
        self.values = torch.full((len(start),), math.inf, dtype=start.dtype, device=start.device)
        self.steps = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        self.rows = torch.arange(len(start), device=start.device)
        self.first: Tensor | None = None  # norm of the first projected gradient, of those that move

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (M,) and gradients of x, remembering what is better than before."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            values = self._objective(leaf, self.rows)
            (gradient,) = torch.autograd.grad(values.sum() * self._scale, leaf)
        values = values.detach()
        better = values < self.values[self.rows]  # never where it is NaN
        self.best[self.rows[better]] = x[better]
        self.slopes[self.rows[better]] = gradient[better]
        self.values[self.rows[better]] = values[better]
        return values, gradient

    def value(self, x: Tensor, which: Tensor) -> Tensor:
        """Values alone, of those at ``which`` of the images that move."""
        with torch.no_grad():
            return self._objective(x, self.rows[which])

    def stationary(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Which have nowhere to go."""
        norm: Tensor = (free(x, gradient) * gradient).flatten(1).norm(dim=1)
        if self.first is None:
            self.first = norm
        return ~(norm > _STATIONARY * self.first)

    def select(self, moving: Tensor) -> None:
        """Go on with these only."""
        self.rows = self.rows[moving]
        assert self.first is not None  # looked at before anything is left alone
        self.first = self.first[moving]


def free(x: Tensor, gradient: Tensor) -> Tensor:
    """Pixels that a step against the gradient would not push out of [0, 1]."""
    return ~(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)))


class _Rule(Protocol):
    """How a gradient becomes a step."""

    def step(self, gradient: Tensor) -> Tensor:
        """What to subtract at a step length of 1."""

    def forget(self, which: Tensor) -> None:
        """These begin anew."""

    def select(self, moving: Tensor) -> None:
        """Go on with these only."""


class _Adam:
    def __init__(self, start: Tensor) -> None:
        self._mean, self._square, self._count = torch.zeros_like(start), torch.zeros_like(start), 0

    def step(self, gradient: Tensor) -> Tensor:
        self._count += 1
        self._mean.lerp_(gradient, 1 - _BETAS[0])
        self._square.lerp_(gradient.square(), 1 - _BETAS[1])
        corrected = (self._square / (1 - _BETAS[1] ** self._count)).sqrt_().add_(1e-8)
        step: Tensor = self._mean / (1 - _BETAS[0] ** self._count) / corrected
        return step

    def forget(self, which: Tensor) -> None:
        self._mean[which] = 0

    def select(self, moving: Tensor) -> None:
        self._mean, self._square = self._mean[moving], self._square[moving]


class _Momentum:
    def __init__(self, start: Tensor) -> None:
        self._velocity = torch.zeros_like(start)

    def step(self, gradient: Tensor) -> Tensor:
        self._velocity.mul_(_MOMENTUM).add_(gradient)
        return self._velocity.clone()

    def forget(self, which: Tensor) -> None:
        self._velocity[which] = 0

    def select(self, moving: Tensor) -> None:
        self._velocity = self._velocity[moving]


_RULES: dict[str, Callable[[Tensor], _Rule]] = {"adam": _Adam, "sgd": _Momentum}


def _first_order(problem: _Problem, rule: _Rule, steps: int, lr: float, tick: Callable[[], None]) -> None:
    x = problem.best.clone()
    shares = torch.ones_like(problem.values)
    waited = torch.zeros_like(problem.steps)
    aim = torch.full_like(problem.values, math.inf)
    for step in range(steps + 1):
        values, gradient = problem.look(x)
        waited = torch.where(values < aim, 0, waited + 1)
        aim = torch.where(values < aim, values - _PROGRESS * values.abs(), aim)
        shares = torch.where(waited >= _PATIENCE, shares / 2, shares)
        waited = torch.where(waited >= _PATIENCE, 0, waited)
        least = problem.values[problem.rows]
        over = values - least > least.abs()
        if bool(over.any()):
            shares = torch.where(over, shares / 2, shares)
            rule.forget(over)
            back = problem.rows[over]
            x[over], gradient[over] = problem.best[back], problem.slopes[back]
        done = problem.stationary(x, gradient) | (shares < _SHORTEST) | ~values.isfinite()
        if step == steps or bool(done.all()):
            return
        if bool(done.any()):
            moving = ~done
            problem.select(moving)
            rule.select(moving)
            x, gradient, shares, waited, aim = (t[moving] for t in (x, gradient, shares, waited, aim))
        length = lr * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        change = rule.step(gradient.nan_to_num(0.0, 0.0, 0.0)) * (length * shares).view(-1, 1, 1, 1)
        x = (x - change).clamp_(0, 1)
        problem.steps[problem.rows] += 1
        tick()


def _quasi_newton(problem: _Problem, steps: int, lr: float, tick: Callable[[], None]) -> None:
    x = problem.best.clone()
    values, gradient = problem.look(x)
    history = _History(x)
    done = ~values.isfinite()
    for _ in range(steps):
        done |= problem.stationary(x, gradient)
        if bool(done.all()):
            return
        if bool(done.any()):
            moving = ~done
            problem.select(moving)
            history.select(moving)
            x, values, gradient = x[moving], values[moving], gradient[moving]
        steepest = gradient * free(x, gradient)
        direction = history.direction(steepest) * free(x, gradient)
        uphill = ~((direction * steepest).flatten(1).sum(1) > 0)
        history.forget(uphill)
        direction[uphill] = steepest[uphill]
        fresh = history.empty()
        longest = lr / direction.flatten(1).abs().amax(1).clamp_min(torch.finfo(x.dtype).tiny)
        trial, moved = _search(problem, x, values, gradient, direction, torch.where(fresh, longest, 1.0))
        done = ~moved & fresh  # not even a short way down the steepest descent
        history.forget(~moved)
        after, slope = problem.look(trial)
        history.add(trial - x, slope - gradient, moved)
        x, values, gradient = trial, after, slope
        problem.steps[problem.rows] += moved.long()
        tick()


def _search(
    problem: _Problem, x: Tensor, values: Tensor, gradient: Tensor, direction: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Each image's first of the lengths 1, ½, ¼… that pays (Armijo along the projection), and whether there was one."""
    found, moved = x.clone(), torch.zeros_like(length, dtype=torch.bool)
    pending = torch.arange(len(x), device=x.device)
    for _ in range(_TRIALS):
        trial = (x[pending] - length[pending].view(-1, 1, 1, 1) * direction[pending]).clamp_(0, 1)
        gain = (gradient[pending] * (x[pending] - trial)).flatten(1).sum(1) / problem.best[0].numel()
        pays = (gain > 0) & (problem.value(trial, pending) <= values[pending] - _ARMIJO * gain)
        found[pending[pays]], moved[pending[pays]] = trial[pays], True
        pending = pending[~pays]
        if not len(pending):
            break
        length[pending] /= 2
    return found, moved


class _History:
    """The last steps and changes of gradient of each image; a pair without curvature counts for nothing."""

    def __init__(self, x: Tensor) -> None:
        self._moves, self._slopes = (x.new_zeros(_PAIRS, *x.flatten(1).shape) for _ in range(2))
        self._inverse = x.new_zeros(_PAIRS, len(x))  # 1/(move·slope), 0 where there is no pair
        self._gamma = x.new_ones(len(x))

    def add(self, move: Tensor, slope: Tensor, moved: Tensor) -> None:
        move, slope = move.flatten(1), slope.flatten(1)
        curvature, square = (move * slope).sum(1), slope.square().sum(1)
        useful = moved & (curvature > 1e-8 * (move.norm(dim=1) * slope.norm(dim=1)))
        for kept, new in ((self._moves, move), (self._slopes, slope)):
            kept[:, useful] = torch.cat([kept[1:, useful], new[useful].unsqueeze(0)])
        inverse = (1 / curvature[useful]).unsqueeze(0)
        self._inverse[:, useful] = torch.cat([self._inverse[1:, useful], inverse])
        self._gamma[useful] = curvature[useful] / square[useful]

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient times the estimated inverse Hessian, by the two loops of Nocedal (1980)."""
        q, weights = gradient.flatten(1).clone(), []
        for move, slope, inverse in reversed(list(zip(self._moves, self._slopes, self._inverse))):
            weight = inverse * (move * q).sum(1)
            weights.append(weight)
            q -= weight.unsqueeze(1) * slope
        q *= self._gamma.unsqueeze(1)
        for move, slope, inverse, weight in zip(self._moves, self._slopes, self._inverse, reversed(weights)):
            q += (weight - inverse * (slope * q).sum(1)).unsqueeze(1) * move
        return q.view_as(gradient)

    def empty(self) -> Tensor:
        return self._inverse[-1] == 0

    def forget(self, which: Tensor) -> None:
        self._inverse[:, which] = 0
        self._gamma[which] = 1

    def select(self, moving: Tensor) -> None:
        self._moves, self._slopes = self._moves[:, moving], self._slopes[:, moving]
        self._inverse, self._gamma = self._inverse[:, moving], self._gamma[moving]
