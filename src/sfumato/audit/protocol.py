"""The audit: train, attack through the deployed channel, judge on images nobody has seen, write the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from sfumato.attacks import Attack, Knowledge, Reconstruction, Scene, labels, make_target, scene_of
from sfumato.audit import attacking
from sfumato.audit.card import Card
from sfumato.audit.gate import unmeasured
from sfumato.audit.judge import add_judgement, train_judge
from sfumato.audit.measuring import card_of, defense_info
from sfumato.audit.reference import protects
from sfumato.audit.runs import Run, load_data, prepare, train_run, undefended
from sfumato.audit.settings import Settings
from sfumato.data import ImageSet, Splits
from sfumato.defenses import Defense
from sfumato.errors import CorruptFileError, InputError, raise_all, renamed, together
from sfumato.metrics.reconstruction import SMALLEST_IMAGE
from sfumato.models import SplitModel
from sfumato.progress import Titled
from sfumato.storage import file_digest, hash_of, write_text
from sfumato.training import Runtime

CARD, CHECKSUM = "card.json", "card.sha256"


def audit(settings: Settings, *, root: Path, runtime: Runtime) -> list[Card]:
    """Train every defense that the settings name, attack it, and write its card.

    Nothing that is in ``root`` already is computed again.

    Args:
        settings: What to do.
        root: Folder of all runs.
        runtime: Where it runs.

    Returns:
        A card for each defense, in order.

    Raises:
        InputError: Settings that do not fit the data, the network or each other.
        Interrupted: Asked to stop; the same call goes on where it stopped.
    """
    defenses, splits = _open(settings, runtime)
    _check_conditions(settings, defenses, splits)
    made = []
    for label, defense in defenses.items():
        run = train_run(settings, label, defense, splits, root=root, runtime=runtime)
        made.append(attack_run(run, settings, splits, runtime=runtime))
    return made


def train_all(settings: Settings, *, root: Path, runtime: Runtime) -> list[Run]:
    """Train every defense that the settings name.

    Raises:
        InputError: Settings that do not fit the data, the network or each other.
        Interrupted: Asked to stop; the same call goes on where it stopped.
    """
    defenses, splits = _open(settings, runtime)
    return [
        train_run(settings, label, defense, splits, root=root, runtime=runtime) for label, defense in defenses.items()
    ]


def check(settings: Settings, *, runtime: Runtime) -> None:
    """Find out, without training anything, whether an audit could run: load the images and set up every defense.

    Raises:
        InputError: Settings that do not fit the data, the network or each other.
    """
    _check_conditions(settings, *_open(settings, runtime))


def _open(settings: Settings, runtime: Runtime) -> tuple[dict[str, Defense], Splits]:
    defenses = settings.resolved_defenses()
    splits = load_data(settings.data, settings.seed, runtime.progress)
    _check_fit(settings, defenses, splits)
    return defenses, splits


def _check_fit(settings: Settings, defenses: Mapping[str, Defense], splits: Splits) -> None:
    """Find out before the first hour of training, not after it, that the last defense cannot be set up."""
    shape = splits.train.image_shape
    if min(shape[1:]) < SMALLEST_IMAGE:
        accepted = f"at least {SMALLEST_IMAGE}×{SMALLEST_IMAGE}, the window of SSIM"
        raise InputError("data.image_size", shape[1:], accepted)
    undefended(settings, splits, torch.Generator().manual_seed(settings.seed))
    knowledge = _knowledge(settings, splits)
    attacking.check_means(settings.resolved_attacks(), settings.evaluation.threat_model, knowledge)
    errors: list[InputError] = []
    for label, defense in defenses.items():
        try:
            split, _ = prepare(settings, defense, splits)
        except InputError as error:
            errors += together(renamed(error, f"defenses: {label}: {{}}".format))
            continue
        try:
            _check_shapes(settings, split, knowledge)
        except InputError as error:
            errors += [_of_defense(one, label) for one in together(error)]
    raise_all(errors)


def _of_defense(error: InputError, label: str) -> InputError:
    return InputError(error.field, error.value, f"{error.accepted} (defense {label})")


def _check_shapes(settings: Settings, split: SplitModel, knowledge: Knowledge) -> None:
    # Whether it is random is not known yet, and changes nothing about shapes.
    scene = Scene(settings.evaluation.threat_model, True, len(knowledge.train), split.image_shape, split.feature.shape)
    attacking.check_shapes(settings.resolved_attacks(), scene)


def _check_conditions(settings: Settings, defenses: Mapping[str, Defense], splits: Splits) -> None:
    """Find out before training that a condition is about an attack that ``auto`` does not run on some defense."""
    knowledge = _knowledge(settings, splits)
    held = {label: defense for label, defense in defenses.items() if protects(defense_info(label, defense))}
    errors: list[InputError] = []
    for label, defense in (held or defenses).items() if _left_to_auto(settings) else ():
        generator = torch.Generator().manual_seed(settings.seed)
        target = make_target(
            prepare(settings, defense, splits)[0], settings.evaluation.threat_model, generator=generator
        )
        # Training changes neither shapes nor whether what is sent is random.
        errors += _unmeasured(settings, label, scene_of(target, knowledge))
    raise_all(errors)


def _left_to_auto(settings: Settings) -> bool:
    """Whether a condition is about an attack, and which are run depends on the model and not on the settings alone."""
    about_attacks = any(one.attack is not None for one in settings.conditions())
    return about_attacks and not all(isinstance(entry, Attack) for entry in settings.resolved_attacks())


def _unmeasured(settings: Settings, label: str, scene: Scene) -> list[InputError]:
    """An error for each condition that is about an attack that such a model does not have to face."""
    known = attacking.named(settings.resolved_attacks(), scene)
    found = (unmeasured(one, known, judged=settings.evaluation.judge) for one in settings.conditions() if one.attack)
    return [_of_defense(error, label) for error in found if error is not None]


def attack_run(run: Run, settings: Settings, splits: Splits, *, runtime: Runtime) -> Card:
    """Attack a trained model and write its card into its folder; take the card that is there, if it is whole.

    Args:
        run: The trained model.
        settings: Names the attacks and what the attacker has.
        splits: The images it was trained on.
        runtime: Where it runs.

    Raises:
        InputError: The attacker is to learn from auxiliary images and none were set aside, or an attack
            cannot work on such a model, needs more than its attacker may touch, or more than it has; or a condition
            about an attack that a defended model does not have to face.
        Interrupted: Asked to stop; the same call goes on.
    """
    knowledge = _knowledge(settings, splits)
    attacking.check_means(settings.resolved_attacks(), settings.evaluation.threat_model, knowledge)
    _check_shapes(settings, run.split, knowledge)
    scout = make_target(run.split, settings.evaluation.threat_model, generator=runtime.generator(settings.seed + 23))
    entries, scene = settings.resolved_attacks(), scene_of(scout, knowledge, runtime.device)
    if _left_to_auto(settings) and protects(defense_info(run.label, run.defense)):
        raise_all(_unmeasured(settings, run.label, scene))
    found = attacking.expanded(entries, scene)
    charges = attacking.charges(entries, found, scene)
    determines = [[a.describe() for a in found], settings.evaluation.model_dump(), settings.seed]
    name = hash_of([*determines, charges] if any(charges) else determines)
    folder = run.folder / f"attack-{name}"
    known = _known(folder / CARD)
    if known is not None:
        # What people call a defense does not determine its result, and may have changed since.
        return known.model_copy(update={"defense": defense_info(run.label, run.defense)})
    root = run.folder.parent
    judge = train_judge(settings, splits, root=root, runtime=runtime) if settings.evaluation.judge else None
    victims = {
        group: _first(images, settings.evaluation.victims)
        for group, images in (("train", knowledge.train), ("test", splits.test))
    }
    made = {}
    for i, (label, attack) in enumerate(zip(labels(found), found, strict=True)):
        place = runtime.at(folder / f"{i}-{attack.name}")
        result = _attack(attack, i, run, knowledge, victims, settings, place)
        made[label] = replace(result, queries=result.queries + charges[i])
    card = card_of(run, settings, splits, found, made, knowledge, victims, runtime)
    if judge is not None:
        card = add_judgement(card, judge, made, victims["test"])
    card.save(folder / CARD)
    write_text(folder / CHECKSUM, file_digest(folder / CARD) + "\n")
    for i, attack in enumerate(found):
        used = folder / f"{i}-{attack.name}"
        for file in (*used.rglob("*checkpoint.safetensors"), used / attacking.KEPT):
            file.unlink(missing_ok=True)
    return card


def _known(path: Path) -> Card | None:
    """A card made before; one that is damaged or was altered is made anew."""
    checksum = path.with_name(CHECKSUM)
    if not path.is_file() or not checksum.is_file() or checksum.read_bytes().strip() != file_digest(path).encode():
        return None
    try:
        return Card.load(path)
    except CorruptFileError:
        return None


def _knowledge(settings: Settings, splits: Splits) -> Knowledge:
    if settings.evaluation.knowledge == "train":
        # The model's validation images were not trained on: they are the attacker's own for selecting.
        return Knowledge(splits.train, splits.validation, "train")
    if splits.auxiliary is None:
        raise InputError("evaluation.knowledge", "auxiliary", "train, or set images aside with data.auxiliary")
    if len(splits.auxiliary) < 2:
        accepted = "a share of two images or more: one to learn from, one to select by"
        raise InputError("data.auxiliary", settings.data.auxiliary, accepted)
    order = torch.randperm(len(splits.auxiliary), generator=torch.Generator().manual_seed(settings.seed))
    held = max(1, len(order) // 10)
    own = splits.auxiliary
    return Knowledge(own.select(order[held:]), own.select(order[:held]), "auxiliary")


def _attack(
    attack: Attack,
    position: int,
    run: Run,
    knowledge: Knowledge,
    victims: Mapping[str, ImageSet],
    settings: Settings,
    runtime: Runtime,
) -> Reconstruction:
    assert runtime.folder is not None
    before = attacking.kept(runtime.folder)
    if before is not None:
        return before
    # Streams of their own: what one attack draws does not change what another meets.
    channel = runtime.generator(settings.seed + 101 + position)
    own = runtime.generator(settings.seed + 50_001 + position)
    touched = attack.threat_model or settings.evaluation.threat_model
    target = make_target(run.split, touched, generator=channel)
    if attack.images is not None:
        # Of one stream for all attacks: fewer images are among more, as on a curve against them they should be.
        knowledge = knowledge.limited(attack.images, torch.Generator().manual_seed(settings.seed + 30_011))
    titled = replace(runtime, progress=Titled(runtime.progress, f"attack {run.label}"))
    made = attack(target, knowledge, victims, generator=own, runtime=titled)
    attacking.keep(made, runtime.folder)
    return made


def _first(images: ImageSet, most: int) -> ImageSet:
    return images.select(torch.arange(min(most, len(images))))
