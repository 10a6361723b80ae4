"""Search the latents of a generative model for the picture that explains the feature, then let go of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.feature.fitting import Fitted, Pairs, Recipe, Unsent, answer, on_cpu, train_network
from sfumato.attacks.feature.latent_search import best_of, feature_gap, minimize, total_variation
from sfumato.attacks.keeping import Pieces
from sfumato.attacks.observations import observe
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, GrayBox, ThreatModel, WhiteBox
from sfumato.data import Batches
from sfumato.errors import Interrupted
from sfumato.models import Dropout, expected
from sfumato.models.inverse import assumed_edge
from sfumato.models.layers import initialize
from sfumato.models.vae import LatentEncoder, VariationalAutoencoder, evidence_loss, most_halvings
from sfumato.training import Runtime

_BATCH = 512
_LEAST_ERROR = 1e-6
_TRIED = 64


@dataclass(frozen=True)
class LatentPriorAttack(Attack):
    """Find the latents of a generative model whose picture has the feature that was seen, then refine the pixels.

    In the spirit of GLASS (Li et al. 2023), without a foreign StyleGAN: the prior is a small variational autoencoder,
    trained on the attacker's own images alone.

    1. The prior learns what pictures look like, an encoder learns from queries to guess latents from features.
    2. From the guess, and from draws of the prior, each victim's latents w descend on the distance between its feature
       and the one expected of the picture G(w), plus ``prior_weight`` times the mean of w². The best is kept.
    3. The picture's pixels go on from there, held by a small total variation and by a pull towards G(w).
    4. The answer lies between the encoder's picture and what the search has made of it, as far along as was best, by
       squared error, on up to 64 of the attacker's validation images: both come from the same feature, so that one who
       trusts both counts its noise twice, and an edge that imitates poorly leads astray.

    White-box, the feature expected of a picture is the edge's, through the mean of the channel. Gray-box, an edge of
    the true structure first learns to imitate the target's answers to queries; black-box, one that the shapes suggest
    (:func:`~sfumato.models.inverse.assumed_edge`).

    Args:
        latent_channels: Of the map of latents.
        halvings: From the image's sides to the latents'; more makes the prior stronger and pictures smoother.
        width: Channels of the prior, the encoder, and the first block of an assumed edge.
        divergence_weight: Of the latents' cost in the prior's loss, beside the squared error.
        epochs: Passes over the attacker's images, for each network.
        lr: Initial learning rate of Adam for each network; decays by half a cosine.
        batch_size: Images a step.
        restarts: Starts of the search: the encoder's guess, the others drawn from the prior.
        steps: Of the search for latents, from each start.
        step_size: Initial rate of Adam on the latents.
        prior_weight: Of mean w², beside the feature's relative squared distance.
        refine_steps: On the pixels; 0 leaves the prior's picture.
        refine_step_size: Initial rate of Adam on the pixels.
        tv: Of the mean squared difference of neighboring pixels.
        pull: Of the mean squared distance to the prior's picture.
        beta2: Adam's memory for squared gradients, for each network; see the decoder attack.
        stop_after: End a network's training after so many epochs without a better one; ``None`` goes on to the last.
    """

    name: ClassVar[str] = "latent_prior"
    source: ClassVar[str] = "after Li et al. 2023 (GLASS); prior: Kingma & Welling 2014"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "epochs × images queries (twice without the weights), then restarts × steps passes an image"
    latent_channels: int = 8
    halvings: int = 2
    width: int = 32
    divergence_weight: float = 1e-3
    epochs: int = 50
    lr: float = 2e-3
    batch_size: int = 64
    restarts: int = 2
    steps: int = 200
    step_size: float = 0.1
    prior_weight: float = 1e-4
    refine_steps: int = 200
    refine_step_size: float = 0.01
    tv: float = 0.3
    pull: float = 0.3
    beta2: float = 0.999
    stop_after: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_channels", "width", "epochs", "restarts"):
            self._require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("halvings", "steps", "refine_steps"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("lr", "step_size", "refine_step_size"):
            self._require(0 < getattr(self, name) < float("inf"), name, "a rate above 0")
        for name in ("divergence_weight", "prior_weight", "tv", "pull"):
            self._require(0 <= getattr(self, name) < float("inf"), name, "0 or more")
        self._require(0 <= self.beta2 < 1, "beta2", "from 0 to below 1")
        self._require(self.batch_size >= 2, "batch_size", "2 or more")
        self._require(self.stop_after is None or self.stop_after >= 1, "stop_after", "1 or more, or none")

    def check(
        self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...], threat_model: ThreatModel
    ) -> None:
        """The image has to bear the halvings; without its structure, an edge has to be assumed from the shapes."""
        super().check(image_shape, feature_shape, threat_model)
        most = most_halvings(image_shape)
        self._require(self.halvings <= most, "halvings", f"0 to {most} for images of {image_shape[1:]}")
        if threat_model == "black-box":
            assumed_edge(feature_shape, image_shape, width=1)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Learn prior, encoder and, where the weights are not known, an edge; resumes from the runtime's folder."""
        learn = partial(self._learn, target=target, generator=generator, runtime=runtime)
        pairs = observe(target, knowledge)
        prior = VariationalAutoencoder(
            target.image_shape,
            channels=self.latent_channels,
            halvings=self.halvings,
            width=self.width,
            generator=on_cpu(generator),
        )
        prior.generator = generator
        weight = self.divergence_weight
        unsent = (Unsent(knowledge.train), Unsent(knowledge.validation))
        learned = [learn("prior", prior, lambda network, x, z: evidence_loss(network, x, weight), unsent)]
        generate = _frozen(prior.decoder)
        encoder = LatentEncoder(target.feature_shape, prior.latent_shape, width=self.width, generator=on_cpu(generator))
        learned += [learn("encoder", encoder, lambda network, x, z: F.mse_loss(generate(network(z)), x), pairs)]
        if isinstance(target, WhiteBox):
            send: Callable[[Tensor], Tensor] = partial(_sent, target)
        else:
            surrogate = self._surrogate(target, generator)
            if _can_learn(surrogate, target.image_shape):
                learned += [learn("edge", surrogate, lambda network, x, z: F.mse_loss(network(x), z), pairs)]
            send = _frozen(surrogate)
        scale, (x, z) = _variance(pairs[0]), _sendings(pairs[1])
        doubt = _gap(send, x, z, scale) * math.prod(target.image_shape) / math.prod(target.feature_shape)
        doubt /= max(learned[1].after, _LEAST_ERROR)
        pieces = self.pieces(target, knowledge, generator=generator, runtime=runtime)
        search = _Search(self, generate, _frozen(encoder), send, (scale, doubt), generator, runtime, pieces)
        tried = x[:_TRIED], z[:_TRIED]
        search.trust = pieces("rehearsal", partial(search.deserved, *tried), *tried)
        figures = {"trust": search.trust}
        for name, fitted in zip(("prior_loss", "mse", "edge_mse"), learned):
            figures |= {f"{name}_before": fitted.before, f"{name}_after": fitted.after}
        return Learned(search, figures, any(fitted.result.diverged for fitted in learned))

    def _learn(self, part: str, network: nn.Module, loss: Any, pairs: tuple[Pairs, Pairs], **given: Any) -> Fitted:
        runtime: Runtime = given.pop("runtime")
        place = runtime if runtime.folder is None else runtime.at(runtime.folder / part)
        recipe = Recipe(self.epochs, self.batch_size, self.lr, beta2=self.beta2, stop_after=self.stop_after)
        return train_network(network, loss, pairs, recipe, title=f"attack: {self.name}, {part}", runtime=place, **given)

    def _surrogate(self, target: BlackBox, generator: torch.Generator) -> nn.Module:
        """An edge to be taught, of the true structure where it is known."""
        if isinstance(target, GrayBox):
            edge = target.architecture(generator=generator)
            for layer in edge.modules():
                if isinstance(layer, Dropout):
                    layer.p = 0.0  # the deployed edge has it off
            return edge
        guess = assumed_edge(target.feature_shape, target.image_shape, width=self.width)
        return initialize(guess, on_cpu(generator))


class _Search:
    """From features to pictures, by search.

    Attributes:
        trust: How far to go from the encoder's picture, 0, to what the search has made of it, 1.
    """

    def __init__(
        self,
        spec: LatentPriorAttack,
        generate: Callable[[Tensor], Tensor],
        encode: Callable[[Tensor], Tensor],
        send: Callable[[Tensor], Tensor],
        scale_and_doubt: tuple[float, float],
        generator: torch.Generator,
        runtime: Runtime,
        pieces: Pieces,
    ) -> None:
        self._pieces = pieces
        self._spec, self._generate, self._encode, self._send = spec, generate, encode, send
        self._scale, self._doubt = scale_and_doubt
        self._generator, self._runtime = generator, runtime
        self.trust = 1.0

    def __call__(self, z: Tensor) -> Tensor:
        """Pictures of intercepted features.

        Raises:
            Interrupted: The runtime was asked to stop.
        """
        guessed = self._guess(z)[1]
        # Where the search deserves no trust, its result may not even be finite.
        return guessed.lerp(self.found(z), self.trust) if self.trust > 0 else guessed

    def deserved(self, x: Tensor, z: Tensor) -> float:
        """The trust with which images x (N, C, H, W) would have been rebuilt best from their features."""
        guessed = self._guess(z)[1]
        return least_squares_share(x, guessed, self.found(z))

    def found(self, z: Tensor) -> Tensor:
        """What the search makes of features."""
        spec = self._spec
        total = spec.restarts * spec.steps + spec.refine_steps
        self._runtime.progress.start(f"attack: {spec.name}, search", total)
        with torch.no_grad():
            picture = self._generate(self.latents(z)[0])
        if spec.refine_steps:
            picture = self.refined(picture, z)[0]
        self._runtime.progress.finish()
        return picture

    def latents(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The best latents found, and their objective (N,)."""
        spec, (guess, guessed) = self._spec, self._guess(z)

        def objective(w: Tensor) -> Tensor:
            picture = self._generate(w)
            return self._misfit(picture, z, guessed) + spec.prior_weight * _mean_square(w)

        starts = [guess, *(self._drawn(guess) for _ in range(spec.restarts - 1))]
        search = partial(minimize, objective, steps=spec.steps, step_size=spec.step_size, each_step=self._step)
        tries = [self._pieces(f"restart{i}", partial(search, start), z, start) for i, start in enumerate(starts)]
        best, lowest = best_of(tries)
        return best.contiguous(), lowest  # whatever the layout of a try that was kept

    def refined(self, picture: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels that fit the feature better, not far from the prior's picture, and their objective (N,)."""
        spec, (_, guessed) = self._spec, self._guess(z)

        def objective(x: Tensor) -> Tensor:
            held = spec.tv * total_variation(x) + spec.pull * _mean_square(x - picture)
            return self._misfit(x, z, guessed) + held

        return minimize(
            objective,
            picture,
            steps=spec.refine_steps,
            step_size=spec.refine_step_size,
            bounds=(0.0, 1.0),
            each_step=self._step,
        )

    @torch.no_grad()
    def _guess(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's latents and their picture."""
        guess = self._encode(z)
        return guess, self._generate(guess)

    def _misfit(self, x: Tensor, z: Tensor, guessed: Tensor) -> Tensor:
        return feature_gap(self._send(x), z, self._scale) + self._doubt * _mean_square(x - guessed)

    def _drawn(self, like: Tensor) -> Tensor:
        made = torch.randn(like.shape, generator=self._generator, device=self._generator.device)
        return made.to(like.device)

    def _step(self) -> None:
        self._runtime.progress.advance()
        if self._runtime.should_stop():
            raise Interrupted("stopped while searching; what is finished is kept")


def _can_learn(edge: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Whether its answers lead back to weights. It may have none, and be known as it is; or it may keep no graph."""
    weight = next(edge.parameters(), None)
    if weight is None:
        return False
    was_training = edge.training
    with torch.enable_grad():
        sent: Tensor = edge.eval()(torch.zeros(1, *image_shape, device=weight.device, dtype=weight.dtype))
    edge.train(was_training)
    return sent.requires_grad


def _frozen(network: nn.Module) -> Callable[[Tensor], Tensor]:
    network.requires_grad_(False)
    return partial(answer, network)


def _sent(target: WhiteBox, x: Tensor) -> Tensor:
    """The feature to expect of x; differentiable."""
    dtype = next((p.dtype for p in target.edge.parameters()), x.dtype)
    return expected(target.channel, target.edge(x.to(dtype))).float()


def _mean_square(a: Tensor) -> Tensor:
    return a.square().flatten(1).mean(1)


def least_squares_share(x: Tensor, start: Tensor, end: Tensor) -> float:
    """How far from ``start`` to ``end`` the point is that has least squared error from x: 0 to 1; 0 without an end."""
    way = (end - start).double()
    share = ((x - start).double() * way).sum() / way.square().sum()
    return float(share.nan_to_num(0.0).clamp(0, 1))


@torch.no_grad()
def _sendings(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Images and their features."""
    found = [(x, pairs(x, index)) for x, index in Batches(pairs.images, _BATCH, shuffle=False)]
    images, features = zip(*found)
    return torch.cat(images), torch.cat(features)


@torch.no_grad()
def _gap(send: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, scale: float) -> float:
    """Mean relative squared distance of features from what was expected of their images."""
    parts = zip(torch.split(x, _BATCH), torch.split(z, _BATCH))
    return float(torch.cat([feature_gap(send(some), sent, scale) for some, sent in parts]).mean())


@torch.no_grad()
def _variance(pairs: Pairs) -> float:
    """Of the features' elements over the attacker's images, averaged over elements; 1 where they never vary."""
    features = torch.cat([pairs(x, index).float() for x, index in Batches(pairs.images, _BATCH, shuffle=False)])
    return float(features.var(0, correction=0).mean()) or 1.0
