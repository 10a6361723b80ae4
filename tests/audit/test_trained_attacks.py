"""Every attack that trains, held against beds whose least error is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sfumato.attacks import Attack, DecoderAttack, GANAttack
from sfumato.audit import Sizes, measure
from sfumato.information import STANDARD_BEDS, LinearGaussian
from sfumato.training import Runtime, make_fabric

SIZES = Sizes(train=4000, validation=500, test=2000, samples=5000)
DECODER = DecoderAttack(depth=1, width=16, epochs=10, lr=0.01, batch_size=64, weight_decay=0.0)
GAN = GANAttack(
    depth=0, width=16, pretrain_epochs=8, pretrain_lr=0.01, batch_size=64, critic_width=4, epochs=4, critic_steps=5
)
UNET = replace(DECODER, architecture="unet", depth=3, width=8)
TRANSFORMER = replace(DECODER, architecture="transformer")
# A critic that may pull more than by default: about 1 % of the least error, d/(4μ²) with d = 144.
PULLED = replace(GAN, mse_weight=1000.0, start="scratch", lr=0.01, critic_steps=1, epochs=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sigma", "attack"),
    [
        ("smooth", 0.03, replace(DECODER, depth=0)),
        ("smooth", 0.03, UNET),
        ("patches", 0.1, TRANSFORMER),
        ("smooth", 0.03, GAN),
        ("smooth", 0.03, PULLED),
    ],
    ids=["residual", "unet", "transformer", "gan", "gan-scratch"],
)
def test_finds_the_minimum_and_goes_no_further(name: str, sigma: float, attack: Attack) -> None:
    row = measure(name, STANDARD_BEDS[name].build(sigma), attack=attack, sizes=SIZES, runtime=runtime())
    assert row.attack is not None
    assert row.broken() == ()
    assert 1 - 4 * row.attack.ratio.error <= row.attack.ratio.value <= 1.03
    assert row.verdict() == "holds"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sigma", "attack"),
    [("smooth", 0.03, replace(DECODER, depth=0)), ("smooth", 0.03, UNET), ("patches", 0.1, TRANSFORMER)],
    ids=["residual", "unet", "transformer"],
)
def test_from_vectors_too(name: str, sigma: float, attack: DecoderAttack) -> None:
    """The same features without their places: which of them belong together has to be found first."""
    bed = STANDARD_BEDS[name].build(sigma)
    assert isinstance(bed, LinearGaussian)
    flat = replace(bed, channel=replace(bed.channel, feature_shape=(len(bed.channel.weight),)))
    row = measure(name, flat, attack=replace(attack, epochs=12), sizes=SIZES, runtime=runtime())
    assert row.attack is not None
    assert row.broken() == ()
    assert row.attack.ratio.value <= 1.03


def runtime() -> Runtime:
    return Runtime(fabric=make_fabric("cpu"))
