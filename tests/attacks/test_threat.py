"""A target exposes what its threat model says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_toys import generator, identity_split, make_images, make_split, target_of
from torch import Tensor, nn

from sfumato.attacks import THREAT_MODELS, GrayBox, ThreatModel, WhiteBox, make_target
from sfumato.defenses import Noise
from sfumato.errors import BudgetError, InputError
from sfumato.models import SplitModel, Stochastic, set_generator

X = make_images(10).images / 255


def reachable(thing: Any, found: dict[int, Any], depth: int = 15) -> dict[int, Any]:
    """Everything that attributes and containers lead to; functions are not looked into."""
    if id(thing) in found or depth == 0:
        return found
    found[id(thing)] = thing
    if isinstance(thing, dict):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        inner = list(thing)
    elif isinstance(thing, (str, int, float, type(None), torch.Generator, torch.Tensor)):
        inner = []
    else:
        names = {name for name in dir(thing) if not (name.startswith("__") and name.endswith("__"))}
        inner = [getattr(thing, name, None) for name in names | set(getattr(thing, "__dict__", {}))]
        inner = [value for value in inner if not callable(value) or isinstance(value, nn.Module)]
    for value in inner:
        reachable(value, found, depth - 1)
    return found


def tensors(target: Any) -> list[torch.Tensor]:
    return [value for value in reachable(target, {}).values() if isinstance(value, torch.Tensor)]


def test_black_box_has_no_way_to_a_module() -> None:
    target = target_of(make_split())
    found = reachable(target, {}).values()
    assert not [value for value in found if isinstance(value, (nn.Module, torch.Tensor))]
    assert not hasattr(target, "architecture")
    assert not hasattr(target, "edge")
    public = {name for name in dir(target) if not name.startswith("_")}
    assert public == {
        *("threat_model", "image_shape", "feature_shape", "queries"),
        *("observations", "remaining", "under"),
        *("query", "state_dict", "load_state_dict"),
    }


def test_the_walk_finds_what_there_is_to_find() -> None:
    target = target_of(make_split())
    mine = generator(3)
    model = make_split()
    set_generator(model, mine)
    target.hidden = {"a": [model]}  # type: ignore[attr-defined]
    assert tensors(target)
    assert any(value is mine for value in reachable(target, {}).values())


def test_gray_box_has_none_of_the_weights() -> None:
    model = make_split()
    target = target_of(model, "gray-box")
    assert isinstance(target, GrayBox)
    assert not isinstance(target, WhiteBox)
    assert not hasattr(target, "edge")
    learned = [p for p in model.parameters() if p.abs().sum() > 0 and not (p == 1).all()]
    learned += [layer.running_mean for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(learned) > 4
    for exposed in [*tensors(target), *target.architecture(generator=generator(5)).state_dict().values()]:
        for secret in learned:
            assert exposed.shape != secret.shape or not torch.allclose(exposed, secret)


def test_gray_box_architecture() -> None:
    model = make_split()
    target = target_of(model, "gray-box")
    edge = target.architecture(generator=generator(5))
    assert str(edge) == str(model.edge)
    assert [(n, p.shape) for n, p in edge.named_parameters()] == [
        (n, p.shape) for n, p in model.edge.named_parameters()
    ]
    again, other = target.architecture(generator=generator(5)), target.architecture(generator=generator(6))
    assert torch.equal(edge[1][0].weight, again[1][0].weight)
    assert not torch.equal(edge[1][0].weight, other[1][0].weight)
    assert all(p.requires_grad for p in edge.parameters())
    assert edge(X).shape[1:] == target.feature_shape
    with torch.no_grad():
        edge[1][0].weight.add_(1)
    assert not torch.equal(edge[1][0].weight, target.architecture(generator=generator(5))[1][0].weight)


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_no_way_to_the_models_own_random_numbers(threat_model: ThreatModel) -> None:
    model, mine = make_split(), generator(3)
    set_generator(model, mine)
    found = reachable(target_of(model, threat_model), {}).values()
    assert not [value for value in found if value is mine]


def test_gray_box_architecture_draws_from_the_attackers_generator() -> None:
    model, mine = make_split(), generator(3)
    set_generator(model, mine)
    state = mine.get_state()
    edge = target_of(model, "gray-box").architecture(generator=generator(5))
    edge.train()
    edge(X)
    assert torch.equal(mine.get_state(), state)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)]
)
def test_gray_box_architecture_is_alive_whatever_its_normalization(layer: nn.Module) -> None:
    """Erased weights come back as fresh ones: a layer left at zero would be no architecture to attack with."""
    made = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer)
    made.train()(X)
    secrets = {name: value.clone() for name, value in made.state_dict().items() if "running" in name}
    model = identity_split().with_parts(edge=made)
    state = torch.random.get_rng_state()
    target = target_of(model, "gray-box")
    edge = target.architecture(generator=generator(5))
    assert float(edge(X).detach().std()) > 0.1
    for name, value in secrets.items():
        assert not torch.allclose(target.architecture(generator=generator(5)).state_dict()[name], value)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"


class Attentive(nn.Module):
    """Patches as tokens with places, through attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(1, 8, 4, stride=4)
        self.place = nn.Parameter(torch.ones(1, 1, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.bend = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2)).mT + self.place
        return self.bend(self.attend(tokens, tokens, tokens, need_weights=False)[0])


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(Attentive, id="attention"),
        pytest.param(lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)), id="parametrized"),
        pytest.param(lambda: nn.utils.spectral_norm(nn.Conv2d(1, 4, 3)), id="by a hook"),
        pytest.param(lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), id="weight norm"),
    ],
)
def test_gray_box_architecture_can_learn_whatever_its_layers(made: Callable[[], nn.Module]) -> None:
    """A query and a key matrix that are both zero have no gradient, and would stay so for ever."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = made()
    state = torch.random.get_rng_state()
    edge, again = (
        target_of(identity_split().with_parts(edge=original), "gray-box").architecture(generator=generator(5)).train()
        for _ in range(2)
    )
    sent = edge(X)
    assert sent.isfinite().all()
    sent.square().sum().backward()
    for (name, mine), (_, same), (_, secret) in zip(
        edge.named_parameters(), again.named_parameters(), original.named_parameters(), strict=True
    ):
        assert mine.grad is not None, name
        assert mine.grad.abs().sum() > 0, name
        assert torch.equal(mine, same), name
        assert "bias" in name or not torch.allclose(mine, secret), name
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"


def test_white_box_is_a_frozen_copy() -> None:
    model = make_split()
    target = target_of(model, "white-box")
    assert isinstance(target, WhiteBox)
    for part, original in ((target.edge, model.edge), (target.channel, model.channel)):
        assert not any(layer.training for layer in part.modules())
        assert not any(p.requires_grad for p in part.parameters())
        for name, value in original.state_dict().items():
            assert torch.equal(part.state_dict()[name], value)
    x = X.clone().requires_grad_()
    target.edge(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer = target_of(model, "white-box").query(X)
    with torch.no_grad():
        for parameter in target.edge.parameters():
            parameter.fill_(3.0)
    assert torch.equal(target.query(X), answer), "queries are answered by the model, not by what was made of its copy"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_the_model_is_left_as_it_was(threat_model: ThreatModel) -> None:
    model, mine = make_split(), generator(3)
    set_generator(model, mine)
    model.train()
    model.cloud.eval()
    modes = [layer.training for layer in model.modules()]
    before, state = {n: v.clone() for n, v in model.state_dict().items()}, mine.get_state()
    target = target_of(model, threat_model)
    target.query(X)
    assert [layer.training for layer in model.modules()] == modes
    assert all(layer.generator is mine for layer in model.modules() if isinstance(layer, Stochastic))
    assert torch.equal(mine.get_state(), state)
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_later_training_does_not_change_a_target(threat_model: ThreatModel) -> None:
    model = make_split()
    target, answer = target_of(model, threat_model), target_of(model, threat_model).query(X)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(target.query(X), answer)


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_the_channel_is_on_and_the_rest_in_evaluation_mode(threat_model: ThreatModel) -> None:
    sigma = 0.3
    layer = Noise(sigma).bind(identity_split().with_parts(edge=nn.Sigmoid(), bounds=(0, 1)), generator=generator(0))
    target = target_of(identity_split(layer.channel()), threat_model)
    noise = torch.cat([target.query(X) - X for _ in range(20)])
    assert float(noise.std()) == pytest.approx(sigma, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    plain = target_of(make_split(defended=False), threat_model)  # has dropout and batch norm in its edge
    assert torch.equal(plain.query(X), plain.query(X))
    torch.testing.assert_close(plain.query(X)[:1], plain.query(X[:1]), rtol=1e-4, atol=1e-5)


def test_queries_are_counted_and_drawn_from_the_generator() -> None:
    target = target_of(make_split())
    assert target.queries == 0
    first = target.query(X)
    target.query(X[:3])
    target.query(X[:0])
    assert target.queries == 13
    assert torch.equal(first, target_of(make_split()).query(X))
    assert not torch.equal(first, target_of(make_split(), seed=8).query(X))
    assert not first.requires_grad


def test_many_images_at_once_are_what_they_are_in_parts() -> None:
    many = make_images(600).images / 255
    target, parts = target_of(make_split()), target_of(make_split())
    whole = target.query(many)
    torch.testing.assert_close(whole, torch.cat([parts.query(many[:512]), parts.query(many[512:])]))
    assert target.queries == 600


def test_state_round_trip() -> None:
    target = target_of(make_split())
    target.query(X)
    saved = target.state_dict()
    expected = [target.query(X) for _ in range(2)]
    fresh = target_of(make_split(), seed=1)
    fresh.load_state_dict(saved)
    assert fresh.queries == 10
    assert all(torch.equal(fresh.query(X), answer) for answer in expected)


def test_what_was_sent_cannot_be_unsent() -> None:
    """An attacker has a limit although it may keep and restore the state of its target."""
    target = target_of(make_split()).under(queries=12)
    saved = target.state_dict()
    target.query(X)
    target.load_state_dict(saved)
    assert (target.queries, target.remaining) == (10, 2)
    target.load_state_dict(target.state_dict() | {"queries": 11})
    assert target.remaining == 1
    with pytest.raises(BudgetError):
        target.query(X)


def test_shapes_and_names() -> None:
    for threat_model in THREAT_MODELS:
        target = target_of(make_split(), threat_model)
        assert (target.image_shape, target.feature_shape) == ((1, 16, 16), (2, 4, 4))
        assert target.threat_model == threat_model
    with pytest.raises(InputError, match="did you mean white-box"):
        make_target(make_split(), "white box", generator=generator(0))  # type: ignore[arg-type]


def test_double_precision_models_are_queried_in_their_precision() -> None:
    model: SplitModel = make_split(defended=False).double()
    assert target_of(model).query(X).shape == (10, 4, 4, 4)
