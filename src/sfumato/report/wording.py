"""The verdicts as sentences for a reader who knows nothing of model inversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.audit.card import Card
from sfumato.report.comparison import Entry, seeds
from sfumato.report.format import count_word, fixed, listing, percent, plural, sentence
from sfumato.report.verdict import EXPOSED_SHARE, Cost, Level, Outcome, Verdict, leak_level

_SEES = {
    Level.COPY: "The attacker gets near copies of the pictures.",
    Level.RECOGNIZABLE: "The attacker gets recognizable pictures.",
    Level.BLURRED: "The attacker gets blurred pictures: rough layout and colors, few details.",
    Level.HARDLY: "The attacker sees hardly anything.",
}


@dataclass(frozen=True)
class Words:
    """A conclusion in words: a headline, the sentences that bear it out, and why to doubt them, if so."""

    headline: str
    sentences: tuple[str, ...]
    doubt: str = ""


def describe(entry: Entry, verdict: Verdict) -> Words:
    """One model's verdict in words: what is seen, what the defense adds, what it costs, what to doubt."""
    sentences = (
        _figures(entry.card, verdict),
        _exposed(verdict),
        *_recognized(entry.card),
        _effect(entry, verdict),
        _price(entry, verdict),
    )
    return Words(_SEES[verdict.level], sentences, _doubt(verdict))


def conclude(members: Sequence[Entry], verdicts: Sequence[Verdict]) -> Words:
    """The verdict over all models in words."""
    pairs = list(zip(members, verdicts))
    bare = [(entry, verdict) for entry, verdict in pairs if entry.undefended]
    defended = [(entry, verdict) for entry, verdict in pairs if not entry.undefended]
    parts = [_bare(bare)] if bare else []
    if defended:
        parts += [_by_outcome(defended), _best(defended)]
        if not bare:
            parts.append("No undefended model was audited beside it, so how much the defense adds cannot be told.")
    parts += [_chance(members)]
    return Words(_headline(bare, defended), tuple(part for part in parts if part), _doubts(pairs))


def _figures(card: Card, verdict: Verdict) -> str:
    mean, worst = card.mean_image, card.worst_case
    text = (
        f"The best of the attacks on each picture reaches a similarity (SSIM) of {fixed(worst.ssim, 2)}, "
        f"where 1 is an exact copy and the average training picture scores {fixed(mean.ssim, 2)}"
    )
    if verdict.no_better_than_mean:
        return f"{text}: no better than not looking at the feature at all."
    return f"{text}."


def _exposed(verdict: Verdict) -> str:
    if verdict.recognizable == 0:
        return f"None of the {verdict.judged:,} pictures that were judged is recognizable by this measure."
    one = plural(verdict.recognizable, "is", "are")
    verb = f"{verdict.recognizable:,} of the {verdict.judged:,} pictures that were judged {one} recognizable"
    return f"{verb} ({percent(verdict.recognizable / verdict.judged)})."


def _recognized(card: Card) -> list[str]:
    """What the judge recognizes of the attack that it recognizes most of; nothing without a judge."""
    shares = {attack.attack.name: attack.identity for attack in card.attacks if attack.identity is not None}
    if card.judge is None or not shares:
        return []
    name, share = max(shares.items(), key=lambda pair: pair[1])
    return [
        f"An independent classifier recognizes {percent(card.judge.accuracy)} of the originals and "
        f"{percent(share)} of the reconstructions by {name} (chance: {percent(card.judge.chance)})."
    ]


def _effect(entry: Entry, verdict: Verdict) -> str:
    if entry.undefended:
        return "Nothing protects this model; the others are measured against it."
    if verdict.useless:
        return "The defense fails: the model itself hardly does better than guessing."
    if entry.baseline is None:
        kept = verdict.outcome is Outcome.WITHSTOOD
        what = "It withstood the attacks that were run" if kept else f"It is not enough: {_too_much(verdict)}"
        return f"{what}. There is no undefended twin to compare with, so what the defense adds cannot be told."
    against = _against(entry.card, entry.baseline, verdict)
    if verdict.outcome is Outcome.UNTESTED:
        return f"The attacks fail even without a defense, so nothing can be said of this one ({against})."
    if verdict.outcome is Outcome.FAILS:
        worse = verdict.ssim_change is not None and verdict.ssim_change > 0.0
        how = "pictures come back no worse" if worse else "the difference is too small to count"
        return f"The defense fails: compared with the undefended model, {how} ({against})."
    if verdict.outcome is Outcome.INSUFFICIENT:
        return f"The defense makes the attack harder ({against}), but not enough: {_too_much(verdict)}."
    return f"The defense withstood the attacks that were run ({against})."


def _too_much(verdict: Verdict) -> str:
    if verdict.level in (Level.COPY, Level.RECOGNIZABLE):
        return "on average, pictures stay recognizable"
    tolerated = f"{fixed(100 * EXPOSED_SHARE, 0)} %"
    return f"too many pictures are recognizable, even if the average is not (tolerated: {tolerated})"


def _against(card: Card, baseline: Card, verdict: Verdict) -> str:
    text = f"SSIM {fixed(card.worst_case.ssim, 2)} against {fixed(baseline.worst_case.ssim, 2)}"
    if verdict.error_factor is None:
        return text
    return f"{text}, error {fixed(verdict.error_factor, 1)} times as large"


