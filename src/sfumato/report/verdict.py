"""From figures to words: what leaks, what the defense achieves and what it costs.

The levels rest on SSIM (structural similarity, Gaussian window 11, σ 1.5, on [0, 1] pixels; 1 is an exact
copy), because it follows what people see closer than MSE does. It is taken from the *worst case*: on each
test image, the best of all attacks. Every threshold is a named constant below.

SSIM can mislead in two ways, so that two rules correct it:

- On aligned pictures (faces, digits) the mean image alone scores well. Whoever does no better than it has
  learned nothing from the feature: :data:`MEAN_IMAGE_SSIM_MARGIN`, :data:`MEAN_IMAGE_MSE_MARGIN`.
- A smooth picture with the right colors scores low though much is seen. Where less than half of the mean
  image's error is left, the level is never the lowest: :data:`COARSE_MSE_SHARE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sfumato.audit.card import Card
from sfumato.report.comparison import Entry, per_image_ssim

COPY_SSIM = 0.85
"""From here on, details survive: small print, the features of a face."""

RECOGNIZABLE_SSIM = 0.5
"""From here on, one sees what the picture shows. ResSFL punishes its encoder above the same value."""

BLURRED_SSIM = 0.3
"""From here on, rough layout and colors survive; below it, hardly anything."""

MEAN_IMAGE_SSIM_MARGIN = 0.02
MEAN_IMAGE_MSE_MARGIN = 0.95
"""An attack within both margins of the mean image's figures is no better than it."""

COARSE_MSE_SHARE = 0.5
"""Below this share of the mean image's MSE, colors and layout leak whatever SSIM says."""

EXPOSED_SHARE = 0.05
"""A model withstands only if at most this share of the judged images is recognizable: means hide tails."""

SSIM_GAIN = 0.05
MSE_GAIN = 1.25
"""A defense that neither lowers SSIM by this much nor raises MSE by this factor adds nothing measurable."""

USELESS_SHARE = 0.1
"""A model that covers no more than this share of the way from guessing to perfect is of no use."""

SMALL_COST, LARGE_COST = 2.0, 5.0
"""Accuracy points up to which a cost is called small, and from which it is called heavy."""


class Level(Enum):
    """What an attacker sees, from the most to the least."""

    COPY = "near copy"
    RECOGNIZABLE = "recognizable"
    BLURRED = "blurred"
    HARDLY = "hardly anything"


LEVEL_MEANING = {
    Level.COPY: f"SSIM {COPY_SSIM} and above: the picture comes back almost as it was, details included.",
    Level.RECOGNIZABLE: f"SSIM {RECOGNIZABLE_SSIM} to {COPY_SSIM}: one sees what, and often who, it shows.",
    Level.BLURRED: f"SSIM {BLURRED_SSIM} to {RECOGNIZABLE_SSIM}: rough layout and colors, few details.",
    Level.HARDLY: f"SSIM below {BLURRED_SSIM}: little beyond what any picture of this kind looks like.",
}


class Outcome(Enum):
    """How a model comes out of the audit."""

    UNDEFENDED = "undefended"
    FAILS = "defense fails"
    UNTESTED = "not put to the test"
    INSUFFICIENT = "not enough"
    WITHSTOOD = "withstood these attacks"


class Cost(Enum):
    """What the defense costs in accuracy."""

    NONE = "no measurable cost"
    SMALL = "a small cost"
    NOTICEABLE = "a noticeable cost"
    HEAVY = "a heavy cost"


@dataclass(frozen=True)
class Verdict:
    """What is concluded about one model; every field follows from cards alone.

    Args:
        level: What the attacker sees on average.
        outcome: How the model comes out.
        recognizable: How many of the judged test images are recognizable.
        judged: How many test images were judged.
        no_better_than_mean: Whether the attacks learn nothing that the mean image does not show.
        useless: Whether the model hardly does better than guessing.
        error_factor: Attacker's MSE over that on the undefended model; ``None`` without one.
        ssim_change: Attacker's SSIM minus that on the undefended model; ``None`` without one.
        points: Accuracy points lost to the undefended model; ``None`` without one.
        cost: The same in words.
        suspicions: How many reasons the card itself gives to distrust it.
    """

    level: Level
    outcome: Outcome
    recognizable: int
    judged: int
    no_better_than_mean: bool
    useless: bool
    error_factor: float | None
    ssim_change: float | None
    points: float | None
    cost: Cost | None
    suspicions: int


