from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from sklearn.metrics import mutual_info_score
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information import conditional_mutual_information, fano_bound


def answers(n: int, k: int, seed: int = 0, zeros: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    if zeros:
        logits[torch.rand(n, k, generator=generator) < 0.3] = -math.inf
        logits[:, 0] = logits[:, 0].clamp_min(-3)
    return logits.softmax(1)


def slow(f: Tensor, y: Tensor) -> float:
    """Class by class, image by image."""
    total = 0.0
    for label in sorted(set(y.tolist())):
        own = f[y == label]
        inner = [float(rel_entr(row.numpy(), own.mean(0).numpy()).sum()) for row in own]
        total += len(own) / len(f) * sum(inner) / len(inner)
    return total


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 10**6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_against_twin(n: int, k: int, seed: int, zeros: bool) -> None:
    f = answers(n, k, seed, zeros)
    y = torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(seed))
    value = float(conditional_mutual_information(f, y))
    assert value == pytest.approx(slow(f, y), abs=1e-12)
    assert -1e-12 <= value <= math.log(k) + 1e-12


def test_one_hot_answers_are_counted_as_scikit_learn_counts() -> None:
    generator = torch.Generator().manual_seed(3)
    answer = torch.randint(0, 4, (60,), generator=generator)
    f = torch.nn.functional.one_hot(answer, 4).double()
    # One class, each image its own x: I(X; Ŷ) between the image's number and the answer.
    value = float(conditional_mutual_information(f, torch.zeros(60, dtype=torch.int64)))
    assert value == pytest.approx(mutual_info_score(range(60), answer.tolist()))


def test_same_answer_within_a_class_tells_nothing_more() -> None:
    y = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    assert float(conditional_mutual_information(answers(3, 5)[y], y)) == pytest.approx(0, abs=1e-14)


def test_largest_value() -> None:
    assert float(conditional_mutual_information(torch.eye(6), torch.zeros(6, dtype=torch.int64))) == pytest.approx(
        math.log(6)
    )


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_order_and_names_of_the_classes_do_not_matter(seed: int) -> None:
    f = answers(20, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    y, order = torch.randint(0, 4, (20,), generator=generator), torch.randperm(20, generator=generator)
    names = torch.tensor([7, 0, 9, 4])
    value = float(conditional_mutual_information(f, y))
    assert float(conditional_mutual_information(f[order], y[order])) == pytest.approx(value)
    assert float(conditional_mutual_information(f[:, [2, 0, 3, 1]], y)) == pytest.approx(value)
    assert float(conditional_mutual_information(f, names[y])) == pytest.approx(value)
    # Averaging answers of a class cannot tell more.
    blurred = 0.5 * f + 0.5 * torch.stack([f[y == label].mean(0) for label in y])
    assert float(conditional_mutual_information(blurred, y)) < value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_precisions(dtype: torch.dtype) -> None:
    f, y = answers(40, 5), torch.arange(40) % 5
    exact = float(conditional_mutual_information(f, y))
    found = conditional_mutual_information(f.to(dtype), y)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(exact, rel=0.02)


def test_gradient_is_right_and_finite_at_zero() -> None:
    y = torch.arange(8) % 2
    f = answers(8, 3).requires_grad_()
    unit = lambda v: conditional_mutual_information(v / v.sum(1, keepdim=True), y)  # noqa: E731
    assert torch.autograd.gradcheck(unit, f)
    one_hot = torch.eye(4, dtype=torch.float64).requires_grad_()
    conditional_mutual_information(one_hot, torch.tensor([0, 0, 1, 1])).backward()
    assert one_hot.grad.isfinite().all()


def test_subnormal_probabilities() -> None:
    f = torch.tensor([[1.0, 5e-324], [1.0, 0.0]], dtype=torch.float64)
    assert float(conditional_mutual_information(f, torch.tensor([0, 0]))) == pytest.approx(0, abs=1e-300)


@pytest.mark.parametrize(
    ("f", "y", "field"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), "shape of probabilities"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "shape of probabilities"),
        (torch.ones(3, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "shape of probabilities"),
        (torch.ones(3, 1), torch.zeros(2, dtype=torch.int64), "shape of labels"),
        (torch.ones(3, 1), torch.zeros(3), "labels"),
        (torch.ones(3, 1), torch.tensor([0, -1, 0]), "labels"),
        (torch.full((3, 2), 0.4), torch.zeros(3, dtype=torch.int64), "probabilities"),
        (torch.tensor([[1.5, -0.5]]), torch.tensor([0]), "probabilities"),
        (torch.tensor([[math.nan, 1.0]]), torch.tensor([0]), "probabilities"),
    ],
)
def test_what_is_no_distribution(f: Tensor, y: Tensor, field: str) -> None:
    with pytest.raises(InputError) as caught:
        conditional_mutual_information(f, y)
    assert caught.value.field.startswith(field)


def test_fano_by_hand() -> None:
    assert fano_bound(0.0, 16) == pytest.approx(0.75)  # 1 − log 2/(4·log 2)
    assert fano_bound(math.log(2), 16) == pytest.approx(0.5)
    assert fano_bound(100.0, 16) == 0
    assert fano_bound(0.0, 2) == 0


@pytest.mark.parametrize("error", [0.05, 0.3, 0.6])
def test_fano_holds_on_a_symmetric_channel(error: float) -> None:
    size = 10
    entropy = -(1 - error) * math.log(1 - error) - error * math.log(error / (size - 1))
    bound = fano_bound(math.log(size) - entropy, size)
    assert 0 <= bound <= error
    assert bound > error - 0.35


def test_fano_for_all_images_there_are() -> None:
    assert fano_bound(1000.0, 256**3072) == pytest.approx(1 - (1000 + math.log(2)) / (3072 * math.log(256)))


@pytest.mark.parametrize(
    ("information", "size", "field"), [(-0.1, 4, "information"), (math.nan, 4, "information"), (1, 1, "alphabet_size")]
)
def test_fano_out_of_range(information: float, size: int, field: str) -> None:
    with pytest.raises(InputError, match=field):
        fano_bound(information, size)
