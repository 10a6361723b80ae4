"""Punish an edge that takes close images far apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.defenses.base import BoundDefense, Context, Defense
from sfumato.models import SplitModel


@dataclass(frozen=True)
class Lipschitz(Defense):
    """Loss β·mean_i L_i, where L_i = max_j ‖z'_i − z'_j‖ / ‖x_i − x_j‖ over the other images of the batch.

    PATROL (Ding et al. 2024) keeps the Lipschitz constant of the edge small: features that lie close together make the
    way back from them unstable. L_i is the edge's pointwise Lipschitz constant at x_i as far as the batch shows it, a
    lower bound of the true one. Two other forms were ruled out. Spectral norms of the convolutions bound nothing here,
    since the batch norm behind each of them undoes any scale. Small random steps around each image would need a second
    pass through the edge, which would move the statistics of that batch norm.

    Args:
        beta: Weight β ≥ 0. PATROL's own is tuned to each data set; L_i is about 0.1 to 1 for features in [0, 1].
    """

    name: ClassVar[str] = "lipschitz"
    source: ClassVar[str] = "Ding et al. 2024 (PATROL)"
    watches: ClassVar[bool] = True
    beta: float = 0.1

    def __post_init__(self) -> None:
        self._require(0 <= self.beta < float("inf"), "beta", "a weight of 0 or more")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return _BoundLipschitz(self.beta)


class _BoundLipschitz(BoundDefense):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        return {"lipschitz": self._beta * largest_quotients(ctx.x, ctx.z_clean).mean()}


def largest_quotients(x: Tensor, z: Tensor) -> Tensor:
    """For each row the largest ‖z_i − z_j‖ / ‖x_i − x_j‖ over all j with x_j ≠ x_i; 0 where there is none.

    Args:
        x: (N, ...), flattened behind the first axis.
        z: (N, ...), likewise; the gradient flows here alone, and is 0 where rows of z coincide.

    Returns:
        (N,).
    """
    # Distances are differences of close numbers: in single precision at least.
    x, z = (a.flatten(1).to(torch.promote_types(a.dtype, torch.float32)) for a in (x, z))
    with torch.no_grad():
        # The matrix-product shortcut cancels for close rows, and would turn copies into neighbors.
        between, apart = (torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist") for a in (x, z))
        farthest = torch.where(between > 0, apart / between, 0.0).argmax(1)
        distance = between.gather(1, farthest.unsqueeze(1)).squeeze(1)
    moved = torch.linalg.vector_norm(z - z[farthest], dim=1)
    return torch.where(distance > 0, moved / torch.where(distance > 0, distance, 1.0), 0.0)
