"""A small variational autoencoder: what an attacker's own images say pictures look like."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.models.decoder import ResidualBlock
from sfumato.models.layers import Stochastic, initialize, set_generator, spare_global_generator
from sfumato.models.split import output_shape

_MOST = 10.0


def most_halvings(image_shape: tuple[int, int, int]) -> int:
    """How often the smaller side of an image (C, H, W) can be halved."""
    return int(math.log2(min(image_shape[1:])))


class VariationalAutoencoder(Stochastic):
    """Images to a map of latents and back (Kingma & Welling 2014), fully convolutional.

    The latents w are (c, ⌈H/2^k⌉, ⌈W/2^k⌉) numbers, standard normal under the prior. A map instead of a vector keeps
    what is where, so that few images are enough to learn from.

    Args:
        image_shape: (C, H, W).
        channels: c, latent channels.
        halvings: k; each makes the latents a quarter as many, and the prior stronger.
        width: Channels of the convolutions.
        generator: Source of the initial weights and, in training, of the latents' noise.

    Raises:
        InputError: Channels or width < 1, or more halvings than the image has.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        channels: int = 8,
        halvings: int = 2,
        width: int = 32,
        generator: torch.Generator,
    ) -> None:
        if channels < 1 or width < 1:
            raise InputError("prior (channels, width)", (channels, width), "1 or more")
        most = most_halvings(image_shape)
        if not 0 <= halvings <= most:
            raise InputError("prior (halvings)", halvings, f"0 to {most} for images of {image_shape[1:]}")
        super().__init__()
        height, breadth = (-(-side // 2**halvings) for side in image_shape[1:])
        self.latent_shape = (channels, height, breadth)
        with spare_global_generator():
            self.encoder = nn.Sequential(
                nn.Conv2d(image_shape[0], width, 3, padding=1),
                *(layer for _ in range(halvings) for layer in _halved(width)),
                ResidualBlock(width, width),
                nn.Conv2d(width, 2 * channels, 3, padding=1),
            )
            self.decoder = ImageGenerator(self.latent_shape, image_shape, halvings, width)
        initialize(self, generator)
        set_generator(self, generator)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents (N, c, h, w) given images (N, C, H, W) in [0, 1]."""
        mean, log_variance = torch.chunk(self.encoder(x), 2, 1)
        return mean, log_variance.clamp(-_MOST, _MOST)

    def decode(self, w: Tensor) -> Tensor:
        """Images in [0, 1] of latents."""
        images: Tensor = self.decoder(w)
        return images

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions, and what the latents cost in nats an image, (N,).

        In training the latents are drawn, in evaluation they are their mean.
        """
        mean, log_variance = self.encode(x)
        w = mean + (0.5 * log_variance).exp() * self.normal(mean) if self.training else mean
        cost = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        return self.decode(w), cost


class ImageGenerator(nn.Sequential):
    """Latents (N, c, h, w) to images (N, C, H, W) in [0, 1]: the generating half.

    Args:
        latent_shape: (c, h, w).
        image_shape: (C, H, W).
        doublings: From h and w up to, or just beyond, H and W; what is beyond is cut off.
        width: Channels.
    """

    def __init__(
        self, latent_shape: tuple[int, ...], image_shape: tuple[int, int, int], doublings: int, width: int
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(latent_shape[0], width, 3, padding=1), ResidualBlock(width, width)]
        for _ in range(doublings):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1)]
        super().__init__(*layers, ResidualBlock(width, image_shape[0]), nn.Sigmoid())
        self._size = image_shape[1:]

    def forward(self, w: Tensor) -> Tensor:
        """One pass."""
        for layer in self:
            w = layer(w)
        return w[..., : self._size[0], : self._size[1]]


def evidence_loss(network: nn.Module, x: Tensor, divergence_weight: float) -> Tensor:
    """Mean squared error a pixel, plus the weight times the latents' cost a pixel: the negative evidence bound.

    With Gaussian pixels of variance s² around the reconstruction the weight of the bound is 2·s².
    """
    made, cost = network(x)
    divergence: Tensor = divergence_weight * cost.mean() / x[0].numel()
    return F.mse_loss(made, x) + divergence


def _halved(width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()


class LatentEncoder(nn.Sequential):
    """Features (N, ...) to latents (N, c, h, w), as a first guess.

    A map passes a convolution, where it is larger than the latents one of that stride, and two residual blocks; what is
    no map, a linear layer.

    Args:
        feature_shape: Without the batch axis.
        latent_shape: (c, h, w).
        width: Channels.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        latent_shape: tuple[int, int, int],
        *,
        width: int,
        generator: torch.Generator,
    ) -> None:
        channels, *sides = latent_shape
        with spare_global_generator():
            if len(feature_shape) == 3:
                ratio = tuple(max(1, have // wanted) for have, wanted in zip(feature_shape[1:], sides))
                kernel = tuple(r + 2 for r in ratio)
                layers: list[nn.Module] = [nn.Conv2d(feature_shape[0], width, kernel, ratio, 1)]  # type: ignore[arg-type]
            else:
                few = (width, *sides)
                layers = [nn.Flatten(), nn.Linear(math.prod(feature_shape), math.prod(few)), nn.Unflatten(1, few)]
            if output_shape(nn.Sequential(*layers), feature_shape)[1:] != tuple(sides):
                layers.append(nn.Upsample(tuple(sides), mode="bilinear"))
            layers += [ResidualBlock(width, width), ResidualBlock(width, channels)]
            super().__init__(*layers)
        initialize(self, generator)