def level_of(ssim: float) -> Level:
    """The level that an SSIM alone stands for.

    >>> level_of(0.9), level_of(0.5), level_of(0.49), level_of(-0.1)
    (<Level.COPY: 'near copy'>, <Level.RECOGNIZABLE: 'recognizable'>, <Level.BLURRED: 'blurred'>, \
<Level.HARDLY: 'hardly anything'>)
    """
    if ssim >= COPY_SSIM:
        return Level.COPY
    if ssim >= RECOGNIZABLE_SSIM:
        return Level.RECOGNIZABLE
    return Level.BLURRED if ssim >= BLURRED_SSIM else Level.HARDLY


def no_better_than_mean(card: Card) -> bool:
    """Whether the strongest attack is no better than answering with the mean training image."""
    worst, mean = card.worst_case, card.mean_image
    return worst.ssim <= mean.ssim + MEAN_IMAGE_SSIM_MARGIN and worst.mse >= MEAN_IMAGE_MSE_MARGIN * mean.mse


def leak_level(card: Card) -> Level:
    """The level of the worst case, corrected by the mean image as the module says."""
    if no_better_than_mean(card):
        return Level.HARDLY
    level = level_of(card.worst_case.ssim)
    coarse = card.worst_case.mse < COARSE_MSE_SHARE * card.mean_image.mse
    return Level.BLURRED if level is Level.HARDLY and coarse else level


def judge(entry: Entry) -> Verdict:
    """Draw the conclusions about one model."""
    card, baseline = entry.card, entry.baseline
    images = per_image_ssim(card)
    recognizable = 0 if no_better_than_mean(card) else sum(ssim >= RECOGNIZABLE_SSIM for ssim in images)
    points = None if baseline is None else _points(card, baseline)
    return Verdict(
        level=leak_level(card),
        outcome=_outcome(entry, recognizable, len(images)),
        recognizable=recognizable,
        judged=len(images),
        no_better_than_mean=no_better_than_mean(card),
        useless=is_useless(card),
        error_factor=None if baseline is None else _error_factor(card, baseline),
        ssim_change=None if baseline is None else card.worst_case.ssim - baseline.worst_case.ssim,
        points=points,
        cost=None if baseline is None or points is None else _cost(points, card, baseline),
        suspicions=len(card.suspicions),
    )


def judge_all(members: Sequence[Entry]) -> list[Verdict]:
    """Draw the conclusions about every model, in order."""
    return [judge(entry) for entry in members]


def is_useless(card: Card) -> bool:
    """Whether the model hardly does better than guessing among its classes."""
    chance = 1 / max(1, len(card.data.classes))
    return card.utility.test_accuracy - chance <= USELESS_SHARE * (1 - chance)


def _outcome(entry: Entry, recognizable: int, judged: int) -> Outcome:
    if entry.undefended:
        return Outcome.UNDEFENDED
    if entry.baseline is not None and not is_useless(entry.card) and leak_level(entry.baseline) is Level.HARDLY:
        return Outcome.UNTESTED  # an attack that fails without a defense says nothing of one
    if is_useless(entry.card) or (entry.baseline is not None and not _helps(entry.card, entry.baseline)):
        return Outcome.FAILS
    exposed = recognizable > EXPOSED_SHARE * judged or leak_level(entry.card) in (Level.COPY, Level.RECOGNIZABLE)
    return Outcome.INSUFFICIENT if exposed else Outcome.WITHSTOOD


def _helps(card: Card, baseline: Card) -> bool:
    change = card.worst_case.ssim - baseline.worst_case.ssim
    if change >= SSIM_GAIN:
        return False  # leaking clearly more by what people see is not made good by a higher MSE
    return change <= -SSIM_GAIN or card.worst_case.mse >= MSE_GAIN * max(baseline.worst_case.mse, 1e-12)


def _error_factor(card: Card, baseline: Card) -> float | None:
    return None if baseline.worst_case.mse == 0 else card.worst_case.mse / baseline.worst_case.mse


def _points(card: Card, baseline: Card) -> float:
    # Rounded, so that a difference of exactly five points does not become a hair more than five.
    return round(100 * (baseline.utility.test_accuracy - card.utility.test_accuracy), 6)


def _cost(points: float, card: Card, baseline: Card) -> Cost:
    if points <= 2 * _standard_error(card, baseline):
        return Cost.NONE
    if points <= SMALL_COST:
        return Cost.SMALL
    return Cost.NOTICEABLE if points <= LARGE_COST else Cost.HEAVY


def _standard_error(card: Card, baseline: Card) -> float:
    """Of the difference of two accuracies, in points, as if the test images were drawn independently."""
    variance = sum(
        each.utility.test_accuracy * (1 - each.utility.test_accuracy) / max(1, each.data.test)
        for each in (card, baseline)
    )
    return 100 * math.sqrt(variance)
