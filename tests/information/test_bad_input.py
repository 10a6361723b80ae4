"""What cannot be measured is refused by name where a figure is asked for, and is NaN in a loss: never "nothing"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.errors import InputError
from sfumato.information import (
    ClassMixture,
    FusedPooling,
    GatedPooling,
    RateLoss,
    SlotReadout,
    coco,
    distance_correlation,
    effective_information,
    estimate_mutual_information,
    estimate_upper_bound,
    feature_utility,
    hsic,
    log_variance_penalty,
    mixture_rate,
    reference_loss,
    shrink,
)
from sfumato.information.attention import mean_log_variance
from sfumato.information.kernel_dependence import LinearKernel
from sfumato.information.mixture import Covariance

NOT_FINITE = [math.nan, math.inf, -math.inf]
K, M, D = 3, 2, 4
FORMS: tuple[Covariance, ...] = ("isotropic", "diagonal", "full")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(n, D, generator=seeded(seed)), torch.arange(n) % K


def refreshed(form: Covariance = "isotropic") -> ClassMixture:
    mixture = ClassMixture(K, M, D, form)
    mixture.refresh(lambda: [sample()], generator=seeded())
    return mixture


def linear_hsic(x: Tensor, z: Tensor) -> Tensor:
    return hsic(x, z, estimator="normalized", kernel_x=LinearKernel(), kernel_z=LinearKernel())


def unbiased_hsic(x: Tensor, z: Tensor) -> Tensor:
    return hsic(x, z, estimator="unbiased")


def linear_coco(x: Tensor, z: Tensor) -> Tensor:
    return coco(x, z, kernel_x=LinearKernel(), kernel_z=LinearKernel())


LOSSES = [distance_correlation, hsic, linear_hsic, unbiased_hsic, coco, linear_coco]


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("measure", LOSSES)
def test_dependence_of_what_is_not_finite_is_nan(measure: Callable[[Tensor, Tensor], Tensor], bad: float) -> None:
    for all_of_them in (False, True):
        x, z = torch.randn(8, D, generator=seeded()), torch.randn(8, 2, generator=seeded(1))
        z[3, 1] = bad
        if all_of_them:
            z.fill_(bad)
        z.requires_grad_()
        assert measure(x, z).isnan()
        assert measure(z, x).isnan()
        measure(x, z).backward()  # a step of training gets as far as telling that its loss is NaN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("measure", LOSSES)
def test_dependence_of_other_types_is_that_of_their_numbers(
    measure: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = (8 * torch.rand(12, D, generator=seeded())).to(dtype)
    z = (8 * torch.rand(12, 2, generator=seeded(1))).to(dtype)
    value = measure(x, z)
    assert value.dtype == torch.float32
    assert 0 < abs(float(value)) <= 8
    torch.testing.assert_close(value, measure(x.float(), z.float()))
    torch.testing.assert_close(measure(x, z.float()), value)


def test_complex_numbers_and_empty_rows_have_no_dependence() -> None:
    x, _ = sample(8)
    for measure in (distance_correlation, hsic, coco):
        with pytest.raises(InputError, match=r"dtype of x, dtype of z.*torch.complex64.*real numbers"):
            measure(x, torch.ones(8, 2, dtype=torch.complex64))
        with pytest.raises(InputError, match="no empty rows"):
            measure(x, torch.ones(8, 0))


class Reads(TorchDispatchMode):
    """Counts how often a number in a tensor is asked for, which on another device waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def penalty(x: Tensor, _: Tensor) -> Tensor:
    return log_variance_penalty(x.square(), x[:, 0] < 9, floor=0.1, gamma=0.01)


def gated_variance(x: Tensor, _: Tensor) -> Tensor:
    return GatedPooling(K, D, 5, generator=seeded()).variance(x, torch.arange(len(x)) % K, side="feature").sum()


