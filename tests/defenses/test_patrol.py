"""PATROL: a deeper edge, pruned back to the size of the usual one, under a Lipschitz penalty."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import metrics
from sfumato.defenses import (
    Bottleneck,
    BoundDefense,
    Change,
    Context,
    DeeperEdge,
    Epoch,
    Lipschitz,
    Noise,
    Prune,
    build,
    chain,
)
from sfumato.defenses.lipschitz import largest_quotients
from sfumato.defenses.prune import taylor_importance
from sfumato.errors import InputError
from sfumato.models import SplitModel, pruning, set_generator, split
from sfumato.models import build as build_backbone
from sfumato.storage import save_state

SHAPE = (3, 16, 16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(name: str = "vgg11", width: float = 0.1) -> SplitModel:
    network = build_backbone(name, 4, (3, 32, 32), width=width, generator=seeded())
    return split(network, network.default_cut, image_shape=(3, 32, 32))


def images(n: int = 12, size: int = 32) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, size, size, generator=seeded(9)), torch.arange(n) % 4


def batches() -> Any:
    x, y = images()
    return zip(x.split(5), y.split(5))


def bound_to(defense: Any, before: SplitModel | None = None) -> tuple[BoundDefense, SplitModel]:
    before = before or whole()
    bound = defense.bind(before, generator=seeded(1))
    model = bound.defend(before)
    set_generator(model, seeded(2))
    return bound, model.train()


def change_of(bound: BoundDefense, model: SplitModel, index: int = 3, total: int = 4, seed: int = 3) -> Change | None:
    return bound.epoch_start(Epoch(index, total, lambda: iter(()), seeded(seed), batches, model))


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class TestSize:
    def test_vgg11_comes_back_to_the_reference_encoder(self, tmp_path: Path) -> None:
        """85,256 parameters within 2 %, less work, smaller on disk; ``benchmarks.patrol`` has its latency."""
        _, reference = bound_to(build("bottleneck"), whole(width=1.0))
        assert size(reference.edge) == 85_256
        bound, model = bound_to(build("patrol"), whole(width=1.0))
        change = change_of(bound, model)
        assert change is not None
        before, after = metrics.split_cost(model), metrics.split_cost(change.split)
        assert before.edge_parameters == 85_256 + 2 * (128 * 128 * 9 + 128 + 2 * 128)
        assert abs(after.edge_parameters / 85_256 - 1) < 0.02
        assert after.edge_macs < 0.5 * before.edge_macs
        assert (after.cloud_parameters, after.payload_bytes) == (before.cloud_parameters, before.payload_bytes)
        for name, edge in (("before", model.edge), ("after", change.split.edge)):
            save_state(tmp_path / name, edge.state_dict())
        on_disk = {name: (tmp_path / name).stat().st_size for name in ("before", "after")}
        assert on_disk["after"] == pytest.approx(
            on_disk["before"] * after.edge_parameters / before.edge_parameters, rel=0.1
        )

    @pytest.mark.parametrize(("name", "parameters"), [("vgg16", 270_152), ("resnet20", 6_296), ("resnet18", 80_456)])
    def test_other_backbones_too(self, name: str, parameters: int) -> None:
        _, reference = bound_to(build("bottleneck"), whole(name, 1.0))
        assert size(reference.edge) == parameters
        bound, model = bound_to(build("patrol"), whole(name, 1.0))
        members = bound.members  # type: ignore[attr-defined]
        importance = {
            group.producer: torch.rand(group.channels, generator=seeded(4)) for group in pruning.groups(model.edge)
        }
        kept = pruning.choose(model.edge, importance, members[2]._target)
        assert abs(size(pruning.prune(model.edge, kept)) / parameters - 1) < 0.02

    @pytest.mark.parametrize("keep", [0.3, 0.7])
    def test_a_wanted_fraction(self, keep: float) -> None:
        bound, model = bound_to(chain(Bottleneck(4), Prune(keep=keep)), whole(width=0.5))
        change = change_of(bound, model)
        assert change is not None
        assert size(change.split.edge) / size(model.edge) == pytest.approx(keep, abs=0.01)

    def test_an_edge_of_the_wanted_size_is_left_alone(self) -> None:
        bound, model = bound_to(chain(DeeperEdge(1), Bottleneck(4), Prune()))
        change = change_of(bound, model)
        assert change is not None
        assert change_of(bound, change.split) is None

    @pytest.mark.parametrize(
        ("at", "total", "index"),
        [
            (0.75, 240, 180),
            (0.75, 4, 3),
            (0.75, 5, 4),
            (0.2, 6, 1),
            (0.29, 100, 29),
            (0.5, 5, 2),
            (0.0, 9, 0),
            (0.99, 10, 9),
            (0.75, 1, 0),
        ],
    )
    def test_when(self, at: float, total: int, index: int) -> None:
        bound, model = bound_to(chain(Bottleneck(4), Prune(at, keep=0.5)))
        happens = [i for i in range(total) if abs(i - index) < 3 and change_of(bound, model, i, total) is not None]
        assert happens == [index]


class TestChange:
    def test_the_new_split(self) -> None:
        bound, model = bound_to(chain(DeeperEdge(1), Bottleneck(4), Noise(0.1), Prune()))
        change = change_of(bound, model)
        assert change is not None
        assert change.reason == "pruned"
        after = change.split
        assert after.feature == model.feature
        assert after.feature.bounds == (0, 1)
        assert (after.channel, after.cloud, after.cut) == (model.channel, model.cloud, model.cut)
        assert size(after.edge) < size(model.edge)
        assert after.edge(images()[0]).shape == (12, 4, 8, 8)

    def test_later_parts_get_features_of_the_pruned_edge(self) -> None:
        bound, model = bound_to(chain(DeeperEdge(1), Bottleneck(4), Noise(0.1), Prune(), build({"part": "cem"})))
        seen: list[Epoch] = []
        bound.members[4].epoch_start = seen.append  # type: ignore[attr-defined]
        change = change_of(bound, model)
        assert change is not None
        assert seen[0].split is change.split
        z = torch.cat([z for z, _ in seen[0].features()])
        torch.testing.assert_close(z, change.split.eval().edge(images()[0]))
        assert not torch.allclose(z, model.eval().edge(images()[0]))

    def test_all_processes_agree_and_training_draws_go_on(self) -> None:
        outcomes = []
        for seed in (3, 4):
            bound, model = bound_to(chain(Bottleneck(4), Noise(0.5), Prune(keep=0.5)))
            own = [layer.generator for layer in model.modules() if hasattr(layer, "generator")]
            epoch = Epoch(3, 4, lambda: iter(()), seeded(seed), batches, model)
            before = [generator.get_state() for generator in (*own, epoch.generator)]
            change = bound.epoch_start(epoch)
            after = [generator.get_state() for generator in (*own, epoch.generator)]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert [layer.generator for layer in model.modules() if hasattr(layer, "generator")] == own
            assert change is not None
            outcomes.append(change.split.edge.state_dict())
        assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])

    def test_what_the_first_process_decided_is_done(self) -> None:
        def change(agree: Callable[[Any], Any]) -> Change | None:
            bound, model = bound_to(chain(Bottleneck(4), Noise(0.5), Prune(keep=0.5)))
            return bound.epoch_start(Epoch(3, 4, lambda: iter(()), seeded(3), batches, model, agree))

        seen: list[dict[str, list[int]]] = []
        own = change(lambda kept: seen.append(kept) or kept)
        theirs = change(lambda _: {name: kept[1:] for name, kept in seen[0].items()})
        assert own is not None
        assert theirs is not None
        for group in pruning.groups(own.split.edge):
            here, there = (c.split.edge.get_submodule(group.producer).weight for c in (own, theirs))
            assert len(there) == len(here) - 1

    def test_saved_weights_come_back(self) -> None:
        bound, model = bound_to(build("patrol"))
        change = change_of(bound, model)
        assert change is not None
        other, fresh = bound_to(build("patrol"))
        again = other.restore(fresh, change.split.state_dict())
        again.load_state_dict(change.split.state_dict())
        x = images(3)[0]
        assert torch.equal(again.eval()(x), change.split.eval()(x))
        assert other.restore(fresh, model.state_dict()) is fresh


class TestImportance:
    def test_slow_twin(self) -> None:
        """An image at a time, the derivative of its loss by a factor on each channel, at factor 1."""
        _, model = bound_to(chain(DeeperEdge(1), Bottleneck(4)))
        x, y = images()
        found = taylor_importance(model, batches, seeded())
        twin = copy.deepcopy(model).eval()
        groups = pruning.groups(twin.edge)
        factors = [torch.ones(group.channels, requires_grad=True) for group in groups]
        for group, factor in zip(groups, factors):
            twin.edge.get_submodule(group.consumer).register_forward_pre_hook(
                lambda _, z, factor=factor: (z[0] * factor.view(-1, 1, 1),)
            )
        total = [torch.zeros(group.channels) for group in groups]
        for i in range(len(x)):
            loss = F.cross_entropy(twin(x[i : i + 1]), y[i : i + 1])
            for sums, gradient in zip(total, torch.autograd.grad(loss, factors)):
                sums += gradient.square() / len(x)
        assert list(found) == [group.producer for group in groups]
        for group, expected in zip(groups, total):
            torch.testing.assert_close(found[group.producer], expected, rtol=1e-3, atol=1e-10)

    def test_first_order(self) -> None:
        """For a channel that matters little it is the squared change of the loss without it."""
        _, model = bound_to(chain(Bottleneck(4)))
        model = model.double().eval()
        x, y = (t.double() if t.is_floating_point() else t for t in images(1))
        (group, *_) = pruning.groups(model.edge)
        consumer = model.edge.get_submodule(group.consumer)
        with torch.no_grad():
            consumer.weight[:, 0] *= 1e-4
        loss = F.cross_entropy(model(x), y)
        found = taylor_importance(model, lambda: [(x, y)], seeded())[group.producer]
        with torch.no_grad():
            consumer.weight[:, 0] = 0
            without = F.cross_entropy(model(x), y)
        assert float(found[0]) == pytest.approx(float((without - loss).square().detach()), rel=1e-2)
        assert float(found[0]) > 0

    def test_the_least_important_goes_first(self) -> None:
        bound, model = bound_to(chain(Bottleneck(4), Prune(keep=0.93)))
        group = pruning.groups(model.edge)[1]
        with torch.no_grad():
            model.edge.get_submodule(group.consumer).weight[:, 5] = 0  # nobody reads it
        change = change_of(bound, model)
        assert change is not None
        weights = model.edge.get_submodule(group.producer).weight
        left = change.split.edge.get_submodule(group.producer).weight
        assert len(left) < len(weights)
        assert not any(torch.equal(row, weights[5][: row.shape[0]]) for row in left)

    def test_the_model_is_left_as_it_was(self) -> None:
        _, model = bound_to(chain(Bottleneck(4), Noise(0.1)))
        before = copy.deepcopy(model.state_dict())
        taylor_importance(model, batches, seeded())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(layer.training for layer in model.modules())
        assert all(p.grad is None for p in model.parameters())
        assert not any(layer._forward_pre_hooks for layer in model.modules())


class TestRefused:
    def test_what_to_prune_to(self) -> None:
        with pytest.raises(InputError, match=r"^defense prune: .* accepted: keep, or deeper_edge in the same chain$"):
            chain(Bottleneck(4), Prune()).bind(whole(), generator=seeded())

    def test_nothing_to_prune(self) -> None:
        alone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.Flatten(), nn.Linear(4096, 4)))
        with pytest.raises(InputError, match=r"^defense prune: got 'an edge of a single convolution'"):
            Prune(keep=0.5).bind(split(alone, "0", image_shape=(3, 32, 32)), generator=seeded())

    def test_layers_that_nobody_knows(self) -> None:
        edge = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1))
        odd = nn.Sequential(edge, nn.Sequential(nn.Flatten(), nn.Linear(4096, 4)))
        with pytest.raises(InputError, match=r"^pruning \(a layer of the edge\): got 'GroupNorm'; accepted: "):
            Prune(keep=0.5).bind(split(odd, "0", image_shape=(3, 32, 32)), generator=seeded())

    def test_a_deeper_edge_behind_the_bottleneck(self) -> None:
        with pytest.raises(InputError, match="put deeper_edge before bottleneck"):
            chain(Bottleneck(4), DeeperEdge(1)).bind(whole(), generator=seeded())

    def test_a_deeper_edge_without_places(self) -> None:
        flat = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), nn.Linear(5, 4))
        with pytest.raises(InputError, match="a feature map"):
            DeeperEdge().bind(split(flat, "0", image_shape=SHAPE), generator=seeded())


def test_deeper_edge_adds_its_layers_at_the_end() -> None:
    _, plain = bound_to(chain())
    _, deeper = bound_to(DeeperEdge(3))
    assert deeper.feature.shape == plain.feature.shape
    c = plain.feature.shape[0]
    assert size(deeper.edge) - size(plain.edge) == 3 * (c * c * 9 + c + 2 * c)
    kinds = [type(layer).__name__ for layer in deeper.edge[1]]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    x = images(2)[0]
    torch.testing.assert_close(deeper.eval().edge(x), deeper.edge[1](plain.eval().edge(x)))


class TestLipschitz:
    def test_slow_twin(self) -> None:
        x = torch.rand(7, 3, 4, 4, generator=seeded(1))
        z = torch.rand(7, 2, 3, 3, generator=seeded(2))
        expected = [
            max(float((z[i] - z[j]).norm()) / float((x[i] - x[j]).norm()) for j in range(7) if j != i) for i in range(7)
        ]
        torch.testing.assert_close(largest_quotients(x, z), torch.tensor(expected))

    @pytest.mark.parametrize("factor", [0.0, 0.25, 3.0])
    def test_scaling_has_its_factor_everywhere(self, factor: float) -> None:
        x = torch.rand(6, 3, 4, 4, generator=seeded(1))
        torch.testing.assert_close(largest_quotients(x, factor * x), torch.full((6,), factor))

    def test_never_above_the_constant_of_a_linear_map(self) -> None:
        a = torch.randn(20, 10, generator=seeded(1))
        x = torch.randn(30, 10, generator=seeded(2))
        found = largest_quotients(x, x @ a.T)
        norm = float(torch.linalg.matrix_norm(a, 2))
        assert bool((found <= norm * (1 + 1e-5)).all())
        assert float(found.mean()) > 0.5 * norm

    def test_copies_are_no_neighbors(self) -> None:
        x = torch.tensor([[0.0], [0.0], [2.0]])
        z = torch.tensor([[0.0], [5.0], [1.0]], requires_grad=True)
        found = largest_quotients(x, z)
        torch.testing.assert_close(found, torch.tensor([0.5, 2.0, 2.0]))
        (gradient,) = torch.autograd.grad(found.sum(), z)
        torch.testing.assert_close(gradient, torch.tensor([[-0.5], [1.0], [-0.5]]))

    @pytest.mark.parametrize("n", [1, 3])
    def test_no_neighbor_at_all(self, n: int) -> None:
        z = torch.rand(n, 2, generator=seeded(), requires_grad=True)
        found = largest_quotients(torch.ones(n, 4), z)
        assert torch.equal(found, torch.zeros(n))
        (gradient,) = torch.autograd.grad(found.sum(), z)
        assert gradient.isfinite().all()

    def test_gradient_is_finite_where_features_coincide(self) -> None:
        z = torch.zeros(4, 2, requires_grad=True)
        (gradient,) = torch.autograd.grad(largest_quotients(torch.rand(4, 3, generator=seeded()), z).sum(), z)
        assert torch.equal(gradient, torch.zeros(4, 2))

    def test_loss_is_beta_times_the_mean_on_the_clean_feature(self) -> None:
        bound, model = bound_to(Lipschitz(0.7))
        x, y = images(5)
        z = model.edge(x)
        ctx = Context(x, y, z, z + 100 * torch.rand(z.shape, generator=seeded()), z, 0, 0, 0.1, seeded())
        torch.testing.assert_close(bound.losses(ctx)["lipschitz"], 0.7 * largest_quotients(x, z).mean())
