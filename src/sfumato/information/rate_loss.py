"""The mixture rate of a batch as a loss: the authors' form, and the exact ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information.checks import require_floors, require_noise, require_shrinkage
from sfumato.information.gaussian import add_variance, cholesky, shrink
from sfumato.information.grouping import Total, alone, group_products, group_sums
from sfumato.information.mixture import ClassMixture, require_refreshed

_GAMMA = 0.01  # the authors' floor under both variances


def reference_loss(mixture: ClassMixture, z: Tensor, y: Tensor, floor: float, *, total: Total = alone) -> Tensor:
    """The loss of the CEM authors' program on one batch; follows the mixture's variances and weights.

    With b_i features of the batch in a component, at mean squared distance s_i per dimension from its center,

        v = a·s_i + (1 − a)·v_before,  a = min(0.99, 10·b_i / (n_class·weight)),
        loss = weight · relu(log(v + 0.01) − log(floor + 0.01)),

    summed over components, averaged over the classes in the batch. Where processes share a batch all of this is the
    whole batch's, and the mean of their gradients is its gradient.

    Args:
        mixture: Isotropic, per class.
        z: Clean features (N, D).
        y: Labels (N,).
        floor: No pressure on variances below it, 0 or more (authors: t·σ² with t = 0.125).
        total: Sums over the processes that share the batch.

    Returns:
        A scalar whose gradient reaches z alone; 0 for a batch without a feature.

    Raises:
        InputError: A mixture that is not isotropic, a floor below 0, or features or labels of another shape or type.
    """
    require_floors(floor, _GAMMA)
    if mixture.covariance != "isotropic":
        raise InputError("covariance of the mixture", mixture.covariance, "isotropic")
    k, m, d = mixture.means.shape
    index = mixture.assign(z, y)
    distance = (z - mixture.means.view(k * m, d).index_select(0, index)).square().mean(1)
    # Copies: the running values below change before the backward pass reads these.
    weights, before = mixture.weights.flatten().clone(), mixture.covariances.flatten().clone()
    found, expected = mixture.track(index, total=total)
    own = group_sums(distance, index, k * m)
    # As large as the batch is to the share, for the mean over processes that gradients become.
    gradient_only = found.sum() / max(1, len(z)) * (own - own.detach())
    batch = (total(own.detach()) + gradient_only) / found.clamp_min(1)
    a = (10 * found / expected.clamp_min(torch.finfo(z.dtype).tiny)).clamp_max(0.99) * (found > 0)
    variance = a * batch + (1 - a) * before
    mixture.covariances.copy_(variance.detach().view(k, m))
    loss = weights * ((variance + _GAMMA).log() - math.log(floor + _GAMMA)).relu()
    present = found.view(k, m).sum(1) > 0
    return (loss.view(k, m).sum(1) * present).sum() / present.sum().clamp_min(1)


class RateLoss:
    """R of theorem 2 as a loss on batches, for any form of covariance.

    The value is R of the running mixture (CEM, equations 5 and 6). Taken literally, equation 6 scales a batch's
    gradient by b_i/(n·π_i), so the pressure would depend on the number of images n; here the batch's own share stands
    in its place: the gradient is that of Σ_i (b_i/b)·½·log det(Σ_i + σ²I) by the batch's part of Σ_i, which is

        (Σ_i + σ²I)⁻¹ (z − μ_i) / b  for each feature,

    so that nothing has to be differentiated through a determinant. Isotropic and diagonal covariances follow every
    batch; full ones are those of the last refresh, whose inverse is then found once: a batch would change them by a
    fraction of b_i/(n·π_i). That they changed is known by the tensor's version, which whatever PyTorch does in place
    raises, but for the broadcast of buffers of ``DistributedDataParallel``: keep the mixture out of that.

    A mixture that was never refreshed stands for nothing, and has no R: the CEM defense begins with the second epoch,
    whose start refreshes it.

    Args:
        mixture: The mixture over clean features.
        noise_variance: σ² > 0.
        shrinkage: s from 0 to 1, of full covariances: R is that of (1 − s)·Σ + s·(tr Σ/D)·I.

    Raises:
        InputError: A σ² that is not above 0, or an s that is no share.
    """

    def __init__(self, mixture: ClassMixture, noise_variance: float, shrinkage: float = 0.0) -> None:
        require_noise(noise_variance)
        require_shrinkage(shrinkage)
        self._mixture, self._noise, self.shrinkage = mixture, noise_variance, shrinkage
        self._refreshed = False
        self._factors: _Factors | None = None

    def __call__(self, z: Tensor, y: Tensor, *, total: Total = alone) -> Tensor:
        """R in nats; its gradient reaches z alone.

        Args:
            z: Clean features (N, D).
            y: Class of each (N,).
            total: Sums over the processes that share the batch: the running values follow the whole, and the mean of
                the processes' gradients is that of the whole where their shares are equal.

        Raises:
            InputError: The mixture was never refreshed, or features or labels of another shape or type.
        """
        mixture = self._mixture
        if not self._refreshed:  # once, for it waits for the device
            require_refreshed(mixture)
            self._refreshed = True
        index = mixture.assign(z, y)
        with torch.no_grad():
            residual = z.detach() - mixture.means.flatten(0, 1).index_select(0, index)
            found, expected = mixture.track(index, total=total)
            if mixture.covariances.ndim == 4:
                factors = self._factorized()
                growth, pull = factors.growth, group_products(residual, factors.pulls, index)
            else:
                variances = self._follow(residual, index, found, expected, total)
                pull = residual / (variances.view(len(variances), -1).index_select(0, index) + self._noise)
                growth = 0.5 * torch.log1p(variances / self._noise).view(len(variances), -1).sum(1)
                growth = growth * (z.shape[1] if variances.ndim == 1 else 1)
            shares = mixture.shares
            value = (shares * growth - torch.special.xlogy(shares, shares)).sum()
        loss: Tensor = value + (pull * (z - z.detach())).sum() / max(1, len(z))
        return loss

    def _follow(self, residual: Tensor, index: Tensor, found: Tensor, expected: Tensor, total: Total) -> Tensor:
        """Equation 6: the running variances, (K·M,) or (K·M, D), with this batch in them."""
        running = self._mixture.covariances.flatten(0, 1)
        squares = residual.square() if running.ndim == 2 else residual.square().mean(1)
        shape = (-1,) + (1,) * (running.ndim - 1)
        batch = total(group_sums(squares, index, len(running))) / found.clamp_min(1).view(shape)
        # A component that the last pass saw less of than the batch holds is the batch's.
        a = (found / expected.clamp_min(torch.finfo(found.dtype).tiny)).clamp_max(1).view(shape)
        running.lerp_(batch, a)
        return running

    def _factorized(self) -> _Factors:
        """Log determinant of every component and its derivative, found anew when the covariances changed."""
        covariances = self._mixture.covariances
        known = self._factors
        if known is None or known.source is not covariances or known.version != covariances._version:
            noisy = add_variance(shrink(covariances.flatten(0, 1), self.shrinkage), self._noise)
            roots = cholesky(noisy)
            growth = roots.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * noisy.shape[-1] * math.log(self._noise)
            # Shrinking is its own adjoint: the derivative by Σ is the derivative by the shrunk Σ, shrunk.
            pulls = shrink(torch.cholesky_inverse(roots), self.shrinkage)
            known = _Factors(covariances, covariances._version, pulls, growth)
            self._factors = known
        return known


@dataclass(frozen=True, eq=False)
class _Factors:
    """For the covariances in ``source`` at a version of their content: 2·dL_i/dΣ_i, L_i = ½·log det(Σ_i/σ² + I)."""

    source: Tensor
    version: int
    pulls: Tensor
    growth: Tensor
