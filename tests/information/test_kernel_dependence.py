from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import linear_kernel, rbf_kernel
from torch import Tensor
from torch.nn.functional import one_hot

from sfumato.errors import InputError
from sfumato.information import GaussianKernel, LinearKernel, coco, hsic

NARROW = GaussianKernel(1.3)
ESTIMATORS = ("biased", "unbiased", "normalized")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def dependent(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = normal(n, 4, seed=seed, dtype=dtype)
    return x, torch.tanh(x[:, :3]) + 0.5 * normal(n, 3, seed=seed + 1, dtype=dtype)


def grams(x: Tensor, z: Tensor, sigma: float = 1.3) -> tuple[np.ndarray, np.ndarray]:
    """By scikit-learn: Gaussian on x, linear on z."""
    return rbf_kernel(x.numpy(), gamma=1 / (2 * sigma**2)), linear_kernel(z.numpy())


def slow_biased(k: np.ndarray, m: np.ndarray) -> float:
    """Gretton et al. 2005 written as means over pairs, triples and quadruples."""
    n = len(k)
    pairs = sum(k[i, j] * m[i, j] for i in range(n) for j in range(n)) / n**2
    product = sum(k.ravel()) * sum(m.ravel()) / n**4
    triples = sum(k[i, j] * m[i, q] for i in range(n) for j in range(n) for q in range(n)) / n**3
    return pairs + product - 2 * triples


def slow_unbiased(k: np.ndarray, m: np.ndarray) -> float:
    """The same means over pairwise distinct indices only, which is what makes it unbiased."""
    n = len(k)
    pairs = [k[i, j] * m[i, j] for i, j in permutations(range(n), 2)]
    triples = [k[i, j] * m[i, q] for i, j, q in permutations(range(n), 3)]
    quadruples = [k[i, j] * m[q, r] for i, j, q, r in permutations(range(n), 4)]
    return float(np.mean(pairs) + np.mean(quadruples) - 2 * np.mean(triples))


def centered(gram: np.ndarray) -> np.ndarray:
    h = np.eye(len(gram)) - 1 / len(gram)
    return h @ gram @ h


def test_gaussian_kernel_against_scikit_learn() -> None:
    rows = normal(9, 5)
    for kernel, sigma in ((GaussianKernel(), 5 * math.sqrt(5)), (GaussianKernel(0.7), 0.7)):
        expected = rbf_kernel(rows.numpy(), gamma=1 / (2 * sigma**2))
        np.testing.assert_allclose(kernel(rows).numpy() + 1, expected, atol=1e-14)


def test_linear_kernel_against_scikit_learn() -> None:
    rows = normal(9, 5)
    np.testing.assert_allclose(LinearKernel()(rows).numpy(), linear_kernel((rows - rows[0]).numpy()), atol=1e-12)


@given(st.integers(2, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_biased_and_normalized_against_twins(n: int, p: int, q: int, seed: int) -> None:
    x, z = normal(n, p, seed=seed), normal(n, q, seed=seed + 1)
    k, m = grams(x, z)
    kernels = {"kernel_x": NARROW, "kernel_z": LinearKernel()}
    assert float(hsic(x, z, **kernels)) == pytest.approx(slow_biased(k, m), abs=1e-10)
    norms = math.sqrt(slow_biased(k, k) * slow_biased(m, m))
    ratio = float(hsic(x, z, estimator="normalized", **kernels))
    assert ratio == pytest.approx(slow_biased(k, m) / norms, abs=1e-7)


def test_unbiased_against_twin() -> None:
    for n in (4, 7):
        x, z = dependent(n)
        value = float(hsic(x, z, estimator="unbiased", kernel_x=NARROW, kernel_z=LinearKernel()))
        assert value == pytest.approx(slow_unbiased(*grams(x, z)), abs=1e-12)


def test_unbiased_has_mean_zero_under_independence_and_biased_has_not() -> None:
    means = {}
    for estimator in ("biased", "unbiased"):
        values = [
            hsic(normal(8, 2, seed=i), normal(8, 2, seed=10_000 + i), estimator=estimator, kernel_x=NARROW)
            for i in range(300)
        ]
        stacked = torch.stack(values)
        means[estimator] = float(stacked.mean() / (stacked.std() / math.sqrt(len(stacked))))
    assert abs(means["unbiased"]) < 3
    assert means["biased"] > 20


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_independent_samples_are_near_zero_and_dependent_ones_are_not(estimator: str) -> None:
    x, z = normal(500, 1), normal(500, 1, seed=1)
    kernels = {"kernel_x": GaussianKernel(1), "kernel_z": GaussianKernel(1)}
    independent = abs(float(hsic(x, z, estimator=estimator, **kernels)))
    assert independent < 0.02
    assert float(hsic(x, x.square(), estimator=estimator, **kernels)) > 5 * independent  # uncorrelated, yet dependent


def test_linear_kernels_give_the_squared_covariance_matrix() -> None:
    x, z = dependent(15)
    covariance = (x - x.mean(0)).T @ (z - z.mean(0)) / 15
    value = hsic(x, z, kernel_x=LinearKernel(), kernel_z=LinearKernel())
    assert float(value) == pytest.approx(float(covariance.square().sum()))


def test_normalized_of_itself_is_one() -> None:
    x = normal(20, 3)
    assert float(hsic(x, x, estimator="normalized")) == pytest.approx(1)
    assert float(hsic(x, 5 - x, estimator="normalized")) == pytest.approx(1)


@given(st.integers(0, 10**6), st.sampled_from(ESTIMATORS))
@settings(max_examples=30, deadline=None)
def test_invariances(seed: int, estimator: str) -> None:
    x, z = dependent(12, seed)
    kernels = {"kernel_x": NARROW, "kernel_z": LinearKernel()}
    value = float(hsic(x, z, estimator=estimator, **kernels))
    turn = torch.linalg.qr(normal(4, 4, seed=seed + 2))[0]
    order = torch.randperm(12, generator=seeded(seed))
    swapped = hsic(z, x, estimator=estimator, kernel_x=LinearKernel(), kernel_z=NARROW)
    assert float(swapped) == pytest.approx(value)
    assert float(hsic(x @ turn + 10, z - 7, estimator=estimator, **kernels)) == pytest.approx(value)
    assert float(hsic(x[order], z[order], estimator=estimator, **kernels)) == pytest.approx(value)
    assert abs(float(hsic(x[order], z, estimator=estimator, **kernels)) - value) > 1e-7  # it is the pairs that matter
    assert coco(x[order], z[order], **kernels).item() == pytest.approx(coco(x, z, **kernels).item())
    if estimator == "normalized":
        assert 0 <= value <= 1


@given(st.floats(-12, 12))
@settings(max_examples=25, deadline=None)
def test_scale_does_not_matter_to_the_normalized_linear_form(power: float) -> None:
    x, z = dependent(10, dtype=torch.float32)
    arguments = {"estimator": "normalized", "kernel_x": LinearKernel(), "kernel_z": LinearKernel()}
    value = float(hsic(x, z, **arguments))
    assert float(hsic(x, z * 10**power, **arguments)) == pytest.approx(value, rel=1e-4)


def test_bandwidth_scales_with_the_sample() -> None:
    x, z = dependent(10)
    wide = {"kernel_x": GaussianKernel(13), "kernel_z": GaussianKernel(26)}
    narrow = {"kernel_x": GaussianKernel(1.3), "kernel_z": GaussianKernel(2.6)}
    assert float(hsic(10 * x, 10 * z, **wide)) == pytest.approx(float(hsic(x, z, **narrow)))


def test_single_precision_keeps_its_digits_with_a_wide_kernel() -> None:
    x, z = dependent(30)
    x, z = x / 1000, z / 1000  # kernels of 1 − 1e-8 and nearer: a plain one would round to 1
    exact = float(hsic(x, z))
    assert float(hsic(x.float(), z.float())) == pytest.approx(exact, rel=1e-3, abs=0)
    largest = float(coco(x, z))
    assert float(coco(x.float(), z.float())) == pytest.approx(largest, rel=1e-3, abs=0)


@pytest.mark.parametrize("kernel", [GaussianKernel(), LinearKernel()], ids=["gauss", "linear"])
def test_half_precision_and_autocast(kernel) -> None:
    x, z = dependent(20, dtype=torch.float32)
    half = x.bfloat16(), z.bfloat16()
    for measure in (hsic, coco):
        exact = measure(half[0].float(), half[1].float(), kernel_z=kernel)
        assert torch.equal(measure(*half, kernel_z=kernel), exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(measure(*half, kernel_z=kernel), exact)


def test_labels_as_integers() -> None:
    x, _ = dependent(12)
    labels = one_hot(torch.arange(12) % 3)
    value = hsic(x, labels, kernel_z=LinearKernel())
    assert torch.equal(value, hsic(x, labels.double(), kernel_z=LinearKernel()))
    assert value.dtype == torch.float64


def test_images_and_features_are_flattened() -> None:
    x, z = normal(6, 3, 4, 5), normal(6, 8, 2, 2, seed=1)
    flat = x.reshape(6, -1), z.reshape(6, -1)
    assert torch.equal(hsic(x, z), hsic(*flat))
    assert torch.equal(coco(x, z), coco(*flat))
    assert hsic(x, z).shape == coco(x, z).shape == ()


# COCO


def test_coco_of_linear_kernels_is_the_covariance() -> None:
    x, z = dependent(15)
    linear = {"kernel_x": LinearKernel(), "kernel_z": LinearKernel()}
    covariance = (x - x.mean(0)).T @ (z - z.mean(0)) / 15
    assert float(coco(x, z, **linear)) == pytest.approx(float(torch.linalg.svdvals(covariance)[0]))
    one, other = x[:, 0], z[:, 0]
    assert float(coco(one, other, **linear)) == pytest.approx(float(covariance[0, 0].abs()))


def test_coco_against_the_eigenvalues_of_the_product() -> None:
    x, z = dependent(10)
    k, m = (centered(gram) for gram in grams(x, z))
    largest = max(np.linalg.eigvals(k @ m).real)
    value = float(coco(x, z, kernel_x=NARROW, kernel_z=LinearKernel()))
    assert value == pytest.approx(math.sqrt(largest) / 10, rel=1e-9)


def test_no_pair_of_functions_has_a_larger_covariance_than_coco() -> None:
    x, z = dependent(8)
    k, m = (torch.tensor(gram) for gram in grams(x, z))
    largest = float(coco(x, z, kernel_x=NARROW, kernel_z=LinearKernel()))
    found = 0.0
    for seed in range(200):
        a, b = normal(8, seed=seed), normal(8, seed=1000 + seed)
        f, g = k @ a / (a @ k @ a).sqrt(), m @ b / (b @ m @ b).sqrt()  # of norm 1 in their spaces
        found = max(found, float(((f - f.mean()) * (g - g.mean())).mean()))
    assert 0.2 * largest < found <= largest


def test_coco_is_below_the_root_of_hsic_and_equal_where_one_function_is_all() -> None:
    x, z = dependent(12)
    assert float(coco(x, z, kernel_x=NARROW)) < math.sqrt(float(hsic(x, z, kernel_x=NARROW)))
    linear = {"kernel_x": LinearKernel(), "kernel_z": LinearKernel()}
    assert float(coco(x[:, 0], z, **linear)) == pytest.approx(math.sqrt(float(hsic(x[:, 0], z, **linear))))


def test_coco_falls_with_more_independent_samples_and_not_with_dependent_ones() -> None:
    kernels = {"kernel_x": GaussianKernel(1), "kernel_z": GaussianKernel(1)}
    few, many = (float(coco(normal(n, 1), normal(n, 1, seed=1), **kernels)) for n in (25, 400))
    assert many < 0.5 * few
    x = normal(400, 1)
    assert float(coco(x, x.square(), **kernels)) > 3 * many


# Gradients


def measures() -> list[pytest.param]:
    rows = [pytest.param(lambda x, z, e=e, **k: hsic(x, z, estimator=e, **k), id=e) for e in ESTIMATORS]
    return [*rows, pytest.param(coco, id="coco")]


@pytest.mark.parametrize("measure", measures())
@pytest.mark.parametrize("kernels", [(NARROW, NARROW), (GaussianKernel(), LinearKernel())], ids=["gauss", "linear"])
def test_gradcheck_also_with_coinciding_rows(measure, kernels) -> None:
    x, z = dependent(6)
    x[3], z[3], z[5] = x[2], z[2], z[2]
    x.requires_grad_(), z.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: 100 * measure(a, b, kernel_x=kernels[0], kernel_z=kernels[1]), (x, z), atol=1e-6
    )


@pytest.mark.parametrize("measure", measures())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [GaussianKernel(), LinearKernel()], ids=["gauss", "linear"])
def test_constant_sample_is_zero_with_a_finite_gradient(measure, dtype, kernel) -> None:
    x, _ = dependent(8, dtype=dtype)
    z = torch.full((8, 3), 0.1, dtype=dtype, requires_grad=True)
    for value in (measure(x, z, kernel_z=kernel), measure(z, z, kernel_x=kernel, kernel_z=kernel)):
        assert float(value.detach()) == 0
        (gradient,) = torch.autograd.grad(value, z)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 10


@pytest.mark.parametrize("measure", measures())
def test_collapsing_sample_keeps_a_finite_gradient(measure) -> None:
    x, _ = dependent(8, dtype=torch.float32)
    for spread in (1e-3, 1e-6, 1e-12, 1e-25):
        for kernel in (GaussianKernel(), LinearKernel()):
            z = (spread * normal(8, 3, seed=3, dtype=torch.float32)).requires_grad_()
            value = measure(x, z, kernel_z=kernel)
            value.backward()
            assert value.isfinite()
            assert z.grad.isfinite().all(), (spread, kernel)


@pytest.mark.parametrize("measure", measures())
def test_its_gradient_leads_to_independence(measure) -> None:
    x, z = dependent(30)
    z.requires_grad_()
    start = float(measure(x, z, kernel_x=NARROW, kernel_z=NARROW).detach())
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(25):
        optimizer.zero_grad()
        measure(x, z, kernel_x=NARROW, kernel_z=NARROW).backward()
        optimizer.step()
    assert float(measure(x, z, kernel_x=NARROW, kernel_z=NARROW).detach()) < 0.7 * start


# What is refused


@pytest.mark.parametrize(("n", "m"), [(3, 4), (1, 1), (0, 0)])
@pytest.mark.parametrize("measure", measures())
def test_samples_that_do_not_pair(measure, n: int, m: int) -> None:
    with pytest.raises(InputError, match="the same N of") as caught:
        measure(torch.zeros(n, 2), torch.zeros(m, 3))
    assert caught.value.value == (n, m)


def test_unbiased_needs_four_pairs() -> None:
    with pytest.raises(InputError, match="the same N of 4 or more"):
        hsic(normal(3, 2), normal(3, 2), estimator="unbiased")
    assert hsic(normal(3, 2), normal(3, 2)).isfinite()


def test_empty_rows() -> None:
    with pytest.raises(InputError, match="no empty rows"):
        hsic(torch.zeros(4, 0), torch.zeros(4, 2))


def test_unknown_estimator_and_bandwidth() -> None:
    with pytest.raises(InputError, match="did you mean unbiased"):
        hsic(normal(4, 2), normal(4, 2), estimator="unbiase")
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="bandwidth"):
            GaussianKernel(sigma)
