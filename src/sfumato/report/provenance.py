"""How each figure was made: enough to run it again and to tell whether it is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.audit.card import Card
from sfumato.report.comparison import Entry
from sfumato.report.format import amount, arguments, call, fixed, octets, percent


@dataclass(frozen=True)
class Fact:
    """A named detail; ``exact`` ones are to be copied, not read."""

    name: str
    value: str
    exact: bool = False


def common(members: Sequence[Entry]) -> list[Fact]:
    """What holds for every model of the report: said once."""
    first, *others = (facts(entry.card) for entry in members)
    if not others:
        return []
    return [fact for fact in first if all(fact in other for other in others)]


def own(members: Sequence[Entry]) -> list[list[Fact]]:
    """What is left to say about each model."""
    shared = common(members)
    return [[fact for fact in facts(entry.card) if fact not in shared] for entry in members]


def facts(card: Card) -> list[Fact]:
    """Everything the card says about how it came to be, except the attacks."""
    return [*_data(card), *_model(card), *_training(card), *_judge(card), *_theory(card), *_where(card)]


def _data(card: Card) -> list[Fact]:
    data = card.data
    channels, height, width = data.image_shape
    kind = {1: "gray", 3: "color"}.get(channels, f"{channels}-channel")
    parts = f"{data.train:,} training, {data.validation:,} validation, {data.test:,} test"
    return [
        Fact("Data", f"{data.source}: {height} × {width} {kind} pictures, {len(data.classes)} classes"),
        Fact("Parts", f"{parts}, {data.auxiliary:,} for the attacker"),
        Fact("Classes", ", ".join(data.classes)),
        Fact("Data checksum", data.checksum, exact=True),
    ]


def _model(card: Card) -> list[Fact]:
    model, cost = card.model, card.cost
    shape = " × ".join(str(size) for size in model.feature_shape)
    edge = f"{amount(cost.edge_parameters)} parameters, {amount(cost.edge_macs)} MACs"
    cloud = f"{amount(cost.cloud_parameters)} parameters, {amount(cost.cloud_macs)} MACs"
    start = [Fact("Device half began as", model.edge_from, exact=True)] if model.edge_from is not None else []
    return [
        *start,
        Fact("Network", f"{model.backbone}, width ×{model.width:g}"),
        Fact("Cut", f"after {model.cut}; sent: {shape} numbers, {octets(cost.payload_bytes)}"),
        Fact("Device half", edge),
        Fact("Cloud half", cloud),
        Fact("Defense", " → ".join(call(part) for part in card.defense.parts) or "none", exact=True),
    ]


def _training(card: Card) -> list[Fact]:
    training, utility = card.training, card.utility
    accuracy = f"{percent(utility.train_accuracy)} training, {percent(utility.validation_accuracy)} validation"
    losses = ", ".join(f"{name} {fixed(value, 4)}" for name, value in sorted(training.losses.items()))
    kept = f"{training.epochs_run} run, number {training.epoch_kept} kept (best on the validation part)"
    return [
        Fact("Training", arguments(training.arguments) or "defaults", exact=True),
        Fact("Seed", str(training.seed)),
        Fact("Epochs", kept),
        Fact("Last losses", losses or "none"),
        Fact("Accuracy", f"{accuracy}, {percent(utility.test_accuracy)} test"),
    ]


def _judge(card: Card) -> list[Fact]:
    if card.judge is None:
        return []
    what = f"the undefended {card.model.backbone}, width ×{card.model.width:g}, from seed {card.judge.seed}"
    return [Fact("Classifier that looks at reconstructions", what), Fact("Its run", card.judge.run, exact=True)]


def _theory(card: Card) -> list[Fact]:
    figures = ", ".join(f"{name} = {fixed(value, 4)}" for name, value in sorted(card.theory.items()))
    return [Fact("Tracked by theory", figures)] if figures else []


def _where(card: Card) -> list[Fact]:
    place, timing = card.environment, card.timing
    trained, attacked = fixed(timing.train_seconds, 0), fixed(timing.attack_seconds, 0)
    software = f"sfumato {place.sfumato}, torch {place.torch}, Python {place.python}"
    return [
        Fact("Software", software),
        Fact("Machine", f"{place.platform}, {place.device}, {place.threads} threads"),
        Fact("Finished", f"{timing.finished}, after {trained} s of training and {attacked} s of attacks"),
        Fact("Run", card.run, exact=True),
        Fact("Fingerprint", card.fingerprint(), exact=True),
    ]
