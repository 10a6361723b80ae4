"""MINE: a lower bound on mutual information, learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information.checks import require_finite
from sfumato.information.estimate import Estimate, mean_of
from sfumato.information.fitting import Fitting, fit_and_score
from sfumato.information.networks import perceptron
from sfumato.information.rows import derangement, paired_rows

_VALIDATION_SHUFFLES, _HELD_OUT_SHUFFLES = 4, 32
_DEFAULT_FITTING = Fitting()


class Mine(nn.Module):
    """Mutual information neural estimator (Belghazi et al. 2018): a statistics network T over pairs (x, z).

    It learns to tell pairs of the joint distribution from pairs that were shuffled. Donsker and Varadhan: for any T,
    I(x; z) ≥ E_joint[T] − log E_shuffled[exp T], in nats.

    Args:
        x_elements: Elements of one x.
        z_elements: Elements of one z.
        generator: Draws the weights.
        hidden: Units in each of T's two hidden layers.
        bounded: End T in a sigmoid, as the authors of SiftFunnel do: no estimate then exceeds 1, whatever the
            information is. For comparing with their tables.
        rate: Weight of the newest batch in the moving average that corrects the gradient, in (0, 1]; at 1 there is no
            correction.

    Attributes:
        log_average: Logarithm of the moving average of E_shuffled[exp T]; −∞ before the first step.
    """

    log_average: Tensor

    def __init__(
        self,
        x_elements: int,
        z_elements: int,
        *,
        generator: torch.Generator,
        hidden: int = 128,
        bounded: bool = False,
        rate: float = 0.01,
    ) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise InputError("rate", rate, "a number in (0, 1]")
        self.x_elements, self.z_elements = x_elements, z_elements
        self.bounded, self.rate = bounded, rate
        self.network = perceptron(x_elements + z_elements, hidden, 1, generator=generator)
        self.register_buffer("log_average", torch.tensor(-math.inf))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """T of each pair.

        Args:
            x: (N, ...) of ``x_elements`` each.
            z: (N, ...) of ``z_elements`` each.

        Returns:
            (N,); in (0, 1) if bounded.

        Raises:
            InputError: The two differ in N, or rows of another size.
        """
        x, z = paired_rows("mine", x, z, least=1)
        if (x.shape[1], z.shape[1]) != (self.x_elements, self.z_elements):
            sizes = f"({self.x_elements}, {self.z_elements})"
            raise InputError("mine (elements of x, elements of z)", (x.shape[1], z.shape[1]), sizes)
        t: Tensor = self.network(torch.cat([x.to(self.log_average), z.to(self.log_average)], 1)).squeeze(1)
        return t.sigmoid() if self.bounded else t

    def bound(self, x: Tensor, z: Tensor, *, generator: torch.Generator, shuffles: int = 1) -> Tensor:
        """The Donsker–Varadhan bound on a batch, in nats; differentiable in x, z and the weights.

        An honest bound, up to sampling error, only on pairs that T was not trained on. It cannot exceed the largest T
        difference; to show I nats it takes about exp(I) pairs.

        Args:
            x: (N, ...), N ≥ 2.
            z: (N, ...).
            generator: Shuffles.
            shuffles: Times that z is shuffled; more make the second term surer.
        """
        joint, shuffled = self._both(x, z, generator, shuffles)
        return joint.mean() - _log_mean_exp(shuffled)

    @torch.no_grad()
    def estimate(self, x: Tensor, z: Tensor, *, generator: torch.Generator, shuffles: int = 1) -> Estimate:
        """The same bound with its standard error, from how much each pair moves it (its influence, to first order).

        Where the bound comes near log N the second term hangs on a few pairs, and the error is larger than it says.
        With few shuffles it is smaller.
        """
        x, z = paired_rows("mine", x, z)
        orders = self._orders(z, generator, shuffles)
        joint, shuffled = self(x, z), torch.stack([self(x, z[order]) for order in orders])
        log_mean = _log_mean_exp(shuffled.flatten())
        shares = (shuffled - log_mean).exp()
        # A pair stands in the second term twice: with its x, and where its z was put.
        moved = shares.mean(0)
        for order, share in zip(orders, shares, strict=True):
            moved.index_add_(0, order, share, alpha=1 / shuffles)
        return Estimate(float(joint.mean() - log_mean), mean_of((joint - moved).double()).error)

    def loss(self, x: Tensor, z: Tensor, *, generator: torch.Generator) -> Tensor:
        """Minus the bound, with the corrected gradient; to be minimized by T.

        The gradient of log E[exp T] estimated on a batch is biased, as the batch's own mean stands in the denominator.
        There a moving average over batches stands instead (section 3.2 of the paper). The value is the plain one.
        Updates ``log_average``.
        """
        joint, shuffled = self._both(x, z, generator, 1)
        log_mean = _log_mean_exp(shuffled)
        with torch.no_grad():
            newest = log_mean + math.log(self.rate)
            kept = self.log_average + math.log1p(-self.rate) if self.rate < 1 else newest - math.inf
            started = self.log_average > -math.inf
            self.log_average.copy_(torch.where(started, torch.logaddexp(kept, newest), log_mean))
        # exp(log_mean − log_average) is below 1/rate, so nothing overflows.
        corrected = (log_mean - self.log_average).exp()
        return log_mean.detach() - joint.mean() + corrected - corrected.detach()

    def _both(self, x: Tensor, z: Tensor, generator: torch.Generator, shuffles: int) -> tuple[Tensor, Tensor]:
        x, z = paired_rows("mine", x, z)
        shuffled = [self(x, z[order]) for order in self._orders(z, generator, shuffles)]
        return self(x, z), torch.cat(shuffled)

    @staticmethod
    def _orders(z: Tensor, generator: torch.Generator, shuffles: int) -> list[Tensor]:
        return [derangement(len(z), generator=generator, device=z.device) for _ in range(shuffles)]


def estimate_mutual_information(
    x: Tensor,
    z: Tensor,
    *,
    generator: torch.Generator,
    fitting: Fitting = _DEFAULT_FITTING,
    hidden: int = 128,
    bounded: bool = False,
) -> Estimate:
    """A lower bound on I(x; z) in nats: MINE trained on some of the pairs and evaluated on others.

    The pairs that train T, those that choose its best state, and those that the answer comes from are disjoint, so an
    overfitted T shows as a low answer, never as a high one. Near independence it may be a little below 0. Beyond
    log(number of held-out pairs) it is not to be trusted.

    Args:
        x: (N, ...).
        z: (N, ...); each independent of the other rows.
        generator: Draws weights, batches and shuffles; the answer depends on nothing else.
        fitting: How long and on how much.
        hidden: Units in each of T's two hidden layers.
        bounded: See :class:`Mine`.

    Returns:
        The bound and its standard error over the held-out pairs.

    Raises:
        InputError: The two differ in N, there are too few pairs to hold any out, or an element is NaN or infinite.
    """
    x, z = paired_rows("estimate_mutual_information", x, z)
    require_finite(x=x, z=z)
    mine = Mine(x.shape[1], z.shape[1], generator=generator, hidden=hidden, bounded=bounded).to(x.device)
    return fit_and_score(
        mine,
        x,
        z,
        loss=lambda a, b: mine.loss(a, b, generator=generator),
        validate=lambda a, b: -mine.bound(a, b, generator=generator, shuffles=_VALIDATION_SHUFFLES),
        score=lambda a, b: mine.estimate(a, b, generator=generator, shuffles=_HELD_OUT_SHUFFLES),
        fitting=fitting,
        generator=generator,
    )


def _log_mean_exp(t: Tensor) -> Tensor:
    return torch.logsumexp(t, 0) - math.log(len(t))
