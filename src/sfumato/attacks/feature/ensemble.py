"""Train decoders of several shapes, and answer with a weighted mean of their pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Inverter, Knowledge, Learned
from sfumato.attacks.feature.decoder import DecoderAttack
from sfumato.attacks.feature.fitting import Pairs, answer
from sfumato.attacks.observations import observe
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, ThreatModel
from sfumato.data import Batches
from sfumato.errors import InputError, renamed
from sfumato.models import Architecture
from sfumato.training import Runtime

_BATCH = 512


@dataclass(frozen=True)
class EnsembleAttack(Attack):
    """Several :class:`~sfumato.attacks.DecoderAttack` of different shapes, and the best mean of what they make.

    Decoders of different shapes err differently, and where errors differ a mean has less of them. Each is trained by
    itself; the answer is Σ w_i·x̂_i with the weights, at least 0 and summing to 1, that have the least squared error on
    the attacker's own validation images (stacked regression, Breiman 1996). So on those it is never behind the best of
    its decoders. Within a limit of queries they learn from the same first answers, and what is left of it is the first
    one's.

    Args:
        architectures: Shapes of the decoders, two or more.
        depth: Blocks of each.
        width: Channels of each.
        epochs: Of each.
        lr: Initial learning rate of Adam.
        batch_size: Images a step.
        weight_decay: L2 penalty.
        patience: End a decoder's training after so many epochs without a better one; ``None`` goes on to the end.
        beta2: Adam's memory for squared gradients; see the decoder attack.
    """

    name: ClassVar[str] = "ensemble"
    source: ClassVar[str] = "decoders: Xia et al. 2025 (CEM); weights: Breiman 1996 (stacked regressions)"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "decoders × epochs × images queries, then one forward pass of each an image"
    architectures: tuple[Architecture, ...] = ("residual", "unet", "transformer")
    depth: int = 8
    width: int = 64
    epochs: int = 50
    lr: float = 1e-3
    batch_size: int = 256
    weight_decay: float = 1e-4
    patience: int | None = None
    beta2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        different = len(set(self.architectures)) == len(self.architectures) >= 2
        self._require(different, "architectures", "two or more, each once")
        try:
            _ = self.decoders
        except InputError as error:
            raise renamed(error, self._own_name) from error

    def _own_name(self, field: str) -> str:
        own = field.removeprefix(f"{DecoderAttack.name}.")
        return f"{self.name}.{'architectures' if own == 'architecture' else own}"

    @property
    def decoders(self) -> tuple[DecoderAttack, ...]:
        """The attacks whose pictures it combines; they have its budget together."""
        return tuple(
            DecoderAttack(
                depth=self.depth,
                width=self.width,
                epochs=self.epochs,
                lr=self.lr,
                batch_size=self.batch_size,
                weight_decay=self.weight_decay,
                architecture=architecture,
                patience=self.patience,
                beta2=self.beta2,
            )
            for architecture in self.architectures
        )

    def check(
        self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...], threat_model: ThreatModel
    ) -> None:
        """What a decoder cannot invert, none of them can."""
        super().check(image_shape, feature_shape, threat_model)
        self.decoders[0].check(image_shape, feature_shape, threat_model)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Train each decoder on queries, then weigh them; resumes from the runtime's folder."""
        pairs = observe(target, knowledge)
        trained = []
        for decoder in self.decoders:
            shape = decoder.architecture
            place = runtime if runtime.folder is None else runtime.at(runtime.folder / shape)
            title = f"attack: {self.name}, {shape}"
            trained.append(decoder.train(pairs, target, title=title, generator=generator, runtime=place))
        inverters = [partial(answer, network) for network, _ in trained]
        products = _error_products(inverters, pairs[1])
        weights = simplex_weights(products)
        used = weights > 0
        figures = {
            "mse_before": min(fitted.before for _, fitted in trained),
            "mse_after": float(weights[used] @ products[used][:, used] @ weights[used]),
            **{f"weight_{shape}": float(weight) for shape, weight in zip(self.architectures, weights, strict=True)},
        }
        diverged = any(fitted.result.diverged for (_, fitted), one in zip(trained, used, strict=True) if one)
        chosen = [(inverter, float(weight)) for inverter, weight in zip(inverters, weights, strict=True) if weight > 0]
        return Learned(torch.no_grad()(partial(_mean, chosen)), figures, diverged)


def simplex_weights(products: Tensor) -> Tensor:
    """Weights w ≥ 0 with Σ w = 1 that make wᵀ·P·w least.

    Few of them: the minimum over each subset has a closed form, and one of the subsets is that of the positive weights.

    Args:
        products: P (M, M), symmetric, at least 0 on the diagonal: mean products of the errors of M predictors. A
            predictor whose products are not finite has no weight, unless all are so.

    Returns:
        (M,) in double precision.
    """
    products = products.double()
    count = len(products)
    best, least = products.new_zeros(count).index_fill_(0, torch.zeros(1, dtype=torch.int64), 1.0), torch.inf
    subsets = (torch.tensor(s) for size in range(1, count + 1) for s in itertools.combinations(range(count), size))
    for subset in subsets:
        part = products[subset][:, subset]
        if not bool(part.isfinite().all()):
            continue
        # Two predictors may be the same.
        solved = torch.linalg.pinv(part, hermitian=True).sum(1)
        share = solved / solved.sum() if bool(part.any()) else torch.full_like(solved, 1 / len(solved))
        value = float(share @ part @ share)
        if bool((share >= 0).all()) and value < least:
            best, least = products.new_zeros(count).index_copy_(0, subset, share), value
    return best


@torch.no_grad()
def _error_products(inverters: Sequence[Callable[[Tensor], Tensor]], pairs: Pairs) -> Tensor:
    """(M, M) mean over images and pixels of the products of the errors that M predictors make."""
    total = torch.zeros(len(inverters), len(inverters), dtype=torch.float64)
    for x, index in Batches(pairs.images, _BATCH, shuffle=False):
        z = pairs(x, index)
        errors = torch.stack([(inverter(z) - x).flatten() for inverter in inverters])
        total += (errors @ errors.T).double().cpu() / x[0].numel()
    return total / len(pairs.images)


def _mean(chosen: Sequence[tuple[Inverter, float]], z: Tensor) -> Tensor:
    (first, weight), *others = chosen
    made = weight * first(z)
    for inverter, weight in others:
        made = made + weight * inverter(z)
    return made
