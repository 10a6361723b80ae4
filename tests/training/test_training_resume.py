"""A run that is stopped, anywhere, and called again gives what an undisturbed one gives, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import (
    Case,
    ToyAdversary,
    ToyPrune,
    assert_same_outcome,
    make_images,
    make_split,
    stop_after,
)

from sfumato.data import Augment
from sfumato.defenses import (
    CEM,
    Adversary,
    Bottleneck,
    DeeperEdge,
    Dropout,
    FusedAttention,
    GatedAttention,
    Lipschitz,
    Noise,
    Prune,
    SlotAttention,
    chain,
)
from sfumato.errors import CorruptFileError, Interrupted
from sfumato.models import build, split
from sfumato.training import Training


def recipe(**changes: object) -> Training:
    settings = {"epochs": 3, "batch_size": 5, "lr": 0.02, "schedule": "constant", "augment": "none"}
    return Training.model_validate(settings | changes)


EVERYTHING = chain(
    Bottleneck(2),
    Noise(0.1),
    Dropout(0.1),
    CEM(0.5, components=2, threshold=0.01, schedule="authors"),
    ToyAdversary(every=2, steps=2),
)


def decoder(**changes: Any) -> Adversary:
    return Adversary(**{"objective": "mse", "depth": 0, "width": 3} | changes)


EXACT: dict[str, dict[str, Any]] = {
    "isotropic": {"variant": "isotropic"},
    "diagonal, one mixture for all": {"variant": "diagonal", "per_class": False},
    "full": {"variant": "full", "shrinkage": 0.3},
}
CASES = {
    "plain, sgd, step": Case(chain(), recipe(schedule="step")),
    "augmented, adam, one_cycle": Case(
        chain(Bottleneck(2), Noise(0.1)),
        recipe(optimizer="adam", schedule="one_cycle", momentum=0.8),
        augment=Augment(crop_padding=2, flip=True, rotation=10),
        select_from=0,
    ),
    "everything, sgd, cosine": Case(EVERYTHING, recipe(schedule="cosine")),
    "everything, adam, plateau": Case(EVERYTHING, recipe(optimizer="adam", schedule="plateau", patience=0)),
    "learned surrogates": Case(
        chain(
            Bottleneck(2),
            Noise(0.1),
            GatedAttention(hidden=4),
            SlotAttention(hidden=4, slots=2, slot_noise=0.1),
            FusedAttention(hidden=4, slots=2, slot_noise=0.1),
        ),
        recipe(),
    ),
    **{
        f"CEM, {name}": Case(
            chain(Bottleneck(2), Noise(0.1), CEM(0.5, components=2, schedule="constant", **form)), recipe()
        )
        for name, form in EXACT.items()
    },
    "one step an epoch": Case(chain(Bottleneck(2), Noise(0.1)), recipe(batch_size=20, epochs=4)),
    "given in evaluation mode": Case(chain(), recipe(epochs=2), split=lambda: make_split().eval()),
    "fewer images than a batch": Case(chain(), recipe(batch_size=64, epochs=3)),
    "pruned in the second epoch": Case(chain(ToyPrune(at=1)), recipe(schedule="cosine", weight_decay=0.01)),
    "pruned, adam, with an adversary": Case(
        chain(ToyPrune(at=1), ToyAdversary(every=3)),
        recipe(optimizer="adam", schedule="one_cycle"),
        select_from=0,
    ),
    "an adversary that learns ahead": Case(
        chain(Bottleneck(2), Noise(0.1), decoder(alpha=2.0, every=2, steps=2, pretrain_epochs=1)),
        recipe(schedule="cosine"),
        ahead=4,
    ),
    "PATROL, pruned in the second epoch": Case(
        chain(DeeperEdge(1), Bottleneck(2), Noise(0.1), Prune(0.4), Lipschitz(0.5), decoder(), CEM(0.5, components=2)),
        recipe(schedule="one_cycle"),
        select_from=0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_interrupt_at_every_step(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    whole = case.run(tmp_path / "whole")
    steps = case.ahead + case.training.epochs * max(1, len(case.images) // case.training.batch_size)
    for step in range(1, steps):
        folder = tmp_path / str(step)
        with pytest.raises(Interrupted):
            case.run(folder, should_stop=stop_after(step))
        assert_same_outcome(case.run(folder), whole)


def test_interrupt_at_every_step_of_one_run(tmp_path: Path) -> None:
    """Asked to stop always, a call makes one step; even so the run comes to its end."""
    case = CASES["everything, adam, plateau"]
    whole, folder = case.run(tmp_path / "whole"), tmp_path / "steps"
    for _ in range(3 * 4 - 1):
        with pytest.raises(Interrupted):
            case.run(folder, should_stop=lambda: True)
    assert_same_outcome(case.run(folder, should_stop=lambda: True), whole)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    case = CASES["everything, sgd, cosine"]
    first = case.run(tmp_path)
    asked = 0

    def never() -> bool:
        nonlocal asked
        asked += 1
        return True

    assert_same_outcome(case.run(tmp_path, should_stop=never), first)
    assert asked == 0


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CASES["plain, sgd, step"].run(checkpoint_seconds=0.0)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_within_the_epoch_when_due(tmp_path: Path) -> None:
    """With ``checkpoint_seconds`` 0 each step is on the disk; with a long time none before the epoch's end."""
    case = CASES["plain, sgd, step"]
    seen: list[tuple[bool, bool]] = []
    for seconds, folder in ((0.0, tmp_path / "often"), (1e9, tmp_path / "seldom")):
        written: list[bool] = []

        def look(folder: Path = folder, written: list[bool] = written) -> bool:
            written.append((folder / "checkpoint.safetensors").is_file())
            return len(written) == 3

        with pytest.raises(Interrupted):
            case.run(folder, should_stop=look, checkpoint_seconds=seconds)
        seen.append((written[1], written[2]))
    assert seen == [(True, True), (False, False)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_optimizer_state_keeps_the_memory_layout(optimizer: str, tmp_path: Path) -> None:
    """Weights are channels last; a state that came back in another layout would be slow, and round otherwise."""
    images = make_images(32, shape=(3, 32, 32))

    def narrow_vgg() -> object:
        model = build("vgg11", 3, (3, 32, 32), width=0.15, generator=torch.Generator().manual_seed(0))
        return split(model, "conv2", image_shape=(3, 32, 32))

    case = Case(
        chain(),
        recipe(optimizer=optimizer, batch_size=8, epochs=1),
        images,
        images,
        split=narrow_vgg,  # type: ignore[arg-type]
    )
    whole = case.run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        case.run(tmp_path / "cut", should_stop=stop_after(2))
    resumed = case.run(tmp_path / "cut")
    assert_same_outcome(resumed, whole)
    for parameter, state in resumed.job._optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                assert value.stride() == parameter.stride(), name


class TestUnusableCheckpoint:
    def interrupted(self, folder: Path, name: str = "everything, sgd, cosine") -> Path:
        with pytest.raises(Interrupted):
            CASES[name].run(folder, should_stop=stop_after(6))
        return folder / "checkpoint.safetensors"

    @pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9, 0.999])
    def test_a_flipped_bit_is_refused(self, place: float, tmp_path: Path) -> None:
        file = self.interrupted(tmp_path)
        data = bytearray(file.read_bytes())
        data[int(place * len(data))] ^= 0x10
        file.write_bytes(data)
        case, started = CASES["everything, sgd, cosine"], []
        with pytest.raises(CorruptFileError):
            case.run(tmp_path, should_stop=lambda: bool(started.append(1)))
        assert started == []
        assert file.read_bytes() == data

    def test_cut_short_is_refused(self, tmp_path: Path) -> None:
        file = self.interrupted(tmp_path)
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(CorruptFileError):
            CASES["everything, sgd, cosine"].run(tmp_path)

    @pytest.mark.parametrize(
        "other",
        [
            Case(chain(Bottleneck(3), Noise(0.1)), recipe()),  # other shapes
            Case(chain(), recipe()),  # other names
            Case(EVERYTHING, recipe(schedule="cosine"), split=lambda: make_split(width=7)),
            Case(chain(*EVERYTHING.parts()[:-1]), recipe(schedule="cosine")),  # no player
            Case(chain(Bottleneck(2), Noise(0.1), Dropout(0.1), CEM(0.5, components=2)), recipe()),
        ],
    )
    def test_another_architecture_is_refused(self, other: Case, tmp_path: Path) -> None:
        self.interrupted(tmp_path)
        with pytest.raises(CorruptFileError, match="does not fit this run"):
            other.run(tmp_path)

    def test_another_number_of_players_is_refused(self, tmp_path: Path) -> None:
        """Same weights, but the state of one optimizer too many."""
        self.interrupted(tmp_path)
        other = Case(EVERYTHING, recipe(schedule="cosine"))
        job = other.job

        def without_player(runtime: object) -> object:
            made = job(runtime)  # type: ignore[arg-type]
            made._players.clear()
            return made

        other.job = without_player  # type: ignore[method-assign, assignment]
        with pytest.raises(CorruptFileError, match="does not fit this run"):
            other.run(tmp_path)

    def test_another_optimizer_is_refused(self, tmp_path: Path) -> None:
        """Momentum is no second moment: an optimizer must not go on from another's state."""
        self.interrupted(tmp_path)
        with pytest.raises(CorruptFileError, match="does not fit this run"):
            Case(EVERYTHING, recipe(schedule="cosine", optimizer="adam")).run(tmp_path)