@pytest.mark.parametrize("loss", [*LOSSES, penalty, gated_variance])
def test_a_loss_waits_for_no_number(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, _ = sample(12)
    z = x[:, :2].clone().requires_grad_()
    with Reads() as reads:
        value = loss(x, z)
    assert reads.count == 0
    with Reads() as reads:
        assert value.isfinite()
    assert reads.count == 1  # it does count


def with_bad(tensor: Tensor, bad: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[1] = bad
    return changed


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_figures_of_what_is_not_finite_are_refused(bad: float) -> None:
    z, _ = sample(64)
    spoilt = with_bad(z, bad)
    half = torch.tensor([0.5, 0.5])
    own = torch.zeros(64, dtype=torch.int64)
    components = (half, torch.zeros(2, D), torch.ones(2, D))
    with pytest.raises(InputError, match=r"z: got .*1 of 256.*finite numbers"):
        effective_information(spoilt)
    for estimate in (estimate_mutual_information, estimate_upper_bound):
        for x, other, field in ((spoilt, z, "x"), (z, spoilt, "z")):
            with pytest.raises(InputError, match=rf"^{field}: got .*1 of 256.*finite numbers"):
                estimate(x, other, generator=seeded())
    with pytest.raises(InputError, match=r"^z: got"):
        feature_utility(spoilt, own, *components)
    with pytest.raises(InputError, match=r"^means: got"):
        feature_utility(z, own, half, with_bad(components[1], bad), components[2])
    with pytest.raises(InputError, match=r"^covariances: got"):
        feature_utility(z, own, half, components[1], with_bad(components[2], bad))
    for shape in ((2,), (2, D), (2, D, D)):
        with pytest.raises(InputError, match=r"^covariances: got"):
            mixture_rate(half, with_bad(torch.ones(shape), bad), 0.1, dim=D)
    assert effective_information(z).elements == D


def test_a_variance_below_zero_has_no_rate() -> None:
    half = torch.tensor([0.5, 0.5])
    for covariances in (torch.tensor([1.0, -0.05]), torch.tensor([[1.0, 1.0], [1.0, -0.05]])):
        with pytest.raises(InputError, match=r"covariances: got -0.05.*; accepted: variances of 0 or more"):
            mixture_rate(half, covariances, 0.1, dim=2)
    with pytest.raises(InputError, match=r"covariances: got 0.0; accepted: variances above 0"):
        feature_utility(torch.zeros(1, 2), torch.zeros(1).long(), half, torch.zeros(2, 2), torch.tensor([1.0, 0.0]))
    assert mixture_rate(half, torch.zeros(2, 2), 0.1).isfinite()


@pytest.mark.parametrize("components", [torch.tensor([0, 2]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0])])
def test_components_that_there_are_not_have_no_utility(components: Tensor) -> None:
    half = torch.tensor([0.5, 0.5])
    with pytest.raises(InputError, match=r"components.*from 0 to 1"):
        feature_utility(torch.zeros(2, 2), components, half, torch.zeros(2, 2), torch.ones(2))
    with pytest.raises(InputError, match=r"shape of components: got \(3,\); accepted: \(2,\)"):
        feature_utility(torch.zeros(2, 2), torch.zeros(3).long(), half, torch.zeros(2, 2), torch.ones(2))


@pytest.mark.parametrize("amount", [5, -0.1, math.nan])
@pytest.mark.parametrize("shape", [(2,), (2, D), (2, D, D)])
def test_shrinkage_is_a_share(amount: float, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"shrinkage: got .*; accepted: from 0 to 1"):
        shrink(torch.ones(shape), amount)
    assert torch.equal(shrink(torch.ones(shape[:2]), 1.0), torch.ones(shape[:2]))


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf])
def test_rate_loss_needs_noise(noise: float) -> None:
    with pytest.raises(InputError, match=r"noise_variance: got .*a variance above 0"):
        RateLoss(refreshed(), noise)
    with pytest.raises(InputError, match="shrinkage: got 2"):
        RateLoss(refreshed("full"), 0.1, 2)


@pytest.mark.parametrize("form", FORMS)
def test_a_mixture_of_nothing_has_no_rate(form: Covariance) -> None:
    mixture = ClassMixture(K, M, D, form)
    loss = RateLoss(mixture, 0.1)
    with pytest.raises(InputError, match=r"mixture: got .*no feature.*first refresh"):
        loss(*sample())
    with pytest.raises(InputError, match=r"mixture: got .*no feature.*first refresh"):
        mixture.rate(0.1)
    mixture.refresh(lambda: [sample()], generator=seeded())
    assert float(loss(*sample())) > 0
    assert mixture.rate(0.1) > 0


def test_rate_loss_asks_only_once_whether_there_was_a_refresh() -> None:
    """Reading a flag on the device at every step would wait for it at every step."""
    mixture = refreshed()
    loss = RateLoss(mixture, 0.1)
    loss(*sample())
    mixture.counts.zero_()
    assert loss(*sample()).isfinite()


@pytest.mark.parametrize("form", ["diagonal", "full"])
def test_the_authors_loss_is_isotropic(form: Covariance) -> None:
    with pytest.raises(InputError, match=rf"covariance of the mixture: got '{form}'; accepted: isotropic"):
        reference_loss(refreshed(form), *sample(), floor=0.1)


def test_the_authors_floor_is_a_variance() -> None:
    for floor in (-0.01, math.nan, math.inf):
        with pytest.raises(InputError, match="floor"):
            reference_loss(refreshed(), *sample(), floor=floor)
    assert reference_loss(refreshed(), *sample(), floor=0.0).isfinite()


@pytest.mark.parametrize("call", [lambda m: RateLoss(m, 0.1), lambda m: lambda z, y: reference_loss(m, z, y, 0.1)])
def test_losses_name_features_that_do_not_fit(call: Callable[[ClassMixture], Callable[..., Tensor]]) -> None:
    z, y = sample()
    loss = call(refreshed())
    for features, labels, field in wrong_batches(z, y):
        with pytest.raises(InputError, match=field):
            loss(features, labels)
    nothing = loss(z[:0].requires_grad_(), y[:0])
    assert nothing.isfinite()


