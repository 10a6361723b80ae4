"""The strongest of several attacks, without a parameter to tune."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Knowledge, Reconstruction
from sfumato.attacks.feature.decoder import DecoderAttack
from sfumato.attacks.feature.deep_prior import DeepPriorAttack
from sfumato.attacks.feature.ensemble import EnsembleAttack
from sfumato.attacks.feature.gan import GANAttack
from sfumato.attacks.feature.generator import GeneratorAttack
from sfumato.attacks.feature.latent_prior import LatentPriorAttack
from sfumato.attacks.feature.rmle import RMLEAttack
from sfumato.attacks.labels import labels
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, ThreatModel, WhiteBox
from sfumato.data import ImageSet
from sfumato.errors import BudgetError, InputError, one_of
from sfumato.metrics import Quality
from sfumato.models import Architecture
from sfumato.training import Runtime, steps_per_epoch

Level = Literal["quick", "standard", "thorough"]
DERIVED = ("epochs", "pretrain_epochs", "patience", "stop_after")
"""Arguments that a member has from how many images it learns from: with fewer, the same steps take more epochs."""
_BATCH, _SMALL_BATCH = 128, 64
_LOOKS = 2


@dataclass(frozen=True)
class Scene:
    """What decides which attacks are of use.

    Attributes:
        threat_model: What the target exposes.
        random: Whether the same image is sent differently each time.
        images: How many images of its own the attacker learns from.
        image_shape: (C, H, W).
        feature_shape: Of what is sent, without the batch axis.
    """

    threat_model: ThreatModel
    random: bool
    images: int
    image_shape: tuple[int, int, int]
    feature_shape: tuple[int, ...]

    @property
    def queries(self) -> int:
        """What it costs to find out: an image sent twice. Whoever has the device asks his own copy."""
        return 0 if self.threat_model == "white-box" else _LOOKS

    def seen_by(self, attack: Attack | Auto) -> Scene:
        """The same from where an attack stands that may touch something else."""
        return replace(self, threat_model=attack.threat_model or self.threat_model)


@dataclass(frozen=True)
class _Size:
    """What a level gives its attacks.

    Attributes:
        steps: Of each network's training.
        depth: Of a decoder.
        width: Of the networks; the generator's first block has twice as many channels.
        search: Steps of a search for pixels; one for latents takes a third of them, twice: latents, then pixels.
        restarts: Starts of a search for pixels; one for latents has another, the encoder's guess.
    """

    steps: int
    depth: int
    width: int
    search: int = 600
    restarts: int = 1

    def epochs(self, images: int, batch_size: int) -> int:
        """Passes that make up the steps."""
        return max(2, math.ceil(self.steps / steps_per_epoch(images, batch_size)))


_SIZES: dict[str, _Size] = {
    "quick": _Size(500, 2, 32),
    "standard": _Size(2_000, 4, 32),
    "thorough": _Size(10_000, 8, 64, search=1_200, restarts=3),
}


@dataclass(frozen=True)
class Auto:
    """A fixed sequence of attacks of different kinds; each victim is judged by whichever comes closest to it.

    What AutoAttack (Croce & Hein 2020) is to adversarial robustness: nothing to tune, so nothing to tune badly. The
    order is from cheap to costly. An attack of the sequence is left out where it has no use: one that needs the edge's
    weights under another threat model, one that averages where the same image is always sent alike, one that cannot
    work on a feature of this shape.

    ===========  ======================================================================================================
    level        attacks
    ===========  ======================================================================================================
    quick        decoder, rmle; decoder on means of 16 observations
    standard     decoder, rmle, generator, decoder of U-Net form, latent_prior; decoder and rmle on means of 16, decoder
                 on means of 4
    thorough     those of standard, larger, longer and with restarts; decoder of transformer form, ensemble of all three
                 forms, gan, deep_prior of network alone and of network and input; generator and latent_prior on means
                 of 16
    ===========  ======================================================================================================

    Each network is trained for about 500, 2,000 or 10,000 steps (the GAN's first by squared error, then as long against
    its critic), in batches of 128 images for decoders and the GAN, of 64 for generator and latent_prior; with fewer
    images than a batch, a step takes them all. Larger is twice the width, and decoders of eight blocks instead of four.
    Searches are longer too, with twice the steps, and begin from three starts instead of one (latent_prior from four
    instead of two).

    What cannot improve stops: a network's training after a quarter of its epochs (five at least) without a better one
    on the attacker's own validation images; rmle where no step helps; deep_prior after as many steps as helped on the
    attacker's images; and where latent_prior's search does not help on those, it is not made.

    Without the edge's weights, an image is sent twice to find out whether the channel is random. Each member is charged
    with these queries, as if it had been chosen alone.

    Args:
        level: ``quick``, ``standard`` or ``thorough``.
        images: How many images of its own each member has; ``None`` for all that there are.
        queries: How many images each member may send through the edge, those two included; ``None`` for any number.
            Members that cannot do with so few are left out.
        threat_model: What the members may touch; ``None`` for what the evaluation says.
    """

    name: ClassVar[str] = "auto"
    source: ClassVar[str] = "after Croce & Hein 2020 (AutoAttack)"
    level: Level = "standard"
    images: int | None = None
    queries: int | None = None
    threat_model: ThreatModel | None = None

    def __post_init__(self) -> None:
        if self.level not in _SIZES:
            raise InputError(f"{self.name}.level", self.level, one_of(_SIZES, self.level))
        if self.images is not None and self.images < 2:
            raise InputError(f"{self.name}.images", self.images, "2 or more, or none for all")
        if self.queries is not None and self.queries < 0:
            raise InputError(f"{self.name}.queries", self.queries, "0 or more, or none for any number")
        if self.threat_model not in (None, *THREAT_MODELS):
            accepted = f"{one_of(THREAT_MODELS, self.threat_model)}, or none for the evaluation's"
            raise InputError(f"{self.name}.threat_model", self.threat_model, accepted)

    def describe(self) -> dict[str, Any]:
        """Its name and arguments, ready for JSON."""
        return {"attack": self.name, **asdict(self)}

    def members(self, scene: Scene) -> tuple[Attack, ...]:
        """The attacks, in order.

        Raises:
            InputError: None of them can work on such images and features.
            BudgetError: None of them can do with so few queries.
        """
        scene = scene.seen_by(self)
        of_use = [attack for attack in self._sequence(scene) if _is_of_use(attack, scene)]
        left = self._left(scene)
        budget: dict[str, Any] = {"images": self.images, "queries": left, "threat_model": self.threat_model}
        found = tuple(replace(attack, **budget) for attack in of_use if left is None or left >= attack.least_queries)
        if of_use and not found:
            least = scene.queries + min(attack.least_queries for attack in of_use)
            why = f"at least {least}: {scene.queries} to see whether the channel is random, the rest to learn from"
            raise BudgetError(f"{self.name}.queries", self.queries, why)
        if not found:
            given = f"images {scene.image_shape}, features {scene.feature_shape}"
            raise InputError(f"attack {self.name}", given, "a feature that one of its attacks can invert")
        return found

    def affordable(self, knowledge: Knowledge) -> None:
        """Say before anything is trained that the attacker has not as many images as the members are to use.

        Raises:
            InputError: So it is.
        """
        if self.images is not None and self.images > len(knowledge):
            raise InputError(f"{self.name}.images", self.images, f"up to {len(knowledge)}, the attacker's images")

    def __call__(
        self,
        target: BlackBox,
        knowledge: Knowledge,
        victims: Mapping[str, ImageSet],
        *,
        generator: torch.Generator,
        runtime: Runtime | None = None,
    ) -> dict[str, Reconstruction]:
        """What each member makes of the victims, by its label; :func:`strongest` picks the closest of each victim.

        Args:
            target: What the threat model exposes.
            knowledge: The attacker's own images.
            victims: Groups of images to reconstruct, by name.
            generator: All that the attacks draw.
            runtime: Device, folder for resuming, progress.

        Raises:
            InputError: No attack can work on such a target, some images have another shape than its, or the attacker
                has not as many.
            BudgetError: No attack can do with so few queries.
        """
        runtime = runtime or Runtime()
        if self.threat_model not in (None, target.threat_model):
            raise InputError(f"{self.name}.threat_model", target.threat_model, str(self.threat_model))
        self.affordable(knowledge)
        scene = scene_of(target.under(queries=self.queries), knowledge, runtime.device)
        members = self.members(scene)
        made = {}
        for label, attack in zip(labels(members), members, strict=True):
            place = runtime if runtime.folder is None else runtime.at(runtime.folder / label)
            result = attack(target, knowledge, victims, generator=generator, runtime=place)
            made[label] = replace(result, queries=result.queries + scene.queries)
        return made

    def _sequence(self, scene: Scene) -> Iterator[Attack]:
        size = _SIZES[self.level]

        def epochs(batch_size: int, observations: int = 1) -> int:
            return size.epochs(self._learned_from(scene, observations), batch_size)

        def trained(observations: int = 1) -> dict[str, Any]:
            passes = epochs(_BATCH, observations)
            return {
                "depth": size.depth,
                "width": size.width,
                "epochs": passes,
                "lr": 2e-3,
                "batch_size": _BATCH,
                "patience": _stop_after(passes),
                "observations": observations,
            }

        def decoder(architecture: Architecture = "residual", observations: int = 1) -> Attack:
            return DecoderAttack(architecture=architecture, **trained(observations))

        def generator(observations: int = 1) -> Attack:
            passes = epochs(_SMALL_BATCH, observations)
            return GeneratorAttack(
                width=2 * size.width,
                epochs=passes,
                lr=5e-3,
                batch_size=_SMALL_BATCH,
                patience=max(2, passes // 8),
                stop_after=_stop_after(passes),
                observations=observations,
            )

        def latent_prior(observations: int = 1) -> Attack:
            passes = epochs(_SMALL_BATCH, observations)
            return LatentPriorAttack(
                width=size.width,
                epochs=passes,
                batch_size=_SMALL_BATCH,
                restarts=size.restarts + 1,
                steps=size.search // 3,
                refine_steps=size.search // 3,
                stop_after=_stop_after(passes),
                observations=observations,
            )

        rmle = RMLEAttack(steps=size.search, restarts=size.restarts)
        yield decoder()
        yield rmle
        if self.level == "quick":
            yield decoder(observations=16)
            return
        yield generator()
        yield decoder("unet")
        yield latent_prior()
        yield decoder(observations=4)
        yield decoder(observations=16)
        yield replace(rmle, observations=16)
        if self.level == "thorough":
            passes = epochs(_BATCH)
            yield decoder("transformer")
            yield EnsembleAttack(**trained())
            yield GANAttack(
                depth=size.depth,
                width=size.width,
                epochs=passes,
                pretrain_epochs=passes,
                batch_size=_BATCH,
                stop_after=_stop_after(passes),
            )
            for optimize_input in (False, True):
                yield DeepPriorAttack(steps=size.search // 2, width=size.width // 2, optimize_input=optimize_input)
            yield generator(observations=16)
            yield latent_prior(observations=16)

    def _learned_from(self, scene: Scene, observations: int) -> int:
        """Images that a member learns from: a tenth of those that it has, and can send, is to select on."""
        left = self._left(scene)
        budgets = (self.images, None if left is None else left // observations)
        learned = [budget - max(1, budget // 10) for budget in budgets if budget is not None]
        return max(1, min([scene.images, *learned]))

    def _left(self, scene: Scene) -> int | None:
        """Queries of each member, after those that tell whether the channel is random."""
        return None if self.queries is None else self.queries - scene.queries


def _stop_after(epochs: int) -> int:
    """Epochs without a better one after which training ends: enough for a generator's rate to have been halved."""
    return max(5, epochs // 4)


def _is_of_use(attack: Attack, scene: Scene) -> bool:
    if attack.observations > 1 and not scene.random:
        return False
    try:
        attack.check(scene.image_shape, scene.feature_shape, scene.threat_model)
    except InputError:
        return False
    return True


@torch.no_grad()
def _sent(target: WhiteBox, x: Tensor) -> Tensor:
    dtype = next((p.dtype for p in target.edge.parameters()), x.dtype)
    sent: Tensor = target.channel(target.edge(x.to(dtype)))
    return sent


def scene_of(target: BlackBox, knowledge: Knowledge, device: torch.device | str = "cpu") -> Scene:
    """What an attacker finds out about its target by sending one of its images twice, or by its own copy of the device.

    Raises:
        BudgetError: It may not send as many.
    """
    x = knowledge.validation.images[:1].to(device) / 255
    least = _LOOKS * target.observations
    look: Callable[[Tensor], Tensor] = target.query
    if isinstance(target, WhiteBox):
        look = partial(_sent, target)
    elif target.remaining is not None and target.remaining < least:
        raise BudgetError("queries", target.remaining, f"at least {least}, to see whether the channel is random")
    differs = not torch.equal(look(x), look(x))
    return Scene(target.threat_model, differs, len(knowledge.train), target.image_shape, target.feature_shape)


@dataclass(frozen=True, eq=False)
class Strongest:
    """The closest reconstruction of each victim, over several attacks.

    Attributes:
        images: (N, C, H, W), each of the attack with the highest SSIM on it.
        quality: Per victim the lowest MSE, the highest PSNR and the highest SSIM that any attack reached.
        by_ssim: Per victim the label of the attack with the highest SSIM; of equals the first.
        by_mse: Per victim the label of the attack with the lowest MSE; of equals the first.
    """

    images: Tensor
    quality: Quality
    by_ssim: tuple[str, ...]
    by_mse: tuple[str, ...]


def strongest(made: Mapping[str, Reconstruction], group: str = "test") -> Strongest:
    """The worst case for each victim's privacy.

    Args:
        made: Label to what an attack made; at least one, all of the same victims.
        group: Of victims.
    """
    names = tuple(made)
    quality = [result.quality[group] for result in made.values()]
    mse, psnr, ssim = (torch.stack([getattr(each, name) for each in quality]) for name in ("mse", "psnr", "ssim"))
    first, closest = ssim.argmax(0), mse.argmin(0)
    images = torch.stack([result.images[group] for result in made.values()])
    return Strongest(
        images[first, torch.arange(images.shape[1])],
        Quality(mse.amin(0), psnr.amax(0), ssim.amax(0)),
        tuple(names[i] for i in first.tolist()),
        tuple(names[i] for i in closest.tolist()),
    )
