"""What attacks that search for an image share: how far its feature is from the intercepted one, and images to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sfumato.attacks.base import Knowledge
from sfumato.attacks.threat import WhiteBox
from sfumato.errors import Interrupted
from sfumato.models import expected
from sfumato.training import Runtime

_MEASURED = 512
_TRIED = 16


class Matcher:
    """Features of guessed images against the one that was intercepted, by the attacker's own copy of the edge.

    Distances are in units of the feature's energy, the mean square of an element over (up to 512 of) the attacker's
    images: an error of 1 is that of answering with zeros, whatever the edge's scale and the feature's size. The unit is
    one for all victims, so that noise weighs the same in each.

    Args:
        target: Its edge and channel are used; nothing is queried.
        knowledge: The attacker's images.

    Attributes:
        image_shape: (C, H, W).
        mean: (C, H, W), the mean of the attacker's images.
        own: (n, C, H, W), up to 16 images of those that the attacker selects on.
        sent: (n, ...), what the device would send for them.
    """

    def __init__(self, target: WhiteBox, knowledge: Knowledge) -> None:
        self._target, self.image_shape = target, target.image_shape
        self._dtype = next((p.dtype for p in target.edge.parameters()), torch.float32)
        measured = self._pixels(knowledge.train.images[:_MEASURED])
        self.mean = knowledge.train.images.to(self._dtype).mean(0) / 255
        self.own = self._pixels(knowledge.validation.images[:_TRIED])
        with torch.no_grad():
            energy = self.feature(measured).square().mean()
            self.sent = self._sent(self.own)
        self._energy = torch.where(energy > 0, energy, 1.0)

    def feature(self, x: Tensor) -> Tensor:
        """Mean of what the device would send for x (N, C, H, W), over the channel's randomness."""
        return expected(self._target.channel, self._target.edge(x))

    def error(self, x: Tensor, z: Tensor) -> Tensor:
        """(N,) mean squares of feature(x) − z, in units of the energy.

        Differentiable in x, with a gradient of 0 where edge or channel keep no graph: an attack on a device that
        detaches, compares or looks up fails to improve, and does not fail to run.
        """
        error = (self.feature(x) - z).square().flatten(1).mean(1) / self._energy
        return error if error.requires_grad or not x.requires_grad else error + 0 * x.flatten(1).mean(1)

    def take(self, z: Tensor) -> Tensor:
        """Intercepted features in the edge's precision."""
        return z.to(self._dtype)

    def start(self, kind: str, count: int, generator: torch.Generator) -> Tensor:
        """Images (count, C, H, W) to begin with: the ``mean`` of the attacker's, ``zeros``, or uniform ``noise``."""
        shape = (count, *self.mean.shape)
        if kind == "noise":
            drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=self._dtype)
            return drawn.to(self.mean.device)
        return self.mean.expand(shape).clone() if kind == "mean" else self.mean.new_zeros(shape)

    def _pixels(self, images: Tensor) -> Tensor:
        return images.to(self._dtype) / 255

    def _sent(self, x: Tensor) -> Tensor:
        """As the victims' features are intercepted: through the channel, and the mean where that happens repeatedly."""
        clean = self._target.edge(x)
        return torch.stack([self._target.channel(clean) for _ in range(self._target.observations)]).mean(0)


@contextmanager
def watched(runtime: Runtime, title: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show ``steps`` steps; what it gives is to be called after each.

    Raises:
        Interrupted: The runtime was asked to stop; what is finished is kept.
    """

    def tick() -> None:
        runtime.progress.advance()
        if runtime.should_stop():
            raise Interrupted(f"stopped: {title}; what is finished of it is kept")

    runtime.progress.start(title, steps)
    yield tick
    runtime.progress.finish()