def test_what_is_compared_was_at_work(tmp_path: Path) -> None:
    """The comparisons above would be empty if the parts they compare did nothing."""
    outcome = CASES["everything, adam, plateau"].run(tmp_path)
    names = set(outcome.fit.history[-1])
    assert {"cem", "toy", "player_toy", "cross_entropy", "validation_loss", "validation_accuracy"} <= names
    mixture = outcome.state["weights"]["defense"]["members.3.mixture.means"]
    assert bool(mixture.abs().sum() > 0)
    assert all(state["state"] for state in outcome.state["players"])
    for name in EXACT:
        assert float(CASES[f"CEM, {name}"].run(tmp_path / name).fit.history[-1]["cem"]) != 0
    pruned = CASES["pruned in the second epoch"].run(tmp_path / "pruned")
    assert pruned.job.split.edge.first[0].out_channels == 2
    patrol = CASES["PATROL, pruned in the second epoch"].run(tmp_path / "patrol")
    assert {"adversary", "player_adversary", "lipschitz", "cem"} <= set(patrol.fit.history[-1])
    assert patrol.job.split.edge[0][0].first[0].out_channels < 6
    ahead = CASES["an adversary that learns ahead"].run(tmp_path / "ahead")
    assert int(ahead.state["players"][0]["state"][0]["step"]) == 4 + 12
