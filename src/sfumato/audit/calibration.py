"""Measure theory and attack where the answer is known: test beds through the pipeline of an audit."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfumato.attacks import Attack, BlackBox, DecoderAttack, GrayBox, Knowledge, ThreatModel, WhiteBox
from sfumato.data import ImageSet, Splits
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import InputError, one_of
from sfumato.information import Bed, Estimate, Figures, Fitting, estimate_mutual_information, estimate_upper_bound
from sfumato.information.estimate import mean_of
from sfumato.models import Feature, SplitModel, set_generator
from sfumato.models.layers import spare_global_generator
from sfumato.progress import Titled
from sfumato.training import Runtime

CALIBRATION_ATTACK = DecoderAttack(depth=1, width=16, epochs=15, lr=0.01, batch_size=64, weight_decay=0.0)
"""Small, since the beds' images are; enough to come within 3 % of the minimum on every standard bed."""
CALIBRATION_FITTING = Fitting(steps=800, batch=512, learning_rate=2e-3)
"""Of the networks of MINE and CLUB."""
NEAR = 0.03
"""An attack whose error exceeds the mmse by no more than this share has found the minimum."""
_ROUNDING_VARIANCE = 1 / 12 / 255**2
_MOST_CLIPPED = 1e-3
_DOUBT = 4.0
_ROUNDOFF = 1e-9


@dataclass(frozen=True)
class Sizes:
    """How many images the attack learns from, selects on and is judged on, and draws for figures, MINE and CLUB.

    Raises:
        InputError: Fewer than 2 of any.
    """

    train: int = 5000
    validation: int = 1000
    test: int = 4000
    samples: int = 20_000

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count < 2:
                raise InputError(name, count, "2 or more")


@dataclass(frozen=True)
class Attacked:
    """What a trained attack achieved.

    Attributes:
        mse: On the test images.
        ratio: mse/mmse, less what chance did to both: 1 + mean of (the attack's error − the best reconstruction's) on
            the very same features, over the mmse.
        diverged: A loss was not finite.
    """

    mse: Estimate
    ratio: Estimate
    diverged: bool


@dataclass(frozen=True)
class Bracket:
    """I(x; z) in nats as two learned measures find it.

    Attributes:
        mine: MINE, a lower bound.
        club: CLUB, an upper bound where its Gaussian has learned how z follows x.
        club_limit: What CLUB would be if it had: E‖z' − E z'‖²/σ², of the clean features of the same pairs.
    """

    mine: Estimate
    club: Estimate
    club_limit: float


@dataclass(frozen=True)
class Calibration:
    """One bed at one noise level.

    Attributes:
        bed: Its name.
        figures: What is known of it, rounding to 8 bits included.
        measured: MSE of the best reconstruction on the test images.
        attack: ``None`` where none was trained.
        bracket: ``None`` where MINE and CLUB were not.
    """

    bed: str
    figures: Figures
    measured: Estimate
    attack: Attacked | None = None
    bracket: Bracket | None = None

    def broken(self) -> tuple[str, ...]:
        """The inequalities that do not hold, beyond four standard errors; none where all is well."""
        f = self.figures
        exact = Estimate(f.linear_mse)
        checks = {
            "information ≤ rate": _at_most(f.information, Estimate(f.rate)),
            "bound ≤ mmse": _at_most(f.bound, f.mmse),
            "mmse ≤ linear mmse": _at_most(f.mmse, exact),
            "linear mmse ≤ prior variance": _at_most(exact, Estimate(f.prior_variance)),
            "mmse = measured": _at_most(f.mmse, self.measured) and _at_most(self.measured, f.mmse),
        }
        if self.attack is not None:
            checks["mmse ≤ attack"] = _at_most(f.mmse, self.attack.mse)
            checks["best ≤ attack"] = _at_most(Estimate(1.0), self.attack.ratio)
        return tuple(name for name, holds in checks.items() if not holds)

    def verdict(self) -> str:
        """In words: ``holds``, what falls short though it does, or ``broken`` and what."""
        if broken := self.broken():
            return f"broken: {', '.join(broken)}"
        found, information = ["holds"], self.figures.information
        if self.attack is not None and (self.attack.diverged or not self.attack.ratio.value <= 1 + NEAR):
            found.append("attack falls short")
        # Neither breaks a theorem: MINE is a bound on average over endless pairs, CLUB where its Gaussian is the truth.
        if self.bracket is not None and not _at_most(self.bracket.mine, information):
            found.append("MINE goes too far")
        if self.bracket is not None and not _at_most(information, self.bracket.club):
            found.append("CLUB falls short")
        return "; ".join(found)


