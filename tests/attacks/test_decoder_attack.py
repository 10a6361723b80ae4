"""The decoder attack: it learns, resumes to the last bit, and cannot beat what cannot be beaten."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_toys import generator, make_images, make_knowledge, make_split, runtime, target_of
from torch import nn

from sfumato.attacks import DecoderAttack, Knowledge, Reconstruction
from sfumato.attacks.feature import fitting
from sfumato.attacks.threat import wire
from sfumato.data import Batches, ImageSet, load
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import CorruptFileError, InputError, Interrupted
from sfumato.models import Decoder, Feature, SplitModel, split
from sfumato.training import Fit, Plan, Runtime, fit, make_fabric

SMALL = DecoderAttack(depth=1, width=4, epochs=3, batch_size=8, lr=0.01, weight_decay=0.01)
VICTIMS = {"test": make_images(6, seed=12)}


def attack(spec: DecoderAttack = SMALL, knowledge: Knowledge | None = None, **options: Any) -> Reconstruction:
    return spec(
        target_of(make_split()),
        knowledge or make_knowledge(),
        VICTIMS,
        generator=generator(0),
        runtime=runtime(**options),
    )


def same(a: Reconstruction, b: Reconstruction) -> bool:
    return (
        all(torch.equal(a.images[name], b.images[name]) for name in a.images)
        and a.figures == b.figures
        and (a.queries, a.diverged) == (b.queries, b.diverged)
    )


@pytest.mark.parametrize("stop", range(1, 9))
def test_resumes_to_the_last_bit(stop: int, tmp_path: Path) -> None:
    whole = attack(folder=tmp_path / "whole")
    assert same(whole, attack()), "a folder changes nothing"
    count = 0

    def asked() -> bool:
        nonlocal count
        count += 1
        return count == stop

    with pytest.raises(Interrupted):
        attack(folder=tmp_path / "cut", should_stop=asked)
    assert same(attack(folder=tmp_path / "cut"), whole)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert same(attack(folder=tmp_path / "cut"), whole), "and once more from the finished checkpoint"


def test_another_decoders_checkpoint_is_refused(tmp_path: Path) -> None:
    attack(folder=tmp_path)
    with pytest.raises(CorruptFileError, match="does not fit"):
        attack(dataclasses.replace(SMALL, width=5), folder=tmp_path)


def test_equals_training_by_hand(tmp_path: Path) -> None:
    """Adam on the MSE of batches sent anew, cosine from lr to lr/100 by epochs, best epoch by validation."""
    ours = attack(folder=tmp_path)
    drawn, target, mine = generator(0), target_of(make_split()), make_knowledge()
    draw = [int(torch.randint(2**31, (), generator=drawn)) for _ in range(2)]
    decoder = Decoder((2, 4, 4), (1, 16, 16), depth=1, width=4, generator=generator(draw[0]))
    decoder.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(decoder.parameters(), lr=0.01, weight_decay=0.01)

    @torch.no_grad()
    def error() -> float:
        decoder.eval()
        x = mine.validation.images / 255
        return float((decoder(target.query(x)) - x).square().mean())

    batches = Batches(mine.train, 8, shuffle=True, generator=generator(draw[1]), drop_last=True)
    before, best, kept = error(), float("inf"), {}
    rows = []
    for epoch in range(3):
        decoder.train()
        cosine = (1 + torch.cos(torch.tensor(torch.pi * epoch / 3, dtype=torch.float64))) / 2
        adam.param_groups[0]["lr"] = 1e-4 + (0.01 - 1e-4) * float(cosine)
        losses = []
        for x, _ in batches:
            x = x.contiguous(memory_format=torch.channels_last)
            loss = nn.functional.mse_loss(decoder(target.query(x)), x)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(float(loss.detach()))
        score = error()
        rows.append({"epoch": epoch, "loss": sum(losses) / 3, "validation_loss": score})
        if score < best:
            best, kept = score, {name: value.clone() for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(kept)
    after = error()
    assert ours.figures["mse_before"] == pytest.approx(before, rel=1e-5)
    assert ours.figures["mse_after"] == pytest.approx(after, rel=1e-6)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row, expected in zip(logged, rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    assert ours.figures["epoch_kept"] == min(rows, key=lambda row: row["validation_loss"])["epoch"]
    with torch.no_grad():
        images = decoder(wire(target, 1).query(VICTIMS["test"].images / 255))
    torch.testing.assert_close(ours.images["test"], images, rtol=1e-4, atol=1e-6)
    # Queries: validation before, after each epoch and at the end; the training images once an epoch.
    assert ours.queries == 9 * (1 + 3 + 1) + 3 * 24


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 2},
        {"width": 5},
        {"epochs": 30},
        {"lr": 0.001},
        {"batch_size": 12},
        {"weight_decay": 0.3},
        {"beta2": 0.9},
        {"architecture": "unet"},
        {"architecture": "transformer"},
    ],
)
def test_every_option_tells(change: dict[str, Any]) -> None:
    assert not torch.equal(attack().images["test"], attack(dataclasses.replace(SMALL, **change)).images["test"])


def test_size_of_the_published_decoder() -> None:
    decoder = Decoder(
        (8, 8, 8), (3, 32, 32), depth=DecoderAttack.depth, width=DecoderAttack.width, generator=generator(0)
    )
    assert sum(p.numel() for p in decoder.parameters()) == 711_539


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("depth", -1), ("width", 0), ("epochs", 0), ("batch_size", 1)),
        *(("lr", 0.0), ("lr", float("inf")), ("lr", float("nan"))),
        *(("weight_decay", -1.0), ("weight_decay", float("inf"))),
        *(("architecture", "mirror"), ("architecture", "")),
        *(("beta2", -0.1), ("beta2", 1.0), ("beta2", float("nan"))),
    ],
)
def test_arguments_are_validated(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"decoder\.{field}"):
        DecoderAttack(**{field: value})


def test_a_vector_or_a_map_no_larger_than_the_image_is_attacked() -> None:
    SMALL.check((3, 50, 50), (8, 12, 12), "black-box")
    SMALL.check((3, 32, 48), (8, 8, 8), "black-box")
    SMALL.check((3, 32, 48), (128,), "black-box")
    for shape in ((8, 128), (8, 51, 12), (8, 12, 51)):
        with pytest.raises(InputError, match="no side longer"):
            SMALL.check((3, 50, 50), shape, "black-box")


def test_divergence_is_flagged() -> None:
    made = attack(dataclasses.replace(SMALL, lr=1e30))
    assert made.diverged
    assert torch.isfinite(made.quality["test"].mse).all()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(precision: str) -> None:
    spec = dataclasses.replace(SMALL, epochs=1)
    where = dataclasses.replace(runtime(), fabric=make_fabric("cpu", precision))
    made = spec(target_of(make_split()), make_knowledge(), VICTIMS, generator=generator(0), runtime=where)
    exact = attack(spec)
    assert made.images["test"].dtype == torch.float32
    assert float(made.quality["test"].mse.mean()) == pytest.approx(float(exact.quality["test"].mse.mean()), rel=0.1)


def test_a_transformer_needs_two_channels() -> None:
    with pytest.raises(InputError, match=r"decoder\.width: got 1; accepted: 2 or more"):
        DecoderAttack(architecture="transformer", width=1)
    DecoderAttack(architecture="transformer", width=2)


@pytest.mark.parametrize("architecture", ["unet", "transformer"])
def test_other_architectures_resume_to_the_last_bit_too(architecture: Any, tmp_path: Path) -> None:
    spec = dataclasses.replace(SMALL, architecture=architecture, depth=3)
    count = 0

    def asked() -> bool:
        nonlocal count
        count += 1
        return count == 5

    with pytest.raises(Interrupted):
        attack(spec, folder=tmp_path, should_stop=asked)
    assert same(attack(spec, folder=tmp_path), attack(spec))
    with pytest.raises(CorruptFileError, match="does not fit"):
        attack(dataclasses.replace(SMALL, depth=3), folder=tmp_path)


@pytest.mark.parametrize("architecture", ["residual", "unet", "transformer"])
def test_a_vector_is_inverted(architecture: Any) -> None:
    model = nn.Sequential(OrderedDict(first=nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), second=nn.Linear(16, 3)))
    target = target_of(split(model, "first", image_shape=(1, 16, 16)))
    assert target.feature_shape == (16,)
    spec = dataclasses.replace(SMALL, architecture=architecture, epochs=2)
    spec.check(target.image_shape, target.feature_shape, target.threat_model)
    made = spec(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
    assert made.figures["mse_after"] < made.figures["mse_before"]
    assert made.images["test"].shape == (6, 1, 16, 16)


@pytest.mark.slow
def test_learns_the_digits() -> None:
    data = load("digits", seed=0, image_size=16, auxiliary=0.3)
    assert data.auxiliary is not None
    model = make_split(defended=False)
    mine = Knowledge(data.auxiliary, data.validation, "auxiliary")
    spec = DecoderAttack(depth=1, width=16, epochs=12, lr=0.005, batch_size=64)
    made = spec(target_of(model), mine, {"test": data.test}, generator=generator(0), runtime=runtime())
    x = data.test.images / 255
    mean_image = (x - (data.auxiliary.images / 255).mean(0)).square().mean()
    assert float(made.quality["test"].mse.mean()) < 0.5 * float(mean_image)
    assert made.figures["mse_after"] < 0.5 * made.figures["mse_before"]


@pytest.mark.slow
def test_does_not_beat_the_exact_minimum() -> None:
    """Independent Gaussian pixels, sums of four sent with noise: the posterior variance is known.

    With four pixels of variance s² in a block and z = their mean + noise of variance σ²: Var(x|z) = s² - c²/(c + σ²),
    c = s²/4 the variance of the mean, and the covariance of a pixel with it.
    """
    s, sigma, c = 0.15, 0.06, 0.15**2 / 4
    exact = s**2 - c**2 / (c + sigma**2)

    def gaussian(n: int, seed: int) -> ImageSet:
        x = 0.5 + s * torch.randn(n, 1, 16, 16, generator=generator(seed))
        return ImageSet((x * 255).round().clamp(0, 255).byte(), torch.zeros(n, dtype=torch.int64), ("one",))

    edge = nn.Sequential(OrderedDict(pool=nn.AvgPool2d(2)))
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    model = SplitModel(
        edge,
        AdditiveNoise(sigma, "gaussian"),
        cloud,
        image_shape=(1, 16, 16),
        feature=Feature((1, 8, 8), noise_variance=sigma**2),
        cut="pool",
    )
    mine = Knowledge(gaussian(1500, 0), gaussian(100, 1), "auxiliary")
    spec = DecoderAttack(depth=0, width=8, epochs=12, lr=0.01, batch_size=50, weight_decay=0.0)
    made = spec(target_of(model), mine, {"test": gaussian(400, 2)}, generator=generator(3), runtime=runtime())
    measured = made.quality["test"].mse
    error = float(measured.std()) / len(measured) ** 0.5
    assert float(measured.mean()) > exact - 4 * error
    assert float(measured.mean()) < 1.05 * exact
    assert 1.05 * exact < s**2, "the mean image would not do"


@pytest.mark.parametrize("patience", [None, 3])
def test_patience_is_the_loop_s(patience: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def watched(job: Any, images: ImageSet, plan: Plan, where: Runtime) -> Fit:
        plans.append(plan)
        return fit(job, images, plan, where)

    monkeypatch.setattr(fitting, "fit", watched)
    attack = DecoderAttack(depth=0, width=4, epochs=2, batch_size=8, patience=patience)
    attack.run(target_of(make_split()), make_knowledge(), generator=generator(0), runtime=runtime())
    assert [plan.patience for plan in plans] == [patience]
