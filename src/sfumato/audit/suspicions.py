"""What an evaluation should distrust about itself, as pure functions from figures to words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.attacks import Reconstruction, WhiteBox
from sfumato.audit.card import Quality, Suspicion
from sfumato.models import Stochastic
from sfumato.training import Fit

_NO_PROGRESS = 0.9
_CONSTANT = 1e-4
_VANISHED = 1e-6


@dataclass(frozen=True, eq=False)
class Evidence:
    """What suspicions are drawn from.

    Attributes:
        fit: The model's training.
        test_accuracy: Fraction.
        chance: Share of the most frequent test class.
        attacks: Attack name to what it made.
        random_channel: Whether what is sent is random.
        mean_image: Error of answering with the mean training image, on the judged test images.
        gradient: Mean norm of the gradient of ½‖edge(x)‖² in x; ``None`` where it was not measured.
    """

    fit: Fit
    test_accuracy: float
    chance: float
    attacks: Mapping[str, Reconstruction]
    random_channel: bool
    mean_image: Quality
    gradient: float | None


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
            "The edge passes almost no gradient back to its input: attacks that optimize the image are blind to it, "
            "which hides a leak and does not close it.",
        )
    if evidence.random_channel and all(attack.observations == 1 for attack in evidence.attacks.values()):
        yield (
            "not-averaged",
            "What is sent is random, and every image was observed once. An attacker who sees the same image several "
            "times can average the noise away; this was not tried.",
        )


def _of_attack(name: str, attack: Reconstruction, mean_image_mse: float) -> Iterator[tuple[str, str]]:
    if attack.diverged:
        yield (
            "attack-diverged",
            f"A loss of the attack {name} became infinite or NaN; its figures say nothing.",
        )
    before, after = attack.figures.get("mse_before"), attack.figures.get("mse_after")
    if before is not None and after is not None and after > _NO_PROGRESS * before:
        yield (
            "attack-did-not-train",
            f"The attack {name} hardly improved on its start (MSE {before:.4f} to {after:.4f}): it may be the attack "
            "that failed and not the defense that held.",
        )
    made = attack.images["test"]
    if len(made) > 1 and float(made.std(0).mean()) < _CONSTANT:
        yield "constant-output", f"The attack {name} answers every feature with the same picture."
    mse = float(attack.quality["test"].mse.mean())
    if mse > mean_image_mse:
        yield (
            "worse-than-mean-image",
            f"The attack {name} does worse (MSE {mse:.4f}) than answering with the mean image ({mean_image_mse:.4f}): "
            "a better attack exists.",
        )


def is_random(channel: torch.nn.Module) -> bool:
    """Whether a channel draws random numbers."""
    return any(isinstance(layer, Stochastic) for layer in channel.modules())


def gradient_through(target: WhiteBox, x: Tensor) -> float:
    """Mean norm of the gradient of ½‖edge(x)‖² in x, over images x (N, C, H, W)."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * target.edge(x).square().sum(), x)
    return float(gradient.flatten(1).norm(dim=1).mean())
