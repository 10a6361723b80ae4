"""The latent prior attack: what it searches it finds, under every threat model; it resumes to the last bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_toys import generator, identity_split, make_images, make_knowledge, make_split, runtime, target_of
from torch import Tensor, nn

from sfumato.attacks import THREAT_MODELS, Knowledge, LatentPriorAttack, Learned, Reconstruction, ThreatModel, WhiteBox
from sfumato.attacks.feature.latent_prior import _Search, _sent, least_squares_share
from sfumato.attacks.feature.latent_search import feature_gap
from sfumato.data import load
from sfumato.defenses.dropout import FeatureDropout
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import InputError, Interrupted
from sfumato.models import Dropout, SplitModel, set_generator
from sfumato.training import make_fabric

SMALL = LatentPriorAttack(
    latent_channels=2, width=4, epochs=2, batch_size=8, lr=0.01, restarts=2, steps=4, step_size=0.2, refine_steps=4
)
VICTIMS = {"test": make_images(6, seed=12)}


def attack(
    spec: LatentPriorAttack = SMALL,
    threat_model: ThreatModel = "white-box",
    model: SplitModel | None = None,
    **options: Any,
) -> Reconstruction:
    target = target_of(model or make_split(), threat_model)
    return spec(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime(**options))


def learned(spec: LatentPriorAttack, threat_model: ThreatModel) -> tuple[Learned, Tensor]:
    target = target_of(make_split(), threat_model)
    made = spec.run(target, make_knowledge(), generator=generator(0), runtime=runtime())
    return made, target.query(VICTIMS["test"].images / 255)


def same(a: Reconstruction, b: Reconstruction) -> bool:
    equal = all(torch.equal(a.images[name], b.images[name]) for name in a.images)
    return equal and (a.figures, a.queries, a.diverged) == (b.figures, b.queries, b.diverged)


class Stop:
    """Asks to stop at the k-th time."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


# Two epochs of three steps a network: prior, encoder, edge; then the search.
@pytest.mark.parametrize(
    ("threat_model", "stop"),
    [("white-box", 2), ("white-box", 9), ("white-box", 15), ("gray-box", 8), ("gray-box", 14), ("black-box", 20)],
)
def test_resumes_to_the_last_bit(threat_model: ThreatModel, stop: int, tmp_path: Path) -> None:
    whole = attack(threat_model=threat_model)
    with pytest.raises(Interrupted):
        attack(threat_model=threat_model, folder=tmp_path, should_stop=Stop(stop))
    assert same(attack(threat_model=threat_model, folder=tmp_path), whole)
    assert same(attack(threat_model=threat_model, folder=tmp_path), whole), "from the finished checkpoints"


def test_resumes_within_a_budget(tmp_path: Path) -> None:
    spec = dataclasses.replace(SMALL, queries=60, observations=2)
    whole = attack(spec, "gray-box")
    with pytest.raises(Interrupted):
        attack(spec, "gray-box", folder=tmp_path, should_stop=Stop(14))
    assert same(attack(spec, "gray-box", folder=tmp_path), whole)
    assert whole.queries <= 60


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_the_search_lowers_its_objective_and_keeps_the_best_start(threat_model: ThreatModel) -> None:
    made, z = learned(dataclasses.replace(SMALL, restarts=1, steps=0), threat_model)
    search = made.invert
    assert isinstance(search, _Search)
    values = {}
    for restarts, steps in ((1, 0), (1, 20), (4, 0), (4, 20)):
        search._spec = dataclasses.replace(SMALL, restarts=restarts, steps=steps, step_size=0.01)
        search._generator.manual_seed(5)
        values[restarts, steps] = search.latents(z)[1]
    assert (values[1, 20] < values[1, 0]).all()
    assert (values[4, 0] <= values[1, 0]).all()
    assert (values[4, 20] <= values[1, 20]).all()
    w, value = search.latents(z)
    with torch.no_grad():
        picture, guessed = search._generate(w), search._generate(search._encode(z))
        twin = feature_gap(search._send(picture), z, search._scale) + 1e-4 * w.square().flatten(1).mean(1)
        twin += search._doubt * (picture - guessed).square().flatten(1).mean(1)
    torch.testing.assert_close(value, twin, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_refining_lowers_its_objective(threat_model: ThreatModel) -> None:
    made, z = learned(SMALL, threat_model)
    search = made.invert
    assert isinstance(search, _Search)
    picture = search._generate(search.latents(z)[0])
    search._spec = dataclasses.replace(SMALL, refine_steps=0)
    before = search.refined(picture, z)[1]
    search._spec = dataclasses.replace(SMALL, refine_steps=20)
    refined, after = search.refined(picture, z)
    assert (after < before).all()
    assert 0 <= float(refined.min()) <= float(refined.max()) <= 1


def test_white_box_expects_the_channels_mean_and_passes_gradients() -> None:
    channel = FeatureDropout(0.25)
    model = identity_split(channel)
    set_generator(model, generator(0))
    target = target_of(model, "white-box")
    assert isinstance(target, WhiteBox)
    x = (VICTIMS["test"].images / 255).requires_grad_()
    sent = _sent(target, x)
    torch.testing.assert_close(sent, 0.75 * x)
    sent.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.75))
    assert target.queries == 0


