from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sfumato.attacks import (
    Auto,
    DecoderAttack,
    DeepPriorAttack,
    LatentPriorAttack,
    Reconstruction,
    RMLEAttack,
    Scene,
    WhiteBox,
    make_target,
)
from sfumato.audit.card import Quality as CardQuality
from sfumato.audit.suspicions import (
    Evidence,
    gradient_through,
    is_random,
    levels_of,
    sends_differently,
    suspicions,
)
from sfumato.defenses.noise import AdditiveNoise
from sfumato.metrics import Quality
from sfumato.models import Feature, SplitModel, output_shape
from sfumato.training import Fit

IMAGES = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def made(images=IMAGES, *, mse=0.01, before=0.2, after=0.01, diverged=False, observations=1):
    per_image = torch.full((len(images),), mse)
    return Reconstruction(
        images={"test": images},
        quality={"test": Quality(per_image, per_image, per_image)},
        threat_model="white-box",
        queries=10,
        owned=20,
        observations=observations,
        seconds=1.0,
        figures={"mse_before": before, "mse_after": after},
        diverged=diverged,
    )


SOUND = Evidence(
    fit=Fit(history=[], epoch_kept=0),
    test_accuracy=0.9,
    chance=0.1,
    attacks={"decoder": made()},
    random_channel=False,
    mean_image=CardQuality(mse=0.05, psnr=13.0, ssim=0.1),
    gradient=1.0,
)


def test_a_sound_evaluation_raises_nothing():
    assert suspicions(SOUND) == []


def test_a_little_better_than_the_mean_image_is_better():
    assert suspicions(replace(SOUND, attacks={"decoder": made(mse=0.97 * 0.05)})) == []


def test_a_random_channel_that_was_averaged():
    attacks = {"decoder": made(), "averaged": made(observations=4)}
    assert suspicions(replace(SOUND, random_channel=True, attacks=attacks)) == []


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("training-diverged", {"fit": Fit(history=[], epoch_kept=0, diverged=True)}),
        ("model-at-chance", {"test_accuracy": 0.115}),
        ("attack-diverged", {"attacks": {"decoder": made(diverged=True)}}),
        ("attack-did-not-train", {"attacks": {"decoder": made(before=0.05, after=0.049)}}),
        ("constant-output", {"attacks": {"decoder": made(IMAGES[:1].expand(8, -1, -1, -1))}}),
        ("worse-than-mean-image", {"attacks": {"decoder": made(mse=0.06)}}),
        ("worse-than-mean-image", {"attacks": {"decoder": made(mse=0.995 * 0.05)}}),
        (
            "attack-did-not-train",
            {"attacks": {"rmle": replace(made(), figures={"objective_before": 3.0, "objective_after": 2.9})}},
        ),
        (
            "attack-did-not-train",
            {"attacks": {"prior": replace(made(), figures={"edge_mse_before": 0.2, "edge_mse_after": 0.19})}},
        ),
        (
            "attack-did-not-train",
            {"attacks": {"prior": replace(made(), figures={"prior_loss_before": 0.2, "prior_loss_after": 0.19})}},
        ),
        (
            "attack-did-not-train",
            {"attacks": {"gan": replace(made(), figures={"mse_started": 0.01, "mse_after": 0.012})}},
        ),
        ("gradient-vanishes", {"gradient": 1e-9}),
        ("quantized", {"levels": 256}),
        ("not-averaged", {"random_channel": True}),
    ],
)
def test_each_reason_for_doubt_is_raised_and_alone(code, change):
    found = suspicions(replace(SOUND, **change))
    assert [suspicion.code for suspicion in found] == [code]
    assert found[0].message.endswith((".", "tried."))


