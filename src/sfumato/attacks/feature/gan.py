"""Train the decoder against a critic too, so that what it makes looks like an image: the CEM paper's second attack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.feature.fitting import Fitted, NetworkJob, Recipe, on_cpu, seed_from, squared_error
from sfumato.attacks.observations import observe
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, ThreatModel
from sfumato.errors import one_of
from sfumato.models import DECODERS, Architecture, Critic, check_decodable, least_width, make_decoder
from sfumato.training import Fit, Plan, Runtime, fit, load_optimizer

Start = Literal["decoder", "scratch"]
_BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class GANAttack(Attack):
    """A decoder that minimizes −D(G(z)) + μ·MSE against a Wasserstein critic D with gradient penalty (CEM, after GMI).

    The critic sees images alone: the attacker's own as real ones, and what the generator makes of their features. It
    takes a step on every batch, the generator on every ``critic_steps``-th, as in Gulrajani et al. 2017 each on images
    drawn anew; hence so many epochs. A critic of slope 1 can move an image of d pixels from the minimum of the squared
    error by about d/(2μ) at most, which costs d/(4μ²) of MSE: with the default it makes images sharper, and hardly
    less exact. Of each phase the epoch with the best MSE on the attacker's own validation images is kept: of the first
    to go on from, of the adversarial training as the attack.

    Args:
        depth: Blocks of the generator; see the decoder attack.
        width: Its channels.
        critic_width: Channels of the critic's first layer.
        epochs: Of the adversarial training; 150 in the paper.
        critic_steps: Steps of the critic for one of the generator.
        penalty: Weight of the gradient penalty.
        mse_weight: μ.
        lr: The generator's learning rate (Adam, β₁ 0.5).
        critic_lr: The critic's (Adam, β₁ 0.5).
        batch_size: Images a step.
        start: ``decoder`` first trains the generator by squared error alone, as the decoder attack does; ``scratch``
            does not.
        pretrain_epochs: How long, where it does.
        pretrain_lr: Learning rate meanwhile, with cosine decay to a hundredth.
        pretrain_beta2: Adam's memory for squared gradients meanwhile; see the decoder attack.
        pretrain_weight_decay: L2 penalty meanwhile.
        architecture: The generator's: ``residual``, ``unet`` or ``transformer``.
        stop_after: End a phase after so many epochs without a better one; ``None`` goes on to its last.
    """

    name: ClassVar[str] = "gan"
    source: ClassVar[str] = "Xia et al. 2025 (CEM), supplement S.3; Zhang et al. 2020 (GMI); Gulrajani et al. 2017"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "all epochs × images queries, then one forward pass an image"
    depth: int = 8
    width: int = 64
    critic_width: int = 64
    epochs: int = 150
    critic_steps: int = 10
    penalty: float = 10.0
    mse_weight: float = 1500.0
    lr: float = 5e-4
    critic_lr: float = 5e-3
    batch_size: int = 256
    start: Start = "decoder"
    pretrain_epochs: int = 50
    pretrain_lr: float = 1e-3
    pretrain_beta2: float = 0.999
    pretrain_weight_decay: float = 1e-4
    architecture: Architecture = "residual"
    stop_after: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.depth >= 0, "depth", "0 or more")
        for name in ("critic_width", "epochs", "critic_steps", "pretrain_epochs"):
            self._require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("penalty", "mse_weight"):
            self._require(0 <= getattr(self, name) < float("inf"), name, "a weight of 0 or more")
        for name in ("lr", "critic_lr", "pretrain_lr"):
            self._require(0 < getattr(self, name) < float("inf"), name, "a learning rate above 0")
        self._require(0 <= self.pretrain_beta2 < 1, "pretrain_beta2", "from 0 to below 1")
        self._require(0 <= self.pretrain_weight_decay < float("inf"), "pretrain_weight_decay", "0 or more")
        self._require(self.batch_size >= 2, "batch_size", "2 or more")
        self._require(self.start in get_args(Start), "start", one_of(get_args(Start), self.start))
        self._require(self.architecture in DECODERS, "architecture", one_of(DECODERS, self.architecture))
        self._require(self.stop_after is None or self.stop_after >= 1, "stop_after", "1 or more, or none")
        least = least_width(self.architecture)
        self._require(self.width >= least, "width", f"{least} or more")

    def check(
        self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...], threat_model: ThreatModel
    ) -> None:
        """Decoders enlarge: the feature has to be a vector, or a map no larger than the image."""
        super().check(image_shape, feature_shape, threat_model)
        check_decodable(feature_shape, image_shape)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Train generator and critic on queries; resumes from the runtime's folder."""
        pairs = observe(target, knowledge)
        decoder = make_decoder(
            self.architecture,
            target.feature_shape,
            target.image_shape,
            depth=self.depth,
            width=self.width,
            generator=on_cpu(generator),
        )
        recipe = Recipe(
            self.pretrain_epochs,
            self.batch_size,
            self.pretrain_lr,
            beta2=self.pretrain_beta2,
            weight_decay=self.pretrain_weight_decay,
        )
        inner = NetworkJob(
            decoder,
            squared_error,
            pairs,
            recipe,
            title=f"attack: {self.name}, decoder",
            target=target,
            generator=generator,
            runtime=runtime,
        )
        before, started = inner.error(), Fit()
        if self.start == "decoder":
            place = runtime if runtime.folder is None else runtime.at(runtime.folder / "decoder")
            started = fit(inner, pairs[0].images, self._plan(self.pretrain_epochs, generator), place)
        critic = Critic(target.image_shape, width=self.critic_width, generator=on_cpu(generator))
        job = GANJob(self, inner, critic, generator=generator, runtime=runtime)
        result = fit(job, pairs[0].images, self._plan(self.epochs, generator), runtime)
        result.diverged |= started.diverged
        learned = Fitted(before, inner.error(), result).learned(decoder)
        reached = started.history[started.epoch_kept]["validation_loss"] if started.history else None
        if reached is None:  # there was no such training, or its error is not finite
            return learned
        return replace(learned, figures={**learned.figures, "mse_started": reached})

    def _plan(self, epochs: int, generator: torch.Generator) -> Plan:
        return Plan(epochs, self.batch_size, seed_from(generator), patience=self.stop_after)


