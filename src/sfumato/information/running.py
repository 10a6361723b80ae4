"""Running averages of one value per class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information.checks import require_counts


class ClassAverage(nn.Module):
    """Exponential average of a vector per class, weighted by how many features of the class a batch holds.

    After batches with n_1, …, n_t features of a class it is Σ m^(t−s)·n_s·v_s / Σ m^(t−s)·n_s: nothing biases it
    towards its start, a batch with one feature counts for one feature, and where a class was away for long the next
    batch counts for more. All state in buffers.

    Args:
        num_classes: K.
        dim: D.
        momentum: m in [0, 1); 0 forgets all but the last batch.

    Attributes:
        value: (K, D).
        mass: (K,), the denominator.
    """

    value: Tensor
    mass: Tensor

    def __init__(self, num_classes: int, dim: int, momentum: float) -> None:
        super().__init__()
        require_counts(num_classes=num_classes, dim=dim)
        if not 0 <= momentum < 1:
            raise InputError("momentum", momentum, "a number from 0 to below 1")
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(num_classes, dim))
        self.register_buffer("mass", torch.zeros(num_classes))

    def blend(self, batch: Tensor, counts: Tensor) -> Tensor:
        """The average as it would be with a batch in it; the batch's part carries its gradient.

        Args:
            batch: (K, D); ignored where the class is absent.
            counts: (K,) features of each class.
        """
        share = (counts / self._mass(counts).clamp_min(1)).to(self.value.dtype).unsqueeze(1)
        # The backward pass needs the share alone: the running value may change before it.
        return self.value + share * (batch - self.value)

    @torch.no_grad()
    def keep(self, blended: Tensor, counts: Tensor) -> None:
        """Make what :meth:`blend` gave the running value."""
        self.value.copy_(blended)
        self.mass.copy_(self._mass(counts))

    def _mass(self, counts: Tensor) -> Tensor:
        return self.momentum * self.mass + counts
