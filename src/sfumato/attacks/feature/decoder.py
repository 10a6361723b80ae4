"""Train a decoder from features to images: the CEM paper's main attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.feature.fitting import Fitted, Pairs, Recipe, on_cpu, squared_error, train_network
from sfumato.attacks.observations import observe
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, ThreatModel
from sfumato.errors import one_of
from sfumato.models import DECODERS, Architecture, check_decodable, least_width, make_decoder
from sfumato.training import Runtime


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
        beta2: Adam's memory for squared gradients. PyTorch's 0.999 remembers the large ones of the start for a thousand
            steps, in which it learns slowly; of a training of some hundred steps 0.98 makes more.
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
    beta2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.depth >= 0, "depth", "0 or more")
        self._require(self.epochs >= 1, "epochs", "1 or more")
        self._require(0 < self.lr < float("inf"), "lr", "a learning rate above 0")
        self._require(self.batch_size >= 2, "batch_size", "2 or more")
        self._require(0 <= self.weight_decay < float("inf"), "weight_decay", "0 or more")
        self._require(0 <= self.beta2 < 1, "beta2", "from 0 to below 1")
        self._require(self.patience is None or self.patience >= 1, "patience", "1 or more, or none")
        self._require(self.architecture in DECODERS, "architecture", one_of(DECODERS, self.architecture))
        least = least_width(self.architecture)
        self._require(self.width >= least, "width", f"{least} or more")

    def check(
        self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...], threat_model: ThreatModel
    ) -> None:
        """Decoders enlarge: the feature has to be a vector, or a map no larger than the image."""
        super().check(image_shape, feature_shape, threat_model)
        check_decodable(feature_shape, image_shape)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Train the decoder on queries; resumes from the runtime's folder."""
        title = f"attack: {self.name}"
        decoder, fitted = self.train(
            observe(target, knowledge), target, title=title, generator=generator, runtime=runtime
        )
        return fitted.learned(decoder)

    def train(
        self,
        pairs: tuple[Pairs, Pairs],
        target: BlackBox,
        *,
        title: str,
        generator: torch.Generator,
        runtime: Runtime,
    ) -> tuple[nn.Module, Fitted]:
        """The decoder of the epoch that was best on the second of ``pairs``, and how its training went.

        Args:
            pairs: Images and features to learn from and to select on.
            target: Whose features they are.
            title: For the progress bar.
            generator: All that is drawn.
            runtime: Device, folder for resuming, progress.

        Raises:
            Interrupted: The runtime was asked to stop.
        """
        decoder = make_decoder(
            self.architecture,
            target.feature_shape,
            target.image_shape,
            depth=self.depth,
            width=self.width,
            generator=on_cpu(generator),
        )
        recipe = Recipe(
            self.epochs,
            self.batch_size,
            self.lr,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            stop_after=self.patience,
        )
        fitted = train_network(
            decoder,
            squared_error,
            pairs,
            recipe,
            title=title,
            target=target,
            generator=generator,
            runtime=runtime,
        )
        return decoder, fitted
