"""Deep image prior: it fits the feature, finds pictures, and treats each victim by itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from attack_toys import generator, identity_split, make_images, make_knowledge, make_split, runtime, target_of
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks import DeepPriorAttack, Knowledge, Learned
from sfumato.attacks.feature.hourglass import Hourglasses, deepest
from sfumato.data import load
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import InputError, Interrupted
from sfumato.models import Feature, SplitModel

QUICK = DeepPriorAttack(steps=12, width=6, depth=2, inputs=3)


def learn(attack: DeepPriorAttack, split: SplitModel, mine: Knowledge | None = None, seed: int = 0) -> Learned:
    target = target_of(split, "white-box")
    assert target.queries == 0
    return attack.run(target, mine or make_knowledge(), generator=generator(seed), runtime=runtime())


def slow_hourglass(weights: list[Tensor], x: Tensor, depth: int) -> Tensor:
    """One network for one image (1, C, H, W), layer by layer."""
    left = [tuple(weights[i : i + 3]) for i in range(0, len(weights), 3)]

    def layer(x: Tensor, stride: int = 1) -> Tensor:
        kernel, gain, shift = left.pop(0)
        pad = kernel.shape[-1] // 2
        x = F.conv2d(F.pad(x, (pad,) * 4, mode="reflect") if pad else x, kernel, stride=stride)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return F.leaky_relu(x * gain + shift, 0.2)

    skips = []
    for _ in range(depth):
        skips.append(layer(x))
        x = layer(layer(x, stride=2))
    for skip in reversed(skips):
        x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        x = layer(layer(torch.cat([x, skip], 1)))
    kernel, gain, shift = left.pop(0)
    assert not left
    return (F.conv2d(x, kernel) * gain + shift).sigmoid()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 13, 18)])
def test_many_networks_are_each_one_network(shape: tuple[int, int, int]) -> None:
    networks = Hourglasses(shape, inputs=2, width=5, depth=2)
    own = [networks.weights(generator(i)) for i in range(3)]
    stacked = [torch.stack(w).double() for w in zip(*own)]
    x = torch.rand(3, 2, *shape[1:], generator=generator(9), dtype=torch.float64)
    made = networks(stacked, x)
    assert made.shape == (3, *shape)
    for i in range(3):
        one = slow_hourglass([w[i] for w in stacked], x[i : i + 1], depth=2)
        torch.testing.assert_close(made[i : i + 1], one)
    assert float((made[0] - made[1]).abs().max()) > 0.01


def test_every_weight_takes_part() -> None:
    networks = Hourglasses((3, 16, 16), inputs=2, width=4, depth=3)
    weights = [w.unsqueeze(0).requires_grad_() for w in networks.weights(generator(0))]
    x = torch.rand(1, 2, 16, 16, generator=generator(1), requires_grad=True)
    gradients = torch.autograd.grad(networks(weights, x).square().sum(), [*weights, x])
    assert all(float(g.abs().max()) > 0 for g in gradients)


def test_depth_that_an_image_has() -> None:
    assert [deepest((1, side, 40)) for side in (1, 3, 4, 8, 16, 31, 32)] == [0, 0, 1, 2, 3, 3, 4]
    for side in (4, 16, 32):
        depth = deepest((1, side, side))
        networks = Hourglasses((1, side, side), inputs=1, width=2, depth=depth)
        weights = [w.unsqueeze(0) for w in networks.weights(generator(0))]
        assert networks(weights, torch.rand(1, 1, side, side, generator=generator(1))).shape == (1, 1, side, side)
    with pytest.raises(InputError, match=r"deep_prior\.depth: got 5; accepted: at most 4"):
        DeepPriorAttack(depth=5).check((3, 32, 40), (8, 8, 8), "white-box")
    DeepPriorAttack(depth=4).check((3, 32, 40), (8, 8, 8), "white-box")


@pytest.mark.slow
def test_first_error_and_last() -> None:
    figures = learn(dataclasses.replace(QUICK, steps=80), make_split(defended=False)).figures
    assert figures["objective_after"] < 0.3 * figures["objective_before"]


@pytest.mark.slow
@pytest.mark.parametrize("optimize_input", [False, True])
def test_finds_digits_through_an_edge_that_can_nearly_be_inverted(optimize_input: bool) -> None:
    data = load("digits", seed=0, train_limit=100)
    mine = Knowledge(data.train, data.validation.select(torch.arange(2)), "train")
    edge = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.LeakyReLU(0.3))
    with torch.no_grad():
        edge[0].weight.copy_(torch.randn(6, 1, 3, 3, generator=generator(1)) / 3)
        edge[0].bias.zero_()
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(6 * 256, 2))
    split = SplitModel(edge, nn.Identity(), cloud, image_shape=(1, 32, 32), feature=Feature((6, 16, 16)), cut="edge")
    attack = DeepPriorAttack(steps=70, width=10, inputs=4, lr=0.02, optimize_input=optimize_input)
    victims = data.test.select(torch.arange(3))
    made = attack(target_of(split, "white-box"), mine, {"test": victims}, generator=generator(0), runtime=runtime())
    x = victims.images / 255
    mean_image = (x - (data.train.images / 255).mean(0)).square().mean((1, 2, 3))
    assert (made.quality["test"].mse < 0.3 * mean_image).all()
    assert made.figures["objective_after"] < 0.05 * made.figures["objective_before"]
    assert made.figures["mse_after"] < 0.1 * made.figures["mse_before"]
    assert made.queries == 0


def test_the_input_is_learned_if_asked() -> None:
    z = torch.rand(2, 1, 16, 16, generator=generator(1))
    found, other = (
        learn(dataclasses.replace(QUICK, optimize_input=flag), identity_split()).invert(z) for flag in (False, True)
    )
    assert not torch.equal(found, other)


def test_noise_on_the_input() -> None:
    """Of the size that was asked for: the same network on the input with it, a step of no length to speak of."""
    z = torch.rand(2, 1, 16, 16, generator=generator(1))
    still, moved = (
        learn(dataclasses.replace(QUICK, noise=noise, lr=1e-9, steps=2), identity_split()).invert(z)
        for noise in (0.0, 2.0)
    )
    assert torch.equal(still[0], still[1]), "one network, one input"
    torch.testing.assert_close(moved[0], moved[1], msg="one noise", atol=1e-4, rtol=0)
    assert float((still - moved).abs().max()) > 0.01


@pytest.mark.slow
def test_a_victim_is_reconstructed_whatever_is_beside_it_and_before_it() -> None:
    split = make_split(defended=False).double()
    z = target_of(split).query(make_images(5, seed=5).images / 255)
    learned = learn(dataclasses.replace(QUICK, noise=0.1), split)
    together = learned.invert(z)
    for i in (0, 3):
        torch.testing.assert_close(learned.invert(z[i : i + 1])[0], together[i], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_same_generator_same_pictures() -> None:
    z = torch.rand(3, 1, 16, 16, generator=generator(1))
    made = [learn(QUICK, identity_split(), seed=seed).invert(z) for seed in (3, 3, 4)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_noise_of_the_channel_is_expected_to_be_none() -> None:
    z = torch.rand(3, 1, 16, 16, generator=generator(1))
    mine = make_knowledge()
    quiet = learn(QUICK, identity_split(), mine)
    noisy = learn(QUICK, identity_split(AdditiveNoise(0.01, "gaussian")), mine)
    assert quiet.figures["steps"] == noisy.figures["steps"]
    assert torch.equal(quiet.invert(z), noisy.invert(z))


@pytest.mark.slow
def test_it_ends_where_its_own_images_are_nearest() -> None:
    """Through heavy noise a network that goes on learns the noise: fewer steps are better, and are taken."""
    data = load("digits", seed=0, train_limit=60)
    mine = Knowledge(data.train, data.validation.select(torch.arange(2)), "train")
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
    split = SplitModel(
        nn.Identity(),
        AdditiveNoise(1.0, "gaussian"),
        cloud,
        image_shape=(1, 32, 32),
        feature=Feature((1, 32, 32)),
        cut="edge",
    )
    attack = DeepPriorAttack(steps=80, width=8, depth=2, lr=0.05)
    figures = learn(attack, split, mine).figures
    assert 10 <= figures["steps"] < 80
    assert figures["mse_after"] < figures["mse_before"]
    fixed = learn(dataclasses.replace(attack, steps=int(figures["steps"])), split, mine).figures
    assert fixed["mse_after"] == pytest.approx(figures["mse_after"], rel=1e-3)


def test_features_that_are_not_finite_hurt_nobody_else() -> None:
    split = identity_split()
    z = torch.rand(3, 1, 16, 16, generator=generator(1))
    clean = learn(QUICK, split).invert(z)
    z[1, 0, 3, 3] = torch.nan
    found = learn(QUICK, split).invert(z)
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0 - x / 0


def test_an_edge_that_is_not_finite_is_said() -> None:
    split = identity_split().with_parts(edge=Broken())
    assert learn(QUICK, split).diverged
    assert not learn(QUICK, identity_split()).diverged


def test_can_be_stopped() -> None:
    with pytest.raises(Interrupted, match="deep_prior"):
        QUICK.run(
            target_of(identity_split(), "white-box"),
            make_knowledge(),
            generator=generator(0),
            runtime=runtime(should_stop=lambda: True),
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("steps", 0), ("lr", 0.0), ("lr", math.inf), ("width", 0), ("depth", 0), ("inputs", 0)),
        *(("noise", -1.0), ("noise", math.nan), ("observations", 0)),
    ],
)
def test_refuses(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"deep_prior\.{field}"):
        DeepPriorAttack(**{field: value})
