"""The judge: a classifier that never met the audited model looks at what attacks made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato import metrics
from sfumato.attacks import Reconstruction
from sfumato.audit.card import Card, JudgeInfo, Suspicion
from sfumato.audit.runs import Run, train_run
from sfumato.audit.settings import Settings
from sfumato.data import ImageSet, Splits
from sfumato.defenses import chain
from sfumato.models import set_generator
from sfumato.training import Runtime

_APART = 1_000_003
"""Between the seed of an audit and that of its judge."""
_SEEDS = 2**31
_BLIND = 0.1
"""A judge that covers no more than this share of the way from chance to perfect sees too little to be asked."""


def train_judge(settings: Settings, splits: Splits, *, root: Path, runtime: Runtime) -> Run:
    """Train the judge, or take it from where it was trained before: one for all defenses and cuts of an audit.

    It is the network of the settings without a defense, trained like the audited models on the same images, but with
    another seed and from no other run's edge.

    Args:
        settings: Of the audit.
        splits: The audit's images: the judge has not seen the test images either.
        root: Folder of all runs.
        runtime: Where it runs.

    Raises:
        Interrupted: Asked to stop; the same call goes on.
        CorruptFileError: What is there does not match its checksum.
    """
    model = settings.model.model_copy(update={"cut": None, "edge_from": None})
    own = settings.model_copy(update={"model": model, "seed": (settings.seed + _APART) % _SEEDS})
    return train_run(own, "judge", chain(), splits, root=root, runtime=runtime)


def add_judgement(card: Card, judge: Run, made: Mapping[str, Reconstruction], victims: ImageSet) -> Card:
    """The card with what the judge recognizes, in the originals and in each attack's reconstructions.

    Args:
        card: Of the audited model.
        judge: What :func:`train_judge` gave.
        made: What the card's attacks made of ``victims``, in its order, in the group ``test``.
        victims: The judged test images.
    """
    split = judge.split.eval()
    example = next(split.parameters())
    set_generator(split, torch.Generator(example.device).manual_seed(judge.settings.seed))

    def share(images: Tensor) -> float:
        return metrics.recognized(lambda x: split(x.to(example)), images, victims.labels)

    info = JudgeInfo(
        run=judge.folder.name,
        seed=judge.settings.seed,
        accuracy=share(victims.images / 255),
        chance=metrics.chance(victims.labels),
    )
    attacks = [
        attack.model_copy(update={"identity": share(result.images["test"])})
        for attack, result in zip(card.attacks, made.values(), strict=True)
    ]
    doubts = [*card.suspicions, *_doubts(info)]
    return card.model_copy(update={"judge": info, "attacks": attacks, "suspicions": doubts})


def _doubts(judge: JudgeInfo) -> Iterator[Suspicion]:
    if judge.accuracy - judge.chance <= _BLIND * (1 - judge.chance):
        yield Suspicion(
            code="judge-at-chance",
            message=f"The independent classifier recognizes only {judge.accuracy:.1%} of the originals: that it does "
            "not recognize reconstructions says nothing.",
        )