def rounded(bed: Bed) -> Bed:
    """The bed as it is seen through pixels of 8 bits: rounding adds nearly white noise of variance 1/12/255²."""
    return bed.with_white_noise(_ROUNDING_VARIANCE)


def images_of(bed: Bed, count: int, *, generator: torch.Generator, name: str = "bed") -> ImageSet:
    """Images drawn from a bed, rounded to 8 bits; a picture's class is its component.

    Args:
        bed: Its pixels should rarely leave [0, 1]: what does is clipped.
        count: How many.
        generator: Draws them.
        name: For people.

    Raises:
        InputError: More than one pixel in a thousand is to be clipped, which the bed's figures do not know of.
    """
    clipped = bed.share_outside(0, 1)
    if clipped > _MOST_CLIPPED:
        raise InputError(f"{name}: pixels outside [0, 1]", f"{clipped:.2%}", f"at most {_MOST_CLIPPED:.1%} of them")
    x, component = bed.draw(count, generator=generator)
    pixels = (x * 255).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, component, tuple(f"component {i}" for i in range(bed.components)), name)


def splits_of(bed: Bed, sizes: Sizes, *, generator: torch.Generator, name: str = "bed") -> Splits:
    """Independent train, validation and test images of a bed.

    Raises:
        InputError: See :func:`images_of`.
    """
    train, validation, test = (
        images_of(bed, count, generator=generator, name=name) for count in (sizes.train, sizes.validation, sizes.test)
    )
    return Splits(train, validation, test)


def split_model_of(bed: Bed) -> SplitModel:
    """A split model whose edge and channel are the bed's; its cloud answers nothing (all logits are 0)."""
    channel = bed.channel
    edge = nn.Sequential(nn.Flatten(), _linear(channel.weight), nn.Unflatten(1, channel.feature_shape))
    cloud = nn.Sequential(nn.Flatten(), _linear(torch.zeros(bed.components, len(channel.weight))))
    return SplitModel(
        edge,
        AdditiveNoise(channel.sigma, "gaussian"),
        cloud,
        image_shape=bed.image_shape,
        feature=Feature(channel.feature_shape, noise_variance=channel.sigma**2),
        cut="edge",
    )


