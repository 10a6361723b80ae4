"""Slot attention within each class, and what of a feature the slots of its class leave unexplained."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.information.attention import class_mean, class_uniform, mean_log_variance
from sfumato.information.checks import require_choice, require_counts
from sfumato.information.grouping import group_sizes
from sfumato.information.pooling import Side
from sfumato.information.running import ClassAverage

_EPSILON = 1e-8  # Locatello et al.'s: no slot is ever divided by nothing


def own_slot_shares(keys: Tensor, queries: Tensor, y: Tensor) -> Tensor:
    """How each feature divides itself among the slots of its own class: softmax over the slots.

    Args:
        keys: (N, H), of the features.
        queries: (K, S, H), of the slots.
        y: (N,) class of each.

    Returns:
        (N, S), summing to 1 in each row.
    """
    return (torch.einsum("nh,nsh->ns", keys, queries[y]) / math.sqrt(keys.shape[1])).softmax(1)


def slot_means(values: Tensor, shares: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Mean of the class's features for every slot, weighted by their shares.

    Args:
        values: (N, H).
        shares: (N, S).
        y: (N,) class of each.
        num_classes: K.

    Returns:
        (K, S, H); 0 for an absent class.
    """
    shares = shares + _EPSILON
    total = shares.new_zeros(num_classes, shares.shape[1]).index_add(0, y, shares)
    weights = shares / total[y]
    sums = values.new_zeros(num_classes, shares.shape[1], values.shape[1])
    return sums.index_add(0, y, weights.unsqueeze(2) * values.unsqueeze(1))


class SlotAttention(nn.Module):
    """S slots for each of K classes, competing for the features of their class (Locatello et al. 2020, algorithm 1).

    All classes at once. Each class has learned starting slots of its own, so that slot s of a class means the same in
    every batch. Normalization is without the affine map, which the linear maps after it absorb.

    Args:
        num_classes: K.
        slots: S.
        hidden: H of features and slots.
        iterations: Rounds of refinement, with one set of weights.
        generator: Draws all weights.

    Raises:
        InputError: A number of things below 1.
    """

    def __init__(
        self, num_classes: int, slots: int, hidden: int, *, iterations: int = 3, generator: torch.Generator
    ) -> None:
        super().__init__()
        require_counts(num_classes=num_classes, slots=slots, hidden=hidden, iterations=iterations)
        self.iterations = iterations

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / math.sqrt(shape[-1]))

        self.start = nn.Parameter(torch.randn(num_classes, slots, hidden, generator=generator))
        self.key, self.value, self.query = (drawn(hidden, hidden) for _ in range(3))
        self.gru_input, self.gru_slot = drawn(3 * hidden, hidden), drawn(3 * hidden, hidden)
        self.gru_input_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.gru_slot_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.mlp_in, self.mlp_in_bias = drawn(2 * hidden, hidden), nn.Parameter(torch.zeros(2 * hidden))
        self.mlp_out, self.mlp_out_bias = drawn(hidden, 2 * hidden), nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Tensor:
        """Slots (K, S, H) for features x (N, H); those of an absent class have seen nothing.

        Args:
            x: (N, H).
            y: (N,).
            noise: (K, S, H), added to the starting slots.
        """
        x = _normalized(x)
        keys, values = F.linear(x, self.key), F.linear(x, self.value)
        slots = self.start if noise is None else self.start + noise
        for _ in range(self.iterations):
            slots = self._refined(slots, keys, values, y)
        return slots

    def shares(self, x: Tensor, y: Tensor, slots: Tensor) -> Tensor:
        """How features x (N, H) divide themselves among the slots (K, S, H) of their class, (N, S)."""
        return own_slot_shares(F.linear(_normalized(x), self.key), F.linear(_normalized(slots), self.query), y)

    def _refined(self, slots: Tensor, keys: Tensor, values: Tensor, y: Tensor) -> Tensor:
        shares = own_slot_shares(keys, F.linear(_normalized(slots), self.query), y)
        updates = slot_means(values, shares, y, len(slots))
        flat = torch.gru_cell(
            updates.flatten(0, 1),
            slots.flatten(0, 1),
            self.gru_input,
            self.gru_slot,
            self.gru_input_bias,
            self.gru_slot_bias,
        )
        inner = F.linear(_normalized(flat), self.mlp_in, self.mlp_in_bias).relu()
        return (flat + F.linear(inner, self.mlp_out, self.mlp_out_bias)).view_as(slots)