def test_only_a_white_box_uses_the_weights() -> None:
    """What a gray-box search descends on is an edge that it has taught itself; its architecture may be all it has."""
    for threat_model, parts in (("white-box", 2), ("gray-box", 3), ("black-box", 3)):
        titles: list[str] = []

        class Bar:
            def start(self, title: str, total: int, done: int = 0, seen: list[str] = titles) -> None:
                seen.append(title)

            def advance(self, steps: int = 1) -> None: ...
            def note(self, text: str) -> None: ...
            def finish(self) -> None: ...

        made = attack(threat_model=threat_model, progress=Bar())  # type: ignore[arg-type]
        names = [title.removeprefix("attack: latent_prior, ") for title in titles]
        # On its own images first; then on the victims, where that deserves any trust.
        searches = 2 if made.figures["trust"] > 0 else 1
        assert names == [*["prior", "encoder", "edge"][:parts], *["search"] * searches]
        assert ("edge_mse_after" in made.figures) == (parts == 3)
        # Each part that needs queries: before, after each epoch, at the end; the features' scale and the doubt once.
        assert made.queries == (parts - 1) * (9 * 4 + 2 * 24) + 24 + 9


def test_an_edge_without_weights_needs_no_teaching() -> None:
    made = attack(threat_model="gray-box", model=identity_split())
    assert "edge_mse_after" not in made.figures
    assert torch.isfinite(made.quality["test"].mse).all()


def test_victims_do_not_bear_on_each_other() -> None:
    spec = dataclasses.replace(SMALL, restarts=1)
    made, z = learned(spec, "white-box")
    torch.testing.assert_close(made.invert(z)[:2], made.invert(z[:2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        *({"latent_channels": 3}, {"halvings": 1}, {"width": 5}, {"divergence_weight": 0.5}, {"epochs": 1}),
        *({"lr": 0.003}, {"batch_size": 12}, {"restarts": 3}, {"steps": 9}, {"step_size": 0.02}),
        *({"prior_weight": 3.0}, {"refine_steps": 0}, {"refine_step_size": 0.1}, {"tv": 5.0}, {"pull": 50.0}),
        {"beta2": 0.9},
    ],
    ids=str,
)
def test_every_option_tells(change: dict[str, Any]) -> None:
    (name,) = change
    spec = dataclasses.replace(SMALL, restarts=1, steps=0) if name == "restarts" else SMALL
    model = make_split(defended=False)  # noise would hold the search back
    whole, changed = (attack(one, model=model) for one in (spec, dataclasses.replace(spec, **change)))
    assert not torch.equal(whole.images["test"], changed.images["test"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("latent_channels", "width", "epochs", "restarts")),
        *((name, -1) for name in ("halvings", "steps", "refine_steps")),
        *((name, value) for name in ("lr", "step_size", "refine_step_size") for value in (0.0, float("nan"))),
        *((name, -1.0) for name in ("divergence_weight", "prior_weight", "tv", "pull")),
        *(("beta2", -0.1), ("beta2", 1.0), ("tv", float("inf")), ("batch_size", 1), ("images", 1)),
    ],
)
def test_arguments_are_validated(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"latent_prior\.{field}"):
        LatentPriorAttack(**{field: value})


def test_an_image_that_cannot_be_halved_so_often() -> None:
    LatentPriorAttack(halvings=4).check((1, 16, 16), (3,), "black-box")
    LatentPriorAttack().check((1, 16, 16), (2, 32, 32), "gray-box")
    with pytest.raises(InputError, match="no side longer"):
        LatentPriorAttack().check((1, 16, 16), (2, 32, 32), "black-box")
    with pytest.raises(InputError, match=r"latent_prior\.halvings: got 5; accepted: 0 to 4"):
        LatentPriorAttack(halvings=5).check((1, 16, 16), (3,), "black-box")


def test_a_feature_that_is_no_map() -> None:
    model = identity_split().with_parts(edge=nn.Sequential(nn.Flatten(), nn.Linear(256, 7)))
    for threat_model in THREAT_MODELS:
        assert attack(threat_model=threat_model, model=model).images["test"].shape == (6, 1, 16, 16)