@pytest.mark.parametrize(
    ("budgets", "errors", "raised"),
    [
        (({}, {"observations": 4}), (0.01, 0.02), True),
        (({}, {"observations": 4}), (0.01, 0.0105), False),
        (({"images": 50}, {}), (0.01, 0.02), True),
        (({"queries": 50, "observations": 1}, {"queries": 60, "observations": 2}), (0.01, 0.02), True),
        (({"queries": 50, "observations": 2}, {"queries": 60, "observations": 1}), (0.01, 0.02), False),
        (({}, {"observations": 4, "width": 3}), (0.01, 0.02), False),
        (({}, {"observations": 4, "epochs": 3}), (0.01, 0.02), False),
        (({"images": 50, "epochs": 9}, {"images": 60, "epochs": 8, "patience": 3}), (0.01, 0.02), True),
        (({"queries": 50, "epochs": 9}, {"queries": 50, "epochs": 8, "observations": 2}), (0.01, 0.02), True),
        (({}, {}), (0.01, 0.02), False),
    ],
)
def test_an_attack_that_had_more_and_did_worse(budgets, errors, raised):
    specs = {name: DecoderAttack(**budget) for name, budget in zip("ab", budgets, strict=True)}
    attacks = {name: made(mse=mse) for name, mse in zip("ab", errors, strict=True)}
    found = suspicions(replace(SOUND, attacks=attacks, specs=specs))
    assert [suspicion.code for suspicion in found] == ["stronger-is-weaker"] * raised
    assert not raised or "The attack b has more than a" in found[0].message


@pytest.mark.parametrize(("averaged", "raised"), [(0.0159, True), (0.0161, False)])
def test_noise_that_averages_out(averaged, raised):
    specs = {"once": DecoderAttack(), "often": DecoderAttack(observations=16)}
    attacks = {"once": made(mse=0.02), "often": made(mse=averaged, observations=16)}
    found = suspicions(replace(SOUND, random_channel=True, attacks=attacks, specs=specs))
    assert [suspicion.code for suspicion in found] == ["averages-out"] * raised
    more_images = {"once": DecoderAttack(images=9), "often": DecoderAttack(observations=16)}
    assert not suspicions(replace(SOUND, random_channel=True, attacks=attacks, specs=more_images))
    assert not suspicions(replace(SOUND, attacks=attacks, specs=specs)), "all sendings alike: one training was luckier"


@pytest.mark.parametrize("queries", [None, 1_000])
def test_noise_that_averages_out_for_members_of_auto_with_any_budget(queries):
    """Out of a limited number of queries, who averages learns from fewer images, and for more epochs."""
    scene = Scene("black-box", True, 5_000, (1, 16, 16), (8, 8, 8))
    specs = {f"k={one.observations}": one for one in Auto("quick", queries=queries).members(scene)}
    assert (specs["k=1"].epochs == specs["k=16"].epochs) == (queries is None)
    attacks = {name: made(mse=mse, observations=k) for name, mse, k in (("k=1", 0.02, 1), ("k=16", 0.01, 16))}
    found = suspicions(replace(SOUND, random_channel=True, attacks=attacks, specs=specs))
    assert [suspicion.code for suspicion in found] == ["averages-out"]


def with_ssim(ssim, **more):
    one = made(**more)
    judged = one.quality["test"]
    return replace(one, quality={"test": replace(judged, ssim=torch.full_like(judged.ssim, ssim))})


