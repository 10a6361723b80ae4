from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sfumato.errors import InputError
from sfumato.metrics import quality


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(n: int = 3, c: int = 3, h: int = 14, w: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    original = torch.rand(n, c, h, w, generator=seeded(seed))
    noise = torch.linspace(0.01, 0.5, n).view(-1, 1, 1, 1) * torch.randn(n, c, h, w, generator=seeded(seed + 1))
    return (original + noise).clamp(0, 1), original


def slow_mse(a: Tensor, b: Tensor) -> float:
    """One image, number by number."""
    differences = [(p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist())]
    return sum(differences) / len(differences)


def mirrored(n: int) -> list[int]:
    """Indices −5 to n + 4, those outside mirrored at the first and the last."""
    return [abs(i) if i < n else 2 * (n - 1) - i for i in range(-5, n + 5)]


def slow_ssim(a: Tensor, b: Tensor) -> float:
    """One image: Wang et al. 2004, the 11×11 window about every pixel, one at a time; mirrored beyond the border."""
    line = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    window = torch.outer(line, line)
    window = window / window.sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for p, q in zip(a.double(), b.double()):
        height, width = p.shape
        rows, columns = mirrored(height), mirrored(width)
        for i in range(height):
            for j in range(width):
                u = p[rows[i : i + 11]][:, columns[j : j + 11]]
                v = q[rows[i : i + 11]][:, columns[j : j + 11]]
                mu_u, mu_v = float((window * u).sum()), float((window * v).sum())
                var_u = float((window * (u - mu_u) ** 2).sum())
                var_v = float((window * (v - mu_v) ** 2).sum())
                covariance = float((window * (u - mu_u) * (v - mu_v)).sum())
                top = (2 * mu_u * mu_v + c1) * (2 * covariance + c2)
                values.append(top / ((mu_u**2 + mu_v**2 + c1) * (var_u + var_v + c2)))
    return sum(values) / len(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_against_twins(channels: int) -> None:
    a, b = pair(c=channels)
    found = quality(a, b)
    for i in range(3):
        mse = slow_mse(a[i], b[i])
        assert float(found.mse[i]) == pytest.approx(mse, rel=1e-5)
        assert float(found.psnr[i]) == pytest.approx(10 * math.log10(1 / mse), rel=1e-5)
        assert float(found.ssim[i]) == pytest.approx(slow_ssim(a[i], b[i]), abs=2e-5)
    assert found.mse[0] < found.mse[1] < found.mse[2]
    assert found.ssim[0] > found.ssim[1] > found.ssim[2]


def test_ssim_of_the_smallest_image() -> None:
    a, b = pair(1, 1, 11, 11)
    assert float(quality(a, b).ssim) == pytest.approx(slow_ssim(a[0], b[0]), abs=2e-5)


def test_ssim_against_torchmetrics_one_image_at_a_time() -> None:
    a, b = pair(4)
    found = quality(a, b).ssim
    for i in range(4):
        alone = structural_similarity_index_measure(a[i : i + 1], b[i : i + 1], data_range=1.0)
        assert float(found[i]) == pytest.approx(float(alone), abs=1e-6)


def test_data_range_is_one_whatever_the_images_hold() -> None:
    a, b = pair()
    dim = quality(a / 10, b / 10).ssim
    assert (dim > quality(a, b).ssim)[1:].all()  # constants of SSIM do not shrink with the image
    assert float(dim[2]) == pytest.approx(slow_ssim(a[2] / 10, b[2] / 10), abs=2e-5)


def test_exact_reconstruction() -> None:
    _, b = pair(2)
    found = quality(b.clone(), b)
    assert found.mse.tolist() == [0, 0]
    assert found.psnr.tolist() == [math.inf, math.inf]
    assert found.ssim.tolist() == pytest.approx([1, 1])


def test_known_differences() -> None:
    black, white = torch.zeros(1, 3, 12, 12), torch.ones(1, 3, 12, 12)
    found = quality(black, white)
    assert (float(found.mse), float(found.psnr)) == (1, 0)
    assert float(found.ssim) == pytest.approx(1e-4 / 1.0001, rel=1e-3)
    assert float(quality(black + 0.1, black).psnr) == pytest.approx(20, abs=1e-3)


def test_images_of_many_batches_are_compared_one_by_one() -> None:
    """More images than fit one of its batches; the one off image must not touch the others."""
    original = torch.rand(515, 1, 11, 11, generator=seeded())
    reconstruction = original.clone()
    reconstruction[[3, 513]] = 1 - original[[3, 513]]
    found = quality(reconstruction, original)
    assert found.mse.shape == found.psnr.shape == found.ssim.shape == (515,)
    assert found.mse.nonzero().flatten().tolist() == [3, 513]
    assert (found.ssim < 0.5).nonzero().flatten().tolist() == [3, 513]


def test_other_number_formats_and_gradients() -> None:
    a, b = pair()
    expected = quality(a, b)
    double = quality(a.double().requires_grad_(), b.double())
    assert double.mse.dtype == torch.float32
    assert not double.mse.requires_grad
    torch.testing.assert_close(double.mse, expected.mse)
    torch.testing.assert_close(quality(a.half(), b.half()).mse, expected.mse, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3, 12, 12), (2, 1, 12, 12)), ((1, 3, 12, 12), (2, 3, 12, 12)), ((3, 12, 12), (3, 12, 12))]
)
def test_shapes_that_differ(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"accepted: the same shape \(N, C, H, W\)") as caught:
        quality(torch.zeros(a), torch.zeros(b))
    assert caught.value.value == (a, b)


@pytest.mark.parametrize("size", [(10, 20), (20, 10)])
def test_images_smaller_than_the_window(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="at least 11×11"):
        quality(torch.zeros(1, 1, *size), torch.zeros(1, 1, *size))
