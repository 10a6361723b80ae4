"""The learned surrogates of CEM's rate: what they share, and what a training under them does."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato import data, models
from sfumato.defenses import Bottleneck, Context, FusedAttention, GatedAttention, Noise, SlotAttention, chain
from sfumato.defenses.schedule import pressure
from sfumato.defenses.surrogate import BoundSurrogate, Surrogate
from sfumato.errors import InputError
from sfumato.information import GatedPooling, SlotReadout, effective_sample_size
from sfumato.information.running import ClassAverage
from sfumato.models import Feature, SplitModel
from sfumato.training import Plan, Runtime, SplitJob, Training, fit, make_fabric

K, D = 3, 6
SPECS: dict[str, Surrogate] = {
    spec.name: spec for spec in (GatedAttention(hidden=5), SlotAttention(hidden=5), FusedAttention(hidden=5))
}
every = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
gated = pytest.mark.parametrize("spec", [SPECS["gated_attention"], SPECS["fused_attention"]], ids=lambda s: s.name)
slotted = pytest.mark.parametrize("spec", [SPECS["slot_attention"], SPECS["fused_attention"]], ids=lambda s: s.name)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_split(variance: float = 0.04, classes: int = K) -> SplitModel:
    feature = Feature((2, 1, 3), (0.0, 1.0), variance)
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(D, classes))
    return SplitModel(nn.Identity(), nn.Identity(), cloud, image_shape=(2, 1, 3), feature=feature, cut="x")


def bound_to(spec: Surrogate, variance: float = 0.04, classes: int = K) -> BoundSurrogate:
    """Bound, in double precision, with an attention that is not at its start."""
    bound = spec.bind(noisy_split(variance, classes), generator=seeded())
    assert isinstance(bound, BoundSurrogate)
    with torch.no_grad():
        for name, parameter in bound.path.named_parameters():
            if name.split(".")[-1] in ("mixer", "alpha", "beta"):
                parameter.fill_(0.6)
    return bound.double()


def sample(n: int, seed: int = 0, classes: int = K) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, 2, 1, 3, generator=seeded(seed), dtype=torch.float64)
    return z, torch.arange(n) % classes


def inner(bound: BoundSurrogate, kind: type[Any]) -> Any:
    """The one module of that kind in it."""
    (found,) = (module for module in bound.modules() if isinstance(module, kind))
    return found


def context(z: Tensor, y: Tensor, *, epoch: int = 1, lr: float = 0.001) -> Context:
    nothing = torch.zeros(len(z), K, dtype=z.dtype)
    return Context(z, y, z, torch.full_like(z, 77.0), nothing, epoch, 0, lr, seeded())


@every
def test_rate_is_the_penalty_of_what_the_path_tracks(spec: Surrogate) -> None:
    for threshold, gamma in ((0.125, 0.01), (2.0, 0.01), (0.125, 0.5)):
        bound = bound_to(replace(spec, threshold=threshold, gamma=gamma))
        for seed in range(3):
            value = bound.rate(*sample(15, seed), generator=seeded())
        excess = [max(0.0, math.log((v + gamma) / (threshold * 0.04 + gamma))) for v in bound.path.tracked().flatten()]
        assert float(value.detach()) == pytest.approx(sum(excess) / (K * D))
        assert float(value.detach()) > 0


@every
def test_loss_is_weight_times_schedule_times_rate(spec: Surrogate) -> None:
    z, y = sample(12, 2)
    for schedule, factor in (("authors", 0.02), ("constant", 1.0)):
        bound = bound_to(replace(spec, weight=7.0, schedule=schedule))
        expected = 7 * factor * float(copy.deepcopy(bound).rate(z, y, generator=seeded()).detach())
        losses = bound.losses(context(z, y, lr=0.05))
        assert list(losses) == [spec.name]
        assert float(losses[spec.name].detach()) == pytest.approx(expected)


def test_schedule() -> None:
    rates = [0.05 * 0.2**k for k in range(5)] + [0.001, 0.00041]
    assert [pressure("authors", lr) for lr in rates] == pytest.approx([0.02, 0.1, 0.5, 1, 1, 1, 0.001 / 0.00041])
    assert {pressure("constant", lr) for lr in rates} == {1.0}


@every
def test_first_epoch_keeps_averages_without_pressure(spec: Surrogate) -> None:
    bound, (z, y) = bound_to(spec), sample(12)
    assert bound.theory() == {}
    assert bound.losses(context(z.requires_grad_(), y, epoch=0)) == {}
    assert bound.path.tracked().any()
    assert bound.counts.tolist() == [4, 4, 4]
    assert bound.losses(context(z[:4], y[:4], epoch=0)) == {}
    assert bound.counts.tolist() == [6, 5, 5]
    assert bound.theory()


@every
def test_loss_moves_features_and_player_moves_the_attention(spec: Surrogate) -> None:
    bound, (z, y) = bound_to(replace(spec, attention_lr=0.125)), sample(12)
    ctx = context(z.requires_grad_(), y)
    bound.losses(ctx)[spec.name].backward()
    assert z.grad is not None
    assert z.grad.any()
    assert all(parameter.grad is None for parameter in bound.parameters())
    (player,) = bound.players()
    assert player.name == spec.name
    assert {id(p) for p in player.module.parameters()} == {id(p) for p in bound.parameters()}
    optimizer = player.optimizer(player.module.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.125
    buffers = {name: value.clone() for name, value in bound.named_buffers()}
    before = {name: value.detach().clone() for name, value in bound.named_parameters()}
    player.loss(ctx.detached()).backward()
    optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in bound.named_parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in bound.named_buffers())


@every
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_momentum_is_that_of_all_averages(spec: Surrogate, momentum: float) -> None:
    """Batches of 12 and of 4 features: their part in a class's average is m·4 to 2, 1 and 1."""
    bound, batches = bound_to(replace(spec, momentum=momentum)), [sample(12, 1), sample(4, 2)]
    for z, y in batches:
        bound.rate(z, y, generator=seeded())
    averages = [module for module in bound.modules() if isinstance(module, ClassAverage)]
    assert len(averages) == {"gated_attention": 4, "slot_attention": 6, "fused_attention": 8}[spec.name]
    assert all(average.mass.tolist() == [momentum * 4 + n for n in (2, 1, 1)] for average in averages)
    for c, n in enumerate((2, 1, 1)):
        first, second = (z[y == c].flatten(1).mean(0) for z, y in batches)
        expected = (momentum * 4 * first + n * second) / (momentum * 4 + n)
        torch.testing.assert_close(bound.centers.value[c], expected)