@pytest.mark.parametrize(
    ("specs", "raised"),
    [
        ({0.5: RMLEAttack(), 0.8: DecoderAttack()}, True),
        ({0.5: RMLEAttack(), 0.65: DecoderAttack()}, False),
        ({0.9: RMLEAttack(), 0.6: DecoderAttack()}, False),
        ({0.5: RMLEAttack(), 0.75: DeepPriorAttack(), 0.8: DecoderAttack()}, False),
        # The latent prior descends through the edge too, but it has learned from queries before.
        ({0.5: RMLEAttack(), 0.8: LatentPriorAttack(threat_model="white-box"), 0.4: DecoderAttack()}, True),
        ({0.5: LatentPriorAttack(), 0.8: DecoderAttack()}, False),
        # A mean of 16 sendings is more than one sending, whoever looks at it.
        ({0.5: RMLEAttack(), 0.8: DecoderAttack(observations=16)}, False),
        ({0.5: RMLEAttack(observations=16), 0.8: DecoderAttack(observations=16)}, True),
        ({0.5: RMLEAttack(), 0.8: DecoderAttack(observations=16), 0.75: DecoderAttack()}, True),
    ],
)
def test_optimizing_through_the_edge_that_falls_behind_learning_from_it(specs, raised):
    named = {f"{attack.name} {ssim}": attack for ssim, attack in specs.items()}
    attacks = {f"{a.name} {ssim}": with_ssim(ssim, observations=a.observations) for ssim, a in specs.items()}
    found = suspicions(replace(SOUND, attacks=attacks, specs=named))
    told = [doubt.message for doubt in found if doubt.code == "optimization-falls-behind"]
    assert [message[:74] for message in told] == [
        "Attacks that only optimize the image through the edge reach SSIM 0.50, att"
    ] * raised


def touching(threat_model, mse, ssim, **more):
    made_ = made(mse=mse)
    quality = made_.quality["test"]
    judged = {"test": replace(quality, ssim=torch.full_like(quality.ssim, ssim))}
    return replace(made_, quality=judged, threat_model=threat_model, **more)


@pytest.mark.parametrize(
    ("attacks", "pairs"),
    [
        ({"rmle": ("white-box", 0.012, 0.5), "decoder": ("black-box", 0.01, 0.5)}, [("white-box", "black-box")]),
        ({"rmle": ("white-box", 0.0109, 0.46), "decoder": ("black-box", 0.01, 0.5)}, []),
        ({"rmle": ("white-box", 0.01, 0.44), "decoder": ("gray-box", 0.01, 0.5)}, [("white-box", "gray-box")]),
        ({"mirror": ("gray-box", 0.02, 0.5), "decoder": ("black-box", 0.01, 0.5)}, [("gray-box", "black-box")]),
        ({"mirror": ("gray-box", 0.01, 0.5), "decoder": ("black-box", 0.02, 0.2)}, []),
        # Each measure has a best attack of its own.
        (
            {
                "rmle": ("white-box", 0.01, 0.1),
                "prior": ("white-box", 0.04, 0.8),
                "decoder": ("black-box", 0.01, 0.1),
                "unet": ("black-box", 0.04, 0.8),
            },
            [],
        ),
        (
            {
                "rmle": ("white-box", 0.03, 0.5),
                "mirror": ("gray-box", 0.02, 0.5),
                "decoder": ("black-box", 0.01, 0.5),
            },
            [("white-box", "gray-box"), ("white-box", "black-box"), ("gray-box", "black-box")],
        ),
    ],
)
def test_the_best_of_those_who_may_touch_more_does_worse(attacks, pairs):
    found = suspicions(replace(SOUND, attacks={name: touching(*figures) for name, figures in attacks.items()}))
    assert [suspicion.code for suspicion in found] == ["stronger-is-weaker"] * len(pairs)
    for suspicion, (more, less) in zip(found, pairs, strict=True):
        assert f"The best {more} attack errs more than the best {less} one" in suspicion.message


@pytest.mark.parametrize(
    ("knowing", "querying", "raised"),
    [
        ({}, {"observations": 16}, False),
        ({"observations": 16}, {"observations": 16}, True),
        ({"owned": 10}, {"owned": 20}, False),
        ({"owned": 20}, {"owned": 20}, True),
        ({"observations": 16, "owned": 10}, {"observations": 4, "owned": 20}, False),
    ],
)
def test_who_was_given_more_of_something_else_is_no_measure(knowing, querying, raised):
    attacks = {
        "rmle": touching("white-box", 0.02, 0.3, **knowing),
        "decoder": touching("black-box", 0.01, 0.5, **querying),
    }
    found = suspicions(replace(SOUND, attacks=attacks))
    assert [suspicion.code for suspicion in found] == ["stronger-is-weaker"] * raised
    message = "(MSE 0.0200 by rmle against 0.0100 by decoder; 1 - SSIM 0.7000 by rmle against 0.5000 by decoder)"
    assert not raised or message in found[0].message


