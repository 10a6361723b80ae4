"""The exact losses against autograd through a dense, obvious implementation; the authors' is in test_cem.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information import ClassMixture, RateLoss, mixture_rate
from sfumato.information.mixture import Covariance

K, M, D, NOISE = 3, 2, 4, 0.05
FORMS: tuple[Covariance, ...] = ("isotropic", "diagonal", "full")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, D, generator=seeded(seed), dtype=torch.float64)
    return z * torch.tensor([0.2, 0.5, 1.0, 2.0]), torch.randint(0, K, (n,), generator=seeded(seed + 1))


def fitted(form: Covariance, n: int = 150, seed: int = 0) -> ClassMixture:
    mixture = ClassMixture(K, M, D, form).double()
    z, y = sample(n, seed)
    for _ in range(3):
        mixture.refresh(lambda: zip(z.split(32), y.split(32)), generator=seeded())
    return mixture


def matrices(mixture: ClassMixture) -> list[Tensor]:
    eye = torch.eye(D, dtype=torch.float64)
    flat = mixture.covariances.flatten(0, 1)
    if flat.ndim == 1:
        return [v * eye for v in flat]
    return [torch.diag(v) if v.ndim == 1 else v for v in flat]


def projected(matrix: Tensor, form: Covariance) -> Tensor:
    """What a covariance model keeps of a covariance matrix."""
    if form == "full":
        return matrix
    diagonal = matrix.diagonal()
    return torch.diag(diagonal if form == "diagonal" else diagonal.mean().expand(D))


def dense(mixture: ClassMixture, form: Covariance, z: Tensor, y: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Σ (b_i/b)·½·log|Σ_i + σ²I| with the batch's covariance attached to the graph; and the new running covariances.

    The running covariance has this batch in it (equation 6), but for full ones, which are those of the last refresh.
    """
    eye, total, running = torch.eye(D, dtype=torch.float64), torch.zeros((), dtype=torch.float64), []
    for c in range(K):
        own = [row for row, label in zip(z, y.tolist()) if label == c]
        nearest = [int((row.detach() - mixture.means[c]).square().sum(1).argmin()) for row in own]
        for i in range(M):
            before = matrices(mixture)[c * M + i]
            members = [row - mixture.means[c, i] for row, j in zip(own, nearest) if j == i]
            if not members:
                running.append(before)
                continue
            batch = projected(sum(torch.outer(r, r) for r in members) / len(members), form)
            a = min(1.0, len(members) / max(float(mixture.counts[c] * mixture.weights[c, i]), 1e-300))
            here = before if form == "full" else (1 - a) * before + a * batch.detach()
            running.append(here)
            attached = here + batch - batch.detach()
            attached = (1 - shrinkage) * attached + shrinkage * attached.diagonal().mean() * eye
            total = total + len(members) / len(z) * 0.5 * torch.logdet(attached + NOISE * eye)
    return total, torch.stack(running)


