"""rMLE: the optimum of its objective in closed form and by SciPy; starts, restarts, channels, selection."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from attack_toys import generator, identity_split, make_images, make_knowledge, make_split, runtime, target_of
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor, nn

from sfumato.attacks import Knowledge, Learned, RMLEAttack, make_target
from sfumato.attacks.feature import rmle
from sfumato.attacks.feature.matching import Matcher
from sfumato.attacks.feature.rmle import total_variation
from sfumato.audit.calibration import images_of, split_model_of
from sfumato.data import load
from sfumato.defenses.dropout import FeatureDropout
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import InputError, Interrupted
from sfumato.information.standard_beds import STANDARD_BEDS
from sfumato.models import Feature, SplitModel

VICTIMS = {"test": make_images(6, seed=12)}
OPTIMIZERS = ("sgd", "adam", "lbfgs")


def split_of(
    edge: nn.Module, shape: tuple[int, int, int], feature: tuple[int, ...], channel: nn.Module | None = None
) -> SplitModel:
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(feature), 2))
    made = SplitModel(edge, channel or nn.Identity(), cloud, image_shape=shape, feature=Feature(feature), cut="edge")
    return made.double()


def linear_split(shape: tuple[int, int, int], features: int, seed: int = 0) -> SplitModel:
    made = nn.Linear(math.prod(shape), features, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=generator(seed)) / math.prod(shape) ** 0.5)
    return split_of(nn.Sequential(nn.Flatten(), made), shape, (features,))


def learn(attack: RMLEAttack, split: SplitModel, mine: Knowledge, seed: int = 0) -> Learned:
    """Without the judging, which needs images of 11×11."""
    target = make_target(split, "white-box", generator=generator(7)).under(observations=attack.observations)
    return attack.run(target, mine, generator=generator(seed), runtime=runtime())


def own(shape: tuple[int, int, int]) -> Knowledge:
    return Knowledge(make_images(20, seed=3, shape=shape), make_images(5, seed=4, shape=shape), "auxiliary")


def energy_of(split: SplitModel, mine: Knowledge) -> float:
    with torch.no_grad():
        return float(split.edge(mine.train.images.double() / 255).square().mean())


class TestClosedForm:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_ridge(self, optimizer: Any) -> None:
        """A linear–Gaussian bed, no TV: mean (Wx − z)²/E + l2·mean x² has one minimum, here inside the box."""
        bed = STANDARD_BEDS["smooth"].build(0.05)
        split = split_model_of(bed).double()
        mine = Knowledge(*(images_of(bed, n, generator=generator(n)) for n in (50, 4)), "auxiliary")
        x, _ = bed.draw(5, generator=generator(1))
        z = bed.channel.send(x, generator=generator(2))
        attack = RMLEAttack(optimizer=optimizer, tv=0.0, l2=0.02, steps=1500, stages=1)
        found = learn(attack, split, mine).invert(z).double()
        weight, energy = bed.channel.weight, energy_of(split, mine)
        normal = weight.T @ weight / (len(weight) * energy) + 0.02 / 144 * torch.eye(144, dtype=torch.float64)
        exact = torch.linalg.solve(normal, weight.T @ z.flatten(1).T / (len(weight) * energy)).T.view_as(found)
        assert exact.min() > 0.01
        assert exact.max() < 0.99

        def objective(x: Tensor) -> Tensor:
            data = (x.flatten(1) @ weight.T - z.flatten(1)).square().mean(1) / energy
            return data + 0.02 * x.square().flatten(1).mean(1)

        torch.testing.assert_close(objective(found), objective(exact), rtol=1e-3, atol=0)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.02)

    @pytest.mark.slow
    @pytest.mark.parametrize("attack", [RMLEAttack(), RMLEAttack(tv=0.0, l2=0.02)], ids=["defaults", "ridge"])
    @pytest.mark.parametrize("bed", STANDARD_BEDS)
    def test_within_five_percent_of_the_optimum_on_every_bed(self, bed: str, attack: RMLEAttack) -> None:
        """At the default steps and stages. The objective is convex, so that SciPy's L-BFGS-B finds its minimum."""
        built = STANDARD_BEDS[bed].build(0.1)
        split = split_model_of(built).double()
        mine = Knowledge(*(images_of(built, n, generator=generator(n)) for n in (50, 16)), "auxiliary")
        x, _ = built.draw(5, generator=generator(1))
        z = built.channel.send(x, generator=generator(2))
        learned = learn(attack, split, mine)
        found, weight, energy = learned.invert(z).double(), built.channel.weight, energy_of(split, mine)

        def objective(x: Tensor, z: Tensor) -> Tensor:
            data = (x.flatten(1) @ weight.T - z.flatten(1)).square().mean(1) / energy
            return data + learned.figures["tv"] * total_variation(x) + attack.l2 * x.square().flatten(1).mean(1)

        def best(z: Tensor) -> float:
            def value_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
                leaf = torch.from_numpy(flat).view(1, *built.image_shape).requires_grad_()
                value = objective(leaf, z).sum()
                return float(value.detach()), torch.autograd.grad(value, leaf)[0].numpy().ravel()

            pixels = found[0].numel()
            options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-13, "gtol": 1e-10}
            start, bounds = np.full(pixels, 0.5), [(0.0, 1.0)] * pixels
            return float(
                scipy_minimize(value_and_slope, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun
            )

        reached = objective(found, z)
        least = torch.tensor([best(one.unsqueeze(0)) for one in z], dtype=torch.float64)
        assert (least > 1e-4).all(), "there is something to be near to"
        assert (reached >= 0.9999 * least).all(), "SciPy went to the end"
        assert (reached <= 1.05 * least).all(), (reached / least).tolist()

    @pytest.mark.slow
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_tv_and_box(self, optimizer: Any) -> None:
        """Three colors of 3×4, pixels that want to leave [0, 1]: SciPy's L-BFGS-B on the objective written anew."""
        shape, tv = (3, 3, 4), 0.05
        split, mine = linear_split(shape, 24), own(shape)
        x = 2 * torch.rand(3, *shape, generator=generator(5), dtype=torch.float64) - 0.5
        with torch.no_grad():
            z = split.edge(x)
        attack = RMLEAttack(optimizer=optimizer, tv=tv, steps=3000)
        found = learn(attack, split, mine).invert(z).double()
        weight, energy = split.edge[1].weight.detach().numpy(), energy_of(split, mine)
        for image, feature in zip(found.numpy(), z.numpy()):

            def objective(flat: np.ndarray, feature: np.ndarray = feature, corner: float = 1e-3) -> float:
                data = np.square(weight @ flat - feature).mean() / energy
                return data + tv * slow_total_variation(flat.reshape(shape), corner) / 36

            best = scipy_minimize(
                objective, np.full(36, 0.5), method="L-BFGS-B", bounds=[(0, 1)] * 36, options={"maxfun": 10**6}
            )
            at_border = int(((best.x < 1e-6) | (best.x > 1 - 1e-6)).sum())
            assert at_border >= 3
            reached = objective(image.ravel())
            assert reached == pytest.approx(best.fun, rel=5e-3)
            # The rounded corner changes no pixel's share by more than its radius.
            assert 0 <= objective(image.ravel(), corner=0.0) - reached <= tv * 1e-3


def slow_total_variation(x: np.ndarray, corner: float = 0.0) -> float:
    """Pixel by pixel, not divided by their number."""
    _, height, width = x.shape
    total = 0.0
    for i in range(height):
        for j in range(width):
            squares = 0.0
            for color in x:
                squares += (color[i, j + 1] - color[i, j]) ** 2 if j + 1 < width else 0.0
                squares += (color[i + 1, j] - color[i, j]) ** 2 if i + 1 < height else 0.0
            total += math.sqrt(squares + corner**2) - corner
    return total


class TestTotalVariation:
    def test_slow_twin(self) -> None:
        x = torch.rand(3, 2, 5, 4, generator=generator(0), dtype=torch.float64)
        expected = [slow_total_variation(image, 1e-3) / 40 for image in x.numpy()]
        torch.testing.assert_close(total_variation(x), torch.tensor(expected, dtype=torch.float64))

    def test_known(self) -> None:
        flat = torch.full((1, 3, 6, 8), 0.3, requires_grad=True)
        assert float(total_variation(flat).detach()) == 0
        (gradient,) = torch.autograd.grad(total_variation(flat).sum(), flat)
        assert (gradient == 0).all(), "no slope of 0/0"
        edge = torch.zeros(1, 3, 6, 8)
        edge[..., 4:] = 0.5
        # Six rows step by 0.5 in three colors at once.
        assert float(total_variation(edge)) == pytest.approx(6 * 0.5 * 3**0.5 / (3 * 6 * 8), rel=3e-3)


def test_weights_mean_the_same_for_every_scale_of_the_edge() -> None:
    shape = (1, 4, 4)
    split, scaled, mine = linear_split(shape, 12), linear_split(shape, 12), own(shape)
    with torch.no_grad():
        scaled.edge[1].weight.mul_(50)
        z = split.edge(torch.rand(4, *shape, generator=generator(2), dtype=torch.float64))
    attack = RMLEAttack(tv=0.1, l2=0.01, steps=100)
    found, other = learn(attack, split, mine).invert(z), learn(attack, scaled, mine).invert(50 * z)
    torch.testing.assert_close(found, other, rtol=0, atol=1e-5)


class TestStart:
    @pytest.mark.parametrize("start", ["mean", "zeros", "noise"])
    def test_each(self, start: Any) -> None:
        """One step of no length to speak of shows where it began."""
        mine = make_knowledge()
        learned = learn(RMLEAttack(start=start, steps=1, stages=1, lr=1e-12, tv=0.0), identity_split(), mine)
        z = torch.rand(40, 1, 16, 16, generator=generator(1))
        begun = learned.invert(z)
        if start == "noise":
            assert float(begun.mean()) == pytest.approx(0.5, abs=0.02)
            assert float(begun.std(0).mean()) == pytest.approx(12**-0.5, abs=0.02)
        else:
            image = (mine.train.images / 255).mean(0) if start == "mean" else torch.zeros(1, 16, 16)
            torch.testing.assert_close(begun, image.expand_as(begun), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("start", ["mean", "zeros", "noise"])
    def test_leads_to_the_same_where_there_is_one_minimum(self, start: Any) -> None:
        z = torch.rand(3, 1, 16, 16, generator=generator(1))
        found = learn(RMLEAttack(start=start, tv=0.0, steps=200), identity_split(), make_knowledge()).invert(z)
        torch.testing.assert_close(found, z, atol=0.01, rtol=0)


class Wave(nn.Module):
    """Has a minimum in every trough."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(9 * x) + x


class TestRestarts:
    def test_keep_the_best_objective_of_each_victim(self) -> None:
        shape, count = (1, 3, 3), 5
        split, mine = split_of(Wave(), shape, shape), own(shape)
        x = torch.rand(12, *shape, generator=generator(3), dtype=torch.float64)
        z = split.edge(x)
        attack = RMLEAttack(tv=0.0, start="noise", steps=100, stages=1)

        def objective(images: Tensor) -> Tensor:
            return (split.edge(images.double()) - z).square().flatten(1).mean(1)

        def search(attack: RMLEAttack) -> rmle._Search:
            target = make_target(split, "white-box", generator=generator(7))
            draws = generator(4)
            pieces = attack.pieces(target, mine, generator=draws, runtime=runtime())
            return rmle._Search(attack, Matcher(target, mine), draws, runtime(), pieces)

        one = search(attack)  # the same stream of starts, one run at a time
        runs = torch.stack([objective(one(z, 0.0).images) for _ in range(count)])
        best = objective(search(dataclasses.replace(attack, restarts=count))(z, 0.0).images)
        torch.testing.assert_close(best, runs.amin(0), rtol=1e-3, atol=1e-9)
        assert len(set(runs.argmin(0).tolist())) > 1, "no run is the best for all"
        assert (best < runs[0] - 1e-4).any()

    def test_first_start_is_the_one_asked_for(self) -> None:
        z = torch.rand(3, 1, 16, 16, generator=generator(1))
        arguments = {"tv": 0.0, "steps": 1, "stages": 1, "lr": 1e-12, "start": "zeros"}
        # Zeros fit a black picture better than noise does.
        found = learn(RMLEAttack(restarts=3, **arguments), identity_split(), make_knowledge()).invert(0 * z)
        assert float(found.max()) < 1e-6


class TestChannel:
    def test_noise_is_expected_to_be_none(self) -> None:
        z = torch.rand(4, 1, 16, 16, generator=generator(1))
        attack = RMLEAttack(tv=0.1, steps=40)
        quiet = learn(attack, identity_split(), make_knowledge()).invert(z)
        noisy = learn(attack, identity_split(AdditiveNoise(0.5, "gaussian")), make_knowledge()).invert(z)
        assert torch.equal(quiet, noisy)

    def test_dropout_is_expected_to_shrink(self) -> None:
        x = 0.2 + 0.6 * torch.rand(4, 1, 16, 16, generator=generator(1))
        attack = RMLEAttack(tv=0.0, steps=200)
        found = learn(attack, identity_split(FeatureDropout(0.3)), make_knowledge()).invert(0.7 * x)
        torch.testing.assert_close(found, x, atol=0.01, rtol=0)

    def test_own_images_are_sent_through_it_as_often_as_the_victims(self) -> None:
        split, mine = identity_split(AdditiveNoise(0.2, "gaussian")), make_knowledge()
        for count in (1, 9):
            target = target_of(split, "white-box").under(observations=count)
            matcher = Matcher(target, mine)
            assert float((matcher.sent - matcher.own).std()) == pytest.approx(0.2 / count**0.5, rel=0.05)
            assert target.queries == 0


def test_needs_no_queries() -> None:
    made = RMLEAttack(tv=0.1, steps=4, queries=0)(
        target_of(make_split(), "white-box"), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime()
    )
    assert made.queries == 0


class TestSelection:
    def test_of_the_weight_of_tv(self) -> None:
        split, mine = identity_split(AdditiveNoise(0.3, "gaussian")), smooth_knowledge()
        attack = RMLEAttack(steps=60, optimizer="lbfgs")
        chosen = learn(attack, split, mine).figures
        # The same noise, for all are sent first of all.
        errors = {
            tv: learn(dataclasses.replace(attack, tv=tv), split, mine).figures["mse_after"] for tv in rmle.WEIGHTS
        }
        best = min(errors, key=errors.__getitem__)
        assert chosen["tv"] == best
        assert 0 < best < max(rmle.WEIGHTS)
        assert chosen["mse_after"] == pytest.approx(errors[best], rel=1e-4)
        assert errors[best] < 0.5 * errors[0.0]

    def test_is_what_the_victims_are_met_with(self) -> None:
        split, mine = identity_split(AdditiveNoise(0.3, "gaussian")), smooth_knowledge()
        attack = RMLEAttack(steps=30)
        learned = learn(attack, split, mine)
        fixed = learn(dataclasses.replace(attack, tv=learned.figures["tv"]), split, mine)
        z = torch.rand(2, 1, 16, 16, generator=generator(1))
        assert torch.equal(learned.invert(z), fixed.invert(z))


def smooth_knowledge() -> Knowledge:
    """Pictures of large flat patches, which total variation suits."""

    def make(n: int, seed: int) -> Any:
        images = make_images(n, seed, (1, 4, 4))
        return dataclasses.replace(images, images=images.images.repeat_interleave(4, 2).repeat_interleave(4, 3))

    return Knowledge(make(20, 1), make(6, 2), "auxiliary")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_victim_is_reconstructed_whatever_is_beside_it(optimizer: Any) -> None:
    split = make_split(defended=False).double()
    x = make_images(6, seed=5).images.double() / 255
    z = target_of(split).query(x)
    learned = learn(RMLEAttack(tv=0.01, steps=24, optimizer=optimizer), split, make_knowledge())
    together = learned.invert(z)
    for i in (0, 3):
        torch.testing.assert_close(learned.invert(z[i : i + 1])[0], together[i], atol=1e-5, rtol=0)
    torch.testing.assert_close(learned.invert(z.flip(0)).flip(0), together, atol=1e-5, rtol=0)


def test_same_generator_same_pictures() -> None:
    z = torch.rand(3, 1, 16, 16, generator=generator(1))
    attack = RMLEAttack(tv=0.01, steps=5, start="noise", restarts=2)
    made = [learn(attack, identity_split(), make_knowledge(), seed).invert(z) for seed in (3, 3, 4)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_features_that_are_not_finite_hurt_nobody_else() -> None:
    split = identity_split()
    z = torch.rand(3, 1, 16, 16, generator=generator(1))
    attack = RMLEAttack(tv=0.05, steps=40)
    clean = learn(attack, split, make_knowledge()).invert(z)
    z[1, 0, 3, 3] = torch.nan
    found = learn(attack, split, make_knowledge()).invert(z)
    assert found.isfinite().all()
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0 - x / 0


def test_an_edge_that_is_not_finite_is_said() -> None:
    learned = learn(RMLEAttack(steps=4), split_of(Broken(), (1, 16, 16), (1, 16, 16)), make_knowledge())
    assert learned.diverged
    assert learned.invert(torch.rand(2, 1, 16, 16)).isfinite().all()


class Dead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


def test_figures() -> None:
    attack = RMLEAttack(tv=0.01, l2=0.02, steps=60, start="zeros")
    mine = make_knowledge()
    learned = learn(attack, identity_split(), mine)
    figures, x = learned.figures, mine.validation.images / 255
    energy = (mine.train.images / 255).square().mean()
    assert figures["objective_before"] == pytest.approx(float(x.square().mean() / energy), rel=1e-4)
    assert figures["mse_before"] == pytest.approx(float(x.square().mean()), rel=1e-4)
    assert figures["mse_after"] < 0.1 * figures["mse_before"]
    assert figures["objective_after"] < 0.2 * figures["objective_before"]
    slope = 2 * x / 256 / energy
    assert figures["gradient_at_start"] == pytest.approx(float(slope.flatten(1).norm(dim=1).mean()), rel=1e-4)
    assert not learned.diverged
    dead = learn(attack, split_of(Dead(), (1, 16, 16), (1, 16, 16)), mine)
    assert dead.figures["gradient_at_start"] == 0
    assert not dead.diverged


def test_stages_ease_the_weight_of_tv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four stages from 50·tv to tv, 40 % of the steps for the last."""
    seen: list[tuple[float, int]] = []

    def spy(objective: Any, start: Tensor, *, steps: int, **rest: Any) -> Any:
        # On the identity edge, at the truth, what is left is TV.
        seen.append((float(objective(z, torch.arange(1)) / total_variation(z)), steps))
        return real(objective, start, steps=steps, **rest)

    real = rmle.minimize
    z = torch.rand(1, 1, 16, 16, generator=generator(1))
    for stages, steps in ((4, 50), (1, 50), (2, 3)):
        learned = learn(RMLEAttack(tv=0.2, steps=steps, stages=stages), identity_split(), make_knowledge())
        monkeypatch.setattr(rmle, "minimize", spy)
        learned.invert(z)
        monkeypatch.setattr(rmle, "minimize", real)
    weights, steps = zip(*seen)
    first = [10.0, 10 / 50 ** (1 / 3), 10 / 50 ** (2 / 3), 0.2]
    assert weights == pytest.approx([*first, 0.2, 10, 0.2], rel=1e-4)
    assert steps == (10, 10, 10, 20, 50, 2, 1)


@pytest.mark.slow
def test_stages_help_where_the_edge_is_rectified() -> None:
    """What they are for: as many steps come nearer to the truth."""
    data = load("digits", seed=0, train_limit=100)
    mine = Knowledge(data.train, data.validation, "train")
    edge = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    with torch.no_grad():
        edge[0].weight.copy_(torch.randn(8, 1, 3, 3, generator=generator(1)))
        edge[0].bias.zero_()
    split = split_of(edge, (1, 32, 32), (8, 16, 16)).float()
    eased, plain = (learn(RMLEAttack(tv=0.1, steps=150, stages=n), split, mine).figures for n in (4, 1))
    assert eased["mse_after"] < plain["mse_after"] < 0.2 * plain["mse_before"]


def test_can_be_stopped_and_shows_its_steps() -> None:
    counted: list[int] = []

    class Counting:
        def start(self, title: str, total: int, done: int = 0) -> None:
            assert title == "attack: rmle"
            counted.append(-total)

        def advance(self, steps: int = 1) -> None:
            counted.append(steps)

        def note(self, text: str) -> None: ...

        def finish(self) -> None:
            counted.append(0)

    target, attack = target_of(identity_split(), "white-box"), RMLEAttack(tv=0.0, steps=6, restarts=2, lr=1e-3)
    attack.run(target, make_knowledge(), generator=generator(0), runtime=runtime(progress=Counting()))
    assert counted == [-12, *[1] * 12, 0]
    with pytest.raises(Interrupted, match="rmle"):
        attack.run(target, make_knowledge(), generator=generator(0), runtime=runtime(should_stop=lambda: True))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("steps", 3), ("optimizer", "newton"), ("lr", 0.0), ("lr", math.inf), ("tv", -0.1), ("tv", math.inf)),
        *(("l2", -1.0), ("start", "white"), ("restarts", 0), ("stages", 0), ("observations", 0)),
    ],
)
def test_refuses(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"rmle\.{field}"):
        RMLEAttack(**{field: value})
