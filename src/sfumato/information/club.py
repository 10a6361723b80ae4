"""CLUB: an upper bound on mutual information, learned."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information.checks import require_choice, require_finite
from sfumato.information.estimate import Estimate, mean_of
from sfumato.information.fitting import Fitting, fit_and_score
from sfumato.information.networks import perceptron
from sfumato.information.rows import derangement, paired_rows

Direction = Literal["z_given_x", "x_given_z"]

_LARGEST_LOG_VARIANCE = 10.0
_DEFAULT_FITTING = Fitting()


class Club(nn.Module):
    """Contrastive log-ratio upper bound (Cheng et al. 2020) with a Gaussian q whose mean and log-variance are learned.

    I(x; z) ≤ E_joint[log q(z|x)] − E_independent[log q(z|x)] where q is the true conditional p(z|x), and also where
    q(z|x)·p(x) is nearer, in KL, to the joint distribution than to the product p(x)·p(z) (theorem 3.2 of the paper).
    With a poor q it is no bound: train it to convergence, and read it beside :meth:`learning_loss` on held-out pairs.

    Args:
        x_elements: Elements of one x.
        z_elements: Elements of one z.
        generator: Draws the weights.
        direction: Which conditional q models: ``z_given_x``, or ``x_given_z``, what an attacker would like to have
            (Duan et al. 2023, InfoSCISSORS).
        hidden: Units in each of the two hidden layers.
    """

    def __init__(
        self,
        x_elements: int,
        z_elements: int,
        *,
        generator: torch.Generator,
        direction: Direction = "z_given_x",
        hidden: int = 128,
    ) -> None:
        super().__init__()
        require_choice("direction", direction, get_args(Direction))
        self.x_elements, self.z_elements, self.direction = x_elements, z_elements, direction
        given, target = (x_elements, z_elements) if direction == "z_given_x" else (z_elements, x_elements)
        self.network = perceptron(given, hidden, 2 * target, generator=generator)

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q for each row of what it is given.

        Args:
            given: (N, D) x, or z, by ``direction``.

        Returns:
            Two of (N, D of the other); the log-variance stays within ±10.
        """
        mean, raw = self.network(given).chunk(2, 1)
        return mean, _LARGEST_LOG_VARIANCE * torch.tanh(raw / _LARGEST_LOG_VARIANCE)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Logarithm of q for each pair, in nats, summed over the elements: (N,)."""
        given, target = self._roles(x, z)
        mean, log_variance = self(given)
        squares = (target - mean).square() * torch.exp(-log_variance)
        nats: Tensor = 0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(1)
        return -nats

    def learning_loss(self, x: Tensor, z: Tensor) -> Tensor:
        """Mean negative log-likelihood, to be minimized by q, in nats for each pair.

        On held-out pairs it is never below the conditional entropy H(z|x) (or H(x|z)), up to sampling error, and equal
        to it where q is the true conditional.
        """
        return -self.log_likelihood(x, z).mean()

    def bound(self, x: Tensor, z: Tensor) -> Tensor:
        """The bound on a batch, in nats, each row paired with every other; differentiable in x, z and the weights.

        Negative pairs are those with i ≠ j: the paper's sum over all j counts pairs of the joint distribution among
        the independent ones, which makes a bound on a batch of N smaller by the factor 1 − 1/N. Time and memory grow
        with N, not with N².

        Args:
            x: (N, ...), N ≥ 2.
            z: (N, ...).
        """
        given, target = self._roles(x, z, least=2)
        mean, log_variance = self(given)
        # The mean over j of (target_j − mean)², and less the pair's own: log-variance and constant cancel.
        center = target.mean(0)
        everyone = (center - mean).square() + (target - center).square().mean(0)
        excess = (everyone - (target - mean).square()) * torch.exp(-log_variance)
        n = len(target)
        nats: Tensor = 0.5 * excess.sum(1).mean()
        return nats * (n / (n - 1))

    @torch.no_grad()
    def estimate(self, x: Tensor, z: Tensor) -> Estimate:
        """The same bound with its standard error, from how much each pair moves it (its influence, to first order)."""
        given, target = self._roles(x, z, least=2)
        mean, log_variance = self(given)
        precision, center = torch.exp(-log_variance), target.mean(0)
        target, mean = target - center, mean - center  # or squares of far-off numbers would cancel
        own = ((target - mean).square() * precision).sum(1)
        # A pair stands in the second term twice: what q tells of all others, and what it tells the others of it.
        telling = ((mean.square() + target.square().mean(0)) * precision).sum(1)
        told = target.square() @ precision.mean(0) - 2 * target @ (precision * mean).mean(0)
        return Estimate(float(self.bound(x, z)), mean_of((0.5 * (telling + told - own)).double()).error)

    def sampled_bound(self, x: Tensor, z: Tensor, *, generator: torch.Generator) -> Tensor:
        """Like :meth:`bound` with one negative for each pair, a random other row; the same on average (vCLUB-S).

        Args:
            x: (N, ...), N ≥ 2.
            z: (N, ...).
            generator: Shuffles.
        """
        x, z = paired_rows("club", x, z)
        order = derangement(len(z), generator=generator, device=z.device)
        # What q is given stays in place, so that the normalizing terms of the two cancel.
        negative = (x, z[order]) if self.direction == "z_given_x" else (x[order], z)
        return (self.log_likelihood(x, z) - self.log_likelihood(*negative)).mean()

    def _roles(self, x: Tensor, z: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
        """What q is given and what it tells, as rows."""
        x, z = paired_rows("club", x, z, least=least)
        if (x.shape[1], z.shape[1]) != (self.x_elements, self.z_elements):
            sizes = f"({self.x_elements}, {self.z_elements})"
            raise InputError("club (elements of x, elements of z)", (x.shape[1], z.shape[1]), sizes)
        weight = next(self.parameters())
        x, z = x.to(weight), z.to(weight)
        return (x, z) if self.direction == "z_given_x" else (z, x)


def estimate_upper_bound(
    x: Tensor,
    z: Tensor,
    *,
    generator: torch.Generator,
    fitting: Fitting = _DEFAULT_FITTING,
    direction: Direction = "z_given_x",
    hidden: int = 128,
) -> Estimate:
    """An upper bound on I(x; z) in nats, if a Gaussian q comes near the true conditional: CLUB, trained and held out.

    q learns on some of the pairs; others choose its best state; the answer comes from the rest. Not a guarantee: see
    :class:`Club`.

    Args:
        x: (N, ...).
        z: (N, ...); each independent of the other rows.
        generator: Draws weights and batches; the answer depends on nothing else.
        fitting: How long and on how much.
        direction: Which conditional q models.
        hidden: Units in each of q's two hidden layers.

    Returns:
        The bound and its standard error over the held-out pairs.

    Raises:
        InputError: The two differ in N, there are too few pairs to hold any out, an element is NaN or infinite, or
            there is no such direction.
    """
    x, z = paired_rows("estimate_upper_bound", x, z)
    require_finite(x=x, z=z)
    club = Club(x.shape[1], z.shape[1], generator=generator, direction=direction, hidden=hidden).to(x.device)
    return fit_and_score(
        club,
        x,
        z,
        loss=club.learning_loss,
        validate=club.learning_loss,
        score=club.estimate,
        fitting=fitting,
        generator=generator,
    )
