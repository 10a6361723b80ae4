"""The generative prior: shapes, its loss against an obvious twin, and that it learns pictures."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sfumato.data import load
from sfumato.errors import InputError
from sfumato.models import set_generator
from sfumato.models.vae import LatentEncoder, VariationalAutoencoder, evidence_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior(shape: tuple[int, int, int] = (1, 16, 16), **options: int) -> VariationalAutoencoder:
    return VariationalAutoencoder(shape, width=8, generator=generator(), **options)


@pytest.mark.parametrize(
    ("shape", "halvings", "latent"),
    [
        ((1, 16, 16), 2, (4, 4, 4)),
        ((3, 33, 21), 3, (4, 5, 3)),
        ((3, 12, 20), 0, (4, 12, 20)),
        ((1, 13, 16), 1, (4, 7, 8)),
    ],
)
def test_shapes(shape: tuple[int, int, int], halvings: int, latent: tuple[int, int, int]) -> None:
    model = prior(shape, halvings=halvings, channels=4)
    x = torch.rand(3, *shape, generator=generator(1))
    assert model.latent_shape == latent
    mean, log_variance = model.encode(x)
    assert mean.shape[1:] == log_variance.shape[1:] == latent
    made, cost = model(x)
    assert made.shape == x.shape
    assert cost.shape == (3,)
    assert model.decode(10 * torch.randn(2, *latent)).min() >= 0
    assert model.decode(10 * torch.randn(2, *latent)).max() <= 1


def test_cost_is_the_divergence_from_the_prior() -> None:
    model, x = prior(), torch.rand(5, 1, 16, 16, generator=generator(1))
    mean, log_variance = model.eval().encode(x)
    twin = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    made, cost = model(x)
    torch.testing.assert_close(cost, twin)
    torch.testing.assert_close(made, model.decode(mean))
    loss = evidence_loss(model, x, 0.3)
    torch.testing.assert_close(loss, (made - x).square().mean() + 0.3 * twin.mean() / 256)


def test_latents_are_drawn_in_training_from_its_generator_only() -> None:
    model, x = prior(), torch.rand(4, 1, 16, 16, generator=generator(1))
    state, made = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        set_generator(model, generator(seed))
        made.append(model.train()(x)[0])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_refuses() -> None:
    for options in ({"channels": 0}, {"halvings": 5}, {"halvings": -1}):
        with pytest.raises(InputError, match="prior"):
            prior(**options)
    with pytest.raises(InputError, match="prior"):
        VariationalAutoencoder((1, 16, 16), width=0, generator=generator())


@pytest.mark.parametrize("feature", [(2, 4, 4), (5, 16, 16), (3, 7, 1), (6, 9, 10), (11,), (2, 3)])
def test_encoder_shapes(feature: tuple[int, ...]) -> None:
    made = [LatentEncoder(feature, (4, 5, 3), width=6, generator=generator(seed)) for seed in (0, 0, 1)]
    z = torch.rand(2, *feature, generator=generator())
    guesses = [encoder.eval()(z) for encoder in made]
    assert guesses[0].shape == (2, 4, 5, 3)
    assert torch.equal(guesses[0], guesses[1])
    assert not torch.equal(guesses[0], guesses[2])


@pytest.mark.slow
def test_learns_what_pictures_look_like() -> None:
    """Of unseen digits it keeps most; draws of its prior look like nothing of noise: neighbors are alike."""
    digits = load("digits", image_size=16, train_limit=600)
    x, unseen = digits.train.images / 255, digits.validation.images / 255
    model = prior(channels=4)
    adam = torch.optim.Adam(model.parameters(), 0.005)
    for order in torch.arange(len(x)).repeat(8).split(32):
        loss = evidence_loss(model.train(), x[order], 1e-3)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        made, cost = model.eval()(unseen)
        drawn = model.decode(torch.randn(50, *model.latent_shape, generator=generator(2)))
    mean_image = float((unseen - x.mean(0)).square().mean())
    assert float((made - unseen).square().mean()) < 0.3 * mean_image
    assert 1 < float(cost.mean()) < 256 * math.log(256)
    roughness = [float((a[..., 1:] - a[..., :-1]).square().mean() / a.var()) for a in (drawn, torch.rand_like(drawn))]
    assert roughness[0] < 0.5 * roughness[1]