def wrong_batches(z: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, str]]:
    """Each with what the error is to say; none is seen from the numbers themselves."""
    return [
        (z[:, :3], y, r"shape of z: got \(60, 3\); accepted: \(N, 4\)"),
        (z[:, 0], y, r"shape of z: got \(60,\); accepted: \(N, 4\)"),
        (z.double(), y, r"dtype of z: got torch.float64; accepted: torch.float32"),
        (z, y[:-1], r"shape of y: got \(59,\); accepted: \(60,\)"),
        (z, y.float(), r"dtype of y: got torch.float32; accepted: torch.int64"),
    ]


@pytest.mark.parametrize("ready", [False, True])
def test_refresh_names_features_that_do_not_fit(ready: bool) -> None:
    z, y = sample()
    outside = "class.* from 0 to 2"
    wrong = [
        *wrong_batches(z, y),
        (z, y + 1, f"y: got 3; .*{outside}"),
        (z, y - 1, f"y: got -1; .*{outside}"),
        (with_bad(z, math.nan), y, "features: got .*finite"),
        (with_bad(z, math.inf), y, "features: got .*finite"),
    ]
    for features, labels, message in wrong:
        mixture = refreshed() if ready else ClassMixture(K, M, D)
        before = {name: value.clone() for name, value in mixture.state_dict().items()}
        with pytest.raises(InputError, match=message):
            mixture.refresh(lambda f=features, t=labels: [(z[:0], y[:0]), (f, t)], generator=seeded())
        if ready:  # a pass that failed leaves what was there
            assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())
        assert bool(mixture.ready) == ready


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("empty", [lambda: [], lambda: [(torch.zeros(0, D), torch.zeros(0).long())]])
def test_refresh_on_nothing(ready: bool, empty: Callable[[], list[tuple[Tensor, Tensor]]]) -> None:
    mixture = refreshed() if ready else ClassMixture(K, M, D)
    with pytest.raises(InputError, match=r"features: got .*no feature.*each time"):
        mixture.refresh(empty, generator=seeded())
    assert bool(mixture.ready) == ready


def test_a_stream_that_can_be_passed_once_only_is_told() -> None:
    once = iter([sample()])
    with pytest.raises(InputError, match=r"features: got .*no feature.*each time"):
        ClassMixture(K, M, D).refresh(lambda: once, generator=seeded())


@pytest.mark.parametrize("field", ["num_classes", "components", "dim"])
def test_a_mixture_has_at_least_one_of_each(field: str) -> None:
    sizes = {"num_classes": 2, "components": 2, "dim": 2, field: 0}
    with pytest.raises(InputError, match=f"{field}: got 0; accepted: 1 or more"):
        ClassMixture(**sizes)  # type: ignore[arg-type]


PATHS = [GatedPooling, SlotReadout, FusedPooling]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", ["num_classes", "dim", "hidden"])
def test_paths_have_at_least_one_of_each(path: Callable[..., GatedPooling], field: str) -> None:
    sizes = {"num_classes": 2, "dim": 2, "hidden": 2, field: 0}
    with pytest.raises(InputError, match=f"{field}: got 0; accepted: 1 or more"):
        path(**sizes, generator=seeded())


@pytest.mark.parametrize("path", PATHS)
def test_paths_know_two_sides(path: Callable[..., GatedPooling]) -> None:
    made = path(K, D, 5, generator=seeded())
    with pytest.raises(InputError, match=r"side: got 'feat'; accepted: did you mean feature\? one of attention, feat"):
        made.variance(*sample(), side="feat")  # type: ignore[arg-type]
    assert not made.tracked().any()


@pytest.mark.parametrize("path", [GatedPooling, FusedPooling])
def test_gated_paths_know_two_objectives(path: Callable[..., GatedPooling]) -> None:
    with pytest.raises(InputError, match=r"objective: got 'advers'; accepted: did you mean adversarial\? one of"):
        path(K, D, 5, objective="advers", generator=seeded())


def test_noise_on_slots_is_a_deviation() -> None:
    for noise in (-1.0, math.nan):
        with pytest.raises(InputError, match=r"noise: got .*0 or more"):
            SlotReadout(K, D, 5, noise=noise, generator=seeded())


def test_no_class_present_presses_nothing() -> None:
    nobody = torch.zeros(2, dtype=torch.bool)
    v = torch.ones(2, D, requires_grad=True)
    for loss in (log_variance_penalty(v, nobody, floor=0.1, gamma=0.01), mean_log_variance(v, nobody, gamma=0.01)):
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, v)
        assert not gradient.any()


def test_the_floor_under_variances_is_positive() -> None:
    v, present = torch.ones(2, D), torch.ones(2, dtype=torch.bool)
    for gamma in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"gamma: got .* above 0"):
            log_variance_penalty(v, present, floor=0.0, gamma=gamma)
        with pytest.raises(InputError, match=r"gamma: got .* above 0"):
            mean_log_variance(v, present, gamma=gamma)
    for floor in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"floor: got .* 0 or more"):
            log_variance_penalty(v, present, floor=floor, gamma=0.01)
    assert float(log_variance_penalty(v, present, floor=0.0, gamma=1.0)) == pytest.approx(math.log(2))
