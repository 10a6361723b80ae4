"""Every attack that trains, held against every bed, at two noise levels: the least error is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sfumato.attacks import (
    Attack,
    DecoderAttack,
    EnsembleAttack,
    GANAttack,
    GeneratorAttack,
    LatentPriorAttack,
    ThreatModel,
)
from sfumato.audit import Calibration, Sizes, measure
from sfumato.audit.calibration import rounded
from sfumato.information import STANDARD_BEDS, LinearGaussian
from sfumato.training import Runtime, make_fabric

EASY = Sizes(train=6000, validation=300, test=1500, samples=5000)
# What is best there is no filter, and takes longer to find.
HARD = Sizes(train=16_000, validation=500, test=2000, samples=5000)
PAIRS = [(name, sigma) for name in STANDARD_BEDS for sigma in (0.03, 0.1)]
RESIDUAL = DecoderAttack(depth=1, width=16, epochs=6, lr=0.03, batch_size=64, weight_decay=0.0, beta2=0.98)
UNET = replace(RESIDUAL, architecture="unet", depth=3, width=8)
TRANSFORMER = replace(RESIDUAL, architecture="transformer", width=32, lr=0.02)
ENSEMBLE = EnsembleAttack(
    architectures=("residual", "transformer"),
    depth=1,
    width=16,
    epochs=6,
    lr=0.02,
    batch_size=64,
    weight_decay=0.0,
    beta2=0.98,
)
GENERATOR = GeneratorAttack(width=16, epochs=7, lr=0.03, patience=None, beta2=0.98)
# A mirrored linear edge is one linear layer: many cheap steps.
MIRROR = replace(GENERATOR, structure="mirror", epochs=16, batch_size=128)
# With the published weight of 1500 the critic may cost d/(4μ²), 2 % of the least error on white: no fault of training.
GAN = GANAttack(
    depth=1,
    width=16,
    pretrain_epochs=6,
    pretrain_lr=0.03,
    pretrain_beta2=0.98,
    pretrain_weight_decay=0.0,
    batch_size=64,
    critic_width=4,
    epochs=1,
    critic_steps=5,
    mse_weight=4000.0,
    lr=2e-4,
)
# A critic that may pull more than by default: about 1 % of the least error, d/(4μ²) with d = 144.
PULLED = replace(GAN, depth=0, mse_weight=1000.0, start="scratch", lr=0.01, critic_steps=1, epochs=10)
# What latent_prior learns, without its search: a prior rich enough for a bed, and an encoder.
ENCODER = LatentPriorAttack(
    halvings=1,
    width=16,
    divergence_weight=1e-5,
    epochs=12,
    lr=0.02,
    beta2=0.98,
    restarts=1,
    steps=0,
    refine_steps=0,
)
TRAINED: dict[str, tuple[Attack, ThreatModel]] = {
    "residual": (RESIDUAL, "black-box"),
    "unet": (UNET, "black-box"),
    "transformer": (TRANSFORMER, "black-box"),
    "gan": (GAN, "black-box"),
    "generator": (GENERATOR, "black-box"),
    "encoder": (ENCODER, "white-box"),
    "mirror": (MIRROR, "gray-box"),
}

# Fewer epochs leave it 6 and 3 % above the least error on smooth. On white it is not steady at the others' rate: six
# epochs ended at 0.7 % on one machine and at 4 % on another; at half and at a quarter of the rate ten end at 1 %.
STEADY = {"lr": 0.01, "epochs": 10}
OTHERWISE: dict[tuple[str, str, float], dict[str, Any]] = {
    ("transformer", "smooth", 0.03): {"epochs": 24},
    ("transformer", "smooth", 0.1): {"epochs": 8},
    ("transformer", "white", 0.03): STEADY,
    ("transformer", "white", 0.1): STEADY,
    # The encoder's answer passes through a generator that was taught to redraw pictures, not to filter them. It comes
    # nearer the longer it learns: on moods at 0.03 it was 7.5 % above the least error after 6 epochs, 3.9 % after 12.
    ("encoder", "patches", 0.03): {"epochs": 36},
    ("encoder", "moods", 0.03): {"epochs": 24},
    ("encoder", "moods", 0.1): {"epochs": 24},
}
# It was at 1.027, and at 1.030 after 36 epochs: too near the limit to hold on every machine.
LOOSER = {("encoder", "moods", 0.1): 1.035}


def trained(attack: str, name: str, sigma: float) -> Calibration:
    spec, threat_model = TRAINED[attack]
    spec = replace(spec, **OTHERWISE.get((attack, name, sigma), {}))
    bed, sizes = STANDARD_BEDS[name].build(sigma), HARD if name == "moods" else EASY
    return measure(name, bed, attack=spec, sizes=sizes, threat_model=threat_model, runtime=runtime())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sigma"), PAIRS)
@pytest.mark.parametrize("attack", TRAINED)
def test_finds_the_minimum_and_goes_no_further(attack: str, name: str, sigma: float) -> None:
    row = trained(attack, name, sigma)
    assert row.attack is not None
    assert row.broken() == ()
    # A linear mirror cannot do better on moods than the best linear reconstruction, whatever it learns from.
    linear = row.figures.linear_mse / row.figures.mmse.value if attack == "mirror" else 1.0
    assert 1 - 4 * row.attack.ratio.error <= row.attack.ratio.value / linear <= LOOSER.get((attack, name, sigma), 1.03)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.03, 0.1])
@pytest.mark.parametrize(
    ("name", "shape"), [("smooth", (1, 16, 16)), ("smooth", (3, 12, 12)), ("patches", (1, 20, 20))]
)
def test_in_other_dimensions(name: str, shape: tuple[int, int, int], sigma: float) -> None:
    """256, 432 and 400 of them; 144 everywhere else."""
    bed = STANDARD_BEDS[name].build(sigma, shape)
    row = measure(name, bed, attack=RESIDUAL, sizes=EASY, runtime=runtime())
    figures, attack = row.figures, row.attack
    assert attack is not None
    assert figures.dim == math.prod(shape)
    assert row.broken() == ()
    assert figures.bound.value < figures.mmse.value <= attack.mse.value + 4 * attack.mse.error
    assert 1 - 4 * attack.ratio.error <= attack.ratio.value <= 1.03


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sigma"), [("smooth", 0.1), ("patches", 0.03)])
def test_an_ensemble_finds_the_minimum_where_one_of_its_decoders_does(name: str, sigma: float) -> None:
    row = measure(name, STANDARD_BEDS[name].build(sigma), attack=ENSEMBLE, sizes=EASY, runtime=runtime())
    assert row.attack is not None
    assert row.broken() == ()
    assert 1 - 4 * row.attack.ratio.error <= row.attack.ratio.value <= 1.03


@pytest.mark.slow
def test_a_critic_that_may_pull_more() -> None:
    row = measure("smooth", STANDARD_BEDS["smooth"].build(0.03), attack=PULLED, sizes=EASY, runtime=runtime())
    assert row.attack is not None
    assert row.verdict() == "holds"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sigma", "attack"),
    [("smooth", 0.03, RESIDUAL), ("smooth", 0.03, UNET), ("patches", 0.1, TRANSFORMER)],
    ids=["residual", "unet", "transformer"],
)
def test_from_vectors_too(name: str, sigma: float, attack: DecoderAttack) -> None:
    """The same features without their places: which of them belong together has to be found first."""
    bed = STANDARD_BEDS[name].build(sigma)
    assert isinstance(bed, LinearGaussian)
    flat = replace(bed, channel=replace(bed.channel, feature_shape=(len(bed.channel.weight),)))
    row = measure(name, flat, attack=replace(attack, epochs=8), sizes=EASY, runtime=runtime())
    assert row.attack is not None
    assert row.broken() == ()
    assert row.attack.ratio.value <= 1.03


@pytest.mark.slow
def test_averages_of_four_are_a_quarter_of_the_noise() -> None:
    """What is least then is the error that is least at half the standard deviation."""
    once, often = (
        measure("smooth", STANDARD_BEDS["smooth"].build(0.1), attack=attack, sizes=EASY, runtime=runtime())
        for attack in (GENERATOR, replace(GENERATOR, observations=4))
    )
    quieter = rounded(STANDARD_BEDS["smooth"].build(0.05)).figures(generator=torch.Generator()).mmse.value
    assert once.attack is not None
    assert often.attack is not None
    assert quieter - 4 * often.attack.mse.error <= often.attack.mse.value <= 1.03 * quieter + 4 * often.attack.mse.error
    assert quieter < 0.9 * once.attack.mse.value


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_the_search_lies_between_the_minimum_and_its_own_encoder(sigma: float) -> None:
    """White-box, all of latent_prior: the search helps a poor encoder, and nothing beats the minimum."""
    spec = LatentPriorAttack(width=16, epochs=3, lr=0.02, beta2=0.98, restarts=1, steps=40, refine_steps=40)
    sizes = replace(EASY, test=400, validation=100)
    alone, whole = (
        measure(
            "smooth",
            STANDARD_BEDS["smooth"].build(sigma),
            attack=attack,
            sizes=sizes,
            threat_model="white-box",
            runtime=runtime(),
        )
        for attack in (replace(spec, steps=0, refine_steps=0), spec)
    )
    assert alone.attack is not None
    assert whole.attack is not None
    assert whole.broken() == ()
    assert 1 - 4 * whole.attack.ratio.error <= whole.attack.ratio.value <= min(1.15, alone.attack.ratio.value + 0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sigma", "threat_model"),
    [("patches", 0.1, "white-box"), ("smooth", 0.1, "gray-box"), ("smooth", 0.03, "black-box")],
)
def test_all_of_latent_prior_finds_the_minimum(name: str, sigma: float, threat_model: ThreatModel) -> None:
    """With a good encoder: the search, through the edge or one that was taught, takes it nowhere else."""
    spec, sizes = replace(ENCODER, steps=40, refine_steps=40), replace(EASY, test=600)
    bed = STANDARD_BEDS[name].build(sigma)
    row = measure(name, bed, attack=spec, sizes=sizes, threat_model=threat_model, runtime=runtime())
    assert row.attack is not None
    assert row.broken() == ()
    assert 1 - 4 * row.attack.ratio.error <= row.attack.ratio.value <= 1.03


def runtime() -> Runtime:
    return Runtime(fabric=make_fabric("cpu"))