@gated
def test_objectives_pull_the_gated_attention_in_opposite_directions(spec: Surrogate) -> None:
    ctx, gradients = context(*sample(12)), {}
    for objective in ("adversarial", "joint"):
        bound = bound_to(replace(spec, objective=objective))  # type: ignore[call-arg]
        (player,) = bound.players()
        player.loss(ctx).backward()
        pooling = inner(bound, GatedPooling)
        gradients[objective] = {name: p.grad for name, p in pooling.named_parameters()}
        before = pooling.variance(ctx.z_clean.flatten(1), ctx.y, side="attention").log().mean().detach()
        with torch.no_grad():
            for parameter in pooling.parameters():
                parameter -= 0.01 * parameter.grad
        after = pooling.variance(ctx.z_clean.flatten(1), ctx.y, side="attention").log().mean().detach()
        assert (after > before) == (objective == "adversarial")
    for name, gradient in gradients["joint"].items():
        assert gradient.any()
        torch.testing.assert_close(gradient, -gradients["adversarial"][name])


@gated
def test_uniform_is_the_least_share(spec: Surrogate) -> None:
    z, y = sample(12)
    even = torch.full((12,), 0.25, dtype=torch.float64)
    softmax = inner(bound_to(replace(spec, uniform=0.0)), GatedPooling).weights(z.flatten(1), y)  # type: ignore[call-arg]
    mixed = inner(bound_to(replace(spec, uniform=0.75)), GatedPooling).weights(z.flatten(1), y)  # type: ignore[call-arg]
    assert not torch.allclose(softmax, even)
    torch.testing.assert_close(mixed, 0.25 * softmax + 0.75 * even)


@slotted
def test_iterations_are_rounds_of_slot_attention(spec: Surrogate) -> None:
    """Two rounds are one, and another that starts where it ended; no number of them is the default one."""
    once, twice, four = (
        inner(bound_to(replace(spec, iterations=n)), SlotReadout).attention  # type: ignore[call-arg]
        for n in (1, 2, 4)
    )
    x, y = torch.randn(12, 5, generator=seeded(4), dtype=torch.float64), torch.arange(12) % K
    slots = once.start
    for rounds in range(1, 5):
        slots = once(x, y, slots - once.start)
        for number, attention in ((2, twice), (4, four)):
            assert torch.allclose(attention(x, y), slots, atol=1e-6) == (number == rounds)


