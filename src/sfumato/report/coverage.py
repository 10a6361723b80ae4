"""What the audit assumed and what it did not try, derived from the cards."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.audit.card import AttackInfo
from sfumato.report.comparison import Entry, seeds
from sfumato.report.format import count_word, listing, plural, sentence

THREAT_MODELS = {
    "white-box": "knows the device’s half with its weights",
    "gray-box": "knows how the device’s half is built but not its weights, and may query it",
    "black-box": "may only query the device’s half",
}

TRAINED_ON = {
    "train": "the model’s training pictures",
    "auxiliary": "other pictures of the same kind",
}


FAMILIES = {
    "decoder": "a decoder network trained to invert the feature",
    "ensemble": "an ensemble of decoders of several shapes",
    "gan": "a generative adversarial network (GAN)",
    "rmle": "optimizing a picture until its feature fits (rMLE)",
    "generator": "an inverse network trained on the attacker’s own pictures",
    "latent_prior": "searching the latents of a generative model for a picture that fits",
    "deep_prior": "fitting an untrained network (deep image prior)",
}
"""Every registered attack, in words."""

_ALWAYS = (
    "Attackers with more data, more computing time or better methods than those of the tables above.",
    "Guessing properties (age, identity, membership) without rebuilding the picture.",
    "An attacker who watches many pictures of one person, or who takes part in training.",
    "What the answers themselves give away; only the feature on its way to the cloud was attacked.",
    "Pictures unlike those of the data set above.",
)


def assumptions(members: Sequence[Entry]) -> list[str]:
    """What has to hold for the figures to mean what the page says."""
    attacks = _attacks(members)
    models = sorted({attack.threat_model for attack in attacks}, key=list(THREAT_MODELS).index)
    lines = [f"A {model} attacker {THREAT_MODELS[model]}." for model in models]
    lines += [_learned(origin, attacks) for origin in TRAINED_ON if any(a.trained_on == origin for a in attacks)]
    if any(attack.trained_on == "auxiliary" for attack in attacks):
        lines.append("The attacker’s own pictures come from the same source as the model’s.")
    return [
        *lines,
        "The attacker sees the feature as it is really sent, with all noise and rounding on.",
        _sendings(attacks),
        "SSIM and MSE stand for what a person sees; they do not know which part of a picture is sensitive. LPIPS, a "
        "learned likeness that is closer to the eye, was not measured.",
    ]


def tried(members: Sequence[Entry]) -> list[str]:
    """What was run: each kind of attack with its threat models and what it could spend, largest figures included."""
    groups: dict[str, list[AttackInfo]] = {}
    for attack in _attacks(members):
        groups.setdefault(attack.kind, []).append(attack)
    return [_spent(name, attacks) for name, attacks in groups.items()]


def _attacks(members: Sequence[Entry]) -> list[AttackInfo]:
    return [attack for entry in members for attack in entry.card.attacks]


def _spent(name: str, attacks: Sequence[AttackInfo]) -> str:
    models = sorted({attack.threat_model for attack in attacks}, key=list(THREAT_MODELS).index)
    parts = [listing([str(model) for model in models]), _seen([attack.observations for attack in attacks])]
    owned = [attack.images for attack in attacks if attack.images is not None]
    if owned:
        parts.append(f"{_range(owned)} pictures of its own")
    parts.append(f"{_range([attack.queries for attack in attacks])} pictures sent through the device’s half")
    return f"{name}: {'; '.join(parts)}."


def _seen(counts: Sequence[int]) -> str:
    if max(counts) == 1:
        return "each picture seen once"
    times = [f"{count:,}" for count in sorted(set(counts))]
    return f"each picture seen {listing(times, 'or')} times, and averaged"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    if low == high:
        return "no" if high == 0 else f"{high:,}"
    return f"{low:,} to {high:,}"


def _learned(origin: str, attacks: Sequence[AttackInfo]) -> str:
    own = sorted({attack.kind for attack in attacks if attack.trained_on == origin})
    whence = TRAINED_ON[origin] + (", the papers’ worst case" if origin == "train" else "")
    if all(attack.trained_on == origin for attack in attacks):
        return f"All attackers learned from {whence}."
    return f"Some attackers learned from {whence}: {listing(own)}."


def _sendings(attacks: Sequence[AttackInfo]) -> str:
    most = max(attack.observations for attack in attacks)
    often = "once," if most == 1 else f"up to {most:,} times, without a change,"
    return f"Each picture is sent {often} by a device that runs exactly the model of the card."


def not_tried(members: Sequence[Entry]) -> list[str]:
    """What this audit leaves open, most specific first."""
    return [
        *_threat_models(members),
        *_families(members),
        *_observations(members),
        *_uneven(members),
        *_seeds(members),
        *_ALWAYS,
    ]


def _threat_models(members: Sequence[Entry]) -> list[str]:
    covered = {attack.threat_model for attack in _attacks(members)}
    missing = [model for model in THREAT_MODELS if model not in covered]
    return [f"No {model} attacker, who {THREAT_MODELS[model]}." for model in missing]


def _families(members: Sequence[Entry]) -> list[str]:
    attacks = _attacks(members)
    kinds = {attack.kind for attack in attacks}
    missing = [title for kind, title in FAMILIES.items() if kind not in kinds]
    if all(attack.observations == 1 for attack in attacks):
        missing.append("averaging over repeated observations of the same picture")
    return [f"Not run: {title}." for title in missing]


def _observations(members: Sequence[Entry]) -> list[str]:
    """How far averaging was taken, and by whom it was not, where it was tried at all."""
    averaging = [attack for attack in _attacks(members) if attack.observations > 1]
    most = max((attack.observations for attack in averaging), default=1)
    if most == 1:
        return []
    lines = [f"Attackers who intercept the same picture more than {most:,} times."]
    kinds = {attack.kind for attack in averaging}
    without = sorted({attack.kind for attack in _attacks(members)} - kinds)
    if without:
        lines.append(f"Averaging over repeated observations by {listing(without)}; only {listing(sorted(kinds))} did.")
    return lines


def _uneven(members: Sequence[Entry]) -> list[str]:
    every: dict[str, AttackInfo] = {}
    for attack in _attacks(members):
        every.setdefault(attack.attack.name, attack)
    lines = []
    for entry in members:
        missing = sorted(name for name, attack in every.items() if not _faced(entry, attack))
        if missing:
            many = plural(len(missing), "attack", "attacks")
            lines.append(
                f"{entry.name} was spared the {many} {listing(missing)} that others had to face, "
                "so it may look better than it is."
            )
    return lines


def _faced(entry: Entry, attack: AttackInfo) -> bool:
    # A label depends on what else is in the card, so the same attack may go by another one elsewhere.
    return any(
        other.attack.name == attack.attack.name
        or (other.kind == attack.kind and other.attack.arguments == attack.attack.arguments)
        for other in entry.card.attacks
    )


def _seeds(members: Sequence[Entry]) -> list[str]:
    once = [entry.name for entry in members if len(seeds(members, entry)) == 1]
    if not once:
        return []
    who = "Every model" if len(once) == len(members) else sentence(f"{count_word(len(once))} of the models")
    verb = "was" if len(once) <= 1 or len(once) == len(members) else "were"
    return [f"{who} {verb} trained with one seed only: how much the figures vary by chance is not known."]
