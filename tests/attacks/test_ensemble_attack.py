"""The ensemble: weights in closed form and against SciPy; never behind its best decoder; budget, options, resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_toys import generator, identity_split, make_images, make_knowledge, make_split, runtime, target_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sfumato.attacks import DecoderAttack, EnsembleAttack, Knowledge
from sfumato.attacks.feature.ensemble import simplex_weights
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import InputError, Interrupted

VICTIMS = {"test": make_images(7, seed=12)}
SMALL = EnsembleAttack(architectures=("residual", "unet"), depth=1, width=8, epochs=4, lr=0.01, batch_size=8)


class TestWeights:
    def test_independent_errors_weigh_by_their_precision(self) -> None:
        found = simplex_weights(torch.diag(torch.tensor([1.0, 2.0, 4.0])))
        torch.testing.assert_close(found, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7)

    def test_one_that_adds_its_own_error_to_anothers_has_no_weight(self) -> None:
        """Without the bound at 0 its weight would be negative: it tells the other's error."""
        found = simplex_weights(torch.tensor([[1.0, 1.5], [1.5, 3.0]]))
        assert found.tolist() == [1.0, 0.0]

    def test_equals_share(self) -> None:
        torch.testing.assert_close(simplex_weights(torch.ones(3, 3)).sum(), torch.tensor(1.0, dtype=torch.float64))
        assert simplex_weights(torch.tensor([[1.0, 0.5], [0.5, 1.0]])).tolist() == pytest.approx([0.5, 0.5])

    def test_without_an_error(self) -> None:
        assert simplex_weights(torch.diag(torch.tensor([1.0, 0.0]))).tolist() == [0.0, 1.0]
        assert float(simplex_weights(torch.zeros(2, 2)).sum()) == 1

    def test_what_diverged_has_no_weight(self) -> None:
        products = torch.tensor([[float("nan"), float("nan")], [float("nan"), 2.0]])
        assert simplex_weights(products).tolist() == [0.0, 1.0]
        assert simplex_weights(torch.full((2, 2), float("nan"))).tolist() == [1.0, 0.0]

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**31 - 1), st.integers(2, 4))
    def test_no_other_weights_are_better(self, seed: int, count: int) -> None:
        errors = torch.randn(count, 6, generator=generator(seed), dtype=torch.float64)
        products = errors @ errors.T / 6
        found = simplex_weights(products)
        assert float(found.min()) >= 0
        assert float(found.sum()) == pytest.approx(1)
        matrix = products.numpy()
        slow = minimize(
            lambda w: w @ matrix @ w,
            [1 / count] * count,
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert float(found @ products @ found) <= slow.fun + 1e-6


def mine() -> Knowledge:
    return Knowledge(make_images(40, seed=3), make_images(12, seed=4), "auxiliary")


def decoder_alone(architecture: Any) -> DecoderAttack:
    (decoder,) = (one for one in SMALL.decoders if one.architecture == architecture)
    return decoder


def test_on_the_images_that_it_selects_on_it_is_never_behind_a_decoder() -> None:
    """Through an edge that answers alike each time, so that a decoder by itself sees the same."""
    own = mine()
    target, drawn = target_of(make_split(defended=False)), generator(0)
    learned = SMALL.run(target, own, generator=drawn, runtime=runtime())
    again, errors = generator(0), {}
    x = own.validation.images / 255
    z = target.query(x)
    for architecture in SMALL.architectures:
        alone = decoder_alone(architecture).run(
            target_of(make_split(defended=False)), own, generator=again, runtime=runtime()
        )
        errors[architecture] = float((alone.invert(z) - x).square().mean())
    together = float((learned.invert(z) - x).square().mean())
    assert together == pytest.approx(learned.figures["mse_after"], rel=1e-4)
    assert together <= min(errors.values()) * (1 + 1e-4)
    weights = [learned.figures[f"weight_{architecture}"] for architecture in SMALL.architectures]
    assert sum(weights) == pytest.approx(1)
    assert learned.figures["mse_before"] > together


def test_a_decoder_that_diverges_has_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    train = DecoderAttack.train

    def poisoned(self: DecoderAttack, *args: Any, **kwargs: Any) -> Any:
        network, fitted = train(self, *args, **kwargs)
        if self.architecture == "residual":
            for parameter in network.parameters():
                parameter.data.fill_(float("nan"))
        return network, fitted

    monkeypatch.setattr(DecoderAttack, "train", poisoned)
    target = target_of(make_split(defended=False))
    made = SMALL(target, mine(), VICTIMS, generator=generator(0), runtime=runtime())
    assert (made.figures["weight_residual"], made.figures["weight_unet"]) == (0, 1)
    assert 0 < made.figures["mse_after"] < made.figures["mse_before"]
    assert not made.diverged


def test_decoders_share_a_limit_of_queries() -> None:
    noisy = identity_split(AdditiveNoise(0.1, "gaussian"))
    limited = dataclasses.replace(SMALL, queries=30)
    target = target_of(noisy)
    made = limited(target, mine(), VICTIMS, generator=generator(0), runtime=runtime())
    assert made.queries == target.queries <= 30
    free = SMALL(target_of(noisy), mine(), VICTIMS, generator=generator(0), runtime=runtime())
    assert free.queries > 2 * SMALL.epochs * 40


def test_stopped_in_any_decoder_it_ends_in_the_same_pictures(tmp_path: Path) -> None:
    noisy = identity_split(AdditiveNoise(0.1, "gaussian"))

    def run(folder: Path, **options: Any) -> Any:
        where = runtime(folder=folder, checkpoint_seconds=0.0, **options)
        return SMALL(target_of(noisy), mine(), VICTIMS, generator=generator(0), runtime=where)

    whole = run(tmp_path / "whole")
    stops = 0
    while True:
        left = [7]

        def should_stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] <= 0

        try:
            resumed = run(tmp_path / "parts", should_stop=should_stop)
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert {path.name for path in (tmp_path / "parts").iterdir()} >= {"residual", "unet"}
    assert torch.equal(whole.images["test"], resumed.images["test"])
    assert whole.figures == resumed.figures
    assert whole.queries == resumed.queries


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architectures": ("unet",)}, r"ensemble\.architectures: got \('unet',\); accepted: two or more, each once"),
        ({"architectures": ("unet", "unet")}, r"ensemble\.architectures"),
        ({"architectures": ("unet", "unett")}, r"ensemble\.architectures: got 'unett'; accepted: did you mean unet"),
        ({"epochs": 0}, r"ensemble\.epochs"),
        ({"width": 0}, r"ensemble\.width"),
        ({"lr": 0.0}, r"ensemble\.lr"),
        ({"patience": 0}, r"ensemble\.patience"),
        ({"weight_decay": -1.0}, r"ensemble\.weight_decay"),
        ({"beta2": 1.0}, r"ensemble\.beta2"),
        ({"batch_size": 1}, r"ensemble\.batch_size"),
        ({"depth": -1}, r"ensemble\.depth"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EnsembleAttack(**arguments)


def test_a_feature_that_no_decoder_inverts() -> None:
    SMALL.check((1, 16, 16), (4, 8, 8), "black-box")
    with pytest.raises(InputError):
        SMALL.check((1, 16, 16), (4, 32, 32), "black-box")


@pytest.mark.parametrize(
    "change",
    [
        *({"depth": 2}, {"width": 12}, {"epochs": 2}, {"lr": 0.002}, {"batch_size": 16}, {"weight_decay": 0.3}),
        *({"beta2": 0.9}, {"architectures": ("residual", "transformer")}),
    ],
)
def test_every_option_changes_the_pictures(change: dict[str, Any]) -> None:
    split, own = make_split(defended=False), make_knowledge()
    made = [
        attack(target_of(split), own, VICTIMS, generator=generator(0), runtime=runtime()).images["test"]
        for attack in (SMALL, dataclasses.replace(SMALL, **change))
    ]
    assert not torch.equal(*made)


def test_patience_is_each_decoders(tmp_path: Path) -> None:
    spec = dataclasses.replace(SMALL, lr=1e-12, epochs=6, patience=1)
    spec(
        target_of(make_split(defended=False)),
        make_knowledge(),
        VICTIMS,
        generator=generator(0),
        runtime=runtime(folder=tmp_path),
    )
    for architecture in spec.architectures:
        rows = (tmp_path / architecture / "metrics.jsonl").read_text().splitlines()
        assert len(rows) < 6
