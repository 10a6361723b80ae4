"""One loop for everything that learns: models, their adversaries, attackers."""

from __future__ import annotations

from sfumato.data import Augment, Splits
from sfumato.defenses import BoundDefense
from sfumato.models import SplitModel
from sfumato.training.loop import Fit, Job, Plan, fit, steps_per_epoch
from sfumato.training.runtime import Runtime, make_fabric
from sfumato.training.settings import Training, load_optimizer, make_optimizer, make_schedule
from sfumato.training.split_job import SplitJob

AUGMENTATIONS: dict[str, Augment | None] = {
    "none": None,
    "flip": Augment(crop_padding=0, flip=True, rotation=0),
    "crop_flip": Augment(crop_padding=4, flip=True, rotation=0),
    "crop_flip_rotate": Augment(crop_padding=4, flip=True, rotation=15),
}


def augmentation(training: Training, data: Splits) -> Augment | None:
    """What a recipe does to these training images."""
    return data.augment if training.augment == "preset" else AUGMENTATIONS[training.augment]


def train(
    split: SplitModel,
    defense: BoundDefense,
    data: Splits,
    training: Training,
    *,
    seed: int,
    runtime: Runtime | None = None,
    title: str = "train",
) -> tuple[SplitModel, Fit]:
    """Train a split model under a defense; resumes from the runtime's folder.

    Args:
        split: As the defense left it: ``bound.defend(split)``.
        defense: Bound to it.
        data: Trains on ``train``, selects on ``validation``; ``test`` and ``auxiliary`` are not touched.
        training: The recipe.
        seed: Of batch order, augmentation, noise, dropout.
        runtime: Device, folder, progress; by default the best device, silently, keeping nothing.
        title: For the progress bar.

    Returns:
        The model with the kept epoch's weights (the one given, unless the defense changed its architecture), and
        what happened.
    """
    runtime = runtime or Runtime()
    images, validation = data.train.to(runtime.device), data.validation.to(runtime.device)
    job = SplitJob(split, defense, training, images, validation, seed=seed, runtime=runtime, title=title)
    first = min(int(training.epochs * training.select_from), training.epochs - 1)
    plan = Plan(
        training.epochs,
        training.batch_size,
        seed,
        augmentation(training, data),
        select_from=first if training.select == "best" else training.epochs - 1,
    )
    result = fit(job, images, plan, runtime)
    return job.split, result


__all__ = [
    "AUGMENTATIONS",
    "Fit",
    "Job",
    "Plan",
    "Runtime",
    "SplitJob",
    "Training",
    "augmentation",
    "fit",
    "load_optimizer",
    "make_fabric",
    "make_optimizer",
    "make_schedule",
    "steps_per_epoch",
    "train",
]