def test_divergence_is_flagged() -> None:
    made = attack(dataclasses.replace(SMALL, lr=1e30))
    assert made.diverged
    assert torch.isfinite(made.quality["test"].mse).all()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(precision: str) -> None:
    exact = attack(threat_model="gray-box")
    where = dataclasses.replace(runtime(), fabric=make_fabric("cpu", precision))
    target = target_of(make_split(), "gray-box")
    made = SMALL(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=where)
    assert made.images["test"].dtype == torch.float32
    assert float(made.quality["test"].mse.mean()) == pytest.approx(float(exact.quality["test"].mse.mean()), rel=0.2)


@pytest.mark.slow
def test_rebuilds_digits_and_the_weights_help() -> None:
    data = load("digits", seed=0, image_size=16, auxiliary=0.3)
    assert data.auxiliary is not None
    mine = Knowledge(data.auxiliary, data.validation, "auxiliary")
    victims = {"test": data.test.select(torch.arange(64))}
    spec = LatentPriorAttack(latent_channels=4, width=8, epochs=6, lr=0.01, batch_size=32, restarts=1, steps=40)
    spec = dataclasses.replace(spec, refine_steps=40)
    errors: dict[str, float] = {}
    for threat_model in THREAT_MODELS:
        target = target_of(make_split(defended=False), threat_model)
        made = spec(target, mine, victims, generator=generator(0), runtime=runtime())
        errors[threat_model] = float(made.quality["test"].mse.mean())
    x = victims["test"].images / 255
    mean_image = float((x - (data.auxiliary.images / 255).mean(0)).square().mean())
    assert errors["white-box"] < 0.25 * mean_image
    assert errors["white-box"] < 0.7 * min(errors["gray-box"], errors["black-box"])
    # A poor imitation is no worse than what the encoder guesses.
    assert max(errors["gray-box"], errors["black-box"]) < 0.5 * mean_image


@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_noise_is_what_the_edge_is_doubted_for(sigma: float) -> None:
    """White-box the expectation is exact: what is left is the channel's variance, here over that of the whole."""
    model = identity_split(AdditiveNoise(sigma, "gaussian"))
    set_generator(model, generator(0))
    target = target_of(model, "white-box")
    made = SMALL.run(target, make_knowledge(), generator=generator(0), runtime=runtime())
    search = made.invert
    assert isinstance(search, _Search)
    pixels = make_knowledge().train.images / 255
    total = float(pixels.var(0, correction=0).mean()) + sigma**2 * 23 / 24
    assert search._scale == pytest.approx(total, rel=0.05)
    assert search._doubt == pytest.approx(sigma**2 / search._scale / made.figures["mse_after"], rel=0.1)


def test_a_gray_box_teaches_the_deployed_edge() -> None:
    """Dropout inside the edge is off where it is deployed, and so in what imitates it."""
    edge = SMALL._surrogate(target_of(make_split(defended=False), "gray-box"), generator(0))
    assert [layer.p for layer in edge.modules() if isinstance(layer, Dropout)] == [0.0]


def test_trust_is_the_share_of_least_squared_error() -> None:
    x, start, end = (torch.rand(5, 1, 4, 4, generator=generator(seed)) for seed in (1, 2, 3))
    shares = torch.linspace(0, 1, 1001)
    errors = torch.stack([(start.lerp(end, float(share)) - x).square().mean() for share in shares])
    assert 0 < float(shares[errors.argmin()]) < 1
    assert least_squares_share(x, start, end) == pytest.approx(float(shares[errors.argmin()]), abs=1e-3)
    assert least_squares_share(end, start, end) == pytest.approx(1)
    assert least_squares_share(2 * end - start, start, end) == 1, "no further"
    assert least_squares_share(2 * start - end, start, end) == 0, "not backwards"
    assert least_squares_share(x, start, start) == 0
    assert least_squares_share(x, start, end * torch.nan) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("threat_model", ["gray-box", "black-box"])
def test_an_edge_that_was_taught_leads_no_further_astray_than_the_encoder(threat_model: ThreatModel, seed: int) -> None:
    data = load("digits", seed=seed, image_size=16, auxiliary=0.3)
    assert data.auxiliary is not None
    spec = LatentPriorAttack(latent_channels=4, width=8, epochs=6, lr=0.01, batch_size=32, restarts=1, steps=40)
    target = target_of(make_split(defended=False), threat_model)
    mine = Knowledge(data.auxiliary, data.validation, "auxiliary")
    search = (
        dataclasses.replace(spec, refine_steps=40)
        .run(target, mine, generator=generator(seed), runtime=runtime())
        .invert
    )
    assert isinstance(search, _Search)
    x = data.test.images[:200] / 255
    z = target.query(x)
    alone, found, whole = (
        float((made - x).square().mean()) for made in (search._guess(z)[1], search.found(z), search(z))
    )
    assert found > 1.01 * alone, "such an edge deserves little trust"
    assert whole < 1.005 * alone