def measure(
    name: str,
    bed: Bed,
    *,
    attack: Attack | None = CALIBRATION_ATTACK,
    sizes: Sizes | None = None,
    threat_model: ThreatModel = "black-box",
    fitting: Fitting | None = None,
    seed: int = 0,
    runtime: Runtime | None = None,
) -> Calibration:
    """Compare what is known of a bed with what the pipeline measures on it.

    Args:
        name: Of the bed.
        bed: Rounding to 8 bits is added to it.
        attack: Trained on the bed's images; ``None`` trains none.
        sizes: How many images.
        threat_model: What the attack may use.
        fitting: How MINE and CLUB are trained on pairs of image and feature; ``None`` leaves them out.
        seed: Of everything drawn.
        runtime: Device, progress.

    Raises:
        InputError: The bed's images would be clipped, its features cannot be attacked, or no such threat model.
        Interrupted: Asked to stop.
    """
    sizes, runtime = sizes or Sizes(), runtime or Runtime()
    if threat_model not in _WITNESSES:
        raise InputError("threat_model", threat_model, one_of(_WITNESSES, threat_model))
    seen = rounded(bed)
    drawn = torch.Generator().manual_seed(seed)
    figures = seen.figures(generator=drawn, samples=sizes.samples)
    splits = splits_of(bed, sizes, generator=drawn, name=name)
    split = split_model_of(bed).to(runtime.device)
    bracket = None if fitting is None else _bracket(name, bed, split, fitting, sizes.samples, seed, runtime)
    if attack is None:
        set_generator(split, runtime.generator(seed + 1))
        with torch.no_grad():
            z = split.send(splits.test.images.to(runtime.device) / 255).cpu()
        return Calibration(name, figures, mean_of(_errors(seen.reconstruct(z), splits.test)), bracket=bracket)
    attack.check(split.image_shape, split.feature.shape, threat_model)
    target = _WITNESSES[threat_model](split, generator=runtime.generator(seed + 1), most=len(splits.test))
    made = attack(
        target,
        Knowledge(splits.train, splits.validation, "auxiliary"),
        {"test": splits.test},
        generator=runtime.generator(seed + 2),
        runtime=replace(runtime, progress=Titled(runtime.progress, f"{name}, σ = {bed.channel.sigma:g}")),
    )
    best = _errors(seen.reconstruct(target.last()), splits.test)
    attacked = made.quality["test"].mse.double()
    excess, mmse = mean_of(attacked - best), figures.mmse.value
    ratio = Estimate(1 + excess.value / mmse, excess.error / mmse)
    return Calibration(name, figures, mean_of(best), Attacked(mean_of(attacked), ratio, made.diverged), bracket)


def _bracket(
    name: str, bed: Bed, split: SplitModel, fitting: Fitting, pairs: int, seed: int, runtime: Runtime
) -> Bracket:
    """MINE and CLUB on images in pixels of 8 bits and what is sent of them."""
    generator = torch.Generator().manual_seed(seed + 3)
    x = images_of(bed, pairs, generator=generator, name=name).images / 255
    set_generator(split, runtime.generator(seed + 4))
    with torch.no_grad():
        z, clean = split.send(x.to(runtime.device)).cpu(), split.edge(x.to(runtime.device)).flatten(1).double()
    limit = float(clean.var(0).sum()) / bed.channel.sigma**2
    measures = (estimate_mutual_information, estimate_upper_bound)
    runtime.progress.start(f"{name}, σ = {bed.channel.sigma:g} (MINE, CLUB)", len(measures))
    found = []
    for measure_of in measures:
        found.append(measure_of(x, z, generator=generator, fitting=fitting))
        runtime.progress.advance()
    runtime.progress.finish()
    mine, club = found
    return Bracket(mine, club, limit)


class _Witness(BlackBox):
    """A target that remembers what it sent last: the best reconstruction is judged on the same features."""

    def __init__(self, split: SplitModel, *, generator: torch.Generator, most: int) -> None:
        super().__init__(split, generator=generator)
        self._most, self._sent = most, deque[Tensor]()

    def query(self, x: Tensor) -> Tensor:
        z = super().query(x)
        self._sent.append(z)
        while sum(map(len, self._sent)) - len(self._sent[0]) >= self._most:
            self._sent.popleft()
        return z

    def last(self) -> Tensor:
        return torch.cat(list(self._sent))[-self._most :].cpu()


class _GrayWitness(_Witness, GrayBox):
    pass


class _WhiteWitness(_Witness, WhiteBox):
    pass


_WITNESSES: dict[str, type[_Witness]] = {kind.threat_model: kind for kind in (_Witness, _GrayWitness, _WhiteWitness)}


def _linear(weight: Tensor) -> nn.Linear:
    with spare_global_generator():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _errors(images: Tensor, truth: ImageSet) -> Tensor:
    return (images - truth.images.double() / 255).square().flatten(1).mean(1)


def _at_most(smaller: Estimate, larger: Estimate) -> bool:
    """Whether smaller ≤ larger, but for chance and rounding; false where one is not a number."""
    room = _DOUBT * math.hypot(smaller.error, larger.error) + _ROUNDOFF * abs(larger.value)
    return smaller.value <= larger.value + room
