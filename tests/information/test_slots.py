from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.information import FusedPooling, SlotAttention, SlotReadout
from sfumato.information.attention import mean_log_variance
from sfumato.information.slots import own_slot_shares, slot_means

K, D, H, S = 3, 6, 5, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and labels; the last class is always absent."""
    generator = seeded(seed)
    z = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return z, torch.randint(0, K - 1, (n,), generator=generator)


def with_biases(attention: SlotAttention) -> SlotAttention:
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(len(name))))
    return attention


def readout(seed: int = 0, alpha: float = 0.7, **changes: object) -> SlotReadout:
    path = SlotReadout(K, D, H, **{"slots": S, "generator": seeded(seed)} | changes).double()  # type: ignore[arg-type]
    with torch.no_grad():
        path.alpha.fill_(alpha)
        path.query += 0.3 * torch.randn(H, H, generator=seeded(seed + 1))
        path.key += 0.3 * torch.randn(H, H, generator=seeded(seed + 2))
    with_biases(path.attention)
    return path


def norm(x: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)


def slow_gru(update: Tensor, slot: Tensor, a: SlotAttention) -> Tensor:
    """Cho et al. 2014, as PyTorch orders its gates: reset, update, new."""
    into, of = a.gru_input @ update + a.gru_input_bias, a.gru_slot @ slot + a.gru_slot_bias
    reset, keep = torch.sigmoid(into[:H] + of[:H]), torch.sigmoid(into[H : 2 * H] + of[H : 2 * H])
    new = torch.tanh(into[2 * H :] + reset * of[2 * H :])
    return (1 - keep) * new + keep * slot


def slow_slots(x: Tensor, y: Tensor, a: SlotAttention, noise: Tensor | None = None) -> Tensor:
    """Slot attention class by class, slot by slot, feature by feature."""
    result = torch.zeros_like(a.start)
    for c in range(K):
        rows = [norm(row) for row, label in zip(x, y.tolist()) if label == c]
        slots = [a.start[c, s] + (0 if noise is None else noise[c, s]) for s in range(a.start.shape[1])]
        for _ in range(a.iterations):
            queries = [a.query @ norm(slot) for slot in slots]
            shares = []
            for row in rows:
                raised = [math.exp(float((a.key @ row) @ q) / math.sqrt(H)) for q in queries]
                shares.append([r / sum(raised) + 1e-8 for r in raised])
            for s, slot in enumerate(slots):
                total = sum(share[s] for share in shares)
                update = sum((share[s] / total * (a.value @ row) for share, row in zip(shares, rows)), torch.zeros(H))
                new = slow_gru(update.to(slot), slot, a)
                inner = torch.relu(a.mlp_in @ norm(new) + a.mlp_in_bias)
                slots[s] = new + a.mlp_out @ inner + a.mlp_out_bias
        result[c] = torch.stack(slots)
    return result


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_slot_attention_against_twin(n: int, slots: int, iterations: int, noisy: bool, seed: int) -> None:
    attention = with_biases(SlotAttention(K, slots, H, iterations=iterations, generator=seeded(seed % 5)).double())
    x, y = sample(n, H, seed)
    noise = torch.randn(K, slots, H, generator=seeded(seed), dtype=torch.float64) if noisy else None
    with torch.no_grad():
        torch.testing.assert_close(attention(x, y, noise), slow_slots(x, y, attention, noise), rtol=1e-7, atol=1e-9)


def slow_shares(row: Tensor, slots: Tensor, of_feature: Tensor, of_slot: Tensor) -> Tensor:
    scores = [float((of_feature @ norm(row)) @ (of_slot @ norm(slot))) / math.sqrt(H) for slot in slots]
    return torch.tensor([math.exp(s) / sum(map(math.exp, scores)) for s in scores], dtype=row.dtype)


def slow_residual_variance(z: Tensor, y: Tensor, path: SlotReadout) -> Tensor:
    """Running variances of the residuals, class by class and feature by feature."""
    result = path.variances.value.clone()
    for c in range(K):
        own = z[y == c]
        n = len(own)
        if n == 0:
            continue
        share = n / (n + path.centers.momentum * float(path.centers.mass[c]))
        deviation = own - (share * sum(own) / n + (1 - share) * path.centers.value[c])
        x = torch.stack([path.inward @ row for row in deviation])
        slots = slow_slots(x, torch.full((n,), c), path.attention)[c]
        parts = torch.stack([slow_shares(row, slots, path.attention.key, path.attention.query) for row in x]) + 1e-8
        values = torch.stack(
            [sum(part[s] * row for part, row in zip(parts, deviation)) / sum(parts[:, s]) for s in range(S)]
        )
        slots = share * slots + (1 - share) * path.slots.value[c].view(S, H)
        values = share * values + (1 - share) * path.values.value[c].view(S, D)
        squares = []
        for row, projected in zip(deviation, x):
            read = sum(a * value for a, value in zip(slow_shares(projected, slots, path.query, path.key), values))
            squares.append((row - math.tanh(float(path.alpha)) * read) ** 2)
        result[c] = share * sum(squares) / n + (1 - share) * result[c]
    return result


@given(st.integers(1, 15), st.floats(0, 0.95), st.floats(-2, 2), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_readout_against_twin(n: int, momentum: float, alpha: float, seed: int) -> None:
    path = readout(seed % 5, alpha, momentum=momentum)
    for step in range(2):
        z, y = sample(n, D, seed + step)
        with torch.no_grad():
            expected = slow_residual_variance(z, y, path)
        torch.testing.assert_close(path.variance(z, y, side="feature"), expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(path.tracked(), expected, rtol=1e-7, atol=1e-9)


def test_gradients_of_the_pure_functions() -> None:
    keys, y = sample(6, H)
    queries = torch.randn(K, S, H, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    keys.requires_grad_()
    assert torch.autograd.gradcheck(lambda k, q: own_slot_shares(k, q, y), (keys, queries))
    shares = own_slot_shares(keys, queries, y).detach().requires_grad_()
    values = torch.randn(6, H, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, s: slot_means(v, s, y, K), (values, shares))


def test_gradients_of_slot_attention() -> None:
    attention = with_biases(SlotAttention(K, S, H, iterations=2, generator=seeded()).double())
    x, y = sample(5, H)
    x.requires_grad_()
    names = [name for name, _ in attention.named_parameters()]

    def slots(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(attention, dict(zip(names, weights)), (x, y))

    assert torch.autograd.gradcheck(slots, (x, *attention.parameters()), fast_mode=True)


def test_closed_gate_is_the_plain_variance_and_opens() -> None:
    """At α = 0 only α has a gradient; it moves, and then everything has one."""
    path = SlotReadout(K, D, H, slots=S, momentum=0.0, generator=seeded()).double()
    z, y = sample(20, D)
    value = path.variance(z, y, side="feature")
    for c in (0, 1):
        torch.testing.assert_close(value[c], z[y == c].var(0, correction=0))
    optimizer = torch.optim.Adam(path.parameters(), 0.01)
    path.objective(z, y, gamma=0.01).backward()
    assert path.alpha.grad is not None
    assert float(path.alpha.grad) < -1e-4  # it opens to the right side
    assert path.figures() == {"gate": 0.0}
    assert not any(p.grad.any() for name, p in path.named_parameters() if name != "alpha" and p.grad is not None)
    optimizer.step()
    optimizer.zero_grad()
    path.objective(z, y, gamma=0.01).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in path.parameters())


def test_closed_gate_still_pulls_features_to_their_center() -> None:
    path = readout(alpha=0.0)
    z, y = sample(20, D)
    z.requires_grad_()
    path.variance(z, y, side="feature").sum().backward()
    n = torch.bincount(y)[y].unsqueeze(1)
    torch.testing.assert_close(z.grad, 2 / n * (z.detach() - path.centers.value[y]))


def test_each_side_learns_alone() -> None:
    path = readout()
    z, y = sample(15, D)
    z.requires_grad_()
    path.variance(z, y, side="feature").sum().backward()
    assert z.grad is not None
    assert all(parameter.grad is None for parameter in path.parameters())
    before, z.grad = {name: value.clone() for name, value in path.named_buffers()}, None
    path.objective(z, y, gamma=0.01).backward()
    assert z.grad is None
    assert all(torch.equal(value, before[name]) for name, value in path.named_buffers())


def clusters(n: int, seed: int, classes: int = K) -> tuple[Tensor, Tensor]:
    """Two tight clusters a class, at ±3 along one direction of the class."""
    generator = seeded(seed)
    y = torch.arange(n) % classes
    side = (torch.randint(0, 2, (n,), generator=generator) * 2 - 1).double()
    direction = F.one_hot(y, D).double()
    noise = 0.1 * torch.randn(n, D, generator=generator, dtype=torch.float64)
    return 3 * side.unsqueeze(1) * direction + noise, y


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_slots_find_clusters(seed: int) -> None:
    """On features it never saw what is left is what a mixture of two would leave, 0.01 of 9."""
    path = SlotReadout(K, D, 16, slots=2, generator=seeded(seed)).double()
    optimizer = torch.optim.Adam(path.parameters(), 0.01)
    for step in range(300):
        z, y = clusters(48, step)
        path.variance(z, y, side="feature")
        optimizer.zero_grad()
        path.objective(z, y, gamma=0.01).backward()
        optimizer.step()
    for step in range(50):  # until the running averages have forgotten the training
        path.variance(*clusters(48, 10**6 + step), side="feature")
    assert 0.9 < path.figures()["gate"] < 1
    assert float(path.tracked().max()) < 0.1


def test_a_single_feature_of_a_class_cannot_read_itself() -> None:
    """After many batches the slots hold the class: a stray feature leaves nearly all of its deviation."""
    path = readout(alpha=5.0)
    for step in range(40):
        path.variance(*sample(12, D, step), side="feature")
    stray, y = torch.full((1, D), 20.0).double(), torch.zeros(1, dtype=torch.int64)
    before, share = path.tracked()[0].clone(), 1 / (1 + 0.9 * float(path.centers.mass[0]))
    batch = (path.variance(stray, y, side="feature")[0] - (1 - share) * before) / share
    assert (batch > 0.8 * 19**2).all()


def test_noise_on_the_starting_slots_comes_from_the_generator() -> None:
    z, y = sample(10, D)
    values = []
    for noise, seed in ((0.0, 1), (0.5, 1), (0.5, 1), (0.5, 2)):
        generator = seeded(seed)
        before = generator.get_state()
        values.append(readout(noise=noise).variance(z, y, side="feature", generator=generator))
        assert torch.equal(generator.get_state(), before) == (noise == 0)
    assert torch.equal(values[1], values[2])
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[2], values[3])
    with pytest.raises(InputError, match="generator: got None"):
        readout(noise=0.5).variance(z, y, side="feature")


def test_construction_draws_from_its_generator_alone() -> None:
    before = torch.get_rng_state()
    paths = [FusedPooling(K, D, H, generator=seeded(s)) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    states = [path.state_dict() for path in paths]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["slotted.attention.start"], states[2]["slotted.attention.start"])


def fused(seed: int = 0, **changes: object) -> FusedPooling:
    path = FusedPooling(K, D, H, **{"slots": S, "generator": seeded(seed)} | changes).double()  # type: ignore[arg-type]
    with torch.no_grad():
        path.slotted.alpha.fill_(0.7)
        path.gated.mixer.fill_(0.5)
        path.beta.fill_(0.4)
    return path


def test_fusion_mixes_the_two_paths() -> None:
    path, z, y = fused(), *sample(15, D)
    share = 1 / (1 + math.exp(-0.4))
    value = path.variance(z, y, side="feature").detach()
    expected = share * path.gated.tracked() + (1 - share) * path.slotted.tracked()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(path.tracked(), expected)
    assert not torch.allclose(path.gated.tracked(), path.slotted.tracked())
    assert path.figures() == {"gated_share": pytest.approx(share), "gate": pytest.approx(math.tanh(0.7))}


@pytest.mark.parametrize(("objective", "sign"), [("adversarial", -1), ("joint", 1)])
def test_objective_of_the_fusion(objective: str, sign: int) -> None:
    path, z, y = fused(objective=objective, momentum=0.0), *sample(15, D)
    present = torch.tensor([True, True, False])
    mixed = mean_log_variance(path.variance(z, y, side="feature").detach(), present, gamma=0.02)
    own = mean_log_variance(path.slotted.tracked(), present, gamma=0.02)
    share = 1 / (1 + math.exp(-0.4))
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    value = path.objective(z, y, gamma=0.02)
    assert float(value.detach()) == pytest.approx(float(own + sign * mixed) - entropy)
    value.backward()
    gradient = {name: p.grad.clone() for name, p in path.named_parameters() if p.grad is not None}
    path.zero_grad()
    path.slotted.objective(z, y, gamma=0.02).backward()  # the slots do not see the mixture
    for name, parameter in path.slotted.named_parameters():
        torch.testing.assert_close(gradient[f"slotted.{name}"], parameter.grad)
    assert gradient["beta"].abs() > 1e-4
    assert gradient["gated.mixer"].any()


def test_weight_of_the_fusion_stays_between_the_paths() -> None:
    for objective, above in (("adversarial", True), ("joint", False)):
        path, z, y = fused(objective=objective, momentum=0.0), *sample(40, D)
        path.slotted.requires_grad_(False)
        path.slotted.alpha.fill_(0.0)
        path.slotted.inward.zero_()
        with torch.no_grad():
            z[:, 0] *= 3
        optimizer = torch.optim.Adam([*path.gated.parameters(), path.beta], 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            path.objective(z, y, gamma=0.01).backward()
            optimizer.step()
        share = path.figures()["gated_share"]
        assert 0.3 < share < 0.75
        # The gated path sees more than the plain variance under the one objective, less under the other; either way
        # the weight goes towards it.
        assert share > 0.5
        log_gated, log_plain = (
            mean_log_variance(v, torch.tensor([True, True, False]), gamma=0.01)
            for v in (
                path.gated.variance(z, y, side="attention").detach(),
                path.slotted.variance(z, y, side="attention").detach(),
            )
        )
        assert (log_gated > log_plain) == above


def test_bad_values() -> None:
    with pytest.raises(InputError, match="slots: got 0"):
        SlotAttention(K, 0, H, generator=seeded())
    with pytest.raises(InputError, match="iterations: got 0"):
        SlotAttention(K, 1, H, iterations=0, generator=seeded())
