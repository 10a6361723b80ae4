"""The generator attack: mirrors what it may know, learns, resumes to the last bit, comes near what is best."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_toys import generator, identity_split, make_images, make_knowledge, make_split, runtime, target_of
from torch import nn

from sfumato.attacks import GeneratorAttack, Knowledge, Reconstruction, ThreatModel
from sfumato.attacks.feature import fitting
from sfumato.attacks.feature.fitting import NetworkJob
from sfumato.attacks.threat import wire
from sfumato.data import Batches, load
from sfumato.errors import CorruptFileError, InputError, Interrupted
from sfumato.models import SplitModel
from sfumato.models.inverse import Inverse, assumed_edge
from sfumato.training import make_fabric

SMALL = GeneratorAttack(width=4, epochs=3, batch_size=8, lr=0.01, patience=0)
VICTIMS = {"test": make_images(6, seed=12)}


def attack(
    spec: GeneratorAttack = SMALL,
    threat_model: ThreatModel = "black-box",
    model: SplitModel | None = None,
    **options: Any,
) -> Reconstruction:
    target = target_of(model or make_split(), threat_model)
    return spec(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime(**options))


def same(a: Reconstruction, b: Reconstruction) -> bool:
    equal = all(torch.equal(a.images[name], b.images[name]) for name in a.images)
    return equal and (a.figures, a.queries, a.diverged) == (b.figures, b.queries, b.diverged)


@pytest.mark.parametrize("threat_model", ["gray-box", "black-box"])
@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_resumes_to_the_last_bit(stop: int, threat_model: ThreatModel, tmp_path: Path) -> None:
    whole = attack(threat_model=threat_model, folder=tmp_path / "whole")
    count = 0

    def asked() -> bool:
        nonlocal count
        count += 1
        return count == stop

    with pytest.raises(Interrupted):
        attack(threat_model=threat_model, folder=tmp_path / "cut", should_stop=asked)
    assert same(attack(threat_model=threat_model, folder=tmp_path / "cut"), whole)
    assert same(attack(threat_model=threat_model, folder=tmp_path / "cut"), whole), "from the finished checkpoint"


def test_resumes_within_a_budget(tmp_path: Path) -> None:
    spec = dataclasses.replace(SMALL, queries=60, observations=2)
    whole, stop = attack(spec), iter([False] * 3 + [True])
    with pytest.raises(Interrupted):
        attack(spec, folder=tmp_path, should_stop=lambda: next(stop))
    assert same(attack(spec, folder=tmp_path), whole)
    assert whole.queries <= 60


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    attack(folder=tmp_path)
    with pytest.raises(CorruptFileError, match="does not fit"):
        attack(dataclasses.replace(SMALL, width=5), folder=tmp_path)


def test_equals_training_by_hand(tmp_path: Path) -> None:
    """Adam (β1 0.5) on the MSE of batches sent anew, half the rate after an epoch no better, best epoch kept."""
    ours = attack(dataclasses.replace(SMALL, epochs=5, lr=0.05), folder=tmp_path)
    drawn, target, mine = generator(0), target_of(make_split()), make_knowledge()
    draw = [int(torch.randint(2**31, (), generator=drawn)) for _ in range(2)]
    network = Inverse(assumed_edge((2, 4, 4), (1, 16, 16), width=4), (1, 16, 16), generator=generator(draw[0]))
    network.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), lr=0.05, betas=(0.5, 0.999))

    @torch.no_grad()
    def error() -> float:
        network.eval()
        x = mine.validation.images / 255
        return float((network(target.query(x)) - x).square().mean())

    batches = Batches(mine.train, 8, shuffle=True, generator=generator(draw[1]), drop_last=True)
    before, best, kept = error(), float("inf"), {}
    errors, rates = [], []
    for _ in range(5):
        network.train()
        rates.append(adam.param_groups[0]["lr"])
        for x, _ in batches:
            loss = nn.functional.mse_loss(network(target.query(x.contiguous(memory_format=torch.channels_last))), x)
            adam.zero_grad()
            loss.backward()
            adam.step()
        errors.append(error())
        if errors[-1] < best:
            best, kept = errors[-1], {name: value.clone() for name, value in network.state_dict().items()}
        else:
            adam.param_groups[0]["lr"] /= 2
    network.load_state_dict(kept)
    assert len(set(rates)) > 1, "the plateau was met"
    logged = [json.loads(line)["validation_loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx(errors, rel=1e-5)
    assert ours.figures["mse_before"] == pytest.approx(before, rel=1e-5)
    assert ours.figures["mse_after"] == pytest.approx(error(), rel=1e-5)
    assert ours.figures["epoch_kept"] == errors.index(min(errors))
    with torch.no_grad():
        images = network(wire(target, 1).query(VICTIMS["test"].images / 255))
    torch.testing.assert_close(ours.images["test"], images, rtol=1e-4, atol=1e-6)
    assert ours.queries == 9 * (1 + 5 + 1) + 5 * 24


class TestStructure:
    def test_what_the_threat_model_allows(self) -> None:
        model = make_split()
        guess = str(Inverse(assumed_edge((2, 4, 4), (1, 16, 16), width=4), (1, 16, 16), generator=generator(0)))
        mirror = str(Inverse(model.edge, (1, 16, 16), generator=generator(0)))
        assert guess != mirror
        for threat_model, structure, expected in (
            *(("black-box", "auto", guess), ("black-box", "guess", guess), ("gray-box", "guess", guess)),
            *(("gray-box", "auto", mirror), ("white-box", "auto", mirror), ("gray-box", "mirror", mirror)),
        ):
            spec = dataclasses.replace(SMALL, structure=structure)
            made = spec.network(target_of(model, threat_model), generator=generator(0))  # type: ignore[arg-type]
            assert str(made) == expected, (threat_model, structure)

    def test_a_linear_edge_is_mirrored_only_where_that_is_asked_for_or_nothing_else_goes(self) -> None:
        linear = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1))
        # The mirror of a pooling has an activation of its own.
        for edge, mirrored in ((linear, True), (linear[0], False), (nn.ConvTranspose2d(1, 2, 2, 2), True)):
            model = identity_split().with_parts(edge=edge)
            target = target_of(model, "gray-box")
            auto = SMALL.network(target, generator=generator(0))
            mirror = dataclasses.replace(SMALL, structure="mirror").network(target, generator=generator(0))
            assert (str(auto) == str(mirror)) == mirrored

    def test_weights_are_never_touched(self) -> None:
        """Targets of one structure and different weights: the same mirror before training, gray-box and white-box."""
        first, second = make_split(), make_split()
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.mul_(-2).add_(0.3)
        made = [
            SMALL.network(target_of(model, threat_model), generator=generator(0)).state_dict()
            for model in (first, second)
            for threat_model in ("gray-box", "white-box")
        ]
        assert all(torch.equal(made[0][name], other[name]) for other in made[1:] for name in other)

    def test_the_mirror_of_the_unknown_is_refused(self) -> None:
        mirror = dataclasses.replace(SMALL, structure="mirror")
        with pytest.raises(InputError, match=r"generator\.structure.*guess or auto"):
            attack(mirror)
        with pytest.raises(InputError, match=r"generator\.structure.*guess or auto"):
            mirror.check((1, 16, 16), (2, 4, 4), "black-box")
        mirror.check((1, 16, 16), (2, 4, 4), "gray-box")

    def test_a_feature_that_is_no_map(self) -> None:
        edge = nn.Sequential(nn.Flatten(), nn.Linear(256, 7))
        model = identity_split().with_parts(edge=edge)
        for threat_model in ("gray-box", "black-box"):
            SMALL.check((1, 16, 16), (7,), threat_model)
            assert attack(threat_model=threat_model, model=model).images["test"].shape == (6, 1, 16, 16)

    def test_a_map_larger_than_the_image_can_only_be_mirrored(self) -> None:
        model = identity_split().with_parts(edge=nn.ConvTranspose2d(1, 2, 2, 2))
        assert attack(threat_model="gray-box", model=model).images["test"].shape == (6, 1, 16, 16)
        SMALL.check((1, 16, 16), (2, 32, 32), "gray-box")
        with pytest.raises(InputError, match="no side longer"):
            attack(model=model)
        for structure, threat_model in (("guess", "gray-box"), ("auto", "black-box")):
            guess = dataclasses.replace(SMALL, structure=structure)
            with pytest.raises(InputError, match="no side longer"):
                guess.check((1, 16, 16), (2, 32, 32), threat_model)


@pytest.mark.parametrize(
    ("change", "threat_model"),
    [
        *(({"width": 5}, "black-box"), ({"epochs": 2}, "black-box"), ({"lr": 0.001}, "black-box")),
        *(({"batch_size": 12}, "black-box"), ({"structure": "guess"}, "gray-box"), ({"beta2": 0.9}, "black-box")),
    ],
)
def test_every_option_tells(change: dict[str, Any], threat_model: ThreatModel) -> None:
    changed = attack(dataclasses.replace(SMALL, **change), threat_model)
    assert not torch.equal(attack(threat_model=threat_model).images["test"], changed.images["test"])


def test_patience_tells() -> None:
    """After an epoch no better, who waits goes on with the whole rate."""
    hasty, patient = (dataclasses.replace(SMALL, epochs=6, lr=0.05, patience=patience) for patience in (0, 20))
    assert attack(hasty).figures != attack(patient).figures


def test_without_patience_the_rate_falls_as_half_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Watched(NetworkJob):
        def epoch_start(self, epoch: int) -> None:
            rates.append(self._optimizer.param_groups[0]["lr"])
            super().epoch_start(epoch)

    monkeypatch.setattr(fitting, "NetworkJob", Watched)
    attack(dataclasses.replace(SMALL, epochs=4, lr=0.05, patience=None))
    least = 0.05 / 100
    assert rates == pytest.approx([least + (0.05 - least) * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("structure", "mirrored"), ("width", 0), ("epochs", 0), ("batch_size", 1), ("patience", -1)),
        *(("beta2", -0.1), ("beta2", 1.0), ("beta2", float("nan"))),
        *(("lr", 0.0), ("lr", float("inf")), ("lr", float("nan")), ("observations", 0)),
    ],
)
def test_arguments_are_validated(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"generator\.{field}"):
        GeneratorAttack(**{field: value})


def test_divergence_is_flagged() -> None:
    model = make_split()
    with torch.no_grad():
        model.edge[1][0].bias.fill_(float("nan"))
    made = attack(model=model)
    assert made.diverged
    assert torch.isfinite(made.quality["test"].mse).all()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(precision: str) -> None:
    exact = attack()
    where = dataclasses.replace(runtime(), fabric=make_fabric("cpu", precision))
    made = SMALL(target_of(make_split()), make_knowledge(), VICTIMS, generator=generator(0), runtime=where)
    assert made.images["test"].dtype == torch.float32
    assert float(made.quality["test"].mse.mean()) == pytest.approx(float(exact.quality["test"].mse.mean()), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("threat_model", ["black-box", "gray-box"])
def test_learns_the_digits(threat_model: ThreatModel) -> None:
    data = load("digits", seed=0, image_size=16, auxiliary=0.3)
    assert data.auxiliary is not None
    model = make_split(defended=False)
    mine = Knowledge(data.auxiliary, data.validation, "auxiliary")
    spec = GeneratorAttack(width=16, epochs=12, lr=0.01, batch_size=32, patience=2)
    made = spec(target_of(model, threat_model), mine, {"test": data.test}, generator=generator(0), runtime=runtime())
    x = data.test.images / 255
    mean_image = float((x - (data.auxiliary.images / 255).mean(0)).square().mean())
    assert float(made.quality["test"].mse.mean()) < 0.5 * mean_image
    assert made.figures["mse_after"] < 0.5 * made.figures["mse_before"]