@slotted
def test_slots_and_their_noise(spec: Surrogate) -> None:
    seen: list[Tensor | None] = []
    for deviation in (0.0, 0.7):
        bound, (z, y) = bound_to(replace(spec, slots=3, slot_noise=deviation)), sample(12)  # type: ignore[call-arg]
        attention = inner(bound, SlotReadout).attention
        attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
        bound.rate(z, y, generator=seeded(6))
        (player,) = bound.players()
        player.loss(replace(context(z, y), generator=seeded(6)))
        assert attention.start.shape == (K, 3, 5)
    drawn = 0.7 * torch.randn(K, 3, 5, generator=seeded(6), dtype=torch.float64)
    assert seen[:2] == [None, None]
    assert len(seen) == 4
    assert all(noise is not None and torch.equal(noise, drawn) for noise in seen[2:])


@every
def test_two_steps_before_one_backward_pass(spec: Surrogate) -> None:
    bound, (z, y) = bound_to(spec), sample(12)
    z.requires_grad_()
    (bound.rate(z, y, generator=seeded()) + bound.rate(z, y, generator=seeded())).backward()
    assert not any(value.requires_grad for value in bound.buffers())


@every
def test_gradient_of_the_rate(spec: Surrogate) -> None:
    """Along the features with the attention's part constant, which a second differentiation would not see."""
    bound, (z, y) = bound_to(replace(spec, momentum=0.0, threshold=1e-6)), sample(9)
    z.requires_grad_()
    before = copy.deepcopy(bound)
    (gradient,) = torch.autograd.grad(bound.rate(z, y, generator=seeded()), z)
    moved = z.detach() - 0.01 * gradient / gradient.abs().max()
    assert float(before.rate(moved, y, generator=seeded())) < float(before.rate(z.detach(), y, generator=seeded()))


@every
def test_few_features_and_absent_classes(spec: Surrogate) -> None:
    bound = bound_to(spec)
    for labels in ([1], [0, 0, 2], [2], [0, 1, 2, 2]):
        y = torch.tensor(labels)
        z = sample(len(labels), len(labels))[0].requires_grad_()
        value = bound.rate(z, y, generator=seeded())
        (gradient,) = torch.autograd.grad(value, z)
        assert value.isfinite()
        assert gradient.isfinite().all()
        (player,) = bound.players()
        player.loss(context(z.detach(), y)).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in bound.parameters())
    assert all(math.isfinite(value) for value in bound.theory().values())


@every
def test_one_class(spec: Surrogate) -> None:
    bound, (z, y) = bound_to(spec, classes=1), sample(10, classes=1)
    assert bound.rate(z, y, generator=seeded()).isfinite()
    assert bound.path.tracked().shape == (1, D)


@every
def test_single_precision_agrees_with_double(spec: Surrogate) -> None:
    bound, (z, y) = bound_to(spec), sample(30, 4)
    single = copy.deepcopy(bound).float()
    expected = float(bound.rate(z, y, generator=seeded()))
    assert float(single.rate(z.float(), y, generator=seeded())) == pytest.approx(expected, rel=1e-4)


def test_theory_by_hand() -> None:
    """Class k has v = k + 1 in every dimension by gated pooling, and half of that plainly."""
    bound = bound_to(GatedAttention(hidden=5), variance=0.5)
    v = torch.tensor([1.0, 2, 3]).double().unsqueeze(1).expand(-1, D)
    bound.path.variances.value.copy_(v)
    bound.spreads.value.copy_(v / 2)
    bound.counts.copy_(torch.tensor([10, 30, 0]))
    rate = -0.25 * math.log(0.25) - 0.75 * math.log(0.75) + D / 2 * (0.25 * math.log(3) + 0.75 * math.log(5))
    assert bound.theory() == {
        "gated_attention_surrogate_rate_nats": pytest.approx(rate),
        "gated_attention_surrogate_rate_nats_per_dimension": pytest.approx(rate / D),
        "gated_attention_seen_variance": pytest.approx(2),
    }


def test_seen_variance_compares_with_the_plain_one() -> None:
    """Gated pooling with uniform weights sees it all; slots behind an open gate see less."""
    plain, slotted = bound_to(GatedAttention(hidden=5, uniform=1.0)), bound_to(SlotAttention(hidden=5))
    for seed in range(5):
        for bound in (plain, slotted):
            bound.rate(*sample(30, seed), generator=seeded())
    assert plain.theory()["gated_attention_seen_variance"] == pytest.approx(1)
    assert 0.5 < slotted.theory()["slot_attention_seen_variance"] < 0.999
    assert slotted.theory()["slot_attention_gate"] == pytest.approx(math.tanh(0.6))