@pytest.mark.parametrize(("form", "shrinkage"), [*((form, 0.0) for form in FORMS), ("full", 0.3), ("full", 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_gradient_and_running_values_against_autograd(form: Covariance, shrinkage: float, seed: int) -> None:
    mixture = fitted(form)
    z, y = sample(17, 50 + seed)
    z.requires_grad_()
    expected, running = dense(copy.deepcopy(mixture), form, z, y, shrinkage)
    (slow,) = torch.autograd.grad(expected, z)
    value = RateLoss(mixture, NOISE, shrinkage)(z, y)
    (gradient,) = torch.autograd.grad(value, z)
    assert slow.abs().max() > 0.01
    torch.testing.assert_close(gradient, slow, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(torch.stack(matrices(mixture)), running, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_value_is_the_rate_of_the_running_mixture(form: Covariance) -> None:
    mixture = fitted(form)
    value = RateLoss(mixture, NOISE)(*sample(20, 9))
    shares = mixture.shares
    expected = mixture_rate(shares / shares.sum(), torch.stack(matrices(mixture)), NOISE)
    assert float(value) == pytest.approx(float(expected), rel=1e-9)
    assert mixture.rate(NOISE) == pytest.approx(float(expected), rel=1e-9)


def test_gradient_of_one_component_is_the_derivative_of_its_rate() -> None:
    """All images in one batch, one component: the loss is R of the data, and its gradient that of the data's R."""
    z = sample(40, 3)[0].requires_grad_()
    y = torch.zeros(40, dtype=torch.int64)
    for form in FORMS:
        mixture = ClassMixture(1, 1, D, form).double()
        mixture.refresh(lambda: iter([(z.detach(), y)]), generator=seeded())
        mixture.refresh(lambda: iter([(z.detach(), y)]), generator=seeded())
        residual = z - mixture.means[0, 0]
        covariance = projected(residual.T @ residual / 40, form)
        expected = mixture_rate(torch.ones(1, dtype=torch.float64), covariance.unsqueeze(0), NOISE)
        value = RateLoss(mixture, NOISE)(z, y)
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
        for found, slow in zip(torch.autograd.grad(value, z), torch.autograd.grad(expected, z)):
            torch.testing.assert_close(found, slow, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_pressure_does_not_depend_on_the_number_of_images(form: Covariance) -> None:
    z, y = sample(24, 7)
    gradients = []
    for factor in (1, 100):
        mixture = fitted(form)
        mixture.counts *= factor
        row = z.clone().requires_grad_()
        gradients.append(torch.autograd.grad(RateLoss(mixture, NOISE)(row, y), row)[0])
    ratio = gradients[1].norm() / gradients[0].norm()
    assert 0.7 < float(ratio) < 1.4  # only the running covariance differs, by a batch's share
    if form == "full":
        torch.testing.assert_close(*gradients)


def test_shrinkage_bounds_the_pull_where_no_image_was() -> None:
    """Two images in four dimensions: a direction without variance pulls with 1/σ² unless covariances are shrunk."""
    z, y = torch.eye(4, dtype=torch.float64)[:2], torch.zeros(2, dtype=torch.int64)
    mixture = ClassMixture(1, 1, 4, "full").double()
    mixture.refresh(lambda: iter([(z, y)]), generator=seeded())
    off = (mixture.means[0, 0] + torch.tensor([0.0, 0, 1, 0])).unsqueeze(0)

    def pull(shrinkage: float) -> float:
        row = off.clone().requires_grad_()
        loss = RateLoss(copy.deepcopy(mixture), NOISE, shrinkage)(row, y[:1])
        return float(torch.autograd.grad(loss, row)[0][0, 2])

    mean = float(mixture.covariances[0, 0].diagonal().mean())
    assert pull(0.0) == pytest.approx(1 / NOISE)
    assert pull(1.0) == pytest.approx(1 / (mean + NOISE))
    assert pull(1.0) < pull(0.5) < pull(0.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("empty", [2, 1], ids=["split from the first", "left where it was"])
def test_features_that_come_to_an_emptied_component_are_not_pulled_as_if_it_had_no_variance(
    form: Covariance, empty: int
) -> None:
    """Of three components two are left empty; then features near the split one come, and near the other."""
    z, noise = torch.randn(200, D, generator=seeded(), dtype=torch.float64), 1e-4
    mixture = ClassMixture(1, 3, D, form).double()
    mixture.means[0, 1], mixture.means[0, 2] = 99.0, -99.0
    mixture.ready.fill_(True)
    mixture.refresh(lambda: iter([(z, torch.zeros(200, dtype=torch.int64))]), generator=seeded())
    assert mixture.weights.tolist() == [[1, 0, 0]]
    away = mixture.means[0, empty] - mixture.means[0, 0]
    apart = away / away.norm() + 0.3 * torch.eye(D, dtype=torch.float64)
    near = mixture.means[0, empty] + apart
    labels = torch.zeros(D, dtype=torch.int64)
    assert mixture.assign(near, labels).tolist() == [empty] * D
    for _ in range(2):
        row = near.clone().requires_grad_()
        (pull,) = torch.autograd.grad(RateLoss(mixture, noise, 0.1 if form == "full" else 0.0)(row, labels), row)
        # Divided by the class's variance, about 1, or by their own, about 1/D; by nothing it would be 1/σ².
        strength = D * (pull * apart).sum(1) / apart.square().sum(1)
        assert 0.2 < float(strength.min()) <= float(strength.max()) < 2 * D
    assert mixture.covariances[0, empty].any()


def test_factors_are_found_once_a_refresh() -> None:
    mixture = fitted("full")
    loss = RateLoss(mixture, NOISE)
    z, y = sample(12, 4)
    loss(z, y)
    first = loss._factorized()
    loss(z, y)
    assert loss._factorized() is first
    mixture.refresh(lambda: iter([(z, y)]), generator=seeded())
    second = loss._factorized()
    assert second is not first
    mixture.load_state_dict(copy.deepcopy(mixture.state_dict()))
    assert loss._factorized() is not second
    mixture.float()
    assert loss._factorized().pulls.dtype == torch.float32


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
def test_a_share_of_a_batch_stands_for_the_whole(form: Covariance) -> None:
    """Two processes with the same features each: what they follow is what one follows that has all of them."""
    z, y = sample(20, seed=5)
    share, whole = fitted(form), fitted(form)
    of_share = RateLoss(share, 0.01)(z, y, total=lambda own: 2 * own)
    of_whole = RateLoss(whole, 0.01)(torch.cat([z, z]), torch.cat([y, y]))
    torch.testing.assert_close(of_share, of_whole)
    torch.testing.assert_close(share.weights, whole.weights)
    torch.testing.assert_close(share.covariances, whole.covariances)
    before = fitted(form)
    assert not torch.allclose(share.weights, before.weights)


def test_singular_covariances_are_told() -> None:
    """Fewer images than dimensions, no shrinkage, and less noise than single precision can tell."""
    mixture = fitted("full", n=12)
    z, y = sample(4)
    with pytest.raises(InputError, match=r"covariances: .*shrinkage above 0"):
        RateLoss(mixture, 1e-20)(z, y)
    assert RateLoss(mixture, 1e-20, shrinkage=0.1)(z, y).isfinite()


def test_no_gradient_leaves_the_mixture() -> None:
    for form in FORMS:
        mixture = fitted(form)
        z = sample(10)[0].requires_grad_()
        loss = RateLoss(mixture, NOISE)
        (loss(z, sample(10)[1]) + loss(z, sample(10)[1])).backward()
        assert not any(value.requires_grad for value in mixture.buffers())
        assert z.grad is not None
        assert z.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_descending_lowers_the_rate_of_the_features(form: Covariance) -> None:
    z, y = sample(120, 11)
    z.requires_grad_()
    rates = []
    for _ in range(6):
        mixture = ClassMixture(K, M, D, form).double()
        batch = (z.detach().clone(), y)
        mixture.refresh(lambda batch=batch: iter([batch]), generator=seeded(1))
        rates.append(mixture.rate(NOISE))
        (gradient,) = torch.autograd.grad(RateLoss(mixture, NOISE)(z, y), z)
        with torch.no_grad():
            z -= 1.0 * gradient
    assert rates[-1] < rates[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kept", "others"), [(2, 1), (5, 1), (11, 2), (13, 6)])
def test_a_batch_that_holds_more_of_a_class_than_the_last_pass_saw(kept: int, others: int, form: Covariance) -> None:
    """In single precision: a component that loses all of its weight keeps none, and not a little less than none."""
    far = torch.tensor([10.0, 0.0])
    for more in range(30):
        mixture = ClassMixture(1, 2, 2, form)
        z = torch.cat([torch.zeros(others, 2), far + torch.eye(2).repeat(kept, 1)[:kept]])
        for _ in range(2):
            mixture.refresh(lambda z=z: [(z, torch.zeros(len(z), dtype=torch.int64))], generator=seeded())
        batch = far + torch.rand(len(z) + more, 2, generator=seeded(1))
        loss = RateLoss(mixture, 0.01, shrinkage=0.1)(batch, torch.zeros(len(batch), dtype=torch.int64))
        assert float(mixture.weights.min()) >= 0
        assert bool(loss.isfinite())
        assert float(mixture.weights.sum()) == pytest.approx(1)
        mixture.rate(0.01, shrinkage=0.1)
