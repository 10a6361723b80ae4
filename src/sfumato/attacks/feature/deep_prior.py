"""Optimize an untrained network until the feature of its picture is the one intercepted: a deep image prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.feature.hourglass import Hourglasses, deepest
from sfumato.attacks.feature.matching import Matcher, watched
from sfumato.attacks.threat import BlackBox, ThreatModel, WhiteBox
from sfumato.errors import InputError
from sfumato.training import Runtime

_SPREAD = 0.1
"""The input is uniform between 0 and this."""
_AVERAGED = 0.95
"""What the running mean of the pictures keeps at each step."""
_LOOKS = 10
"""Steps between two looks at whether the own images still come nearer."""


@dataclass(frozen=True)
class DeepPriorAttack(Attack):
    """Search for the picture among those that a small untrained network gives (Ulyanov et al. 2018).

    For each victim by itself, the weights of an hourglass network G, and with ``optimize_input`` its input ξ too, are
    trained until G(ξ) has the intercepted feature:

        mean (E[channel(edge(G(ξ + noise)))] − z)² / energy

    in the units of :class:`~sfumato.attacks.RMLEAttack`. Such a network finds natural pictures long before it finds
    noise, so that nothing else has to be known about pictures. All victims begin with the same weights and the same ξ,
    drawn once. The answer is the running mean (decay 0.95) of its pictures after as many steps as were best, by mean
    squared error, on up to 16 images that the attacker selects on.

    Args:
        steps: Of Adam, at most.
        lr: Of Adam, for weights and input.
        width: Channels.
        depth: Levels, each halving the map; the smallest has at least 2×2 pixels.
        inputs: Channels of ξ.
        noise: Standard deviation, relative to ξ's range, of what is added to ξ anew in each step.
        optimize_input: Whether ξ is learned too.
    """

    name: ClassVar[str] = "deep_prior"
    source: ClassVar[str] = "Ulyanov et al. 2018 (deep image prior), after He et al. 2019"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset({"white-box"})
    cost: ClassVar[str] = "no queries; steps passes forth and back through a network and the edge an image"
    query_free: ClassVar[bool] = True
    steps: int = 600
    lr: float = 0.01
    width: int = 32
    depth: int = 3
    inputs: int = 16
    noise: float = 0.03
    optimize_input: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.steps >= 1, "steps", "1 or more")
        self._require(0 < self.lr < math.inf, "lr", "a learning rate above 0")
        self._require(self.width >= 1, "width", "1 or more")
        self._require(self.depth >= 1, "depth", "1 or more")
        self._require(self.inputs >= 1, "inputs", "1 or more")
        self._require(0 <= self.noise < math.inf, "noise", "0 or more")

    def check(
        self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...], threat_model: ThreatModel
    ) -> None:
        """An image has only so many levels."""
        super().check(image_shape, feature_shape, threat_model)
        most = deepest(image_shape)
        if self.depth > most:
            raise InputError(f"{self.name}.depth", self.depth, f"at most {most} for images of {image_shape[1:]}")

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Try itself on the attacker's own images, to see how many steps are best."""
        assert isinstance(target, WhiteBox)  # checked by __call__
        pieces = self.pieces(target, knowledge, generator=generator, runtime=runtime)
        matcher = Matcher(target, knowledge)
        search = _Search(self, matcher, generator, runtime)
        steps, figures = pieces("rehearsal", search.rehearse, matcher.sent)
        diverged = not math.isfinite(figures["objective_after"])
        return Learned(lambda z: search(z, steps)[0].float(), figures, diverged)


class _Search:
    """One attack on one target."""

    def __init__(self, attack: DeepPriorAttack, matcher: Matcher, generator: torch.Generator, runtime: Runtime) -> None:
        self._attack, self._matcher, self._runtime = attack, matcher, runtime
        _, height, width = shape = matcher.image_shape
        self._networks = Hourglasses(shape, inputs=attack.inputs, width=attack.width, depth=attack.depth)
        device, dtype = matcher.mean.device, matcher.mean.dtype
        weights = self._networks.weights(generator)
        drawn = torch.rand((attack.inputs, height, width), generator=generator, device=generator.device) * _SPREAD
        self._weights, self._input = [w.to(device, dtype) for w in weights], drawn.to(device, dtype)
        # Noise of a stream of its own, begun anew for each batch: a victim's answer depends on its feature alone.
        self._seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))

    def __call__(
        self, z: Tensor, steps: int, watch: Callable[[int, Tensor], None] = lambda step, x: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images for features z (N, ...) after so many steps, and errors (N,) of the first pictures and of these.

        ``watch`` is shown each step's number, from 1, and what would be the answer after it.
        """
        attack, z = self._attack, self._matcher.take(z)
        weights = [_copies(w, len(z)) for w in self._weights]
        base = _copies(self._input, len(z)).requires_grad_(attack.optimize_input)
        optimizer = torch.optim.Adam([*weights, base] if attack.optimize_input else weights, lr=attack.lr)
        noise = torch.Generator(z.device).manual_seed(self._seed)
        mean, before = torch.zeros(()), torch.zeros(())
        with watched(self._runtime, f"attack: {attack.name}", steps) as tick, torch.enable_grad():
            for step in range(steps):
                jitter = torch.randn(base.shape[1:], generator=noise, device=z.device, dtype=z.dtype)
                picture = self._networks(weights, base + attack.noise * _SPREAD * jitter)
                errors = self._matcher.error(picture, z)
                optimizer.zero_grad()
                errors.sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                picture, before = picture.detach(), errors.detach() if step == 0 else before
                mean = picture if step == 0 else _AVERAGED * mean + (1 - _AVERAGED) * picture
                watch(step + 1, mean)
                tick()
        with torch.no_grad():
            return mean, before, self._matcher.error(mean, z)

    def rehearse(self) -> tuple[int, dict[str, float]]:
        """How many steps to take, and figures of how it goes on the attacker's own images."""
        x, z = self._matcher.own, self._matcher.sent
        seen: dict[int, float] = {}

        def watch(step: int, made: Tensor) -> None:
            if step % _LOOKS == 0 or step in (1, self._attack.steps):
                seen[step] = float((made - x).square().mean())

        _, before, after = self(z, self._attack.steps, watch)
        steps = min(seen, key=lambda step: seen[step] if math.isfinite(seen[step]) else math.inf)
        return steps, {
            "steps": float(steps),
            "objective_before": float(before.mean()),
            "objective_after": float(after.mean()),
            "mse_before": seen[1],
            "mse_after": seen[steps],
        }


def _copies(weights: Tensor, count: int) -> Tensor:
    """A leaf with ``count`` copies along a new first axis."""
    return weights.expand(count, *weights.shape).clone().requires_grad_()