@every
def test_it_needs_noise_and_takes_its_size_from_the_split(spec: Surrogate) -> None:
    with pytest.raises(InputError, match=f"defense {spec.name}: got 'a channel without Gaussian noise'"):
        spec.bind(noisy_split(0.0), generator=seeded())
    assert bound_to(spec, 0.09).noise_variance_sent == 0.09


@every
def test_mixed_precision_is_left_outside(spec: Surrogate) -> None:
    bound, (z, y) = bound_to(spec).float(), sample(12)
    ctx = context(z.float(), y)
    expected = 16 * copy.deepcopy(bound).rate(ctx.z_clean, y, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bound.losses(ctx)[spec.name], expected)


# A small training. The pressure does not depend on the learning rate, which is higher than the authors'.
WEAK: dict[str, Any] = {"weight": 2.0, "schedule": "constant", "attention_lr": 0.01}


@functools.cache
def trained(part: Surrogate | None) -> tuple[SplitJob, Tensor, Tensor, float]:
    """The job, clean features of the training images, their labels, accuracy on test images."""
    splits = data.load("digits", train_limit=600, cache=False)
    shape = tuple(splits.train.images.shape[1:])
    network = models.build("cnn", 10, shape, width=0.1, dropout=0.0, generator=seeded(0))
    whole = models.split(network, "block2", image_shape=shape)
    defense = chain(Bottleneck(4), Noise(0.1), *([part] if part else []))
    bound = defense.bind(whole, generator=seeded(1))
    recipe = {"epochs": 12, "batch_size": 50, "lr": 0.02, "schedule": "cosine", "augment": "none"}
    settings = Training.model_validate(recipe)
    runtime = Runtime(fabric=make_fabric("cpu"))
    job = SplitJob(bound.defend(whole), bound, settings, splits.train, splits.validation, seed=2, runtime=runtime)
    assert not fit(job, splits.train, Plan(12, 50, 2, None, 11), runtime).diverged
    job.split.eval()
    models.set_generator(job.split, seeded(3))
    with torch.no_grad():
        z = job.split.edge(splits.train.images / 255).flatten(1)
        right = job.split(splits.test.images / 255).argmax(1) == splits.test.labels
    return job, z, splits.train.labels, float(right.float().mean())


def class_variance(z: Tensor, y: Tensor) -> float:
    """Mean over classes and dimensions."""
    return sum(float(z[y == c].var(0, correction=0).mean()) for c in range(10)) / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        GatedAttention(**WEAK),
        GatedAttention(objective="joint", **WEAK),
        SlotAttention(**WEAK),
        FusedAttention(**WEAK),
    ],
    ids=lambda part: f"{part.name} {getattr(part, 'objective', '')}",
)
def test_variance_within_classes_falls_and_accuracy_stays(part: Surrogate) -> None:
    _, plain, _, undefended = trained(None)
    job, z, y, accuracy = trained(part)
    assert class_variance(z, y) < 0.6 * class_variance(plain, y)
    assert accuracy > undefended - 0.05
    assert job.defense.theory()[f"{part.name}_seen_variance"] > 0.7


def effective_share(job: SplitJob, z: Tensor, y: Tensor) -> float:
    """Effective sample size over size of the gated weights, in batches as in training."""
    (path,) = (module for module in job.defense.modules() if isinstance(module, GatedPooling))
    shares = []
    for batch in torch.randperm(len(z), generator=seeded(5)).split(50):
        counts = torch.bincount(y[batch], minlength=10)
        size = effective_sample_size(path.weights(z[batch], y[batch]).detach(), y[batch], 10)
        shares.append((size / counts)[counts > 1])
    return float(torch.cat(shares).mean())


@pytest.mark.slow
def test_attention_does_not_collapse_by_default() -> None:
    for part in (GatedAttention(**WEAK), FusedAttention(**WEAK)):
        assert effective_share(*trained(part)[:3]) > 0.6
    job, z, y, _ = trained(GatedAttention(objective="joint", **WEAK))
    assert effective_share(job, z, y) > 0.4


@pytest.mark.slow
def test_attention_collapses_where_it_is_let() -> None:
    """What ``uniform`` is for: without it the joint objective looks away from the variance that there is."""
    job, z, y, _ = trained(GatedAttention(objective="joint", uniform=0.0, **WEAK))
    assert effective_share(job, z, y) < 0.4
    assert job.defense.theory()["gated_attention_seen_variance"] < 0.8
