from __future__ import annotations

import pytest

from sfumato.report.comparison import entries
from sfumato.report.verdict import Cost, Level, Outcome, judge_all, leak_level, level_of
from sfumato.report.wording import conclude, describe

NOISE = [("bottleneck", {}), ("noise", {"sigma": 0.1})]


def _verdicts(*cards):
    members = entries(cards)
    return members, judge_all(members)


@pytest.mark.parametrize(
    ("ssim", "level"),
    [
        (1.0, Level.COPY),
        (0.85, Level.COPY),
        (0.849, Level.RECOGNIZABLE),
        (0.5, Level.RECOGNIZABLE),
        (0.499, Level.BLURRED),
        (0.3, Level.BLURRED),
        (0.299, Level.HARDLY),
        (-0.2, Level.HARDLY),
    ],
)
def test_the_level_of_an_ssim(ssim, level):
    assert level_of(ssim) is level


@pytest.mark.parametrize(
    ("mse", "ssim", "mean", "level"),
    [
        (0.06, 0.20, (0.07, 0.25), Level.HARDLY),
        (0.02, 0.20, (0.07, 0.25), Level.BLURRED),  # less than half of the mean image's error is left
        (0.07, 0.45, (0.07, 0.44), Level.HARDLY),  # aligned pictures: no better than the mean image
        (0.02, 0.45, (0.07, 0.44), Level.BLURRED),  # the same SSIM, but the pixels come much closer
        (0.07, 0.55, (0.07, 0.44), Level.RECOGNIZABLE),
        (0.0, 1.0, (0.07, 0.25), Level.COPY),
    ],
)
def test_the_mean_image_corrects_the_level(card, mse, ssim, mean, level):
    assert leak_level(card(mse=mse, ssim=ssim, mean=mean)) is level


@pytest.mark.parametrize(
    ("made", "outcome", "cost"),
    [
        ({"mse": 0.04, "ssim": 0.35}, Outcome.WITHSTOOD, Cost.NONE),
        ({"mse": 0.04, "ssim": 0.35, "accuracy": 0.95}, Outcome.WITHSTOOD, Cost.NONE),
        ({"mse": 0.04, "ssim": 0.35, "accuracy": 0.87}, Outcome.WITHSTOOD, Cost.NOTICEABLE),
        ({"mse": 0.04, "ssim": 0.35, "accuracy": 0.80}, Outcome.WITHSTOOD, Cost.HEAVY),
        ({"mse": 0.01, "ssim": 0.6}, Outcome.INSUFFICIENT, Cost.NONE),
        # The average is blurred, but a tenth of the pictures is recognizable.
        ({"mse": 0.03, "ssim": 0.42, "spread": 0.1}, Outcome.INSUFFICIENT, Cost.NONE),
        ({"mse": 0.0031, "ssim": 0.89}, Outcome.FAILS, Cost.NONE),
        ({"mse": 0.0020, "ssim": 0.97}, Outcome.FAILS, Cost.NONE),
        ({"mse": 0.0100, "ssim": 0.96}, Outcome.FAILS, Cost.NONE),  # higher MSE, yet seen more clearly
        ({"mse": 0.04, "ssim": 0.1, "accuracy": 0.12}, Outcome.FAILS, Cost.HEAVY),  # the model is broken
    ],
)
def test_outcome_and_cost_against_the_undefended_twin(card, made, outcome, cost):
    _, (_, verdict) = _verdicts(card(mse=0.003, ssim=0.9, accuracy=0.92), card("Noise", NOISE, **made))
    assert (verdict.outcome, verdict.cost) == (outcome, cost)


def test_a_small_cost_needs_many_test_images_to_be_seen(card):
    def with_test_images(made, count):
        return made.model_copy(update={"data": made.data.model_copy(update={"test": count})})

    few = [card(accuracy=0.92), card("Noise", NOISE, accuracy=0.905)]
    many = [with_test_images(made, 100_000) for made in few]
    assert [_verdicts(*cards)[1][1].cost for cards in (few, many)] == [Cost.NONE, Cost.SMALL]


def test_a_failing_defense_is_reported_as_failing(card):
    members, verdicts = _verdicts(card(mse=0.003, ssim=0.9), card("Noise", NOISE, mse=0.0031, ssim=0.89))
    text = " ".join(describe(members[1], verdicts[1]).sentences)
    assert "The defense fails" in text
    assert conclude(members, verdicts).headline == "The defense does not keep the picture private."
    assert "Noise fails as a defense" in " ".join(conclude(members, verdicts).sentences)


