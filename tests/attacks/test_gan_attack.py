"""The GAN attack: its losses in closed form and against slow twins, by hand, resumed, and with every option."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_toys import generator, make_images, make_knowledge, make_split, runtime, target_of
from torch import Tensor, nn

from sfumato.attacks import DecoderAttack, GANAttack, Reconstruction
from sfumato.attacks.feature.gan import CriticLoss, generator_loss, gradient_penalty, wasserstein_distance
from sfumato.attacks.threat import wire
from sfumato.data import Batches
from sfumato.errors import CorruptFileError, InputError, Interrupted
from sfumato.models import Critic, Decoder
from sfumato.training import make_fabric

SMALL = GANAttack(
    depth=0,
    width=4,
    critic_width=2,
    epochs=2,
    critic_steps=2,
    penalty=5.0,
    mse_weight=20.0,
    lr=0.01,
    critic_lr=0.004,
    batch_size=8,
    pretrain_epochs=2,
    pretrain_lr=0.02,
)
SCRATCH = dataclasses.replace(SMALL, start="scratch", epochs=3)
VICTIMS = {"test": make_images(6, seed=12)}


def attack(spec: GANAttack = SMALL, **options: Any) -> Reconstruction:
    target = target_of(make_split())
    where = dataclasses.replace(runtime(), **options)
    return spec(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=where)


def same(a: Reconstruction, b: Reconstruction) -> bool:
    images = torch.equal(a.images["test"], b.images["test"])
    return images and a.figures == b.figures and (a.queries, a.diverged) == (b.queries, b.diverged)


def critic_of(seed: int = 0, image: tuple[int, int, int] = (2, 9, 8)) -> Critic:
    return Critic(image, width=3, generator=generator(seed)).double()


def pictures(n: int, seed: int, image: tuple[int, int, int] = (2, 9, 8)) -> Tensor:
    return torch.rand(n, *image, generator=generator(seed), dtype=torch.float64)


def slow_penalty(critic: nn.Module, images: Tensor) -> Tensor:
    """One image after the other."""
    total = torch.zeros((), dtype=images.dtype)
    for image in images:
        point = image.unsqueeze(0).clone().requires_grad_()
        (slope,) = torch.autograd.grad(critic(point).squeeze(), point, create_graph=True)
        total = total + (slope.square().sum().sqrt() - 1) ** 2
    return total / len(images)


class TestLosses:
    def test_penalty_against_slow_twin(self) -> None:
        critic, images = critic_of(), pictures(5, 1)
        made = []
        for penalty in (gradient_penalty, slow_penalty):
            value = penalty(critic, images)
            gradients = torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)
            made.append((value, gradients))
        (fast, ours), (slow, theirs) = made
        torch.testing.assert_close(fast, slow)
        assert sum(g is not None and bool(g.abs().sum() > 0) for g in ours) >= 5
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b)

    def test_penalty_of_a_linear_critic(self) -> None:
        """D(x) = ⟨a, x⟩ has slope ‖a‖ everywhere."""
        weight = torch.randn(12, generator=generator(0), dtype=torch.float64, requires_grad=True)

        def linear(x: Tensor) -> Tensor:
            return x.flatten(1) @ weight

        value = gradient_penalty(linear, pictures(4, 1, (1, 3, 4)))  # type: ignore[arg-type]
        norm = weight.detach().norm()
        assert float(value.detach()) == pytest.approx(float((norm - 1) ** 2))
        (gradient,) = torch.autograd.grad(value, weight)
        torch.testing.assert_close(gradient, 2 * (norm - 1) * weight.detach() / norm)

    def test_signs(self) -> None:
        """A critic that measures brightness, on bright real images and dark made ones."""
        brightness = nn.Sequential(nn.Flatten(), nn.AvgPool1d(4), nn.Flatten(0))
        real, made = torch.full((3, 1, 2, 2), 0.9), torch.full((5, 1, 2, 2), 0.2, requires_grad=True)
        distance = wasserstein_distance(brightness, real, made)
        assert float(distance.detach()) == pytest.approx(0.7)
        scores = nn.Sequential(brightness, nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1, bias=False), nn.Flatten(0))
        nn.init.ones_(scores[2].weight)
        loss = generator_loss(scores, made)
        assert float(loss.detach()) == pytest.approx(-0.2)
        (gradient,) = torch.autograd.grad(loss, made)
        assert bool((gradient < 0).all()), "brighter images are to come"

    def test_slope_is_measured_between_real_and_made(self) -> None:
        critic, real, made, share = critic_of(), pictures(4, 1), pictures(4, 2), pictures(4, 3, (1, 1, 1))
        distance, penalty = CriticLoss(critic)(real, made, share)
        between = torch.stack([s * a + (1 - s) * b for a, b, s in zip(real, made, share)])
        torch.testing.assert_close(penalty, slow_penalty(critic, between))
        torch.testing.assert_close(distance, critic(real).mean() - critic(made).mean())

    def test_a_trained_critic_finds_the_distance_of_two_points(self) -> None:
        """W₁ of two images is r = ‖a − b‖; under penalty λ the slope s that maximizes s·r − λ(s − 1)² is 1 + r/(2λ)."""
        critic = Critic((1, 4, 4), width=4, generator=generator(0))
        loss = CriticLoss(critic)
        adam = torch.optim.Adam(critic.parameters(), lr=0.01, betas=(0.5, 0.999))
        real, made, drawn = torch.full((16, 1, 4, 4), 0.8), torch.full((16, 1, 4, 4), 0.3), generator(1)
        for step in range(300):
            adam.param_groups[0]["lr"] = 0.01 * (1 - step / 300)
            distance, penalty = loss(real, made, torch.rand(16, 1, 1, 1, generator=drawn))
            adam.zero_grad()
            (10 * penalty - distance).backward()
            adam.step()
        assert float(distance.detach()) == pytest.approx(2.0 * (1 + 2.0 / 20), rel=0.02)


@pytest.mark.parametrize("start", ["decoder", "scratch"])
@pytest.mark.parametrize("stop", [1, 4, 6, 7, 8])
def test_resumes_to_the_last_bit(start: Any, stop: int, tmp_path: Path) -> None:
    """Stopped in the first phase, at its end, and in the second one between the generator's turns."""
    spec, count = dataclasses.replace(SMALL, start=start, epochs=2 if start == "decoder" else 3), iter(range(1, 100))
    with pytest.raises(Interrupted):
        attack(spec, folder=tmp_path / "cut", should_stop=lambda: next(count) >= stop)
    whole = attack(spec, folder=tmp_path / "whole")
    assert same(attack(spec, folder=tmp_path / "cut"), whole)
    logs = [[log.read_bytes() for log in sorted((tmp_path / name).rglob("metrics.jsonl"))] for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == (2 if start == "decoder" else 1)
    assert same(attack(spec, folder=tmp_path / "whole"), whole), "and once more from the finished checkpoint"


def test_a_folder_changes_nothing_and_is_no_other_attacks(tmp_path: Path) -> None:
    assert same(attack(folder=tmp_path), attack())
    for change in ({"critic_width": 3}, {"width": 5}):
        with pytest.raises(CorruptFileError, match="does not fit"):
            attack(dataclasses.replace(SMALL, **change), folder=tmp_path)


def test_resumes_within_a_budget(tmp_path: Path) -> None:
    spec, count = dataclasses.replace(SMALL, queries=45), iter(range(1, 100))
    with pytest.raises(Interrupted):
        attack(spec, folder=tmp_path, should_stop=lambda: next(count) == 7)
    made = attack(spec, folder=tmp_path)
    assert same(made, attack(spec))
    assert made.queries <= 45


def test_equals_training_by_hand(tmp_path: Path) -> None:
    """Two epochs by squared error with a cosine, then the critic at each batch and the generator at every other.

    In double precision: in single, Adam's first steps make much of what rounding did to small gradients.
    """
    ours = attack(folder=tmp_path, fabric=make_fabric("cpu", "64-true"))
    drawn, target, mine = generator(0), target_of(make_split()), make_knowledge()

    def seed() -> int:
        return int(torch.randint(2**31, (), generator=drawn))

    decoder = Decoder((2, 4, 4), (1, 16, 16), depth=0, width=4, generator=generator(seed()))
    orders = [generator(seed())]
    critic = Critic((1, 16, 16), width=2, generator=generator(seed()))
    orders.append(generator(seed()))
    decoder.double(), critic.double()
    first = torch.optim.Adam(decoder.parameters(), lr=0.02, weight_decay=1e-4)
    second = torch.optim.Adam(decoder.parameters(), lr=0.01, betas=(0.5, 0.999))
    third = torch.optim.Adam(critic.parameters(), lr=0.004, betas=(0.5, 0.999))
    phases = [Batches(mine.train, 8, shuffle=True, generator=order, drop_last=True) for order in orders]

    @torch.no_grad()
    def error() -> float:
        decoder.eval()
        x = mine.validation.images / 255
        return float((decoder(target.query(x).double()) - x).square().mean())

    before, rows, steps = error(), [], 0
    for phase, batches in enumerate(phases):
        states = []
        for epoch in range(2):
            decoder.train()
            first.param_groups[0]["lr"] = (0.02, 0.02 * 0.505)[epoch]
            for x, _ in batches:
                x, z = x.double(), target.query(x).double()
                if phase == 0:
                    first.zero_grad()
                    (decoder(z) - x).square().mean().backward()
                    first.step()
                    continue
                made = decoder(z).detach()
                share = torch.rand(8, 1, 1, 1, generator=drawn)
                loss = critic(made).mean() - critic(x).mean() + 5 * slow_penalty(critic, share * x + (1 - share) * made)
                third.zero_grad()
                loss.backward()
                third.step()
                steps += 1
                if steps % 2 == 0:
                    made = decoder(z)
                    loss = -critic(made).mean() + 20 * (made - x).square().mean()
                    second.zero_grad()
                    loss.backward()
                    second.step()
            rows.append(error())
            states.append({name: value.clone() for name, value in decoder.state_dict().items()})
        kept = 0 if rows[-2] <= rows[-1] else 1
        decoder.load_state_dict(states[kept])
    assert ours.figures["mse_before"] == pytest.approx(before, rel=1e-5)
    assert ours.figures["mse_after"] == pytest.approx(error(), rel=1e-4)
    assert ours.figures["epoch_kept"] == kept
    logs = [tmp_path / "decoder" / "metrics.jsonl", tmp_path / "metrics.jsonl"]
    logged = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert [row["validation_loss"] for row in logged] == pytest.approx(rows, rel=1e-4)
    assert [set(row) & {"loss", "distance", "penalty", "adversarial"} for row in logged] == [
        *2 * [{"loss"}],
        *2 * [{"loss", "distance", "penalty", "adversarial"}],
    ]
    with torch.no_grad():
        images = decoder(wire(target, 1).query(VICTIMS["test"].images / 255).double()).float()
    torch.testing.assert_close(ours.images["test"], images, rtol=0, atol=2e-3)
    # Queries: validation before, after each epoch and at the end; the training images once an epoch.
    assert ours.queries == 9 * (1 + 4 + 1) + 4 * 24


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 1},
        {"width": 5},
        {"critic_width": 3},
        {"epochs": 3},
        {"critic_steps": 1},
        {"penalty": 1.0},
        {"mse_weight": 2.0},
        {"lr": 0.02},
        {"critic_lr": 0.01},
        {"batch_size": 6},
        {"start": "scratch"},
        {"pretrain_epochs": 1},
        {"pretrain_lr": 0.01},
        {"pretrain_beta2": 0.9},
        {"pretrain_weight_decay": 0.1},
        {"architecture": "unet"},
        {"architecture": "transformer"},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_every_option_tells(change: dict[str, Any]) -> None:
    made = attack(dataclasses.replace(SMALL, **change))
    # Of more epochs none may be better than the first: then they show in what was asked alone.
    plain = attack()
    assert not torch.equal(plain.images["test"], made.images["test"]) or made.queries > plain.queries
    assert not made.diverged


