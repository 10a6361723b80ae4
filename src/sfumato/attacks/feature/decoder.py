"""Train a decoder from features to images: the CEM paper's main attack."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.observations import Observations, observe
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, ThreatModel
from sfumato.data import Batches
from sfumato.errors import one_of
from sfumato.models import DECODERS, Architecture, check_decodable, least_width, make_decoder
from sfumato.training import Plan, Runtime, fit, load_optimizer

_BATCH = 512


@dataclass(frozen=True)
class DecoderAttack(Attack):
    """Learn x from z by mean squared error with a decoder network (CEM, supplement S.3; after ResSFL).

    It needs queries alone, so it works under every threat model; every batch is sent anew as far as queries are free,
    so that it learns the channel's randomness. The paper's decoder is the residual one; the others are built otherwise
    and may find what it misses. All reach images of any size, from maps and from vectors. The epoch with the best MSE
    on the attacker's own validation images is kept. The paper trains with Adam at 0.005; the authors' program at 0.001
    with cosine decay to 1e-5 and weight decay 1e-4. The default is the program's.

    Args:
        depth: Blocks (8 in the paper): residual ones, of a U-Net, or of a transformer.
        width: Channels (64 in the paper).
        epochs: 50 in the paper.
        lr: Initial learning rate of Adam.
        batch_size: 256 in the paper.
        weight_decay: L2 penalty.
        architecture: ``residual``, the paper's; ``unet``, which works at the image's own size; or ``transformer``,
            which lets all places of the feature look at each other.
        patience: Stop after so many epochs without a better one; ``None`` goes on to the end.
    """

    name: ClassVar[str] = "decoder"
    source: ClassVar[str] = "Xia et al. 2025 (CEM), supplement S.3; Li et al. 2022 (ResSFL)"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "epochs × images queries, then one forward pass an image"
    depth: int = 8
    width: int = 64
    epochs: int = 50
    lr: float = 1e-3
    batch_size: int = 256
    weight_decay: float = 1e-4
    architecture: Architecture = "residual"
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.depth >= 0, "depth", "0 or more")
        self._require(self.epochs >= 1, "epochs", "1 or more")
        self._require(0 < self.lr < float("inf"), "lr", "a learning rate above 0")
        self._require(self.batch_size >= 2, "batch_size", "2 or more")
        self._require(0 <= self.weight_decay < float("inf"), "weight_decay", "0 or more")
        self._require(self.patience is None or self.patience >= 1, "patience", "1 or more, or none")
        self._require(self.architecture in DECODERS, "architecture", one_of(DECODERS, self.architecture))
        least = least_width(self.architecture)
        self._require(self.width >= least, "width", f"{least} or more")

    def check(self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...]) -> None:
        """Decoders enlarge: the feature has to be a vector, or a map no larger than the image."""
        check_decodable(feature_shape, image_shape)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Train the decoder on queries; resumes from the runtime's folder."""
        own, validation = observe(target, knowledge)
        decoder = make_decoder(
            self.architecture,
            target.feature_shape,
            target.image_shape,
            depth=self.depth,
            width=self.width,
            generator=weights_from(generator),
        )
        job = DecoderJob(
            decoder,
            target,
            own,
            validation,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            generator=generator,
            runtime=runtime,
        )
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        plan = Plan(self.epochs, self.batch_size, seed, patience=self.patience)
        before = job.error()
        result = fit(job, own.images, plan, runtime)
        figures = {"mse_before": before, "mse_after": job.error(), "epoch_kept": float(result.epoch_kept)}
        return Learned(job.invert, figures, result.diverged)


class DecoderJob:
    """A network from features to images, of whatever kind, learning to invert one target by squared error.

    Args:
        decoder: Features (N, ...) to images (N, C, H, W) in [0, 1].
        target: What is inverted.
        own: Pairs to learn from; of the same target.
        validation: Pairs to select on; of the same target.
        epochs: Length of the cosine from ``lr`` to a hundredth of it.
        lr: Of Adam.
        weight_decay: L2 penalty.
        generator: The attack's; its state belongs to the job's.
        runtime: Where it runs.
        title: For the progress bar.

    Attributes:
        module: The decoder as it is to be called in training.
        decoder: The same as a plain module.
    """

    def __init__(
        self,
        decoder: nn.Module,
        target: BlackBox,
        own: Observations,
        validation: Observations,
        *,
        epochs: int,
        lr: float,
        weight_decay: float,
        generator: torch.Generator,
        runtime: Runtime,
        title: str = "attack: decoder",
    ) -> None:
        self.title = title
        self._target, self._own, self._validation, self._generator = target, own, validation, generator
        decoder = decoder.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(decoder.parameters(), lr=lr, weight_decay=weight_decay)
        self.decoder, self.module = decoder, runtime.fabric.setup_module(decoder)
        self._optimizer: Any = runtime.fabric.setup_optimizers(optimizer)
        self._fabric = runtime.fabric
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=lr / 100)

    def epoch_start(self, epoch: int) -> None:
        """Training mode."""
        self.decoder.train()

    def step(self, x: Tensor, y: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        """One step of MSE on a batch sent anew."""
        loss = F.mse_loss(self.module(self.observed(x, y)), x)
        self._optimizer.zero_grad()
        self._fabric.backward(loss)
        self._optimizer.step()
        return {"mse": loss.detach()}

    def observed(self, x: Tensor, index: Tensor) -> Tensor:
        """Features of a batch of the images to learn from."""
        return self._own(x, index)

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """MSE on the attacker's own validation images; less is better."""
        self._schedule.step()
        error = self.error()
        return {"validation_mse": error, "score": -error}

    @torch.no_grad()
    def error(self) -> float:
        """MSE on the attacker's validation images, by :meth:`invert`."""
        images = self._validation.images
        total = torch.zeros((), device=images.images.device)
        for x, index in Batches(images, _BATCH, shuffle=False):
            total += (self.invert(self._validation(x, index)) - x).square().mean() * len(x)
        return float(total) / len(images)

    @torch.no_grad()
    def invert(self, z: Tensor) -> Tensor:
        """Reconstructions, in evaluation mode."""
        self.decoder.eval()
        images: Tensor = self.decoder(z.to(next(self.decoder.parameters()).dtype))
        return images.float()

    def weights(self) -> dict[str, Any]:
        """The decoder, copied."""
        return copy.deepcopy(self.decoder.state_dict())

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Take the decoder back."""
        self.decoder.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "decoder": self.decoder.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "target": self._target.state_dict(),
            "observations": [self._own.state_dict(), self._validation.state_dict()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, bit for bit."""
        self.decoder.load_state_dict(state["decoder"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"].clone())
        self.decoder.train()  # a checkpoint from inside an epoch is resumed without another epoch_start
        self._target.load_state_dict(state["target"])
        for observations, saved in zip((self._own, self._validation), state["observations"], strict=True):
            observations.load_state_dict(saved)


def weights_from(generator: torch.Generator) -> torch.Generator:
    """A stream for a network's initial weights, which are drawn on the CPU whatever the device."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