def test_suspicions_put_a_good_result_in_doubt(card):
    good = card("CEM", NOISE, mse=0.04, ssim=0.3, suspicions=[("nan", "A loss was NaN.")])
    members, verdicts = _verdicts(card(mse=0.003, ssim=0.9), good)
    words = conclude(members, verdicts)
    assert verdicts[1].outcome is Outcome.WITHSTOOD
    assert "distrusts itself" in words.headline
    assert "CEM" in words.doubt
    assert "one reason" in describe(members[1], verdicts[1]).doubt


@pytest.mark.parametrize(
    ("ssims", "headline"),
    [
        ([0.35, 0.4], "All two defenses withstood the attacks that were run."),
        ([0.35, 0.6], "One of two defenses withstood the attacks that were run."),
        ([0.7, 0.6], "None of the two defenses keeps the picture private."),
        ([], "Undefended, the feature gives the picture away."),
    ],
)
def test_headlines(card, ssims, headline):
    defended = [card(f"D{i}", NOISE, mse=0.03, ssim=ssim) for i, ssim in enumerate(ssims)]
    assert conclude(*_verdicts(card(mse=0.003, ssim=0.9), *defended)).headline == headline


def test_an_attack_that_fails_without_a_defense_says_nothing_of_one(card):
    members, verdicts = _verdicts(card(mse=0.06, ssim=0.18), card("Noise", NOISE, mse=0.06, ssim=0.17))
    words = conclude(members, verdicts)
    assert verdicts[1].outcome is Outcome.UNTESTED
    assert words.headline == "The attacks fail even without a defense: nothing was put to the test."
    assert "fails as a defense" not in " ".join(words.sentences)
    assert "nothing can be said of this one" in " ".join(describe(members[1], verdicts[1]).sentences)


@pytest.mark.parametrize(("ssim", "says"), [(0.35, "withstood"), (0.7, "not enough")])
def test_without_an_undefended_twin_nothing_is_said_of_the_gain(card, ssim, says):
    members, (verdict,) = _verdicts(card("CEM", NOISE, mse=0.03, ssim=ssim))
    text = " ".join(describe(members[0], verdict).sentences)
    assert verdict.points is None
    assert verdict.error_factor is None
    assert says in text
    assert "no undefended twin" in text
    assert "No undefended model" in " ".join(conclude(members, [verdict]).sentences)


def test_what_an_independent_classifier_recognizes_is_said_of_the_attack_it_recognizes_most_of(card, attack):
    attacks = [attack("decoder", identity=0.25), attack("rmle", identity=0.875, ssim=0.2), attack("gan", identity=0.5)]
    members, (verdict,) = _verdicts(card("CEM", NOISE, attacks=attacks, judge=(0.962, 0.125)))
    said = [text for text in describe(members[0], verdict).sentences if "classifier" in text]
    assert said == [
        "An independent classifier recognizes 96.2 % of the originals and 87.5 % of the reconstructions by rmle "
        "(chance: 12.5 %)."
    ]


def test_without_an_independent_classifier_nothing_is_said_of_one(card):
    members, (verdict,) = _verdicts(card("CEM", NOISE))
    assert "classifier" not in " ".join(describe(members[0], verdict).sentences)


def test_an_undefended_twin_is_on_the_same_data(card):
    other = card("CEM", NOISE, checksum="b" * 64)
    assert entries([card(), other])[1].baseline is None


def test_the_twin_with_the_same_seed_is_preferred(card):
    members = entries([card(seed=0), card(seed=1, accuracy=0.9), card("Noise", NOISE, seed=1)])
    assert members[2].baseline is members[1].card


def test_the_least_costly_of_the_good_is_named(card):
    defended = [card(name, NOISE, mse=0.04, ssim=0.3, accuracy=a) for name, a in (("A", 0.8), ("B", 0.9))]
    text = " ".join(conclude(*_verdicts(card(ssim=0.9, mse=0.003), *defended)).sentences)
    assert "B costs the least accuracy: 2.0 points" in text


def test_a_verdict_never_claims_to_be_a_certificate(card):
    assert "not a certificate" in " ".join(conclude(*_verdicts(card())).sentences)
