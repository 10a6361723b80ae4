"""Train against an attacker: a decoder learns to see through what is sent, the edge learns to blind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sfumato.defenses.base import BoundDefense, Context, Defense, Player
from sfumato.errors import InputError
from sfumato.models import Decoder, SplitModel

# Of SSIM (Wang et al. 2004): side and spread of its window, and what keeps its two quotients finite.
_WINDOW, _SPREAD = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Adversary(Defense):
    """A decoder learns to reconstruct images from what is sent; the edge is punished for how well it does.

    The decoder is a player: after the model's step it takes steps of its own on the batch's mean squared error, with
    Adam. The model's loss gains

        ``ssim``: α·max(0, SSIM(x̂, x) − threshold)      ``mse``: −α·MSE(x̂, x)

    with x̂ = decoder(z) and SSIM averaged over the batch (ResSFL, Li et al. 2022: threshold 0.5). Below the threshold
    the edge is left in peace. The decoder is no part of the split model and is never deployed with it.

    Where the model is punished the decoder's weights are constants. Its batch norm then works on the batch's own
    statistics, as in the player's steps; its running ones move in the player's steps alone.

    Args:
        alpha: Weight α ≥ 0. ResSFL uses 0.3 to 1 with ``ssim``; ``mse`` is an error of hundredths and needs far more.
        objective: ``ssim`` or ``mse``.
        threshold: SSIM that is not punished, from −1 to below 1; for ``ssim`` only.
        depth: Residual blocks of the decoder, 0 or more.
        width: Its channels, 1 or more. With depth 4 and width 64 it has 415,091 parameters at 8×8×8 → 3×32×32.
        lr: Its learning rate.
        every: The decoder's turn comes after every so many steps of the model.
        steps: Steps in its turn, on the same batch.
        pretrain_epochs: Epochs that it learns before the model's first step, so that the edge meets a competent one.
    """

    name: ClassVar[str] = "adversary"
    source: ClassVar[str] = "Li et al. 2022 (ResSFL); Xia et al. 2025 (CEM), section 5.1"
    watches: ClassVar[bool] = True
    alpha: float = 0.3
    objective: Literal["ssim", "mse"] = "ssim"
    threshold: float = 0.5
    depth: int = 4
    width: int = 64
    lr: float = 1e-3
    every: int = 1
    steps: int = 1
    pretrain_epochs: int = 0

    def __post_init__(self) -> None:
        self._require(0 <= self.alpha < float("inf"), "alpha", "a weight of 0 or more")
        self._require(self.objective in ("ssim", "mse"), "objective", "one of ssim, mse")
        self._require(-1 <= self.threshold < 1, "threshold", "an SSIM from −1 to below 1")
        self._require(self.depth >= 0, "depth", "0 or more")
        self._require(self.width >= 1, "width", "1 or more")
        self._require(0 < self.lr < float("inf"), "lr", "a learning rate above 0")
        self._require(self.every >= 1, "every", "1 or more")
        self._require(self.steps >= 1, "steps", "1 or more")
        self._require(self.pretrain_epochs >= 0, "pretrain_epochs", "0 or more")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        size = split.image_shape[1:]
        if self.objective == "ssim" and min(size) < _WINDOW:
            accepted = f"images of at least {_WINDOW}×{_WINDOW}, the window of SSIM, or objective mse"
            raise InputError("defense adversary (image size)", size, accepted)
        return BoundAdversary(self, split, generator)


class BoundAdversary(BoundDefense):
    """The adversary at work.

    Attributes:
        decoder: The player's network.
    """

    def __init__(self, spec: Adversary, split: SplitModel, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        self.decoder = Decoder(
            split.feature.shape, split.image_shape, depth=spec.depth, width=spec.width, generator=generator
        )

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        """α times the decoder's success on what is sent."""
        constants = {name: p.detach() for name, p in self.decoder.named_parameters()}
        constants |= {name: b.clone() for name, b in self.decoder.named_buffers()}
        made = functional_call(self.decoder, constants, (ctx.z_sent,))
        if self.spec.objective == "mse":
            return {"adversary": -self.spec.alpha * F.mse_loss(made, ctx.x)}
        return {"adversary": self.spec.alpha * (similarity(made, ctx.x) - self.spec.threshold).relu()}

    def players(self) -> tuple[Player, ...]:
        """The decoder."""
        spec = self.spec
        return (
            Player("adversary", self.decoder, self._adam, self._error, spec.every, spec.steps, spec.pretrain_epochs),
        )

    def _adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.spec.lr)

    def _error(self, ctx: Context) -> Tensor:
        return F.mse_loss(self.decoder(ctx.z_sent), ctx.x)


def similarity(made: Tensor, x: Tensor) -> Tensor:
    """Mean SSIM of two batches of images (N, C, H, W) in [0, 1]: Gaussian window 11, σ 1.5; differentiable.

    What torchmetrics computes and :func:`~sfumato.metrics.quality` reports, borders mirrored. The window is a product
    of one along the height and one along the width, so that local means are two matrix products: in a training step on
    a CPU a tenth of the time that a convolution by the whole window takes.

    Variances in it are differences of close numbers, so that it is computed in single precision at least.
    """
    with torch.autocast(made.device.type, enabled=False):
        kind = torch.promote_types(made.dtype, torch.float32)
        made, x = made.to(kind), x.to(kind)
        down, across = (_blur(side, x) for side in x.shape[2:])

        def local(values: Tensor) -> Tensor:
            return down @ (values @ across.T)

        mean_made, mean_x = local(made), local(x)
        product = mean_made * mean_x
        squares = mean_made.square() + mean_x.square()
        covariance = local(made * x) - product
        # A variance of nothing can come out just below 0.
        variances = _variance(made, mean_made, local) + _variance(x, mean_x, local)
        return ((2 * product + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))).mean()


def _variance(x: Tensor, mean: Tensor, local: Callable[[Tensor], Tensor]) -> Tensor:
    return (local(x.square()) - mean.square()).clamp_min(0)


def _blur(side: int, like: Tensor) -> Tensor:
    """(side, side): the weighted mean around every place along one side, mirrored at its ends."""
    half = _WINDOW // 2
    places = torch.arange(-half, half + 1, device=like.device, dtype=like.dtype)
    weights = torch.softmax(-0.5 * (places / _SPREAD).square(), 0)
    one_hot = torch.eye(side, device=like.device, dtype=like.dtype)
    return F.pad(one_hot, (half, half), mode="reflect").unfold(1, _WINDOW, 1).matmul(weights).T