class GANJob:
    """A generator and its critic.

    Args:
        attack: The recipe.
        inner: The generator as a decoder: how it is asked and judged.
        critic: Images to scores.
        generator: The attack's random stream, the one that ``inner`` has.
        runtime: Where it runs.
    """

    def __init__(
        self,
        attack: GANAttack,
        inner: NetworkJob,
        critic: nn.Module,
        *,
        generator: torch.Generator,
        runtime: Runtime,
    ) -> None:
        self.title = f"attack: {attack.name}"
        self._attack, self._inner, self._random = attack, inner, generator
        fabric = self._fabric = runtime.fabric
        critic = critic.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        adam = torch.optim.Adam(critic.parameters(), lr=attack.critic_lr, betas=_BETAS)
        self._critic, self._judge = critic, fabric.setup_module(CriticLoss(critic))
        self._critic_optimizer: Any = fabric.setup_optimizers(adam)
        own = torch.optim.Adam(inner.network.parameters(), lr=attack.lr, betas=_BETAS)
        self._optimizer: Any = fabric.setup_optimizers(own)

    def epoch_start(self, epoch: int) -> None:
        """Training mode."""
        self._inner.epoch_start(epoch)

    def step(self, x: Tensor, y: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        """One step of the critic and, when its turn comes, of the generator."""
        x, z = self._inner.pairs(x, y)
        losses = self._critic_step(x, z)
        if (step + 1) % self._attack.critic_steps == 0:
            losses |= self._generator_step(x, z)
        return losses

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """MSE on the attacker's own validation images; less is better."""
        error = self._inner.error()
        return {"validation_loss": error, "score": -error}

    def weights(self) -> dict[str, Any]:
        """The generator, copied."""
        return self._inner.weights()

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Take the generator back."""
        self._inner.load_weights(weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "inner": self._inner.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "critic": self._critic.state_dict(),
            "critic_optimizer": self._critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, bit for bit."""
        self._inner.load_state_dict(state["inner"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._critic.load_state_dict(state["critic"])
        load_optimizer(self._critic_optimizer, state["critic_optimizer"])

    def _critic_step(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            made = self._inner.module(z)
        share = torch.rand(len(x), 1, 1, 1, generator=self._random, device=self._random.device).to(x.device)
        distance, penalty = self._judge(x, made, share)
        self._critic_optimizer.zero_grad()
        self._fabric.backward(self._attack.penalty * penalty - distance)
        self._critic_optimizer.step()
        return {"distance": distance.detach(), "penalty": penalty.detach()}

    def _generator_step(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        made = self._inner.module(z)
        self._critic.requires_grad_(False)  # gradients are to flow through it, not into it
        adversarial = generator_loss(self._critic, made)
        self._critic.requires_grad_(True)
        error = F.mse_loss(made, x)
        self._optimizer.zero_grad()
        self._fabric.backward(adversarial + self._attack.mse_weight * error)
        self._optimizer.step()
        return {"adversarial": adversarial.detach(), "loss": error.detach()}


class CriticLoss(nn.Module):
    """What the critic is trained by, in one forward pass, which is what data parallelism needs to see."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, real: Tensor, made: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The distance that it is to enlarge, and the penalty that keeps its slope near 1.

        Args:
            real: (N, C, H, W).
            made: (N, C, H, W).
            share: (N, 1, 1, 1) of the real image in those between, where the slope is measured.
        """
        between = share * real + (1 - share) * made
        return wasserstein_distance(self.critic, real, made), gradient_penalty(self.critic, between)


def wasserstein_distance(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Mean D(real) − mean D(made): the Wasserstein-1 distance as far as D has found it (Arjovsky et al. 2017)."""
    distance: Tensor = critic(real).mean() - critic(made).mean()
    return distance


def generator_loss(critic: nn.Module, made: Tensor) -> Tensor:
    """−mean D(made): less where the critic takes images for real."""
    loss: Tensor = -critic(made.to(next(critic.parameters()).dtype)).mean()
    return loss


def gradient_penalty(critic: nn.Module, images: Tensor) -> Tensor:
    """Mean of (‖∂D/∂x‖ − 1)², the norm over all pixels of each image (Gulrajani et al. 2017, section 4).

    Args:
        critic: Must not mix the images of a batch.
        images: (N, C, H, W), between real and made ones.

    Returns:
        A scalar whose gradient reaches the critic.
    """
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty
