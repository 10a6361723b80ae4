"""Search for what explains a feature, many victims at once: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
"""Points (N, ...) to one value each, (N,): less is better. No point may bear on another's value."""


def minimize(
    objective: Objective,
    start: Tensor,
    *,
    steps: int,
    step_size: float,
    bounds: tuple[float, float] | None = None,
    each_step: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Adam from ``start``, each point by itself, its rate going down to 0 as half a cosine.

    Args:
        objective: Differentiable.
        start: (N, ...).
        steps: 0 only judges the start.
        step_size: Initial rate: about how far an element goes in a step.
        bounds: Every step ends inside them.
        each_step: Called after each.

    Returns:
        The best point that each has been at, the start included, and its value (N,). Values that are not finite are
        never the best, unless the start's is.
    """
    point = start.detach().clone().requires_grad_()
    best, lowest = start.detach().clone(), torch.full((len(start),), torch.inf, device=start.device)
    adam = torch.optim.Adam([point], lr=step_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps))
    for step in range(steps + 1):
        with torch.enable_grad():
            values = objective(point)
            total = values.sum()  # its gradient is each point's own; and Adam's steps are element by element
        with torch.no_grad():
            better = values < lowest
            lowest = torch.where(better, values, lowest)
            best = torch.where(better.view(-1, *(1,) * (best.ndim - 1)), point, best)
        if step == steps:
            break
        (point.grad,) = torch.autograd.grad(total, point)
        adam.step()
        schedule.step()
        if bounds is not None:
            with torch.no_grad():
                point.clamp_(*bounds)
        each_step()
    return best, lowest


def best_of(tries: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """For each point the one of least value among several tries of :func:`minimize`."""
    points, values = zip(*tries)
    lowest, which = torch.stack(values).nan_to_num(torch.inf).min(0)
    return torch.stack(points)[which, torch.arange(len(which), device=which.device)], lowest


def feature_gap(made: Tensor, z: Tensor, scale: float) -> Tensor:
    """Mean squared distance of features (N, ...), over their variance ``scale``: 1 for what is right on average only.

    Returns:
        (N,).
    """
    return (made - z).square().flatten(1).mean(1) / scale


def total_variation(x: Tensor) -> Tensor:
    """Mean squared difference of neighboring pixels, down and across, of images (N, C, H, W); (N,)."""
    down = (x[..., 1:, :] - x[..., :-1, :]).square().flatten(1).mean(1)
    across = (x[..., 1:] - x[..., :-1]).square().flatten(1).mean(1)
    return down + across
