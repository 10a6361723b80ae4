"""What an evaluation should distrust about itself, as pure functions from figures to words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.attacks import THREAT_MODELS, Attack, BlackBox, Reconstruction, WhiteBox
from sfumato.attacks.auto import DERIVED
from sfumato.audit.card import Quality, Suspicion
from sfumato.models import Stochastic, expected
from sfumato.training import Fit

_NO_PROGRESS = 0.9
_NO_BETTER = 0.98
"""Of the mean image's error: who has learned that image and nothing of the feature comes so near to it."""
_CONSTANT = 1e-4
_VANISHED = 1e-6
"""Of the gradient of log‖z‖ in the image: for a linear edge it is at least 1 over the image's norm."""
_LEVELS = 256
_REPEATED = 4
_WORSE = 1.1
"""A tenth more error, whichever is measured."""
_BEHIND = 0.2
_AVERAGED = 0.8
_LEARNED = {
    "mse": "MSE",
    "objective": "objective",
    "prior_loss": "loss of its prior",
    "edge_mse": "MSE of the edge that it taught",
}
"""What attacks say before and after they learned or searched, in words."""
_BUDGET = ("observations", "images", "queries")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What suspicions are drawn from.

    Attributes:
        fit: The model's training.
        test_accuracy: Fraction.
        chance: Share of the most frequent test class.
        attacks: Attack label to what it made.
        specs: Attack label to the attack.
        random_channel: Whether what is sent is random, wherever that comes from.
        mean_image: Error of answering with the mean training image, on the judged test images.
        gradient: Mean norm of the gradient in x of log‖what is sent of x‖; ``None`` where it was not measured.
        levels: How many different numbers any channel sends of a batch of images, at most; ``None`` where it was not
            measured.
    """

    fit: Fit
    test_accuracy: float
    chance: float
    attacks: Mapping[str, Reconstruction]
    random_channel: bool
    mean_image: Quality
    gradient: float | None
    levels: int | None = None
    specs: Mapping[str, Attack] = field(default_factory=dict)


def suspicions(evidence: Evidence) -> list[Suspicion]:
    """Everything that a reader should distrust, most serious first."""
    return [Suspicion(code=code, message=message) for code, message in _all(evidence)]


def _all(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if evidence.fit.diverged:
        yield "training-diverged", "A loss of the model became infinite or NaN; training stopped there."
    if evidence.test_accuracy <= evidence.chance + 0.02:
        yield "model-at-chance", "The model is no better than always answering the most frequent class."
    for name, attack in evidence.attacks.items():
        yield from _of_attack(name, attack, evidence.mean_image.mse)
    if evidence.gradient is not None and evidence.gradient < _VANISHED:
        yield (
            "gradient-vanishes",
            "Edge and channel pass almost no gradient back to the image: attacks that optimize the image are blind, "
            "which hides a leak and does not close it.",
        )
    if evidence.levels is not None and evidence.levels <= _LEVELS:
        yield (
            "quantized",
            f"No channel of what is sent takes more than {evidence.levels} different values. Rounding has no gradient "
            "of use, so attacks that optimize the image say little here; those that learn from examples count.",
        )
    yield from _between(evidence.attacks, evidence.specs, evidence.random_channel)
    yield from _optimizing(evidence.attacks, evidence.specs)
    yield from _between_threat_models(evidence.attacks)
    if evidence.random_channel and all(attack.observations == 1 for attack in evidence.attacks.values()):
        yield (
            "not-averaged",
            "What is sent is random, and every image was observed once. An attacker who sees the same image several "
            "times can average the noise away; this was not tried.",
        )


def _between(
    attacks: Mapping[str, Reconstruction], specs: Mapping[str, Attack], random_channel: bool
) -> Iterator[tuple[str, str]]:
    """What one attack with two budgets tells: more that does worse, noise that averages out."""
    for (weaker, less), (stronger, more) in itertools.permutations(specs.items(), 2):
        small, large = (float(attacks[name].quality["test"].mse.mean()) for name in (weaker, stronger))
        if not _has_more(more, less):
            continue
        if large > _WORSE * small:
            yield (
                "stronger-is-weaker",
                f"The attack {stronger} has more than {weaker} and errs more (MSE {large:.4f} against {small:.4f}): it "
                "may not have been trained to its end.",
            )
        same = (more.images, more.queries) == (less.images, less.queries)
        if random_channel and same and large < _AVERAGED * small:
            yield (
                "averages-out",
                f"What is sent is random, and the mean of {more.observations} sendings of an image gives the attack "
                f"{less.name} an MSE of {large:.4f} in place of {small:.4f}: the noise protects who is seen once.",
            )


def _optimizing(attacks: Mapping[str, Reconstruction], specs: Mapping[str, Attack]) -> Iterator[tuple[str, str]]:
    """Who only descends through the edge, and sends nothing, against who learns from what it sends."""
    searching = {name: attacks[name] for name, attack in specs.items() if attack.query_free}
    most = max((made.observations for made in searching.values()), default=0)
    # Who saw more sendings of a victim was given something else, and is no measure.
    learning = [made for name, made in attacks.items() if name in specs.keys() - searching.keys()]
    learning = [made for made in learning if made.observations <= most]
    if not learning:
        return
    ours, theirs = (1 - min(map(_unlikeness, group)) for group in (searching.values(), learning))
    if theirs - ours > _BEHIND:
        yield (
            "optimization-falls-behind",
            f"Attacks that only optimize the image through the edge reach SSIM {ours:.2f}, attacks that learn from "
            f"what the edge answers {theirs:.2f}: it may hide its gradient, or the optimization may have failed.",
        )


def _between_threat_models(attacks: Mapping[str, Reconstruction]) -> Iterator[tuple[str, str]]:
    """Who may touch more can do all that others can: the best of them should not come behind."""
    for more, less in itertools.combinations(THREAT_MODELS, 2):
        knowing = {name: made for name, made in attacks.items() if made.threat_model == more}
        # Who saw more sendings or owned more images was given something else in turn, and is no measure.
        others = {
            name: made
            for name, made in attacks.items()
            if made.threat_model == less
            and any(one.observations >= made.observations and one.owned >= made.owned for one in knowing.values())
        }
        if not others:
            continue
        behind = []
        for title, error in (("MSE", _squared_error), ("1 - SSIM", _unlikeness)):
            ours, theirs = (min((error(made), name) for name, made in group.items()) for group in (knowing, others))
            if ours[0] > _WORSE * theirs[0]:
                behind.append(f"{title} {ours[0]:.4f} by {ours[1]} against {theirs[0]:.4f} by {theirs[1]}")
        if behind:
            yield (
                "stronger-is-weaker",
                f"The best {more} attack errs more than the best {less} one ({'; '.join(behind)}), though who may "
                f"touch more can do all that others can: the {more} attacks may not have been trained to their end.",
            )


def _squared_error(made: Reconstruction) -> float:
    return float(made.quality["test"].mse.mean())


def _unlikeness(made: Reconstruction) -> float:
    return 1 - float(made.quality["test"].ssim.mean())


def _has_more(more: Attack, less: Attack) -> bool:
    """Whether two attacks are the same but for a larger budget.

    How many epochs one trains for follows from how many images it learns from, and is no difference where that follows
    from the budget: where they own or may send other numbers of images, or where so many sendings of each are paid out
    of a limited number of queries.
    """
    if type(more) is not type(less):
        return False
    ours, theirs = more.describe(), less.describe()
    shared_out = more.queries is not None or (more.images, more.queries) != (less.images, less.queries)
    free = {*_BUDGET, *(DERIVED if shared_out else ())}
    if any(ours[name] != theirs[name] for name in ours if name not in free):
        return False
    pairs = [tuple(math.inf if told[name] is None else told[name] for told in (ours, theirs)) for name in _BUDGET]
    return ours != theirs and all(mine >= other for mine, other in pairs)


def _of_attack(name: str, attack: Reconstruction, mean_image_mse: float) -> Iterator[tuple[str, str]]:
    if attack.diverged:
        yield (
            "attack-diverged",
            f"A loss of the attack {name}, or a picture that it made, became infinite or NaN; its figures say nothing.",
        )
    for figure, title in _LEARNED.items():
        before, after = (attack.figures.get(f"{figure}_{when}") for when in ("before", "after"))
        if before is not None and after is not None and after > _NO_PROGRESS * before:
            yield (
                "attack-did-not-train",
                f"The attack {name} hardly improved on its start ({title} {before:.4g} to {after:.4g}): it may be the "
                "attack that failed and not the defense that held.",
            )
    started, ended = (attack.figures.get(f"mse_{when}") for when in ("started", "after"))
    if started is not None and ended is not None and ended > _WORSE * started:
        yield (
            "attack-did-not-train",
            f"The attack {name} did worse at its end than the decoder that it went on from (MSE {started:.4g} to "
            f"{ended:.4g}): it may be the attack that failed and not the defense that held.",
        )
    made = attack.images["test"]
    if len(made) > 1 and float(made.std(0).mean()) < _CONSTANT:
        yield "constant-output", f"The attack {name} answers every feature with the same picture."
    mse = float(attack.quality["test"].mse.mean())
    if mse > _NO_BETTER * mean_image_mse:
        yield (
            "worse-than-mean-image",
            f"The attack {name} does no better (MSE {mse:.4f}) than answering with the mean image "
            f"({mean_image_mse:.4f}), or worse: it may be the attack that failed and not the defense that held.",
        )


def is_random(channel: torch.nn.Module) -> bool:
    """Whether a channel draws random numbers."""
    return any(isinstance(layer, Stochastic) for layer in channel.modules())


def sends_differently(target: BlackBox, x: Tensor) -> bool:
    """Whether the same images x (N, C, H, W), sent twice, make different features: whatever draws, and wherever."""
    first = target.query(x)
    return not torch.equal(first, target.query(x))


def gradient_through(target: WhiteBox, x: Tensor) -> float:
    """Mean norm of the gradient in x of log‖z‖, z the mean of what is sent of the images x (N, C, H, W).

    It is the same whatever number all features are multiplied with.
    """
    x = x.detach().requires_grad_()
    z = expected(target.channel, target.edge(x)).flatten(1)
    largest = z.detach().abs().max()
    if not z.requires_grad or largest == 0:
        return 0.0
    # The largest number sent is 1 now: the squares of small features would be nothing.
    squares = (z / largest).square().sum(1)
    (gradient,) = torch.autograd.grad(0.5 * squares.sum(), x, allow_unused=True)
    # Where nothing at all is sent of an image, there is no gradient either.
    squares = squares.detach().clamp_min(torch.finfo(squares.dtype).tiny)
    return 0.0 if gradient is None else float((gradient.flatten(1).norm(dim=1) / squares).mean())


def levels_of(target: BlackBox, x: Tensor) -> int | None:
    """How many different numbers any channel sends of the images x (N, C, H, W), at most; ``None`` if too few to tell.

    By channel, for an offset or a scale of its own makes other numbers of the same levels. Where that cannot tell, as
    in a feature that is a vector, all numbers are counted together. Levels tell where each, but for the most frequent
    (that of a rectifier or a mask), is sent of four images on average: numbers that were not rounded are one image's
    alone, however often they stand in its map.
    """
    z = target.query(x)
    for maps in (z.transpose(0, 1).flatten(2) if z.ndim > 2 else z.T.unsqueeze(2), z.flatten(1).unsqueeze(0)):
        counts = [_images_of_each(numbers) for numbers in maps]
        levels = max(map(len, counts))
        others = sum(len(each) - 1 for each in counts)
        repeated = sum(int(each.sum() - each.max()) for each in counts)
        if levels > _LEVELS or (others > 0 and repeated >= _REPEATED * others):
            return levels
    return None


def _images_of_each(numbers: Tensor) -> Tensor:
    """In how many rows of (N, P) each number stands, whatever the number."""
    ordered = numbers.sort(1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts: Tensor = torch.unique(ordered[first], return_counts=True)[1]
    return counts
