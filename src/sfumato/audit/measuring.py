"""What is measured of a model that was trained and attacked, as its card."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import torch

import sfumato
from sfumato import metrics
from sfumato.attacks import Attack, Knowledge, Reconstruction, WhiteBox, make_target, strongest
from sfumato.audit import card as cards
from sfumato.audit.card import Card
from sfumato.audit.examples import examples
from sfumato.audit.runs import Run, checksum_of, edge_digest, recipe_of
from sfumato.audit.settings import Settings
from sfumato.audit.suspicions import (
    Evidence,
    gradient_through,
    is_random,
    levels_of,
    sends_differently,
    suspicions,
)
from sfumato.data import ImageSet, Splits
from sfumato.defenses import Defense
from sfumato.models import set_generator
from sfumato.training import Runtime

_PROBES = 64


def card_of(
    run: Run,
    settings: Settings,
    splits: Splits,
    attacks: tuple[Attack, ...],
    made: Mapping[str, Reconstruction],
    knowledge: Knowledge,
    victims: Mapping[str, ImageSet],
    runtime: Runtime,
) -> Card:
    """The card of a model that was attacked: what it is good for, what it costs, what leaks, and what to distrust.

    Args:
        run: The model, in the runtime's place.
        settings: Of the audit.
        splits: The images it was trained on.
        attacks: In order.
        made: What each attack made, by its label, in the same order.
        knowledge: The attacker's images.
        victims: The images that were attacked, ``train`` and ``test``.
        runtime: Device.
    """
    utility = _utility(run, splits, settings, runtime)
    mean_image = _mean_image(splits.train, victims["test"])
    cost = metrics.split_cost(run.split)
    gradient, levels, differs = _probed(run, victims["test"], settings, runtime)
    evidence = Evidence(
        run.fit,
        utility.test_accuracy,
        int(splits.test.labels.bincount().max()) / len(splits.test),
        made,
        differs or is_random(run.split.channel),
        mean_image,
        gradient,
        levels,
        specs=dict(zip(made, attacks, strict=True)),
    )
    return Card(
        run=run.folder.name,
        defense=defense_info(run.label, run.defense),
        data=_data_info(splits, settings),
        model=cards.ModelInfo(
            backbone=settings.model.backbone,
            width=settings.model.width,
            cut=run.split.cut,
            feature_shape=run.split.feature.shape,
            edge_from=edge_digest(run.settings),
        ),
        training=_training_info(run, settings, splits),
        utility=utility,
        cost=cards.Cost(**vars(cost)),
        theory=_theory(run, splits, settings, runtime),
        mean_image=mean_image,
        attacks=[
            _attack_info(name, attack, settings, knowledge, result, victims["test"])
            for attack, (name, result) in zip(attacks, made.items(), strict=True)
        ],
        worst_case=_worst_case(made),
        suspicions=suspicions(evidence),
        timing=_timing(run, made, runtime),
        environment=cards.Environment(
            sfumato=sfumato.__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            device=_device_name(runtime.device),
            threads=torch.get_num_threads(),
        ),
    )


def defense_info(label: str, defense: Defense) -> cards.DefenseInfo:
    """What a card says of a defense."""
    parts = [
        cards.Part(name=part["part"], arguments={k: v for k, v in part.items() if k != "part"})
        for part in defense.describe()
    ]
    return cards.DefenseInfo(label=label, parts=parts)


def _data_info(splits: Splits, settings: Settings) -> cards.DataInfo:
    return cards.DataInfo(
        source=settings.data.source,
        checksum=checksum_of(splits),
        image_shape=splits.train.image_shape,
        classes=list(splits.train.classes),
        train=len(splits.train),
        validation=len(splits.validation),
        test=len(splits.test),
        auxiliary=len(splits.auxiliary) if splits.auxiliary is not None else 0,
    )


def _training_info(run: Run, settings: Settings, splits: Splits) -> cards.TrainingInfo:
    figures = ("epoch", "validation_loss", "validation_accuracy")
    return cards.TrainingInfo(
        arguments=recipe_of(settings, splits),
        seed=settings.seed,
        epochs_run=len(run.fit.history),
        epoch_kept=run.fit.epoch_kept,
        losses={name: value for name, value in run.fit.history[-1].items() if name not in figures},
    )


def _utility(run: Run, splits: Splits, settings: Settings, runtime: Runtime) -> cards.Utility:
    generator = runtime.generator(settings.seed + 7)
    train, validation, test = (
        metrics.accuracy(run.split, part.to(runtime.device), generator=generator)
        for part in (splits.train, splits.validation, splits.test)
    )
    return cards.Utility(train_accuracy=train, validation_accuracy=validation, test_accuracy=test)


def _theory(run: Run, splits: Splits, settings: Settings, runtime: Runtime) -> dict[str, float]:
    generator = runtime.generator(settings.seed + 11)
    found = metrics.theory(run.split, splits.train.to(runtime.device), generator=generator) | run.bound.theory()
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _mean_image(train: ImageSet, victims: ImageSet) -> cards.Quality:
    mean = train.images.double().mean(0, keepdim=True).float() / 255
    return _means(metrics.quality(mean.expand(len(victims), -1, -1, -1), victims.images / 255))


def _means(quality: metrics.Quality) -> cards.Quality:
    psnr = float(quality.psnr.mean())
    return cards.Quality(
        mse=float(quality.mse.mean()),
        psnr=psnr if np.isfinite(psnr) else None,
        ssim=float(quality.ssim.mean()),
    )


def _attack_info(
    name: str,
    attack: Attack,
    settings: Settings,
    knowledge: Knowledge,
    result: Reconstruction,
    victims: ImageSet,
) -> cards.AttackInfo:
    # As they are read again: JSON has no tuples.
    told = {key: list(value) if isinstance(value, tuple) else value for key, value in attack.describe().items()}
    arguments = {key: value for key, value in told.items() if key != "attack"}
    return cards.AttackInfo(
        attack=cards.Part(name=name, arguments=arguments),
        kind=attack.name,
        threat_model=result.threat_model,
        trained_on=knowledge.origin,
        queries=result.queries,
        images=result.owned,
        observations=result.observations,
        train=_means(result.quality["train"]),
        test=_means(result.quality["test"]),
        test_mse=result.quality["test"].mse.tolist(),
        test_ssim=result.quality["test"].ssim.tolist(),
        examples=examples(result, victims),
    )


def _worst_case(made: Mapping[str, Reconstruction]) -> cards.WorstCase:
    quality = strongest(made).quality
    return cards.WorstCase(mse=float(quality.mse.mean()), ssim=float(quality.ssim.mean()))


def _probed(run: Run, victims: ImageSet, settings: Settings, runtime: Runtime) -> tuple[float, int | None, bool]:
    """The gradient through the device, how many numbers it sends, and whether it sends the same image differently."""
    target = make_target(run.split, "white-box", generator=runtime.generator(settings.seed))
    assert isinstance(target, WhiteBox)
    x = victims.images[:_PROBES].to(runtime.device) / 255
    return gradient_through(target, x), levels_of(target, x), sends_differently(target, x)


def _timing(run: Run, made: Mapping[str, Reconstruction], runtime: Runtime) -> cards.Timing:
    split = run.split.eval()
    set_generator(split, runtime.generator(0))
    image = torch.zeros(1, *split.image_shape, device=runtime.device)
    with torch.no_grad():
        z = split.send(image)
    return cards.Timing(
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        train_seconds=run.seconds,
        attack_seconds=sum(result.seconds for result in made.values()),
        edge_latency_ms=metrics.latency(torch.nn.Sequential(split.edge, split.channel), image),
        cloud_latency_ms=metrics.latency(split.cloud, z),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