class SlotReadout(nn.Module):
    """Variance per dimension of what slots leave unexplained of each class, as running averages.

    A feature z of class c reads from its class's slots by cross-attention behind a tanh gate (Alayrac et al. 2022,
    Flamingo, section 2.1): read-out = center_c + tanh(α)·Σ_s softmax_s(q·k_s/√H)·m_s. The center is the running mean of
    the class. The value m_s is what slot s holds in the feature's own space, the mean deviation from the center of the
    features it attends to, so that a read-out has the features' scale before anything is learned. Queries and keys
    start as those of the slot attention: then the mean of (z − center)·read-out is Σ_s π_s·‖m_s‖² ≥ 0, π_s the share
    of slot s, and the gate opens to the right side.

    α starts at 0. The residual z − read-out is then the deviation from the center, its variance the plain one, and its
    gradient that of the plain one; of the path's parameters only α has a gradient, and the others once it has moved.

    What is read, slots and m, are running averages too: from its own batch alone a feature that is one of few of its
    class would read itself, and leave nothing.

    Args:
        num_classes: K.
        dim: D.
        hidden: H.
        slots: S per class.
        iterations: Of slot attention.
        noise: Standard deviation of the noise on the starting slots; 0 draws nothing.
        momentum: Of the running averages, in [0, 1).
        generator: Draws all weights.

    Raises:
        InputError: A number of things below 1, or a deviation or momentum out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        hidden: int,
        *,
        slots: int = 4,
        iterations: int = 3,
        noise: float = 0.0,
        momentum: float = 0.9,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        require_counts(num_classes=num_classes, dim=dim, hidden=hidden)
        if not 0 <= noise < math.inf:
            raise InputError("noise", noise, "a standard deviation of 0 or more")
        self.num_classes, self.noise = num_classes, noise
        self.attention = SlotAttention(num_classes, slots, hidden, iterations=iterations, generator=generator)
        self.inward = nn.Parameter(torch.randn(hidden, dim, generator=generator) / math.sqrt(dim))
        self.query = nn.Parameter(self.attention.key.detach().clone())
        self.key = nn.Parameter(self.attention.query.detach().clone())
        self.alpha = nn.Parameter(torch.zeros(()))
        self.centers = ClassAverage(num_classes, dim, momentum)
        self.slots = ClassAverage(num_classes, slots * hidden, momentum)
        self.values = ClassAverage(num_classes, slots * dim, momentum)
        self.variances = ClassAverage(num_classes, dim, momentum)

    def read(self, x: Tensor, y: Tensor, slots: Tensor, values: Tensor) -> Tensor:
        """What features read (N, D) of values (K, S, D) by attending with x (N, H) to slots (K, S, H), gated."""
        queries, keys = F.linear(_normalized(x), self.query), F.linear(_normalized(slots), self.key)
        return self.alpha.tanh() * torch.einsum("ns,nsd->nd", own_slot_shares(queries, keys, y), values[y])

    def variance(self, z: Tensor, y: Tensor, *, side: Side, generator: torch.Generator | None = None) -> Tensor:
        """Running variances (K, D) of the residuals with this batch in them.

        Args:
            z: (N, D).
            y: (N,).
            side: Who is to learn from it. ``feature``: the read-outs are constants, and the batch enters the running
                averages. ``attention``: the features are constants, and nothing is kept.
            generator: Source of the noise on the starting slots, where there is any.

        Raises:
            InputError: There is no such side, or noise without a generator.
        """
        require_choice("side", side, get_args(Side))
        counts, even = group_sizes(y, self.num_classes), class_uniform(y, self.num_classes, z.dtype)
        centers = self.centers.blend(class_mean(z, even, y, self.num_classes), counts)
        deviation = z - centers[y]
        fixed = deviation.detach()
        with torch.set_grad_enabled(side == "attention" and torch.is_grad_enabled()):
            x = F.linear(fixed, self.inward)
            slots, values = self._held(x, fixed, y, counts, self._noise(generator))
            start = self.attention.start
            read = self.read(x, y, slots.view_as(start), values.view(*start.shape[:2], -1))
        residual = (deviation if side == "feature" else fixed) - read
        variances = self.variances.blend(class_mean(residual.square(), even, y, self.num_classes), counts)
        if side == "feature":
            self.centers.keep(centers, counts)
            self.slots.keep(slots, counts)
            self.values.keep(values, counts)
            self.variances.keep(variances, counts)
        return variances

    def objective(self, z: Tensor, y: Tensor, *, gamma: float, generator: torch.Generator | None = None) -> Tensor:
        """What the slots minimize: the mean of log(v + γ).

        Up to a factor and a constant it is the negative log-likelihood of the residuals under a Gaussian with the best
        variances, as a mixture's centers have it: unlike gated weights, slots cannot leave a feature of the class out.
        """
        present = group_sizes(y, self.num_classes) > 0
        return mean_log_variance(self.variance(z, y, side="attention", generator=generator), present, gamma=gamma)

    def tracked(self) -> Tensor:
        """Running variances (K, D)."""
        return self.variances.value

    def figures(self) -> dict[str, float]:
        """``gate``: tanh(α), 0 for the plain variance, 1 for that around the slots."""
        return {"gate": float(self.alpha.detach().tanh())}

    def _held(
        self, x: Tensor, deviation: Tensor, y: Tensor, counts: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Running slots (K, S·H) and what they hold (K, S·D), with this batch in them."""
        slots = self.attention(x, y, noise)
        held = slot_means(deviation, self.attention.shares(x, y, slots), y, self.num_classes)
        return self.slots.blend(slots.flatten(1), counts), self.values.blend(held.flatten(1), counts)

    def _noise(self, generator: torch.Generator | None) -> Tensor | None:
        if self.noise == 0:
            return None
        if generator is None:
            raise InputError("generator", None, "a generator, for the noise on the starting slots")
        start = self.attention.start
        drawn = torch.randn(start.shape, generator=generator, device=generator.device, dtype=start.dtype)
        return self.noise * drawn.to(start.device)


def _normalized(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
