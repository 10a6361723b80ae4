"""What an attacker may touch: a threat model, and the target that exposes exactly that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from sfumato.errors import BudgetError, InputError, one_of
from sfumato.models import SplitModel, Stochastic, initialize, set_generator
from sfumato.storage import hash_of

ThreatModel = Literal["white-box", "gray-box", "black-box"]
THREAT_MODELS: tuple[ThreatModel, ...] = ("white-box", "gray-box", "black-box")
_BATCH = 512
# Whose weight and bias ``initialize`` draws.
_INITIALIZED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# Every normalization with weights or statistics; all but batch norm's are nothing that ``initialize`` knows.
_NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass
class _Meter:
    count: int = 0


class BlackBox:
    """Queries and nothing else: images in, features out, through the deployed channel.

    Attributes:
        threat_model: The name of what it exposes.
        image_shape: (C, H, W).
        feature_shape: Of what is sent, without the batch axis.
        observations: How often each image is sent; the attacker sees the mean.
    """

    threat_model: ThreatModel = "black-box"

    def __init__(self, split: SplitModel, *, generator: torch.Generator) -> None:
        self.image_shape, self.feature_shape = split.image_shape, split.feature.shape
        self.observations = 1
        self._limit: int | None = None
        self._meter = _Meter()  # shared by all views of this target
        model = _frozen(split, generator)
        dtype = next((p.dtype for p in model.parameters()), None)  # images come in float32 whatever the model's is
        draws = any(isinstance(layer, Stochastic) for layer in model.edge.modules())

        def through(x: Tensor, times: int, noise: torch.Generator) -> Tensor:
            set_generator(model, noise)
            with torch.no_grad():
                return torch.cat([_mean_sent(model, part, times, draws) for part in torch.split(x.to(dtype), _BATCH)])

        def wiretap() -> Callable[[Tensor, int], Tensor]:
            return partial(through, noise=_beside(generator))

        # Kept in closures, not in attributes: an attack reaches neither the weights nor the noise of what it intercepts
        # by accident.
        self._send: Callable[[Tensor, int], Tensor] = partial(through, noise=generator)
        self._wiretap, self._generator = wiretap, generator

    @property
    def queries(self) -> int:
        """Images sent through the edge so far, repetitions included."""
        return self._meter.count

    @property
    def remaining(self) -> int | None:
        """Images that may still be sent; ``None`` for any number."""
        return None if self._limit is None else max(0, self._limit - self.queries)

    def under(self, *, observations: int = 1, queries: int | None = None) -> Self:
        """The same target under an attacker's budget.

        Args:
            observations: k; every image is sent k times and the mean of the features comes back. Where the channel is
                random, its noise averages out as 1/k of the variance.
            queries: Images that may be sent from now on, repetitions included; ``None`` for no other limit than this
                one's.
        """
        view = copy.copy(self)
        view.observations = observations
        if queries is not None:
            limit = self.queries + queries
            view._limit = limit if self._limit is None else min(self._limit, limit)
        return view

    def query(self, x: Tensor) -> Tensor:
        """What the device would send for the images x (N, C, H, W) in [0, 1]; counted.

        Raises:
            BudgetError: The attacker may not send so many.
        """
        wanted = len(x) * self.observations
        if self.remaining is not None and wanted > self.remaining:
            raise BudgetError("queries", wanted, f"at most {self.remaining}, what is left")
        self._meter.count += wanted
        return self._send(x, self.observations)

    def state_dict(self) -> dict[str, Any]:
        """Queries so far and the random state of what answers them, for an attack that resumes."""
        return {"queries": self.queries, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back. What was sent since cannot be unsent: no attacker gets queries back by this."""
        self._meter.count = max(self._meter.count, state["queries"])
        self._generator.set_state(state["generator"].clone())


class GrayBox(BlackBox):
    """Queries and the edge's architecture, not its weights."""

    threat_model: ThreatModel = "gray-box"

    def __init__(self, split: SplitModel, *, generator: torch.Generator) -> None:
        super().__init__(split, generator=generator)
        self._blank = _blank(split.edge)

    def architecture(self, *, generator: torch.Generator) -> nn.Module:
        """A new edge of the true structure, freshly initialized from ``generator``.

        Weights and biases of 2D convolutions and linear layers as :func:`~sfumato.models.initialize` draws them,
        normalizations at ones and zeros, all other parameters normal with standard deviation 1/√fan_in. Buffers are
        given away as structure, but for the statistics of normalizations: scales, masks, vectors of a spectral
        normalization, which tell a direction of the weight.
        """
        edge = _copied(self._blank)
        set_generator(edge, generator)
        # ``_drawn`` first: ``initialize`` reads weights, and one that is computed from zeros spoils what computes it.
        return initialize(_drawn(edge, generator), generator)


