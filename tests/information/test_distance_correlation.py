from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information import distance_correlation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def dependent(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = normal(n, 4, seed=seed, dtype=dtype)
    return x, torch.tanh(x[:, :3]) + 0.5 * normal(n, 3, seed=seed + 1, dtype=dtype)


def coinciding() -> tuple[Tensor, Tensor]:
    x, z = dependent(8)
    x[3], z[3], z[5] = x[2], z[2], z[2]
    return x, z


def slow(x: Tensor, z: Tensor) -> float:
    """By the definition, element by element."""
    n = len(x)

    def centered(v: Tensor) -> list[list[float]]:
        d = [[float((v[i] - v[j]).square().sum().sqrt()) for j in range(n)] for i in range(n)]
        rows = [sum(row) / n for row in d]  # d is symmetric: columns have the same means
        return [[d[i][j] - rows[i] - rows[j] + sum(rows) / n for j in range(n)] for i in range(n)]

    def covariance(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(a[i][j] * b[i][j] for i in range(n) for j in range(n)) / n**2

    a, b = centered(x), centered(z)
    return math.sqrt(covariance(a, b) / math.sqrt(covariance(a, a) * covariance(b, b)))


_DCOR = """
import sys
import dcor
import numpy as np
cases = np.load(sys.argv[1])
print(*(dcor.distance_correlation(cases[f"x{i}"], cases[f"z{i}"]) for i in range(len(cases) // 2)))
"""


def by_dcor(cases: list[tuple[Tensor, Tensor]], folder: Path) -> list[float]:
    """What the package dcor says. In a process of its own: importing it compiles with numba, and LLVM at times finds no
    memory near enough to its code in a process that has PyTorch, and aborts it."""
    arrays = {f"{name}{i}": v.detach().numpy() for i, pair in enumerate(cases) for name, v in zip("xz", pair)}
    np.savez(folder / "cases.npz", **arrays)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, "-c", _DCOR, str(folder / "cases.npz")]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode < 0:
        pytest.skip(f"dcor's compiler was ended by signal {-done.returncode}: it says nothing about ours")
    assert done.returncode == 0, done.stderr
    return [float(value) for value in done.stdout.split()]


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    """A dependent pair of a size that the seed decides."""
    own = seeded(seed)
    n, p, q = (int(torch.randint(low, high, (), generator=own)) for low, high in ((2, 31), (1, 7), (1, 7)))
    x = normal(n, p, seed=seed)
    return x, normal(n, q, seed=seed + 1000) + x.square().mean(1, keepdim=True)


@pytest.mark.slow
def test_against_the_dcor_package(tmp_path: Path) -> None:
    cases = [*map(drawn, range(40)), coinciding()]
    found = [float(distance_correlation(x, z)) for x, z in cases]
    assert found == pytest.approx(by_dcor(cases, tmp_path), abs=1e-9)


def test_against_twin() -> None:
    x, z = dependent(7)
    assert float(distance_correlation(x, z)) == pytest.approx(slow(x, z), abs=1e-12)


def test_two_pairs_always_agree() -> None:
    assert float(distance_correlation(normal(2, 3), normal(2, 5, seed=1))) == pytest.approx(1)


def test_of_itself_and_of_its_negative() -> None:
    x = normal(20, 3)
    assert float(distance_correlation(x, x)) == pytest.approx(1)
    assert float(distance_correlation(x, 3 - 2 * x)) == pytest.approx(1)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_invariances(seed: int) -> None:
    x, z = dependent(12, seed)
    value = float(distance_correlation(x, z))
    turn = torch.linalg.qr(normal(4, 4, seed=seed + 2))[0]
    order = torch.randperm(12, generator=seeded(seed))
    assert 0 <= value <= 1
    assert float(distance_correlation(z, x)) == pytest.approx(value)
    assert float(distance_correlation(x @ turn, z)) == pytest.approx(value)
    assert float(distance_correlation(x + 100, z - 7)) == pytest.approx(value)
    assert float(distance_correlation(x[order], z[order])) == pytest.approx(value)
    assert abs(float(distance_correlation(x[order], z)) - value) > 1e-6  # it is the pairs that matter


@given(st.floats(-18, 18), st.floats(-18, 18))
@settings(max_examples=40, deadline=None)
def test_scale_does_not_matter_in_single_precision(power: float, other: float) -> None:
    x, z = dependent(10, dtype=torch.float32)
    value = float(distance_correlation(x, z))
    assert float(distance_correlation(x * 10**power, z * 10**other)) == pytest.approx(value, rel=1e-4)


def test_gradient_scales_inversely_with_the_scale() -> None:
    x, z = dependent(9)
    gradients = []
    for scale in (1.0, 1000.0):
        leaf = (z * scale).requires_grad_()
        distance_correlation(x, leaf).backward()
        gradients.append(leaf.grad * scale)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_independent_samples_are_near_zero_and_dependent_ones_are_not() -> None:
    x, z = normal(800, 1), normal(800, 1, seed=1)
    assert float(distance_correlation(x, z)) < 0.1
    assert float(distance_correlation(x, x.square())) > 0.4  # uncorrelated, and yet dependent


def test_images_and_features_are_flattened() -> None:
    for channels in (1, 3):
        x, z = normal(6, channels, 4, 5), normal(6, 8, 2, 2, seed=1)
        flat = distance_correlation(x.reshape(6, -1), z.reshape(6, -1))
        assert torch.equal(distance_correlation(x, z), flat)
        assert flat.shape == ()
    scalars = normal(6, seed=2)
    assert torch.equal(distance_correlation(scalars, x), distance_correlation(scalars[:, None], x))
    strided = normal(6, 5, 4, 3).permute(0, 3, 1, 2)
    assert torch.equal(distance_correlation(strided, z), distance_correlation(strided.contiguous(), z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_sample_is_zero_with_a_finite_gradient(dtype: torch.dtype) -> None:
    x, _ = dependent(8, dtype=dtype)
    z = torch.full((8, 3), 0.1, dtype=dtype, requires_grad=True)
    for value in (distance_correlation(x, z), distance_correlation(z, x), distance_correlation(z, z)):
        assert float(value.detach()) == 0
        (gradient,) = torch.autograd.grad(value, z, allow_unused=False)
        assert gradient.isfinite().all()


def test_coinciding_rows_have_a_finite_gradient() -> None:
    x, z = (part.requires_grad_() for part in coinciding())
    distance_correlation(x, z).backward()
    assert x.grad.isfinite().all()
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum() > 0


def test_collapsing_sample_keeps_a_finite_gradient() -> None:
    x, _ = dependent(8, dtype=torch.float32)
    for spread in (1e-6, 1e-12, 1e-20, 1e-30):
        z = (spread * normal(8, 3, seed=3, dtype=torch.float32)).requires_grad_()
        distance_correlation(x, z).backward()
        assert z.grad.isfinite().all(), spread


def test_gradcheck() -> None:
    x, z = dependent(6)
    x.requires_grad_(), z.requires_grad_()
    assert torch.autograd.gradcheck(distance_correlation, (x, z))


def test_its_gradient_leads_to_independence() -> None:
    x, z = dependent(40)
    z.requires_grad_()
    start = float(distance_correlation(x, z).detach())
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(30):
        optimizer.zero_grad()
        distance_correlation(x, z).backward()
        optimizer.step()
    assert float(distance_correlation(x, z).detach()) < 0.6 * start


@pytest.mark.parametrize(("n", "m"), [(3, 4), (1, 1), (0, 0)])
def test_samples_that_do_not_pair(n: int, m: int) -> None:
    with pytest.raises(InputError, match="the same N of 2 or more") as caught:
        distance_correlation(torch.zeros(n, 2), torch.zeros(m, 3))
    assert caught.value.value == (n, m)
