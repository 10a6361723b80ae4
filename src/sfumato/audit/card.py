"""The card: one result as versioned JSON. Every table, plot, page and gate is made from cards alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfumato.errors import CorruptFileError, InputError
from sfumato.storage import hash_of, write_text

SCHEMA_VERSION: Literal[1] = 1

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Part(_Section):
    """One part of a defense or one attack: its registered name and all its arguments."""

    name: str
    arguments: dict[str, Any] = {}


class DefenseInfo(_Section):
    """What protects the model: the label people know it by, and the chain of parts it is."""

    label: str
    parts: list[Part]


class DataInfo(_Section):
    """What the model was trained and judged on."""

    source: str
    checksum: str = Field(description="SHA-256 over the pixels and labels of all parts")
    image_shape: tuple[int, int, int]
    classes: list[str]
    train: Count
    validation: Count
    test: Count
    auxiliary: Count


class ModelInfo(_Section):
    """The network and where it is cut."""

    backbone: str
    width: float
    cut: str
    feature_shape: tuple[int, ...] = Field(description="of what is sent, without the batch axis")
    edge_from: str | None = Field(
        default=None, description="SHA-256 of the weights that the edge started from; null where they were drawn"
    )


class TrainingInfo(_Section):
    """How the model was trained and which epoch was kept (chosen on the validation part only)."""

    arguments: dict[str, Any]
    seed: int
    epochs_run: Count
    epoch_kept: Count
    losses: dict[str, float | None] = Field(description="means over the last epoch; null where not finite")


class Utility(_Section):
    """What the model is good for. Accuracies are fractions, through the deployed channel."""

    train_accuracy: Fraction
    validation_accuracy: Fraction
    test_accuracy: Fraction


class Cost(_Section):
    """What the two halves cost for one image. MACs count convolutions and linear layers."""

    edge_parameters: Count
    edge_macs: Count
    cloud_parameters: Count
    cloud_macs: Count
    payload_bytes: Count


class Quality(_Section):
    """How close reconstructions come, on [0, 1] pixels: means over images."""

    mse: NonNegative
    psnr: float | None = Field(description="dB, mean over images; null where a reconstruction is exact")
    ssim: float


class Example(_Section):
    """One image and its reconstruction, as PNG in base64."""

    rank: Literal["best", "median", "worst", "fixed"] = Field(
        description="for the attacker, by SSIM; fixed: the first judged images, the same in every card"
    )
    index: Count = Field(description="position in the judged images")
    label: str
    mse: NonNegative
    ssim: float
    original: str
    reconstruction: str


class AttackInfo(_Section):
    """One attack: what it assumed, what it used, what it got."""

    attack: Part = Field(description="its label in this card, and its arguments")
    kind: str = Field(description="the name it is registered by, whatever its label")
    threat_model: Literal["white-box", "gray-box", "black-box"]
    trained_on: Literal["train", "auxiliary"]
    queries: Count = Field(description="images the attacker sent through the edge, repetitions included")
    images: Count | None = Field(default=None, description="images of its own that the attacker had")
    observations: Positive = Field(default=1, description="how often each victim's feature was intercepted")
    train: Quality = Field(description="on images of the set that the attacker's own were taken from")
    test: Quality = Field(description="on test images neither the model nor the attack has seen")
    test_mse: list[NonNegative] = Field(min_length=1, description="per judged test image")
    test_ssim: list[float] = Field(min_length=1, description="per judged test image")
    examples: list[Example]
    identity: Fraction | None = Field(
        default=None,
        description="share of the test reconstructions that the judge recognizes; null where there is no judge",
    )

    @model_validator(mode="after")
    def _one_figure_an_image(self) -> AttackInfo:
        if len(self.test_mse) != len(self.test_ssim):
            raise ValueError(f"test_mse is of {len(self.test_mse)} images, test_ssim of {len(self.test_ssim)}")
        return self


class WorstCase(_Section):
    """The strongest attack on each image: mean over images of the lowest MSE and the highest SSIM."""

    mse: NonNegative
    ssim: float


class JudgeInfo(_Section):
    """The independent classifier that looks at reconstructions: the network without a defense, from another seed."""

    run: str = Field(description="address of its run")
    seed: int
    accuracy: Fraction = Field(description="share of the judged test images, the originals, that it recognizes")
    chance: Fraction = Field(description="share of the most frequent class among them: what one picture for all gets")


class Suspicion(_Section):
    """Something about this evaluation that a reader should distrust."""

    code: str
    message: str


class Timing(_Section):
    """Clock readings: the only figures that differ between two runs of the same work."""

    finished: str = Field(description="UTC, ISO 8601")
    train_seconds: NonNegative
    attack_seconds: NonNegative
    edge_latency_ms: NonNegative = Field(description="median, one image")
    cloud_latency_ms: NonNegative = Field(description="median, one image")


class Environment(_Section):
    """Where it ran."""

    sfumato: str
    torch: str
    python: str
    platform: str
    device: str
    threads: Count


class Card(_Section):
    """One trained model, attacked.

    Two runs of the same work give cards that are equal but for ``timing`` and ``environment``;
    :meth:`fingerprint` is over the rest.
    """

    schema_version: Literal[1] = 1
    run: str = Field(description="address of the run: a hash of what determines it")
    defense: DefenseInfo
    data: DataInfo
    model: ModelInfo
    training: TrainingInfo
    utility: Utility
    cost: Cost
    theory: dict[str, float] = Field(
        default={}, description="the feature's mixture rate and utility, and what the defense tracks, in nats"
    )
    mean_image: Quality = Field(description="of answering every feature with the mean training image")
    attacks: list[AttackInfo] = Field(min_length=1)
    worst_case: WorstCase
    judge: JudgeInfo | None = Field(default=None, description="null where nobody looked at the reconstructions")
    suspicions: list[Suspicion] = []
    timing: Timing
    environment: Environment

    def fingerprint(self) -> str:
        """SHA-256 of everything but clock readings and environment."""
        return hash_of(self.model_dump(mode="json", exclude={"timing", "environment"}), length=64)

    def save(self, path: Path) -> None:
        """Write the card atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Card:
        """Read and validate a card.

        Raises:
            InputError: There is no such file, or it was written by a newer sfumato.
            CorruptFileError: It is not a card, or a field is missing or wrong.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError("card", str(path), f"a readable card.json ({error.strerror})") from error
        except ValueError as error:
            raise CorruptFileError(f"{path} is not a card: {error}") from error
        if not isinstance(content, dict) or "schema_version" not in content:
            raise CorruptFileError(f"{path} is not a card: it has no schema_version")
        version = content["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema_version", version, f"up to {SCHEMA_VERSION}; a newer sfumato wrote this card"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CorruptFileError(f"{path} is not a valid card: {where}: {first['msg']}") from error
