"""Adversaries and pruning through the whole audit: train, keep, open again, attack, judge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sfumato.audit import Card, attack_run, audit, load_settings, reopen
from sfumato.audit.runs import MODEL
from sfumato.errors import Interrupted
from sfumato.models import pruning
from sfumato.storage import load_state
from sfumato.training import Runtime, make_fabric

FEW = {"part": "bottleneck", "channels": 4}
SMALL = {"part": "adversary", "depth": 0, "width": 4, "alpha": 1.0, "threshold": -0.5, "pretrain_epochs": 1}
ARL = {"chain": [FEW, {"part": "noise", "sigma": 0.05}, SMALL], "label": "noise_arl"}
PATROL = {
    "chain": [
        *({"part": "deeper_edge", "layers": 2}, FEW, {"part": "prune", "at": 0.5}),
        *({"part": "lipschitz"}, SMALL, {"part": "noise", "sigma": 0.05}, {"part": "cem", "components": 2}),
    ],
    "label": "patrol_cem",
}


@pytest.fixture
def runtime():
    return Runtime(fabric=make_fabric("cpu"))


@pytest.fixture(scope="module")
def audited(tmp_path_factory, tiny_settings):
    root = tmp_path_factory.mktemp("runs")
    settings = load_settings(
        [tiny_settings, {"defenses": ["bottleneck", {"recipe": "bottleneck", "channels": 4}, ARL, PATROL]}]
    )
    return root, settings, audit(settings, root=root, runtime=Runtime(fabric=make_fabric("cpu")))


def folder_of(root, card: Card):
    return root / card.run


def test_cards(audited):
    _, _, cards = audited
    _, reference, arl, patrol = cards
    assert {"adversary", "player_adversary"} <= set(arl.training.losses)
    assert {"adversary", "player_adversary", "lipschitz", "cem"} <= set(patrol.training.losses)
    assert arl.cost == reference.cost
    assert patrol.cost.edge_parameters == pytest.approx(reference.cost.edge_parameters, rel=0.05)
    assert patrol.cost.payload_bytes == reference.cost.payload_bytes
    assert patrol.timing.edge_latency_ms > 0
    assert patrol.theory["cem_rate_nats"] > 0
    assert [part.name for part in arl.defense.parts] == ["bottleneck", "noise", "adversary"]


def test_the_adversary_is_kept_beside_the_model_and_never_in_it(audited):
    root, _, cards = audited
    for card in cards[2:]:
        state = load_state(folder_of(root, card) / MODEL)
        assert not [name for name in state["split"] if "decoder" in name]
        assert [name for name in state["defense"] if "decoder" in name]


def test_pruned_weights_are_on_disk_and_come_back(audited, runtime):
    root, settings, cards = audited
    card = cards[3]
    run, splits = reopen.run_of(folder_of(root, card), settings, runtime=runtime)
    state = load_state(folder_of(root, card) / MODEL)["split"]
    assert sum(v.numel() for n, v in state.items() if n.startswith("edge.") and n.endswith(("weight", "bias"))) == (
        card.cost.edge_parameters
    )
    assert all(torch.equal(state[name], value) for name, value in run.split.state_dict().items())
    channels = [group.channels for group in pruning.groups(run.split.edge)]
    assert min(channels) < 8, "narrower than width 0.06 makes any layer of this network"
    assert run.split.eval().edge(splits.test.images[:2] / 255).shape == (2, 4, 8, 8)
    # Attacked again, another way.
    weaker = settings.model_copy(update={"attacks": ({"attack": "decoder", "depth": 0, "width": 2, "epochs": 1},)})
    assert attack_run(run, weaker, splits, runtime=runtime).cost == card.cost


def test_stopped_before_and_after_pruning_and_called_again(audited, tmp_path, runtime):
    """Eight steps an epoch, and eight of the decoder's before them; the second epoch begins pruned."""
    root, settings, cards = audited
    only = settings.model_copy(update={"defenses": (PATROL,)})
    # Among the decoder's own steps; after 4, 6, 8 (the epoch's end) and 11 of the model's.
    for stops in (4, 8 + 4, 2, 2, 3):
        told = iter(range(1, 1000))
        with pytest.raises(Interrupted):
            audit(only, root=tmp_path, runtime=replace(runtime, should_stop=lambda told=told, n=stops: next(told) == n))
    (again,) = audit(only, root=tmp_path, runtime=runtime)
    assert again.run == cards[3].run
    whole, resumed = (load_state(folder / again.run / MODEL) for folder in (root, tmp_path))
    for part, tensors in whole.items():
        assert all(torch.equal(resumed[part][name], value) for name, value in tensors.items()), part
    assert again.attacks == cards[3].attacks


@pytest.mark.slow
def test_an_attacker_fares_worse_against_an_edge_that_met_one(tmp_path, runtime):
    """The same network, noise, images and attack. It costs accuracy, but not the use of the model."""
    seen = [FEW, {"part": "noise", "sigma": 0.05}]
    strict = {"part": "adversary", "objective": "mse", "alpha": 20.0, "depth": 0, "width": 16, "lr": 2e-3}
    settings = load_settings(
        [
            {
                "data": {"source": "digits", "train_limit": 600, "test": 0.3},
                "model": {"backbone": "cnn", "width": 0.06, "dropout": 0.0},
                "training": {
                    "epochs": 10,
                    "batch_size": 32,
                    "schedule": "one_cycle",
                    "augment": "none",
                    "select": "last",
                },
                "defenses": [
                    {"chain": seen, "label": "without"},
                    {"chain": [*seen, strict | {"pretrain_epochs": 1}], "label": "with"},
                ],
                "attacks": [{"attack": "decoder", "depth": 0, "width": 16, "epochs": 10, "batch_size": 64, "lr": 5e-3}],
                "evaluation": {"victims": 100},
            }
        ]
    )
    without, with_ = audit(settings, root=tmp_path, runtime=runtime)
    errors = [card.attacks[0].test.mse for card in (without, with_)]
    assert errors[0] < 0.5 * without.mean_image.mse, "the attack works where nothing was done against it"
    assert errors[1] > 1.4 * errors[0]
    assert with_.utility.test_accuracy > 0.85
