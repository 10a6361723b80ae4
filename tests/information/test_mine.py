from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information import Fitting, Mine, estimate_mutual_information
from sfumato.information.networks import perceptron
from sfumato.information.rows import derangement
from sfumato.storage import load_state, save_state

QUICK = Fitting(steps=40, batch=32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


class Product(nn.Module):
    """T(x, z) = c·x·z for one element each: known by hand."""

    def __init__(self, c: float = 1.0) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.c * pairs.prod(1, keepdim=True)


def by_hand(c: float = 1.0, **arguments: float) -> Mine:
    mine = Mine(1, 1, generator=seeded(), **arguments)
    mine.network = Product(c)
    return mine


# Shuffles


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_a_derangement_moves_every_row(n: int) -> None:
    for seed in range(20):
        order = derangement(n, generator=seeded(seed), device=torch.device("cpu"))
        assert sorted(order.tolist()) == list(range(n))
        assert not (order == torch.arange(n)).any()


def test_derangements_pair_a_row_with_every_other_alike() -> None:
    draws = [derangement(4, generator=g, device=torch.device("cpu")) for g in [seeded()] for _ in range(3000)]
    shares = torch.stack(draws).eq(torch.arange(4).view(4, 1, 1)).double().mean(1)  # (to, from)
    torch.testing.assert_close(shares, (1 - torch.eye(4).double()) / 3, atol=0.04, rtol=0)


# The bound


def test_bound_against_twin() -> None:
    x, z = normal(6, 1), normal(6, 1, seed=1)
    order = derangement(6, generator=seeded(5), device=x.device).tolist()
    joint = sum(0.7 * float(x[i] * z[i]) for i in range(6)) / 6
    shuffled = sum(math.exp(0.7 * float(x[i] * z[order[i]])) for i in range(6)) / 6
    found = by_hand(0.7).bound(x, z, generator=seeded(5))
    assert float(found.detach()) == pytest.approx(joint - math.log(shuffled), abs=1e-6)


def test_more_shuffles_are_surer() -> None:
    x, z = normal(20, 1), normal(20, 1, seed=1)
    mine = by_hand()
    spread = {
        shuffles: torch.stack([mine.bound(x, z, generator=seeded(s), shuffles=shuffles) for s in range(30)]).std()
        for shuffles in (1, 16)
    }
    assert spread[16] < 0.5 * spread[1]
    pairs = torch.stack([x[i] * z[j] for i in range(20) for j in range(20) if i != j])
    exact = float((x * z).mean() - pairs.exp().mean().log())
    assert float(mine.bound(x, z, generator=seeded(), shuffles=500).detach()) == pytest.approx(exact, abs=0.02)


def test_large_statistics_do_not_overflow() -> None:
    x, z = normal(50, 1), normal(50, 1, seed=1)
    mine = by_hand(1e6)
    assert mine.bound(x, z, generator=seeded()).isfinite()
    loss = mine.loss(x, z, generator=seeded())
    loss.backward()
    assert loss.isfinite()
    assert mine.network.c.grad.isfinite()


def test_constant_statistics_show_nothing() -> None:
    x, z = normal(50, 1), normal(50, 1, seed=1)
    assert float(by_hand(0.0).bound(x, z, generator=seeded()).detach()) == pytest.approx(0)


# The loss


def test_first_loss_is_minus_the_bound_in_value_and_gradient() -> None:
    x, z = normal(30, 1), normal(30, 1, seed=1)
    first, second = by_hand(0.5), by_hand(0.5)
    loss = first.loss(x, z, generator=seeded(3))
    bound = second.bound(x, z, generator=seeded(3))
    assert float(loss.detach()) == pytest.approx(-float(bound.detach()), abs=1e-6)
    loss.backward(), (-bound).backward()
    torch.testing.assert_close(first.network.c.grad, second.network.c.grad)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_moving_average_stands_in_the_denominator(rate: float) -> None:
    mine, c = by_hand(0.5, rate=rate), 0.5
    average = None
    for step in range(4):
        x, z = normal(30, 1, seed=step), normal(30, 1, seed=100 + step)
        order = derangement(30, generator=seeded(step), device=x.device)
        products = (x * z[order]).squeeze(1)
        mean = float((c * products).exp().mean())
        average = mean if average is None else (1 - rate) * average + rate * mean
        expected = float((products * (c * products).exp()).mean()) / average - float((x * z).mean())
        mine.zero_grad()
        loss = mine.loss(x, z, generator=seeded(step))
        loss.backward()
        assert float(mine.log_average.exp()) == pytest.approx(average, rel=1e-5)
        assert float(mine.network.c.grad) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert float(loss.detach()) == pytest.approx(math.log(mean) - c * float((x * z).mean()), abs=1e-5)


@pytest.mark.slow
def test_correction_removes_the_gradient_s_bias() -> None:
    # With x, z ~ N(0, 1) independent and T = c·x·z: E exp T = (1 − c²)^−½, gradient of its logarithm c/(1 − c²).
    c, exact = 0.5, 0.5 / 0.75
    biases = {}
    for rate in (0.002, 1.0):
        mine, gradients = by_hand(c, rate=rate), []
        generator = seeded(1)
        for _ in range(1500):
            x, z = torch.randn(2, 4, 1, generator=generator)
            mine.zero_grad()
            mine.loss(x, z, generator=generator).backward()
            gradients.append(float(mine.network.c.grad) + float((x * z).mean()))
        biases[rate] = abs(sum(gradients[300:]) / len(gradients[300:]) - exact)
    assert biases[1.0] > 0.15
    assert biases[0.002] < 0.5 * biases[1.0]


def test_state_round_trip(tmp_path) -> None:
    x, z = normal(16, 3), normal(16, 2, seed=1)
    mine, other = Mine(3, 2, generator=seeded(), hidden=8), Mine(3, 2, generator=seeded(9), hidden=8)
    mine.loss(x, z, generator=seeded())
    save_state(tmp_path / "mine", mine.state_dict())
    other.load_state_dict(load_state(tmp_path / "mine"))
    values = [float(each.loss(x, z, generator=seeded(4)).detach()) for each in (mine, other)]
    assert values[0] == values[1]
    assert torch.equal(mine.log_average, other.log_average)
    assert "log_average" in mine.state_dict()


def test_average_keeps_no_graph() -> None:
    x, z = normal(16, 3), normal(16, 2, seed=1)
    mine = Mine(3, 2, generator=seeded(), hidden=8)
    for _ in range(2):
        mine.loss(x, z, generator=seeded()).backward()
    assert not mine.log_average.requires_grad


# The network


def test_bounded_stays_in_the_unit_interval() -> None:
    x, z = 1000 * normal(16, 3), 1000 * normal(16, 2, seed=1)
    mine = Mine(3, 2, generator=seeded(), bounded=True)
    assert (mine(x, z) >= 0).all()
    assert (mine(x, z) <= 1).all()
    assert float(mine.bound(x, z, generator=seeded()).detach()) <= 1
    assert Mine(3, 2, generator=seeded())(x, z).abs().max() > 1


def test_images_and_features_are_flattened_and_gradients_reach_them() -> None:
    x, z = torch.rand(6, 3, 4, 4, generator=seeded()).double(), normal(6, 8, 2, 2).requires_grad_()
    mine = Mine(48, 32, generator=seeded(), hidden=16)
    assert mine(x, z).shape == (6,)
    torch.testing.assert_close(mine(x, z), mine(x.flatten(1), z.flatten(1)))
    mine.bound(x, z, generator=seeded()).backward()
    assert z.grad.abs().sum() > 0


def test_weights_come_from_the_generator() -> None:
    before = torch.get_rng_state()
    first = Mine(3, 2, generator=seeded(1), hidden=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = Mine(3, 2, generator=seeded(1), hidden=7), Mine(3, 2, generator=seeded(2), hidden=7)
    assert all(torch.equal(value, first[name]) for name, value in again.state_dict().items())
    assert not torch.equal(other.network[0].weight, first["network.0.weight"])


def test_perceptron_s_shape_and_scale() -> None:
    network = perceptron(400, 300, 5, generator=seeded())
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(300, 400), (300, 300), (5, 300)]
    assert float(layers[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert all(not layer.bias.any() for layer in layers)
    assert isinstance(network[-1], nn.Linear)


# The estimate


def test_only_the_generator_decides_and_nothing_is_touched() -> None:
    x, z = normal(80, 2).requires_grad_(), normal(80, 3, seed=1)
    kept = x.detach().clone()
    before = torch.get_rng_state()
    first = estimate_mutual_information(x, z, generator=seeded(1), fitting=QUICK, hidden=8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert estimate_mutual_information(x, z, generator=seeded(1), fitting=QUICK, hidden=8) == first
    assert estimate_mutual_information(x, z, generator=seeded(2), fitting=QUICK, hidden=8) != first
    assert estimate_mutual_information(x, z, generator=seeded(1), fitting=QUICK, hidden=9) != first
    assert x.grad is None
    assert torch.equal(x.detach(), kept)


def test_inside_no_grad() -> None:
    x, z = normal(80, 2), normal(80, 3, seed=1)
    first = estimate_mutual_information(x, z, generator=seeded(1), fitting=QUICK, hidden=8)
    with torch.no_grad():
        assert estimate_mutual_information(x, z, generator=seeded(1), fitting=QUICK, hidden=8) == first


def test_units_and_constant_elements_do_not_matter() -> None:
    x = normal(300, 2)
    z = x + 0.3 * normal(300, 2, seed=1)
    first = estimate_mutual_information(x, z, generator=seeded(1), fitting=QUICK).value
    moved = torch.cat([1000 * x + 5, torch.full((300, 1), 7.0)], 1)[:, :2]
    again = estimate_mutual_information(moved, z / 100, generator=seeded(1), fitting=QUICK).value
    assert again == pytest.approx(first, abs=0.02)
    with_constant = torch.cat([x, torch.full((300, 1), 7.0)], 1)
    assert math.isfinite(estimate_mutual_information(with_constant, z, generator=seeded(1), fitting=QUICK).value)


@pytest.mark.slow
def test_memorized_noise_is_not_taken_for_information() -> None:
    # Few independent pairs in many dimensions: T tells the training pairs apart perfectly.
    x, z = normal(200, 30), normal(200, 30, seed=1)
    found = estimate_mutual_information(x, z, generator=seeded(2), fitting=Fitting(steps=400))
    assert found.value < 0.1


def test_bounded_estimate_is_below_one_where_there_is_more() -> None:
    x = normal(2000, 2)
    found = estimate_mutual_information(
        x, x, generator=seeded(), fitting=Fitting(steps=150, learning_rate=3e-3), bounded=True
    )
    assert 0.3 < found.value < 1


@pytest.mark.parametrize("row", [0, 1])
def test_a_pair_moves_the_second_term_by_its_x_and_by_its_z(row: int) -> None:
    """T of one of the two alone: the influence of a pair is T − exp T/E exp T, whatever the other is."""

    class One(nn.Module):
        def forward(self, pairs: Tensor) -> Tensor:
            return pairs[:, row : row + 1]

    mine = by_hand()
    mine.network = One()
    x, z = normal(500, 1), normal(500, 1, seed=1)
    t = (x, z)[row].double().squeeze(1)
    influence = t - t.exp() / t.exp().mean()
    found = mine.estimate(x, z, generator=seeded(2), shuffles=400)
    assert found.error == pytest.approx(float(influence.std()) / 500**0.5, rel=0.05)


@pytest.mark.parametrize(("shuffles", "low", "high"), [(1, 1.0, 2.5), (16, 0.9, 1.25)])
def test_the_standard_error_is_the_spread_over_samples(shuffles: int, low: float, high: float) -> None:
    """With many shuffles; with one, whose chance it takes for the pairs', it says too much."""
    mine, found = Mine(2, 2, generator=seeded(1), hidden=16), []
    for seed in range(300):
        x = 0.5 * normal(200, 2, seed=2 * seed)
        z = 0.6 * x + 0.25 * normal(200, 2, seed=2 * seed + 1)
        found.append(mine.estimate(x, z, generator=seeded(seed), shuffles=shuffles))
        bound = mine.bound(x, z, generator=seeded(seed), shuffles=shuffles)
        assert found[-1].value == pytest.approx(float(bound.detach()), abs=1e-5)
    values, errors = (torch.tensor([getattr(one, name) for one in found]) for name in ("value", "error"))
    assert low < float(errors.square().mean().sqrt() / values.std()) < high


# What is refused


def test_arguments_out_of_range() -> None:
    for rate in (0.0, 1.1, math.nan):
        with pytest.raises(InputError, match="rate"):
            Mine(2, 2, generator=seeded(), rate=rate)
    with pytest.raises(InputError, match="hidden"):
        Mine(2, 2, generator=seeded(), hidden=0)
    mine = Mine(2, 3, generator=seeded())
    with pytest.raises(InputError, match=r"accepted: \(2, 3\)"):
        mine(normal(4, 2), normal(4, 2))
    with pytest.raises(InputError, match="the same N"):
        mine(normal(4, 2), normal(5, 3))
    with pytest.raises(InputError, match="the same N of 2 or more"):
        mine.bound(normal(1, 2), normal(1, 3), generator=seeded())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("steps", 0), ("batch", 1), ("learning_rate", 0.0), ("learning_rate", math.inf)),
        *(("held_out", 0.0), ("held_out", 1.0), ("held_out", math.nan)),
    ],
)
def test_fitting_out_of_range(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        Fitting(**{field: value})


def test_too_few_pairs() -> None:
    with pytest.raises(InputError, match="number of pairs") as caught:
        estimate_mutual_information(normal(5, 2), normal(5, 2), generator=seeded(), fitting=QUICK)
    assert caught.value.value == 5
    found = estimate_mutual_information(normal(8, 2), normal(8, 2), generator=seeded(), fitting=QUICK)
    assert math.isfinite(found.value)