class WhiteBox(GrayBox):
    """Everything on the device: queries, architecture and weights.

    Attributes:
        edge: A frozen copy in evaluation mode; gradients flow through it to its input.
        channel: A frozen copy; random where the deployed one is.
    """

    threat_model: ThreatModel = "white-box"

    def __init__(self, split: SplitModel, *, generator: torch.Generator) -> None:
        super().__init__(split, generator=generator)
        model = _frozen(split, generator)
        self.edge, self.channel = model.edge, model.channel


_TARGETS: dict[str, type[BlackBox]] = {"black-box": BlackBox, "gray-box": GrayBox, "white-box": WhiteBox}


def make_target(split: SplitModel, threat_model: ThreatModel, *, generator: torch.Generator) -> BlackBox:
    """What an attacker of this threat model may touch; a copy, so that no attack can alter the model.

    Args:
        split: The model as deployed.
        threat_model: ``white-box``, ``gray-box`` or ``black-box``.
        generator: Source of the noise in answers to queries; the seed that it began with decides about that in what is
            intercepted.

    Raises:
        InputError: No such threat model.
    """
    if threat_model not in _TARGETS:
        raise InputError("threat_model", threat_model, one_of(_TARGETS, threat_model))
    return _TARGETS[threat_model](split, generator=generator)


def wire(target: BlackBox, observations: int) -> BlackBox:
    """What the victims' device sends of their images, so often: no query of the attacker's, whatever its budget.

    Its noise comes from a generator that the target does not have, and is the same each time that this is called: all
    attacks on a target that intercept equally often meet the same features.
    """
    view = target.under(observations=observations)
    view._limit, view._meter, view._send = None, _Meter(), target._wiretap()
    return view


def _mean_sent(model: SplitModel, x: Tensor, times: int, draws: bool) -> Tensor:
    """Mean of what is sent of the same images.

    An edge without a layer that ``draws`` is asked twice, and again only if the answers differ: a layer of someone
    else's may draw from elsewhere.
    """
    clean, steady = model.edge(x), False
    mean: Tensor = model.channel(clean)
    for seen in range(2, times + 1):
        if not steady:
            before, clean = clean, model.edge(x)
            steady = not draws and torch.equal(before, clean)
        mean = mean + (model.channel(clean) - mean) / seen
    return mean


def _beside(generator: torch.Generator) -> torch.Generator:
    """A generator of the same beginnings whose numbers are none of the other's, in whatever state that is."""
    seed = int(hash_of(["intercepted", generator.initial_seed()], length=15), 16)
    return torch.Generator(generator.device).manual_seed(seed)


def _frozen(split: SplitModel, generator: torch.Generator) -> SplitModel:
    model = _copied(split).eval().requires_grad_(False)
    set_generator(model, generator)
    return model


def _blank(edge: nn.Module) -> nn.Module:
    """The edge's structure with its weights erased; normalization constants are part of the structure."""
    blank = _copied(edge).requires_grad_(True)
    set_generator(blank, None)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    for layer in blank.modules():
        if isinstance(layer, _NORMALIZATIONS):
            layer.reset_parameters()  # draws nothing: ones, zeros, and running statistics as at first
    return blank


def _drawn(edge: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw what ``initialize`` does not know: of two matrices in a product, both zero, neither has a gradient."""
    with torch.no_grad():
        for layer in edge.modules():
            if isinstance(layer, _NORMALIZATIONS):
                continue
            for name, parameter in layer.named_parameters(recurse=False):
                if isinstance(layer, _INITIALIZED) and name in ("weight", "bias"):
                    continue
                fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
                parameter.normal_(0, fan_in**-0.5, generator=generator)
    return edge


def _copied(module: _M) -> _M:
    # A generator cannot be copied; the memo makes deepcopy share it.
    generators = [layer.generator for layer in module.modules() if isinstance(layer, Stochastic)]
    return copy.deepcopy(module, {id(generator): generator for generator in generators})


_M = TypeVar("_M", bound=nn.Module)