def test_from_scratch_there_is_no_pretraining(tmp_path: Path) -> None:
    made = attack(SCRATCH, folder=tmp_path)
    assert same(made, attack(dataclasses.replace(SCRATCH, pretrain_epochs=9, pretrain_lr=0.5)))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all("distance" in row for row in rows)


def test_only_adversarial_epochs_are_kept() -> None:
    """Though the generator gets worse for want of any weight on the error."""
    spoiled = dataclasses.replace(SMALL, mse_weight=0.0, lr=0.3, critic_steps=1, pretrain_epochs=8)
    made = attack(spoiled)
    plain = DecoderAttack(depth=0, width=4, epochs=8, lr=0.02, batch_size=8)
    decoder = plain(target_of(make_split()), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
    assert made.figures["mse_after"] > 1.1 * decoder.figures["mse_after"]
    assert made.figures["mse_started"] == pytest.approx(decoder.figures["mse_after"], rel=1e-2)


def test_a_generator_whose_turn_never_comes_stays_as_it_was() -> None:
    made = attack(dataclasses.replace(SCRATCH, critic_steps=100))
    assert made.figures["mse_after"] == pytest.approx(made.figures["mse_before"], rel=0.3)


def test_figures_tell_what_it_learned_from_the_very_beginning() -> None:
    made = attack()
    plain = DecoderAttack(depth=0, width=4, epochs=1, batch_size=8)
    decoder = plain(target_of(make_split()), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
    assert set(made.figures) == {"mse_before", "mse_started", "mse_after", "epoch_kept"}
    assert set(attack(SCRATCH).figures) == {"mse_before", "mse_after", "epoch_kept"}
    assert made.figures["mse_before"] == decoder.figures["mse_before"]


@pytest.mark.parametrize("change", [{"critic_lr": 1e30}, {"lr": 1e30}, {"pretrain_lr": 1e30}])
def test_divergence_is_flagged(change: dict[str, float]) -> None:
    made = attack(dataclasses.replace(SMALL, **change))  # type: ignore[arg-type]
    assert made.diverged
    assert bool(torch.isfinite(made.quality["test"].mse).all())


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(precision: str) -> None:
    where = dataclasses.replace(runtime(), fabric=make_fabric("cpu", precision))
    made = SMALL(target_of(make_split()), make_knowledge(), VICTIMS, generator=generator(0), runtime=where)
    assert made.images["test"].dtype == torch.float32
    assert not made.diverged
    assert float(made.quality["test"].mse.mean()) == pytest.approx(float(attack().quality["test"].mse.mean()), rel=0.1)


def test_defaults_are_the_papers() -> None:
    spec = GANAttack()
    assert (spec.epochs, spec.lr, spec.critic_lr, spec.batch_size) == (150, 5e-4, 5e-3, 256)
    assert (spec.penalty, spec.critic_steps, spec.mse_weight) == (10, 10, 1500)
    assert (spec.depth, spec.width, spec.architecture) == (8, 64, "residual")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", -1),
        *((name, 0) for name in ("width", "critic_width", "epochs", "critic_steps", "pretrain_epochs")),
        *((name, bad) for name in ("penalty", "mse_weight") for bad in (-1.0, float("inf"), float("nan"))),
        *(("pretrain_beta2", bad) for bad in (-0.1, 1.0, float("nan"))),
        ("pretrain_weight_decay", -1e-4),
        ("pretrain_weight_decay", float("inf")),
        *((name, bad) for name in ("lr", "critic_lr", "pretrain_lr") for bad in (0.0, float("inf"), float("nan"))),
        *(("batch_size", 1), ("start", "warm"), ("architecture", "mirror")),
    ],
)
def test_arguments_are_validated(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"gan\.{field}"):
        GANAttack(**{field: value})


def test_features_that_do_not_fit_are_refused() -> None:
    SMALL.check((3, 32, 32), (8, 8, 8), "black-box")
    SMALL.check((3, 32, 32), (128,), "black-box")
    with pytest.raises(InputError, match="no side longer"):
        SMALL.check((3, 32, 32), (8, 33, 8), "black-box")
