"""Attacks that cannot improve stop: each that trains a network, alone and as a member of ``auto``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from attack_toys import CONTRACT, generator, make_images, make_knowledge, make_split, runtime, target_of

from sfumato.attacks import ATTACKS, Attack, Auto
from sfumato.attacks import auto as sequence
from sfumato.attacks.feature import fitting, gan
from sfumato.attacks.feature.fitting import NetworkJob
from sfumato.data import ImageSet
from sfumato.errors import InputError
from sfumato.training import Fit, Plan, Runtime, fit

Trainings = list[tuple[int, int]]
STOPPABLE = ("generator", "latent_prior", "gan")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """Epochs planned and epochs run of each training, whose validation error stays as it is."""
    seen: Trainings = []

    def watched(job: Any, images: ImageSet, plan: Plan, where: Runtime) -> Fit:
        result = fit(job, images, plan, where)
        seen.append((plan.epochs, len(result.history)))
        return result

    monkeypatch.setattr(NetworkJob, "error", lambda self: 0.25)
    for module in (fitting, gan):
        monkeypatch.setattr(module, "fit", watched)
    return seen


def attack(spec: Attack | Auto) -> None:
    victims = {"test": make_images(3, seed=8)}
    spec(target_of(make_split()), make_knowledge(), victims, generator=generator(0), runtime=runtime())


@pytest.mark.parametrize(
    ("level", "networks"), [("quick", 2), ("standard", 8), pytest.param("thorough", 18, marks=pytest.mark.slow)]
)
def test_every_training_of_auto_stops(
    level: Any, networks: int, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sequence._SIZES, level, sequence._Size(steps=40, depth=0, width=4, search=4))
    attack(Auto(level))
    assert trainings == networks * [(40, 1 + 40 // 4)]


def test_auto_gives_every_training_five_epochs_at_least(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sequence._SIZES, "standard", sequence._Size(steps=12, depth=0, width=4, search=4))
    attack(Auto("standard"))
    assert trainings == 8 * [(12, 6)]


@pytest.mark.parametrize("name", STOPPABLE)
def test_stop_after(name: str, trainings: Trainings) -> None:
    longer = {"epochs": 7, "pretrain_epochs": 7} if name == "gan" else {"epochs": 7}
    attack(replace(CONTRACT[name], **longer))
    assert set(trainings) == {(7, 7)}, "left out, every epoch is run, as the papers do"
    count = len(trainings)
    attack(replace(CONTRACT[name], **longer, stop_after=3))  # type: ignore[call-arg]
    assert trainings[count:] == count * [(7, 4)]
    with pytest.raises(InputError, match=rf"{name}\.stop_after: got 0; accepted: 1 or more, or none"):
        ATTACKS[name](stop_after=0)  # type: ignore[call-arg]
