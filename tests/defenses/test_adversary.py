"""The adversary: a decoder beside the model, and what it costs the edge."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from sfumato import metrics
from sfumato.data import ImageSet
from sfumato.defenses import (
    Adversary,
    Bottleneck,
    BoundDefense,
    Context,
    DeeperEdge,
    Dropout,
    Lipschitz,
    Noise,
    Prune,
    chain,
)
from sfumato.defenses.adversary import similarity
from sfumato.errors import InputError, Interrupted
from sfumato.models import SplitModel, build, set_generator, split
from sfumato.training import Plan, Runtime, SplitJob, Training, fit, make_fabric

SHAPE = (3, 16, 16)
FABRIC = make_fabric("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bare(shape: tuple[int, int, int] = SHAPE, at: str = "block2") -> SplitModel:
    return split(build("cnn", 4, shape, width=0.04, generator=seeded()), at, image_shape=shape)


def images(n: int = 40, seed: int = 2) -> ImageSet:
    """Random gradients of light: an image that a decoder can learn to see in a feature."""
    corners = torch.rand(n, 3, 2, 2, generator=seeded(seed))
    smooth = F.interpolate(corners, size=16, mode="bilinear", align_corners=True)
    return ImageSet((smooth * 255).byte(), torch.arange(n) % 4, tuple("abcd"))


def small(**changes: Any) -> Adversary:
    return Adversary(**{"depth": 0, "width": 6, "lr": 0.01} | changes)


def bound_to(*parts: Any, before: SplitModel | None = None) -> tuple[BoundDefense, SplitModel]:
    before = before or bare()
    bound = chain(*parts).bind(before, generator=seeded(3))
    model = bound.defend(before)
    set_generator(model, seeded(4))
    return bound, model


def context(model: SplitModel, n: int = 8) -> Context:
    x, y = images(n).images[:n] / 255, torch.arange(n) % 4
    z_clean = model.edge(x)
    z_sent = model.channel(z_clean)
    return Context(x, y, z_clean, z_sent, model.cloud(z_sent), 0, 0, 0.1, seeded(5))


def decoded(bound: Any, z: Tensor) -> Tensor:
    """By a copy, in training mode."""
    twin: Tensor = copy.deepcopy(bound.decoder).train()(z)
    return twin


def test_published_size() -> None:
    before = split(build("vgg11", 10, (3, 32, 32), generator=seeded()), "conv2", image_shape=(3, 32, 32))
    bound = chain(Bottleneck(8), Adversary()).bind(before, generator=seeded())
    assert sum(p.numel() for p in bound.parameters()) == 415_091


def test_depth_and_width_are_the_decoders() -> None:
    bound, _ = bound_to(small(depth=2, width=5))
    blocks = [layer for layer in bound.decoder if type(layer).__name__ == "ResidualBlock"]
    assert len(blocks) == 2 + 2
    assert blocks[1].body[2].weight.shape == (5, 5, 3, 3)


def test_mse_loss_is_minus_alpha_times_the_error() -> None:
    bound, model = bound_to(small(alpha=3.0, objective="mse"))
    ctx = context(model)
    expected = -3 * (decoded(bound, ctx.z_sent) - ctx.x).square().mean()
    torch.testing.assert_close(bound.losses(ctx)["adversary"], expected)


@pytest.mark.parametrize("threshold", [-1.0, -0.5, 0.99])
def test_ssim_loss_is_alpha_times_what_is_above_the_threshold(threshold: float) -> None:
    bound, model = bound_to(small(alpha=3.0, threshold=threshold))
    ctx = context(model)
    ssim = metrics.quality(decoded(bound, ctx.z_sent).detach(), ctx.x).ssim.mean()
    loss = bound.losses(ctx)["adversary"]
    assert float(loss.detach()) == pytest.approx(max(0, 3 * (float(ssim) - threshold)), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, ctx.z_sent)
    assert bool(gradient.abs().sum() > 0) == (threshold < 0.5)


@pytest.mark.parametrize("objective", ["ssim", "mse"])
def test_the_edge_gets_the_gradient_and_the_decoder_nothing(objective: str) -> None:
    bound, model = bound_to(Bottleneck(3), small(objective=objective, threshold=-1.0))
    ctx = context(model)
    decoder = bound.members[1].decoder
    before = copy.deepcopy(decoder.state_dict())
    own = bound.members[1]
    loss = bound.losses(ctx)["adversary"]
    loss.backward(retain_graph=True)
    assert all(p.grad is None for p in decoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in decoder.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.edge.parameters() if p.ndim == 4)
    made = decoded(own, ctx.z_sent)
    direct = -F.mse_loss(made, ctx.x) if objective == "mse" else similarity(made, ctx.x) + 1
    torch.testing.assert_close(
        torch.autograd.grad(bound.losses(ctx)["adversary"], ctx.z_sent),
        torch.autograd.grad(0.3 * direct, ctx.z_sent),
    )


def test_the_player_learns_from_what_is_sent_alone() -> None:
    bound, model = bound_to(small(every=3, steps=2, pretrain_epochs=4))
    (player,) = bound.players()
    assert (player.name, player.every, player.steps, player.pretrain_epochs) == ("adversary", 3, 2, 4)
    assert player.module is bound.decoder
    optimizer = player.optimizer(player.module.parameters())
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 0.01
    ctx = context(model).detached()
    before = {name: value.clone() for name, value in bound.decoder.named_buffers()}
    loss = player.loss(ctx)
    torch.testing.assert_close(loss, F.mse_loss(decoded(bound, ctx.z_sent), ctx.x))
    loss.backward()
    assert all(p.grad is not None for p in bound.decoder.parameters())
    assert all(not torch.equal(value, before[name]) for name, value in bound.decoder.named_buffers())


def test_it_is_no_part_of_the_split() -> None:
    bound, model = bound_to(small())
    assert list(model.state_dict()) == list(bare().state_dict())
    assert not {id(p) for p in bound.parameters()} & {id(p) for p in model.parameters()}
    assert any(name.startswith("decoder.") for name in bound.state_dict())


def test_it_sees_what_is_sent_whatever_comes_after_it() -> None:
    bound, model = bound_to(Bottleneck(5), small(objective="mse"), Dropout(0.9), Bottleneck(2))
    assert bound.members[1].decoder[0].body[0].num_features == 2
    ctx = context(model)
    expected = -0.3 * F.mse_loss(decoded(bound.members[1], ctx.z_sent), ctx.x)
    torch.testing.assert_close(bound.losses(ctx)["adversary"], expected)


def test_images_too_small_for_ssim() -> None:
    edge, cloud = nn.Conv2d(1, 2, 3, padding=1), nn.Sequential(nn.Flatten(), nn.Linear(128, 2))
    tiny = split(nn.Sequential(edge, cloud), "0", image_shape=(1, 8, 8))
    with pytest.raises(InputError, match=r"adversary \(image size\): got \(8, 8\); .*11×11.* or objective mse"):
        small().bind(tiny, generator=seeded())
    bound = small(objective="mse").bind(tiny, generator=seeded())
    assert bound.losses(context_of(tiny))["adversary"] < 0


def context_of(model: SplitModel) -> Context:
    x = torch.rand(4, *model.image_shape, generator=seeded())
    z = model.edge(x)
    return Context(x, torch.arange(4) % 2, z, z, model.cloud(z), 0, 0, 0.1, seeded())


def test_a_feature_without_places_is_refused() -> None:
    flat = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), nn.Linear(5, 4))
    with pytest.raises(InputError, match="feature shape"):
        small().bind(split(flat, "0", image_shape=SHAPE), generator=seeded())


def test_similarity_is_the_metric_and_survives_low_precision() -> None:
    x = images(6).images / 255
    made = (x + 0.1 * torch.randn(x.shape, generator=seeded(1))).clamp(0, 1)
    exact = float(metrics.quality(made, x).ssim.mean())
    assert float(similarity(made, x)) == pytest.approx(exact, abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(similarity(made, x)) == pytest.approx(exact, abs=1e-5)
        assert float(similarity(made.bfloat16(), x)) == pytest.approx(exact, abs=5e-3)
    assert similarity(made.double(), x.double()).dtype == torch.float64
    assert float(similarity(x, x)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [(11, 11), (16, 29), (32, 32)])
def test_similarity_and_its_gradient_are_those_of_torchmetrics(size: tuple[int, int]) -> None:
    x = torch.rand(3, 2, *size, generator=seeded(1), dtype=torch.float64)
    x[0] = 0.25  # no variance
    made = (x + 0.2 * torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)).clamp(0, 1).requires_grad_()
    theirs = structural_similarity_index_measure(made, x, sigma=1.5, kernel_size=11, data_range=1.0)
    assert isinstance(theirs, torch.Tensor)
    ours = similarity(made, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(value, made)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_gradient_of_similarity_is_finite_on_flat_images() -> None:
    flat = torch.full((2, 3, 16, 16), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(similarity(flat, flat.detach()), flat)
    assert gradient.isfinite().all()


def job_of(adversary: Adversary, *, batch_size: int = 10, epochs: int = 2, **options: Any) -> tuple[SplitJob, Plan]:
    bound, model = bound_to(Bottleneck(3), Noise(0.01), adversary)
    training = Training(epochs=epochs, batch_size=batch_size, lr=0.01, schedule="constant", augment="none")
    runtime = Runtime(fabric=FABRIC, **options)
    job = SplitJob(model, bound, training, images(), images(12, 3), seed=1, runtime=runtime)
    return job, Plan(epochs, batch_size, 1, None)


def steps_taken(job: SplitJob) -> int:
    state = job.state_dict()["players"][0]["state"]
    return int(state[0]["step"]) if state else 0


@pytest.mark.parametrize(
    ("every", "steps", "ahead", "taken"), [(1, 1, 0, 8), (3, 2, 0, 4), (1, 1, 2, 16), (9, 1, 3, 12)]
)
def test_cadence(every: int, steps: int, ahead: int, taken: int) -> None:
    """Eight steps of the model, four in an epoch of 40 images."""
    job, plan = job_of(small(every=every, steps=steps, pretrain_epochs=ahead))
    result = fit(job, images(), plan, Runtime(fabric=FABRIC))
    assert steps_taken(job) == taken
    assert ("player_adversary" in result.history[-1]) == (every < 9)


class TestAhead:
    """A decoder that learns before the model does."""

    def test_it_learns_and_the_model_stands_still(self) -> None:
        job, _ = job_of(small(pretrain_epochs=6))
        decoder, before = job.defense.members[2].decoder, copy.deepcopy(job.split.state_dict())

        def error() -> float:
            x = images().images / 255
            model = copy.deepcopy(job.split).train()
            set_generator(model, seeded(8))
            return float(F.mse_loss(copy.deepcopy(decoder)(model.send(x)), x).detach())

        untrained = error()
        job.epoch_start(0)
        assert steps_taken(job) == 24
        assert error() < 0.7 * untrained
        assert all(torch.equal(before[name], value) for name, value in job.split.state_dict().items())
        assert job.split.training
        job.epoch_start(1)
        assert steps_taken(job) == 24

    def test_it_sees_the_edge_as_the_models_steps_do(self) -> None:
        """With the batch's own statistics: a fresh edge's running ones say nothing."""
        job, _ = job_of(small(pretrain_epochs=1), batch_size=40)
        seen: list[Context] = []
        (turn,) = job._players
        step = turn.step
        turn.step = lambda ctx: seen.append(ctx) or step(ctx)  # type: ignore[method-assign, func-returns-value]
        twin = copy.deepcopy(job.split).train()
        job.epoch_start(0)
        (ctx,) = seen
        torch.testing.assert_close(ctx.z_clean, twin.edge(ctx.x).detach(), rtol=1e-4, atol=1e-5)
        noise = ctx.z_sent - ctx.z_clean
        assert float(noise.std()) == pytest.approx(0.01, rel=0.1)
        assert not ctx.z_sent.requires_grad
        assert sorted(ctx.y.tolist()) == sorted(images().labels.tolist())
        assert ctx.logits.shape == (40, 4)

    def test_the_order_is_shuffled_and_the_same_each_time(self) -> None:
        def orders() -> list[list[int]]:
            job, _ = job_of(small(pretrain_epochs=2), batch_size=40)
            seen: list[list[int]] = []
            (turn,) = job._players
            turn.step = lambda ctx: seen.append(ctx.y.tolist())  # type: ignore[method-assign, assignment, return-value]
            job.epoch_start(0)
            return seen

        first = orders()
        assert len(first) == 2
        assert first[0] != first[1]
        assert first[0] != images().labels.tolist()
        assert orders() == first

    def test_stopping(self) -> None:
        job, plan = job_of(small(pretrain_epochs=3), should_stop=lambda: True)
        with pytest.raises(Interrupted, match="before the model's first step"):
            fit(job, images(), plan, Runtime(fabric=FABRIC))
        assert steps_taken(job) == 1

    def test_a_model_without_such_players_draws_nothing(self) -> None:
        job, _ = job_of(small())
        before = job._generator.get_state()
        job.epoch_start(0)
        assert torch.equal(job._generator.get_state(), before)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(precision: str) -> None:
    """All parts of PATROL, pruned on the way, under another number format than single precision."""
    parts = (DeeperEdge(1), Bottleneck(3), Prune(0.5), Lipschitz(), small(threshold=-1.0, pretrain_epochs=1))
    for extra in ((), (small(objective="mse"),)):
        bound, model = bound_to(*parts, *extra)
        training = Training(epochs=2, batch_size=20, lr=0.01, schedule="constant", augment="none")
        runtime = Runtime(fabric=make_fabric("cpu", precision=precision))
        job = SplitJob(model, bound, training, images(), images(12, 3), seed=1, runtime=runtime)
        result = fit(job, images(), Plan(2, 20, 1, None), runtime)
        assert not result.diverged
        assert result.history[-1]["lipschitz"] > 0
        before, after = (sum(p.numel() for p in edge.parameters()) for edge in (model.edge, job.split.edge))
        assert after < before
        assert next(job.split.parameters()).dtype == (torch.float64 if precision == "64-true" else torch.float32)