def _price(entry: Entry, verdict: Verdict) -> str:
    accuracy = f"It answers {percent(entry.card.utility.test_accuracy)} of the test pictures correctly"
    if verdict.useless and entry.undefended:
        return f"{accuracy}, hardly more than by guessing: an audit of a model that does not work says little."
    if verdict.points is None or verdict.cost is None:
        return f"{accuracy}."
    if verdict.cost is Cost.NONE:
        more = verdict.points < 0
        what = "no fewer than the undefended model" if more else "no measurable loss against the undefended model"
        return f"{accuracy}: {what}."
    return f"{accuracy}: {verdict.cost.value}, {fixed(verdict.points, 1)} points below the undefended model."


def _doubt(verdict: Verdict) -> str:
    if not verdict.suspicions:
        return ""
    noun = plural(verdict.suspicions, "reason")
    return (
        f"The evaluation itself gives {count_word(verdict.suspicions)} {noun} to distrust these figures: "
        "the true leak may be larger."
    )


def _headline(bare: Sequence[tuple[Entry, Verdict]], defended: Sequence[tuple[Entry, Verdict]]) -> str:
    if not defended:
        return _bare_headline(bare)
    good = [v for _, v in defended if v.outcome is Outcome.WITHSTOOD]
    if all(v.outcome is Outcome.UNTESTED for _, v in defended):
        return "The attacks fail even without a defense: nothing was put to the test."
    doubted = bool(good) and all(v.suspicions for v in good)
    if len(defended) == 1:
        if doubted:
            return "The defense withstood the attacks, but the evaluation distrusts itself."
        kept = "withstood the attacks that were run" if good else "does not keep the picture private"
        return f"The defense {kept}."
    if not good:
        return f"None of the {count_word(len(defended))} defenses keeps the picture private."
    every = len(good) == len(defended)
    who = "all" if every else f"{count_word(len(good))} of"
    end = "the attacks, but the evaluation distrusts itself" if doubted else "the attacks that were run"
    return sentence(f"{who} {count_word(len(defended))} defenses withstood {end}.")


def _bare_headline(bare: Sequence[tuple[Entry, Verdict]]) -> str:
    levels = {verdict.level for _, verdict in bare}
    if levels & {Level.COPY, Level.RECOGNIZABLE}:
        return "Undefended, the feature gives the picture away."
    if Level.BLURRED in levels:
        return "Undefended, the feature gives a blurred picture away."
    return "The attacks found hardly anything."


def _bare(bare: Sequence[tuple[Entry, Verdict]]) -> str:
    # Several undefended models (seeds, cuts, data) are summed up by the one that leaks most.
    entry, verdict = min(bare, key=lambda pair: list(Level).index(pair[1].level))
    got = {
        Level.COPY: "the attacker gets near copies of the pictures",
        Level.RECOGNIZABLE: "the attacker gets recognizable pictures",
        Level.BLURRED: "the attacker gets blurred pictures",
        Level.HARDLY: "the attacker sees hardly anything",
    }[verdict.level]
    return f"Without a defense, {got} (SSIM {fixed(entry.card.worst_case.ssim, 2)})."


def _by_outcome(defended: Sequence[tuple[Entry, Verdict]]) -> str:
    says = {
        Outcome.WITHSTOOD: "withstood the attacks that were run",
        Outcome.INSUFFICIENT: "still lets pictures be recognized",
        Outcome.FAILS: "fails as a defense",
        Outcome.UNTESTED: "was not put to the test",
    }
    many = {
        Outcome.WITHSTOOD: "withstood the attacks that were run",
        Outcome.INSUFFICIENT: "still let pictures be recognized",
        Outcome.FAILS: "fail as defenses",
        Outcome.UNTESTED: "were not put to the test",
    }
    phrases = []
    for outcome in says:
        names = [entry.name for entry, verdict in defended if verdict.outcome is outcome]
        if names:
            phrases.append(f"{listing(names)} {(says if len(names) == 1 else many)[outcome]}")
    return f"{'; '.join(phrases)}."


def _best(defended: Sequence[tuple[Entry, Verdict]]) -> str:
    good = [(entry, verdict) for entry, verdict in defended if verdict.outcome is Outcome.WITHSTOOD]
    priced = [(entry, verdict) for entry, verdict in good if verdict.points is not None]
    if len(good) < 2 or not priced:
        return ""
    entry, verdict = min(priced, key=lambda pair: (pair[1].points or 0.0, pair[0].number))
    level = leak_level(entry.card).value
    points = verdict.points or 0.0
    costs = "none" if points <= 0 else f"{fixed(points, 1)} points"
    return f"Of those that withstood, {entry.name} costs the least accuracy: {costs}. Its level is “{level}”."


def _doubts(pairs: Sequence[tuple[Entry, Verdict]]) -> str:
    names = [entry.name for entry, verdict in pairs if verdict.suspicions]
    return f"The evaluation distrusts its own figures for {listing(names)}." if names else ""


def _chance(members: Sequence[Entry]) -> str:
    once = any(len(seeds(members, entry)) == 1 for entry in members)
    seed = " Some or all models were trained with one seed only, so small differences may be chance." if once else ""
    return f"This is a test, not a certificate: a better attacker may see more.{seed}"
