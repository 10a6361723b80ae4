"""Train an inverse network that mirrors the edge, as far as the attacker knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.feature.fitting import Recipe, on_cpu, squared_error, train_network
from sfumato.attacks.observations import observe
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, GrayBox, ThreatModel
from sfumato.errors import InputError
from sfumato.models.inverse import Inverse, assumed_edge, is_linear
from sfumato.training import Runtime


@dataclass(frozen=True)
class GeneratorAttack(Attack):
    """Learn x from z by mean squared error with the edge turned around (Yang 2019, He 2020, Yin 2023).

    Three forms of one attack, by what the attacker knows of the edge:

    - Gray-box and white-box (``mirror``): it mirrors the architecture layer by layer; the weights are not used.
    - Black-box (``guess``): it assumes an architecture from the shapes of image and feature
      (:func:`~sfumato.models.inverse.assumed_edge`) and mirrors that. This is the query-only form: it needs no more
      than answers to its queries.
    - ``auto`` takes the first where it can, except for a linear edge, which is not worth mirroring: what comes out is
      as linear, and so knows nothing of images but their mean and covariance.

    The epoch with the best MSE on the attacker's own validation images is kept; where that has not improved for
    ``patience`` epochs, the rate is halved. Halving seldom gets the rate low enough for the last per cent where epochs
    are few; cosine decay, which ``patience=None`` stands for, always does.

    Args:
        structure: ``mirror`` the true edge, ``guess`` one from the shapes alone, or ``auto``: mirror where the threat
            model allows it and the edge is not linear (or too large to be guessed).
        width: Channels of a guessed edge's first block.
        epochs: Passes over the attacker's images.
        lr: Learning rate of Adam (β1 = 0.5).
        batch_size: Images a step.
        patience: Epochs without improvement before the rate is halved; ``None`` for cosine decay to a hundredth.
        beta2: Adam's memory for squared gradients; see the decoder attack.
        stop_after: End after so many epochs without a better one; ``None`` goes on to the last.
    """

    name: ClassVar[str] = "generator"
    source: ClassVar[str] = "Yang et al. 2019 (CCS); He et al. 2020; Yin et al. 2023 (Ginver)"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "epochs × images queries, then one forward pass an image"
    structure: Literal["auto", "guess", "mirror"] = "auto"
    width: int = 64
    epochs: int = 100
    lr: float = 2e-4
    batch_size: int = 64
    patience: int | None = 20
    beta2: float = 0.999
    stop_after: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.structure in ("auto", "guess", "mirror"), "structure", "one of auto, guess, mirror")
        self._require(self.width >= 1, "width", "1 or more")
        self._require(self.epochs >= 1, "epochs", "1 or more")
        self._require(0 < self.lr < float("inf"), "lr", "a learning rate above 0")
        self._require(self.batch_size >= 2, "batch_size", "2 or more")
        self._require(0 <= self.beta2 < 1, "beta2", "from 0 to below 1")
        self._require(self.patience is None or self.patience >= 0, "patience", "0 or more, or none")
        self._require(self.stop_after is None or self.stop_after >= 1, "stop_after", "1 or more, or none")

    def allowed(self, threat_model: ThreatModel) -> None:
        """To be mirrored, an edge has to be known."""
        super().allowed(threat_model)
        if self.structure == "mirror" and threat_model == "black-box":
            accepted = "guess or auto: a black-box attacker does not know the edge's structure"
            raise InputError(f"{self.name}.structure", self.structure, accepted)

    def check(
        self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...], threat_model: ThreatModel
    ) -> None:
        """A guess has to be able to enlarge the feature to the image; a mirror takes any feature."""
        super().check(image_shape, feature_shape, threat_model)
        if self.structure == "guess" or threat_model == "black-box":
            assumed_edge(feature_shape, image_shape, width=1)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Train the inverse network on queries; resumes from the runtime's folder."""
        pairs = observe(target, knowledge)
        network = self.network(target, generator=generator)
        recipe = Recipe(
            self.epochs,
            self.batch_size,
            self.lr,
            beta1=0.5,
            beta2=self.beta2,
            patience=self.patience,
            stop_after=self.stop_after,
        )
        fitted = train_network(
            network,
            squared_error,
            pairs,
            recipe,
            title=f"attack: {self.name}",
            target=target,
            generator=generator,
            runtime=runtime,
        )
        return fitted.learned(network)

    def network(self, target: BlackBox, *, generator: torch.Generator) -> Inverse:
        """The inverse network before training, on the CPU.

        Raises:
            InputError: The edge is to be mirrored, but the target does not show its architecture; or the guess cannot
                enlarge such a feature.
        """
        self.check(target.image_shape, target.feature_shape, target.threat_model)
        if self.structure != "guess" and isinstance(target, GrayBox):
            edge = target.architecture(generator=generator)
            mirror = Inverse(edge, target.image_shape, generator=on_cpu(generator))
            if self.structure == "mirror" or not (is_linear(mirror) and _can_be_guessed(target)):
                return mirror
        guess = assumed_edge(target.feature_shape, target.image_shape, width=self.width)
        return Inverse(guess, target.image_shape, generator=on_cpu(generator))


def _can_be_guessed(target: BlackBox) -> bool:
    try:
        assumed_edge(target.feature_shape, target.image_shape, width=1)
    except InputError:
        return False
    return True
