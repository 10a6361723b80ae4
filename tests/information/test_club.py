from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information import Club, Estimate, Fitting, estimate_upper_bound
from sfumato.information.club import Direction
from sfumato.information.fitting import fit_and_score
from sfumato.storage import load_state, save_state

QUICK = Fitting(steps=40, batch=32)
DIRECTIONS: tuple[Direction, ...] = ("z_given_x", "x_given_z")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


class Affine(nn.Module):
    """Mean ρ·x and a constant log-variance: q of correlated Gaussians, by hand."""

    def __init__(self, rho: float, variance: float) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.tensor(rho))
        # The module passes the log-variance through a soft limit of ±10.
        self.raw = 10 * math.atanh(math.log(variance) / 10)

    def forward(self, given: Tensor) -> Tensor:
        return torch.cat([self.rho * given, torch.full_like(given, self.raw)], 1)


def slow_bound(club: Club, x: Tensor, z: Tensor) -> float:
    """Pair by pair, with torch's own normal distribution."""
    given, target = (x, z) if club.direction == "z_given_x" else (z, x)
    mean, log_variance = club(given.flatten(1))
    q = [torch.distributions.Normal(m, (v / 2).exp()) for m, v in zip(mean, log_variance)]
    rows = target.flatten(1)
    n = len(rows)
    positive = sum(q[i].log_prob(rows[i]).sum() for i in range(n)) / n
    negative = sum(q[i].log_prob(rows[j]).sum() for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return float((positive - negative).detach())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bound_against_twin(direction: str) -> None:
    x, z = normal(7, 2, 2), normal(7, 3, seed=1)
    club = Club(4, 3, generator=seeded(), hidden=8, direction=direction)
    assert float(club.bound(x, z).detach()) == pytest.approx(slow_bound(club, x, z), rel=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sampled_bound_is_the_full_one_on_average(direction: str) -> None:
    x, z = normal(9, 2), normal(9, 3, seed=1)
    club = Club(2, 3, generator=seeded(), hidden=8, direction=direction)
    generator = seeded(2)
    with torch.no_grad():
        draws = torch.stack([club.sampled_bound(x, z, generator=generator) for _ in range(800)])
    full = float(club.bound(x, z).detach())
    assert float(draws.mean()) == pytest.approx(full, abs=4 * float(draws.std()) / math.sqrt(800))
    assert float(draws.std()) > 0.01


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_log_likelihood_and_learning_loss_against_torch(direction: str) -> None:
    x, z = normal(7, 4), normal(7, 3, seed=1)
    club = Club(4, 3, generator=seeded(), hidden=8, direction=direction)
    given, target = (x, z) if direction == "z_given_x" else (z, x)
    mean, log_variance = club(given)
    expected = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(target).sum(1)
    torch.testing.assert_close(club.log_likelihood(x, z), expected)
    torch.testing.assert_close(club.learning_loss(x, z), -expected.mean())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_true_conditional_of_gaussians_gives_the_closed_form(direction: str) -> None:
    # With q = p: E[(z − ρx)²] is 1 − ρ² for pairs, 1 + ρ² for independent ones.
    d, rho = 3, 0.6
    x = normal(40_000, d)
    z = rho * x + math.sqrt(1 - rho**2) * normal(40_000, d, seed=1)
    club = Club(d, d, generator=seeded(), direction=direction)
    club.network = Affine(rho, 1 - rho**2)
    bound, information = float(club.bound(x, z).detach()), -d / 2 * math.log(1 - rho**2)
    assert bound == pytest.approx(d * rho**2 / (1 - rho**2), rel=0.03)
    assert bound > information
    entropy = d / 2 * math.log(2 * math.pi * math.e * (1 - rho**2))
    assert float(club.learning_loss(x, z).detach()) == pytest.approx(entropy, rel=0.02)


def test_blind_q_bounds_nothing() -> None:
    x = normal(500, 2)
    club = Club(2, 2, generator=seeded())
    club.network = Affine(0.0, 1.0)
    assert float(club.bound(x, x).detach()) == pytest.approx(0, abs=1e-6)  # far below I: why q has to be near p


def test_what_q_is_given_stays_in_place() -> None:
    x, z = normal(9, 2), normal(9, 3, seed=1)
    forward = Club(2, 3, generator=seeded(), hidden=8)
    backward = Club(3, 2, generator=seeded(), hidden=8, direction="x_given_z")
    values = [
        forward.sampled_bound(x, z, generator=seeded(4)),
        backward.sampled_bound(z, x, generator=seeded(4)),
    ]
    assert torch.equal(*values)
    assert torch.equal(forward.bound(x, z), backward.bound(z, x))


def test_log_variance_is_bounded() -> None:
    club = Club(2, 3, generator=seeded())
    _, log_variance = club(1e6 * normal(50, 2))
    assert log_variance.abs().max() <= 10
    assert log_variance.abs().max() > 9
    assert club.bound(1e6 * normal(50, 2), normal(50, 3)).isfinite()


def test_gradients_reach_features_and_weights() -> None:
    x, z = torch.rand(6, 3, 4, 4, generator=seeded()).double(), normal(6, 8, 2, 2).requires_grad_()
    for direction in DIRECTIONS:
        club = Club(48, 32, generator=seeded(), hidden=16, direction=direction)
        for value in (club.bound(x, z), club.sampled_bound(x, z, generator=seeded()), club.learning_loss(x, z)):
            z.grad = None
            club.zero_grad()
            value.backward()
            assert z.grad.abs().sum() > 0
            assert club.network[0].weight.grad.abs().sum() > 0


def test_learning_brings_q_near_p() -> None:
    x = normal(2000, 1)
    z = 0.8 * x + 0.6 * normal(2000, 1, seed=1)
    club = Club(1, 1, generator=seeded(), hidden=16)
    optimizer = torch.optim.Adam(club.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        club.learning_loss(x, z).backward()
        optimizer.step()
    mean, log_variance = club(torch.tensor([[-1.0], [0.0], [1.0]]))
    torch.testing.assert_close(mean.detach().squeeze(1), torch.tensor([-0.8, 0.0, 0.8]), atol=0.08, rtol=0)
    torch.testing.assert_close(log_variance.detach().exp().squeeze(1), torch.full((3,), 0.36), atol=0.06, rtol=0)


def test_state_round_trip(tmp_path) -> None:
    x, z = normal(16, 3), normal(16, 2, seed=1)
    club, other = Club(3, 2, generator=seeded(), hidden=8), Club(3, 2, generator=seeded(9), hidden=8)
    save_state(tmp_path / "club", club.state_dict())
    other.load_state_dict(load_state(tmp_path / "club"))
    assert torch.equal(club.bound(x, z), other.bound(x, z))


def test_only_the_generator_decides() -> None:
    x, z = normal(80, 2), normal(80, 3, seed=1)
    before = torch.get_rng_state()
    first = estimate_upper_bound(x, z, generator=seeded(1), fitting=QUICK, hidden=8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert estimate_upper_bound(x, z, generator=seeded(1), fitting=QUICK, hidden=8) == first
    assert estimate_upper_bound(x, z, generator=seeded(2), fitting=QUICK, hidden=8) != first
    assert estimate_upper_bound(x, z, generator=seeded(1), fitting=QUICK, hidden=8, direction="x_given_z") != first


# Fitting


class Recorder(nn.Module):
    """A single weight that counts its steps, and notes which rows came for what."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.seen: dict[str, list[Tensor]] = {"loss": [], "validate": [], "score": []}

    def at(self, part: str, x: Tensor, z: Tensor) -> Tensor:
        self.seen[part].append(x[:, 0])
        assert torch.equal(x, z)
        # Validation is best where the weight is near 0.05: early, as training pulls it towards 1.
        return (self.weight - 1).square() if part == "loss" else (self.weight - 0.05).square()


def test_parts_are_disjoint_and_the_best_state_wins() -> None:
    recorder, x = Recorder(), torch.arange(40.0).unsqueeze(1)
    score = fit_and_score(
        recorder,
        x,
        x,
        loss=lambda a, b: recorder.at("loss", a, b),
        validate=lambda a, b: recorder.at("validate", a, b),
        score=lambda a, b: Estimate(float(recorder.at("score", a, b).detach())),
        fitting=Fitting(steps=100, batch=8, learning_rate=0.01, held_out=0.2),
        generator=seeded(),
    )
    parts = {name: {round(float(v), 4) for v in torch.cat(rows)} for name, rows in recorder.seen.items()}
    assert [len(parts[name]) for name in ("loss", "validate", "score")] == [26, 6, 8]
    assert len(set.union(*parts.values())) == 40
    assert [len(recorder.seen[name]) for name in ("loss", "validate", "score")] == [100, 20, 1]
    assert all(len(rows) == 8 for rows in recorder.seen["loss"])
    assert abs(float(recorder.weight.detach()) - 0.05) < 0.01
    assert score.value == pytest.approx((float(recorder.weight.detach()) - 0.05) ** 2)
    standardized = torch.tensor(sorted(parts["loss"]))
    assert float(standardized.mean()) == pytest.approx(0, abs=1e-3)
    assert float(standardized.std(correction=0)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_standard_error_is_the_spread_over_samples(direction: Direction) -> None:
    club = Club(3, 3, generator=seeded(1), direction=direction, hidden=8)
    found = []
    for seed in range(300):
        x = 0.3 * normal(200, 3, seed=2 * seed) * torch.tensor([1.0, 2.0, 0.5])
        z = 0.6 * x + 0.2 * normal(200, 3, seed=2 * seed + 1)
        found.append(club.estimate(x, z))
        assert found[-1].value == pytest.approx(float(club.bound(x, z).detach()))
    values, errors = (torch.tensor([getattr(one, name) for one in found]) for name in ("value", "error"))
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.15)


def test_the_standard_error_of_features_far_from_zero() -> None:
    club = Club(2, 2, generator=seeded())
    club.network = Affine(1.0, 1e-4)  # type: ignore[assignment]
    x = 0.01 * normal(500, 2)
    z = x + 0.01 * normal(500, 2, seed=1)
    assert club.estimate(x + 100, z + 100).error == pytest.approx(club.estimate(x, z).error, rel=0.02)


# What is refused


def test_arguments_out_of_range() -> None:
    with pytest.raises(InputError, match="did you mean x_given_z"):
        Club(2, 2, generator=seeded(), direction="x_given_y")
    with pytest.raises(InputError, match="hidden"):
        Club(2, 2, generator=seeded(), hidden=0)
    club = Club(2, 3, generator=seeded())
    with pytest.raises(InputError, match=r"accepted: \(2, 3\)"):
        club.bound(normal(4, 3), normal(4, 2))
    for value in (
        lambda: club.bound(normal(1, 2), normal(1, 3)),
        lambda: club.sampled_bound(normal(1, 2), normal(1, 3), generator=seeded()),
    ):
        with pytest.raises(InputError, match="the same N of 2 or more"):
            value()
    with pytest.raises(InputError, match="number of pairs"):
        estimate_upper_bound(normal(5, 2), normal(5, 2), generator=seeded(), fitting=QUICK)