class Rounded(nn.Module):
    def __init__(self, steps=4):
        super().__init__()
        self.steps = steps

    def forward(self, z):
        return (z * self.steps).round() / self.steps


class Detached(nn.Module):
    def forward(self, z):
        return z.detach() + 0 * z.detach()


def sent_through(channel: nn.Module, edge: nn.Module | None = None) -> WhiteBox:
    split = SplitModel(
        edge or nn.Identity(),
        channel,
        nn.Flatten(),
        image_shape=(1, 16, 16),
        feature=Feature((1, 16, 16)),
        cut="image",
    )
    return make_target(split, "white-box", generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channel", [Rounded(), Detached()])
def test_no_gradient_comes_through_the_channel(channel):
    assert gradient_through(sent_through(channel), IMAGES) == 0


def test_levels_are_counted_on_what_is_sent():
    many = IMAGES.repeat(3, 1, 1, 1)
    assert levels_of(sent_through(Rounded()), many) == 5
    assert levels_of(sent_through(nn.Identity()), many) == IMAGES.numel()
    assert levels_of(sent_through(Rounded()), IMAGES) == 5
    assert levels_of(sent_through(Rounded()), IMAGES[:3]) is None
    assert levels_of(sent_through(nn.Identity()), IMAGES[:1]) is None
    assert levels_of(sent_through(Rounded(4096)), IMAGES) > 256, "not one of its levels is sent ten times"
    assert levels_of(sent_through(nn.Threshold(2.0, 1.0)), IMAGES) is None, "one number says nothing"


def test_numbers_that_are_mostly_zero_are_not_rounded():
    """A sparse feature: few numbers but zero, and hardly two of them alike."""
    sparse = nn.Threshold(0.96, 0.0)
    kept = int((IMAGES > 0.96).sum())
    assert 64 < kept < 256
    assert levels_of(sent_through(sparse), IMAGES) is None
    assert levels_of(sent_through(nn.Sequential(sparse, Rounded(100))), IMAGES) == 6


def test_numbers_that_stand_often_in_one_image_alone_are_not_rounded():
    """Pooled and enlarged again: each number stands 64 times, and is no other image's."""
    many = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    spread = nn.Sequential(nn.AvgPool2d(8), nn.Upsample(scale_factor=8))
    assert len(torch.unique(sent_through(spread).query(many))) < 256
    assert levels_of(sent_through(spread), many) is None
    assert levels_of(sent_through(nn.Sequential(spread, Rounded(50))), many) < 30


def test_numbers_that_saturate_at_both_ends_are_not_rounded():
    many = IMAGES.repeat(3, 1, 1, 1) + torch.arange(24).view(-1, 1, 1, 1) / 1e5
    clipped = nn.Hardtanh(0.48, 0.52)
    found = sent_through(clipped).query(many[:5])
    assert len(torch.unique(found)) < 256
    assert levels_of(sent_through(clipped), many[:5]) is None


class Scaled(nn.Module):
    """A rectifier, then a scale of its own for each channel and 8 bits."""

    def forward(self, z):
        scales = 1 + torch.arange(z.shape[1]) / 7
        return (z.relu() * 100).round().clamp(max=255) * scales.view(1, -1, 1, 1)


def test_rounding_behind_a_rectifier_with_a_scale_for_each_channel_is_seen():
    edge = nn.Conv2d(1, 8, 3, padding=1)
    with torch.no_grad():
        edge.weight.copy_(torch.randn(edge.weight.shape, generator=torch.Generator().manual_seed(0)) / 3)
        edge.bias.fill_(-0.2)
    many = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    target = sent_through(Scaled(), edge)
    z = target.query(many)
    assert 0.5 < float((z == 0).float().mean()) < 0.9
    assert len(torch.unique(z)) > 256
    assert levels_of(target, many) <= 256


class Channels(nn.Module):
    """64 of them, each with a scale and an offset of its own."""

    def forward(self, z):
        places = torch.arange(64.0).view(1, -1, 1, 1)
        return z * (1 + places / 100) + places / 7


def test_a_channels_own_scale_and_offset_make_no_more_levels():
    many = IMAGES.repeat(3, 1, 1, 1)
    rounded = sent_through(nn.Sequential(Rounded(), Channels()))
    assert len(torch.unique(rounded.query(many))) > 256
    assert levels_of(rounded, many) == 5
    uneven = sent_through(nn.Sequential(Channels(), Rounded()))
    most = max(len(torch.unique(channel)) for channel in uneven.query(many).transpose(0, 1))
    assert levels_of(uneven, many) == most > 5


def test_levels_of_a_vector_are_counted_over_all_of_it():
    many = IMAGES.repeat(3, 1, 1, 1)
    assert levels_of(sent_through(nn.Sequential(Rounded(), nn.Flatten())), many) == 5
    assert levels_of(sent_through(nn.Flatten()), many) == IMAGES.numel()


def test_what_was_not_measured_raises_nothing():
    assert suspicions(replace(SOUND, gradient=None, attacks={"decoder": replace(made(), figures={})})) == []


def test_randomness_is_found_inside_a_channel():
    assert not is_random(nn.Identity())
    assert is_random(nn.Sequential(nn.Identity(), AdditiveNoise(0.1, "gaussian")))


class Restless(nn.Module):
    """Random without being one of the layers that the library knows to be."""

    def forward(self, z):
        return z + 0.01 * torch.rand_like(z)


@pytest.mark.parametrize(
    ("edge", "channel", "random"),
    [
        (nn.Identity(), nn.Identity(), False),
        (Restless(), nn.Identity(), True),
        (nn.Identity(), Restless(), True),
        (nn.Identity(), AdditiveNoise(0.1, "gaussian"), True),
        (nn.Identity(), Rounded(), False),
    ],
)
def test_whether_the_same_is_sent_differently_is_seen_wherever_it_comes_from(edge, channel, random):
    assert sends_differently(sent_through(channel, edge), IMAGES) is random


class Scale(nn.Module):
    def __init__(self, by: float, offset: float = 0.0) -> None:
        super().__init__()
        self.by, self.offset = by, offset

    def forward(self, x):
        return self.offset + self.by * x


@pytest.mark.parametrize(
    ("scale", "offset", "vanishes"),
    [(1.0, 0.0, False), (1e-4, 0.0, False), (1e-30, 0.0, False), (1e-6, 1e4, True), (0.0, 1e4, True), (0.0, 0.0, True)],
)
def test_whether_the_gradient_vanishes_is_no_matter_of_the_features_scale(scale, offset, vanishes):
    found = suspicions(replace(SOUND, gradient=gradient_through(sent_through(Scale(scale, offset)), IMAGES)))
    assert [suspicion.code for suspicion in found] == ["gradient-vanishes"] * vanishes


def test_an_image_of_which_nothing_is_sent_has_no_gradient():
    dark = torch.cat([IMAGES, torch.zeros_like(IMAGES)])
    one, half = (gradient_through(sent_through(Scale(3.0)), x) for x in (IMAGES, dark))
    assert half == pytest.approx(one / 2)


@pytest.mark.parametrize(("scale", "known"), [(1.0, True), (3.0, True), (0.0, False)])
def test_the_gradient_of_a_linear_edge_is_known(scale, known):
    split = SplitModel(
        Scale(scale),
        nn.Identity(),
        nn.Flatten(),
        image_shape=(1, 16, 16),
        feature=Feature(output_shape(Scale(scale), (1, 16, 16))),
        cut="scale",
    )
    target = make_target(split, "white-box", generator=torch.Generator().manual_seed(0))
    # log‖s·x‖ has the gradient x / ‖x‖², whatever s.
    slope = float((1 / IMAGES.flatten(1).norm(dim=1)).mean())
    assert gradient_through(target, IMAGES) == pytest.approx(slope if known else 0.0)
