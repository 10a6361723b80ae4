"""The loop against a loop written by hand, and what it does around the steps."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_toys import (
    FABRIC,
    Case,
    Recorder,
    ToyAdversary,
    ToyPrune,
    generator,
    make_images,
    make_split,
    same,
    stop_after,
)

from sfumato.data import Augment, Batches, ImageSet, Splits, load
from sfumato.defenses import Bottleneck, BoundDefense, Context, Defense, DistanceCorrelation, Epoch, Noise, chain
from sfumato.errors import InputError, Interrupted, StorageError
from sfumato.models import SplitModel, Stochastic, build, set_generator, split
from sfumato.training import AUGMENTATIONS, Fit, Plan, Runtime, Training, augmentation, fit, make_fabric, train


def recipe(**changes: Any) -> Training:
    settings = {"epochs": 4, "batch_size": 5, "lr": 0.05, "schedule": "constant", "augment": "none"}
    return Training.model_validate(settings | changes)


def rates(training: Training, steps: int) -> list[float]:
    """The learning rate at every step, from the formulas."""
    total = training.epochs * steps
    found = []
    for step in range(total):
        done, epoch = step / total, step // steps
        if training.schedule == "step":
            f = 0.2 ** sum(epoch >= round(training.epochs * part) for part in (0.25, 0.5, 0.75, 0.875))
        elif training.schedule == "cosine":
            f = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
        elif training.schedule == "one_cycle" and done < 0.3:
            f = 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / 0.3))
        elif training.schedule == "one_cycle":
            f = 0.5 * (1 + math.cos(math.pi * ((done - 0.3) / 0.7)))
        else:
            f = 1.0
        found.append(training.lr * f)
    return found


def by_hand(case: Case) -> tuple[SplitModel, list[dict[str, float]], list[float]]:
    """Train the plain way; gives the last weights, history and learning rates."""
    training, images, validation = case.training, case.images, case.validation
    model = case.split()
    model = case.defense.bind(model, generator=generator(5)).defend(model)
    model.to(memory_format=torch.channels_last)
    noise, order = generator(case.seed * 1009), generator(case.seed)
    common = {"lr": training.lr, "weight_decay": training.weight_decay}
    optimizer: torch.optim.Optimizer
    if training.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), momentum=training.momentum, **common)
    else:
        optimizer = torch.optim.Adam(model.parameters(), betas=(training.momentum, 0.999), **common)
    batches = Batches(images, training.batch_size, shuffle=True, augment=case.augment, generator=order, drop_last=True)
    planned, used, history = rates(training, len(batches)), [], []
    lr, lowest, waited = training.lr, math.inf, 0
    for epoch in range(training.epochs):
        model.train()
        set_generator(model, noise)
        total = 0.0
        for x, y in batches:
            rate = lr if training.schedule == "plateau" else planned[len(used)]
            optimizer.param_groups[0]["lr"] = rate
            used.append(rate)
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total = total + loss.detach()
        model.eval()
        set_generator(model, generator((case.seed + 1) * 1009))
        with torch.no_grad():
            x = (validation.images / 255).contiguous(memory_format=torch.channels_last)
            logits = model(x)
            held_out = float(F.cross_entropy(logits, validation.labels, reduction="sum")) / len(validation)
            right = int((logits.argmax(1) == validation.labels).sum()) / len(validation)
        if held_out < lowest * (1 - 1e-4):
            lowest, waited = held_out, 0
        else:
            waited += 1
            if waited > training.patience:
                lr, waited = lr * 0.5, 0
        means = {"epoch": epoch, "cross_entropy": float(total) / len(batches)}
        history.append({**means, "validation_loss": held_out, "validation_accuracy": right})
    return model, history, used


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["step", "cosine", "one_cycle", "constant", "plateau"])
def test_equals_a_loop_written_by_hand(optimizer: str, schedule: str, tmp_path: Path) -> None:
    training = recipe(optimizer=optimizer, schedule=schedule, epochs=8, patience=1, momentum=0.8, weight_decay=0.01)
    case = Case(chain(Bottleneck(2), Noise(0.1)), training, augment=Augment(crop_padding=2, flip=True, rotation=5))
    model, history, used = by_hand(case)
    ours = case.run(tmp_path)
    assert ours.fit.history == history
    assert same(dict(model.state_dict()), dict(ours.job.split.state_dict()))
    if schedule not in ("constant",):
        assert len(set(used)) > 1, "the schedule must have been at work"
    rows = [json.loads(line) for line in ours.log.decode().splitlines()]
    assert rows == history


def test_learning_rate_the_losses_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The context's rate, epoch and step are those of the step, before and after a resume."""
    seen: list[tuple[int, int, float]] = []

    class Spy(BoundDefense):
        def losses(self, ctx: Context) -> dict[str, Tensor]:
            seen.append((ctx.epoch, ctx.step, ctx.lr))
            return {}

    class SpyDefense(Defense):
        name: ClassVar[str] = "spy"
        source: ClassVar[str] = "test"

        def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
            return Spy()

    training = recipe(schedule="one_cycle")
    Case(SpyDefense(), training).run()
    planned = rates(training, 4)
    assert seen == [(step // 4, step, planned[step]) for step in range(16)]


def test_learning_rate_after_a_resume(tmp_path: Path) -> None:
    training = recipe(schedule="cosine")
    case = Case(chain(), training)
    with pytest.raises(Interrupted):
        case.run(tmp_path, should_stop=stop_after(6))
    told: list[float] = []

    class Watching(Case):
        def job(self, runtime: Runtime) -> Any:
            made = super().job(runtime)
            step = made.step

            def watched(x: Tensor, y: Tensor, epoch: int, index: int) -> dict[str, Tensor]:
                told.append(made._optimizer.param_groups[0]["lr"])
                return step(x, y, epoch, index)

            made.step = watched  # type: ignore[method-assign]
            return made

    Watching(chain(), training).run(tmp_path)
    assert told == rates(training, 4)[6:]


class FakeJob:
    """A job whose scores are given; its weights are the number of the epoch."""

    title = "fake"

    def __init__(self, scores: list[float], losses: list[float] | None = None) -> None:
        self.scores, self.losses = scores, losses or [1.0] * len(scores)
        self.now, self.kept = -1, None

    def epoch_start(self, epoch: int) -> None:
        self.now = epoch

    def step(self, x: Tensor, y: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        return {"loss": torch.tensor(self.losses[epoch]), **({"rare": torch.tensor(7.0)} if step % 4 == 3 else {})}

    def epoch_end(self, epoch: int) -> dict[str, float]:
        return {"figure": 2.0, "score": self.scores[epoch]}

    def weights(self) -> dict[str, Any]:
        return {"epoch": self.now}

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.kept = weights["epoch"]

    def state_dict(self) -> dict[str, Any]:
        return {"now": self.now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.now = state["now"]


def run_fake(job: FakeJob, select_from: int = 0, folder: Path | None = None, patience: int | None = None) -> Any:
    plan = Plan(len(job.scores), 5, 0, select_from=select_from, patience=patience)
    return fit(job, make_images(), plan, Runtime(fabric=FABRIC, folder=folder))


@pytest.mark.parametrize(
    ("scores", "select_from", "kept"),
    [
        ([0.9, 0.5, 0.7, 0.6], 0, 0),
        ([0.9, 0.5, 0.7, 0.6], 1, 2),  # an early, better epoch is not looked at
        ([0.9, 0.5, 0.7, 0.6], 3, 3),  # the last, whatever its score
        ([0.1, 0.5, 0.5, 0.5], 0, 1),  # of equals, the first
        ([-3.0, -2.0, -9.0, -4.0], 0, 1),
    ],
)
def test_selection(scores: list[float], select_from: int, kept: int) -> None:
    job = FakeJob(scores)
    result = run_fake(job, select_from)
    assert (result.epoch_kept, job.kept) == (kept, kept)


@pytest.mark.parametrize(
    ("scores", "patience", "select_from", "epochs", "kept"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.9], 2, 0, 4, 1),
        ([0.1, 0.5, 0.4, 0.3, 0.9], 3, 0, 5, 4),
        ([0.5, 0.5, 0.9], 1, 0, 2, 0),
        ([0.9, 0.2, 0.1, 0.3, 0.2], 1, 3, 5, 3),
        ([0.1, 0.2, 0.3], 1, 0, 3, 2),
    ],
)
def test_patience(scores: list[float], patience: int, select_from: int, epochs: int, kept: int, tmp_path: Path) -> None:
    job = FakeJob(scores)
    result = run_fake(job, select_from, tmp_path, patience)
    assert (len(result.history), result.epoch_kept, job.kept) == (epochs, kept, kept)
    again = FakeJob(scores)
    assert run_fake(again, select_from, tmp_path, patience) == result, "called again it stays where it was"
    assert again.kept == kept


def test_a_loss_that_is_not_reported_at_each_step_is_averaged_over_those_where_it_was() -> None:
    assert [row["rare"] for row in run_fake(FakeJob([0.0, 0.0])).history] == [7.0, 7.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_stops_and_is_flagged(bad: float, tmp_path: Path) -> None:
    job = FakeJob([0.5, 0.4, 0.9, 0.9], [1.0, 1.0, bad, 1.0])
    result = run_fake(job, folder=tmp_path)
    assert result.diverged
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    assert result.history[2]["loss"] is None
    assert (result.epoch_kept, job.kept) == (0, 0), "a diverged epoch is not kept where a sound one was"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows == result.history
    again = FakeJob([0.5, 0.4, 0.9, 0.9])
    assert run_fake(again, folder=tmp_path) == result, "called again it stays where it was"
    assert again.kept == 0


def test_divergence_before_the_selection_keeps_what_there_is() -> None:
    job = FakeJob([0.5, 0.4, 0.9, 0.9], [1.0, math.nan, 1.0, 1.0])
    result = run_fake(job, select_from=3)
    assert (result.diverged, result.epoch_kept, job.kept) == (True, 1, 1)


def test_divergence_in_the_last_step_is_seen_by_the_validation(tmp_path: Path) -> None:
    """One step an epoch: its loss was computed before the weights broke."""
    training = recipe(epochs=1, batch_size=20, lr=1e30, weight_decay=1e30)
    result = Case(chain(), training).run(tmp_path).fit
    assert math.isfinite(result.history[0]["cross_entropy"])
    assert result.history[0]["validation_loss"] is None
    assert result.diverged


def test_nan_loss_of_a_real_model_stops() -> None:
    result = Case(chain(), recipe(lr=1e30)).run().fit
    assert result.diverged
    assert len(result.history) == 1
    assert None in result.history[0].values()


@pytest.mark.parametrize("done", [0, 6])
def test_progress_is_told_of_the_right_totals(done: int, tmp_path: Path) -> None:
    case = Case(chain(), recipe())
    if done:
        with pytest.raises(Interrupted):
            case.run(tmp_path, should_stop=stop_after(done))
    progress = Recorder()
    result = case.run(tmp_path, progress=progress)
    assert progress.told[0] == ("start", "train", 16, done)
    assert progress.told.count(("advance", 1)) == 16 - done
    assert progress.told[-1] == ("finish",)
    notes = [told[1] for told in progress.told if told[0] == "note"]
    assert notes == [f"{row['validation_accuracy']:.4f}" for row in result.fit.history[done // 4 :]]


class TestPlayers:
    def test_cadence_and_steps(self) -> None:
        case = Case(ToyAdversary(every=3, steps=2), recipe())
        outcome = case.run()
        assert outcome.job.defense.turns == [step for step in range(16) if step % 3 == 2 for _ in range(2)]

    def test_the_model_never_trains_a_player(self) -> None:
        """A player whose turn never comes stays as it was, though its loss is part of the model's."""
        case = Case(ToyAdversary(alpha=5.0, every=1000), recipe(weight_decay=0.1))
        before = case.job(Runtime(fabric=FABRIC)).defense.state_dict()
        after = case.run()
        assert same(dict(before), after.state["weights"]["defense"])
        assert "player_toy" not in after.fit.history[0]
        assert "toy" in after.fit.history[0]

    def test_what_a_defense_learns_itself_is_trained_with_the_model(self) -> None:
        case = Case(Learner(), recipe(weight_decay=0.0))
        assert float(case.run().job.defense.value.detach()) == pytest.approx(1.0, abs=0.3)

    def test_the_players_step_equals_one_by_hand(self) -> None:
        """One model step on the old decoder, then the decoder's on what the model saw."""
        case = Case(ToyAdversary(alpha=2.0, steps=2), recipe(epochs=1, batch_size=20, momentum=0.0), split=plain)
        job = case.job(Runtime(fabric=FABRIC))
        model, decoder = plain(), job.defense.decoder
        hand = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.Sigmoid())
        hand.load_state_dict(decoder.state_dict())
        batches = Batches(case.images, 20, shuffle=True, generator=generator(case.seed), drop_last=True)
        (x, y), adam = next(iter(batches)), torch.optim.Adam(hand.parameters(), lr=0.01)
        fit(job, case.images, case.plan(), Runtime(fabric=FABRIC))
        model.train()
        z = model.edge(x)
        loss = F.cross_entropy(model.cloud(z), y) - 2 * F.mse_loss(hand(z), x.flatten(1))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        sent = z.detach()
        for _ in range(2):
            adam.zero_grad()
            F.mse_loss(hand(sent), x.flatten(1)).backward()
            adam.step()
        for ours, theirs, grad in zip(job.split.parameters(), model.parameters(), grads, strict=True):
            torch.testing.assert_close(ours, theirs - 0.05 * (grad + 5e-4 * theirs), rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(decoder.parameters(), hand.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)  # Adam turns rounding into steps

    @pytest.mark.slow
    def test_the_adversary_learns_and_punishes(self) -> None:
        """It reconstructs better than at the start, and the better it is weighted the worse off it is."""
        images = load("digits", seed=0, image_size=16, train_limit=400).train

        def errors(alpha: float) -> list[float]:
            case = Case(
                chain(Bottleneck(2), ToyAdversary(alpha=alpha)),
                recipe(epochs=15, batch_size=50, lr=0.1, momentum=0.9),
                images,
                images,
                split=lambda: make_split(dropout=0.0, classes=10),
            )
            return [row["player_toy"] for row in case.run().fit.history]

        free, punished = errors(0.0), errors(10.0)
        assert free[-1] < 0.8 * free[0]
        assert punished[-1] > 1.2 * free[-1]


def plain() -> SplitModel:
    return make_split(dropout=0.0)


class Learner(Defense):
    """Has a parameter of its own, drawn to 1 by its loss."""

    name: ClassVar[str] = "learner"
    source: ClassVar[str] = "test"

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return BoundLearner()


class BoundLearner(BoundDefense):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        return {"learner": 10 * (self.value - 1).square()}


def test_training_goes_on_with_its_own_stream_after_a_validation() -> None:
    job = Case(chain(Bottleneck(2), Noise(0.1)), recipe()).job(Runtime(fabric=FABRIC))
    job.epoch_start(0)
    state = job._generator.get_state()
    job.epoch_end(0)
    assert torch.equal(job._generator.get_state(), state)
    streams = [layer.generator for layer in job.split.modules() if isinstance(layer, Stochastic)]
    assert len(streams) == 2
    assert all(stream is job._generator for stream in streams)
    assert job.split.training


def test_epochs_before_a_change_are_not_kept() -> None:
    class Changing(FakeJob):
        def epoch_start(self, epoch: int) -> bool:
            super().epoch_start(epoch)
            return epoch == 2

    job = Changing([0.9, 0.8, 0.3, 0.4, 0.2])
    assert (run_fake(job).epoch_kept, job.kept) == (3, 3)


class TestChange:
    def test_schedule_goes_on_and_the_optimizer_is_new(self) -> None:
        training = recipe(schedule="step", epochs=8)
        case = Case(chain(ToyPrune(at=5)), training)
        told: list[float] = []
        job = case.job(Runtime(fabric=FABRIC))
        step = job.step
        momentum: list[int] = []

        def watched(x: Tensor, y: Tensor, epoch: int, index: int) -> dict[str, Tensor]:
            told.append(job._optimizer.param_groups[0]["lr"])
            momentum.append(len(job._optimizer.state))
            return step(x, y, epoch, index)

        job.step = watched  # type: ignore[method-assign]
        result = fit(job, case.images, case.plan(), Runtime(fabric=FABRIC))
        assert told == rates(training, 4)
        assert momentum[19] > 0
        assert momentum[20] == 0
        assert job.split.edge.first[0].out_channels == 2
        trained = {id(p) for group in job._optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in job.split.parameters()}
        assert len(result.history) == 8
        before = Case(chain(ToyPrune(at=5)), training).job(Runtime(fabric=FABRIC)).split.cloud.second[2].weight
        assert not torch.equal(before, job.split.cloud.second[2].weight), "training went on"

    def test_weights_of_the_kept_epoch_come_back_in_their_own_shape(self) -> None:
        case = Case(chain(ToyPrune(at=2)), recipe(), select_from=0)
        job = case.job(Runtime(fabric=FABRIC))
        job.epoch_start(0)
        wide = job.weights()
        job.epoch_start(2)
        assert job.split.edge.first[0].out_channels == 2
        job.load_weights(wide)
        assert job.split.edge.first[0].out_channels == 6
        assert same(dict(job.split.state_dict()), wide["split"])


class TestFeatures:
    """The pass over clean features that a defense may ask for."""

    def passes(self, early: bool, mode: bool = True) -> tuple[list[Any], Any]:
        found: list[Any] = []

        class Asking(BoundDefense):
            def epoch_start(self, epoch: Epoch) -> None:
                if epoch.index == 1:
                    job.split.train(mode)
                    for z, y in epoch.features():
                        modes = {layer.training for layer in job.split.modules()}
                        found.append((z, y, modes, torch.is_grad_enabled()))
                        if early:
                            break
                    found.append({layer.training for layer in job.split.modules()})

        class AskingDefense(Defense):
            name: ClassVar[str] = "asking"
            source: ClassVar[str] = "test"

            def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
                return Asking()

        images = make_images(530)
        case = Case(
            AskingDefense(), recipe(epochs=2, batch_size=265), images, augment=Augment(crop_padding=4, rotation=15)
        )
        job = case.job(Runtime(fabric=FABRIC))
        weights: list[Any] = []
        start = job.epoch_start

        def watched(epoch: int) -> None:
            weights.append(job.weights())
            start(epoch)
            assert all(layer.training for layer in job.split.modules())

        job.epoch_start = watched  # type: ignore[method-assign]
        fit(job, images, case.plan(), Runtime(fabric=FABRIC))
        twin = case.split()
        twin.load_state_dict(weights[1]["split"])
        return found, (twin.eval(), images)

    def test_eval_mode_no_grad_unaugmented(self) -> None:
        (first, second, modes), (twin, images) = self.passes(early=False)
        with torch.no_grad():
            z = twin.edge(images.images / 255)
        torch.testing.assert_close(torch.cat([first[0], second[0]]), z, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.cat([first[1], second[1]]), images.labels)
        assert first[2] == second[2] == {False}
        assert not first[0].requires_grad
        assert modes == {True}

    @pytest.mark.parametrize("early", [False, True])
    @pytest.mark.parametrize("mode", [False, True])
    def test_a_pass_leaves_the_mode_even_where_it_ends_early(self, early: bool, mode: bool) -> None:
        found, _ = self.passes(early, mode)
        assert found[-1] == {mode}
        assert len(found) == (2 if early else 3)

    def test_gradients_are_on_again_between_the_batches_of_others(self) -> None:
        (first, _, _), _ = self.passes(early=False)
        assert first[3], "a defense's own code must not run without gradients because it reads features"


class TestLog:
    def test_tensorboard(self, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        case = Case(ToyAdversary(), recipe(epochs=3))
        outcome = case.run(tmp_path, tensorboard=True)
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        files = sorted((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
        assert files
        events.Reload()
        told: dict[str, dict[int, float]] = {}
        for file in files:
            one = EventAccumulator(str(file))
            one.Reload()
            for tag in one.Tags()["scalars"]:
                for event in one.Scalars(tag):
                    told.setdefault(tag, {})[event.step] = event.value
        for name in set(outcome.fit.history[0]) - {"epoch"}:
            expected = {row["epoch"]: row[name] for row in outcome.fit.history}
            assert told[name] == pytest.approx(expected, rel=1e-6)

    def test_no_event_files_unless_asked(self, tmp_path: Path) -> None:
        Case(chain(), recipe(epochs=1)).run(tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.safetensors", "metrics.jsonl"}

    def test_tensorboard_where_the_disk_refuses(self, tmp_path: Path) -> None:
        (tmp_path / "tensorboard").write_text("a file, and no folder")
        with pytest.raises(StorageError, match=r"^cannot write .*tensorboard: File exists$"):
            Case(chain(), recipe(epochs=1)).run(tmp_path, tensorboard=True)

    def test_missing_tensorboard_is_said_before_the_first_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
        asked: list[int] = []
        with pytest.raises(InputError, match=r"sfumato\[tensorboard\]"):
            Case(chain(), recipe()).run(tmp_path, tensorboard=True, should_stop=lambda: bool(asked.append(1)))
        assert asked == []


class TestTrain:
    """The one call that users make."""

    def splits(self) -> Splits:
        return Splits(make_images(30), make_images(11, seed=1), make_images(5, seed=2))

    def test_select_last_and_best(self) -> None:
        for select, select_from in (("last", 0.0), ("best", 0.0), ("best", 0.5)):
            training = recipe(epochs=6, select=select, select_from=select_from, lr=0.2)
            model = make_split()
            bound = chain().bind(model, generator=generator(5))
            _, result = train(model, bound, self.splits(), training, seed=1, runtime=Runtime(fabric=FABRIC))
            accuracies = [row["validation_accuracy"] for row in result.history]
            first = {"last": 5, "best": int(6 * select_from)}[select]
            best = max(range(first, 6), key=lambda epoch: accuracies[epoch])
            assert result.epoch_kept == best

    @pytest.mark.parametrize(
        ("epochs", "select", "select_from", "first"),
        [(8, "best", 0.75, 6), (8, "best", 0.0, 0), (1, "best", 0.75, 0), (10, "best", 0.99, 9), (8, "last", 0.0, 7)],
    )
    def test_first_epoch_that_is_considered(
        self, epochs: int, select: str, select_from: float, first: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans: list[Plan] = []

        def noted(job: Any, images: ImageSet, plan: Plan, runtime: Runtime) -> Fit:
            plans.append(plan)
            return Fit()

        monkeypatch.setattr("sfumato.training.fit", noted)
        model = make_split()
        bound = chain().bind(model, generator=generator(5))
        training = recipe(epochs=epochs, select=select, select_from=select_from)
        train(model, bound, self.splits(), training, seed=1, runtime=Runtime(fabric=FABRIC))
        assert [plan.select_from for plan in plans] == [first]

    def test_kept_weights_have_the_validation_accuracy_of_their_epoch(self) -> None:
        model = make_split()
        bound = chain(Bottleneck(2), Noise(0.1)).bind(model, generator=generator(5))
        data = self.splits()
        made, result = train(
            bound.defend(model), bound, data, recipe(select_from=0.0), seed=4, runtime=Runtime(fabric=FABRIC)
        )
        made.eval()
        set_generator(made, generator(5 * 1009))
        with torch.no_grad():
            right = (made(data.validation.images / 255).argmax(1) == data.validation.labels).float().mean()
        assert float(right) == pytest.approx(result.history[result.epoch_kept]["validation_accuracy"])

    def test_test_and_auxiliary_images_are_not_touched(self) -> None:
        def run(test: ImageSet, auxiliary: ImageSet | None) -> Any:
            model = make_split()
            bound = chain().bind(model, generator=generator(5))
            data = Splits(make_images(30), make_images(11, seed=1), test, auxiliary)
            made, result = train(model, bound, data, recipe(), seed=1, runtime=Runtime(fabric=FABRIC))
            return dict(made.state_dict()), result.history

        assert same(run(make_images(5, seed=2), None), run(make_images(50, seed=9), make_images(7, seed=8)))

    @pytest.mark.parametrize(
        "changed", ["seed", "augment", "lr", "momentum", "weight_decay", "batch_size", "optimizer"]
    )
    def test_every_setting_tells(self, changed: str) -> None:
        values = {
            "augment": "flip",
            "lr": 0.01,
            "momentum": 0.1,
            "weight_decay": 0.3,
            "batch_size": 7,
            "optimizer": "adam",
        }
        training = recipe() if changed == "seed" else recipe(**{changed: values[changed]})

        def run(training: Training, seed: int) -> Any:
            model = make_split()
            bound = chain().bind(model, generator=generator(5))
            made, _ = train(model, bound, self.splits(), training, seed=seed, runtime=Runtime(fabric=FABRIC))
            return dict(made.state_dict())

        base = run(recipe(), 1)
        assert same(base, run(recipe(), 1))
        assert not same(base, run(training, 2 if changed == "seed" else 1))

    def test_augmentations_are_what_their_names_say(self) -> None:
        on = {
            name: (bool(a.crop_padding), a.flip, bool(a.rotation)) if a else None for name, a in AUGMENTATIONS.items()
        }
        assert on == {
            "none": None,
            "flip": (False, True, False),
            "crop_flip": (True, True, False),
            "crop_flip_rotate": (True, True, True),
        }
        assert AUGMENTATIONS["crop_flip_rotate"] == Augment(crop_padding=4, flip=True, rotation=15)

    def test_the_augmentation_of_the_data(self) -> None:
        """``preset`` is what the data set's paper does, and nothing where the data has none; a name is a name."""
        own = Augment(crop_padding=2, flip=False, rotation=5)
        bare, preset = self.splits(), dataclasses.replace(self.splits(), augment=own)
        assert augmentation(Training(), preset) == own
        assert augmentation(Training(), bare) is None
        assert augmentation(Training(augment="none"), preset) is None
        assert augmentation(Training(augment="flip"), preset) == AUGMENTATIONS["flip"]

        def run(data: Splits, augment: str) -> Any:
            model = make_split()
            bound = chain().bind(model, generator=generator(5))
            made, _ = train(model, bound, data, recipe(augment=augment), seed=1, runtime=Runtime(fabric=FABRIC))
            return dict(made.state_dict())

        flip = dataclasses.replace(self.splits(), augment=AUGMENTATIONS["flip"])
        assert same(run(flip, "preset"), run(bare, "flip"))
        assert same(run(bare, "preset"), run(flip, "none"))
        assert not same(run(flip, "preset"), run(bare, "preset"))

    def test_title_and_default_runtime(self) -> None:
        progress = Recorder()
        model = make_split()
        bound = chain().bind(model, generator=generator(5))
        runtime = Runtime(fabric=FABRIC, progress=progress)
        train(model, bound, self.splits(), recipe(epochs=1), seed=0, runtime=runtime, title="a title")
        assert progress.told[0][1] == "a title"
        _, result = train(model, bound, self.splits(), recipe(epochs=1), seed=0)
        assert len(result.history) == 1

    @pytest.mark.slow
    def test_a_cnn_learns_the_digits(self) -> None:
        data = load("digits", seed=0, image_size=16)
        model = split(
            build("cnn", 10, (1, 16, 16), width=0.1, generator=generator(0)), "block1", image_shape=(1, 16, 16)
        )
        bound = chain(Bottleneck(4), Noise(0.025), DistanceCorrelation(0.1)).bind(model, generator=generator(1))
        training = Training(epochs=8, batch_size=64, schedule="one_cycle", augment="none")
        made, result = train(bound.defend(model), bound, data, training, seed=0, runtime=Runtime(fabric=FABRIC))
        losses = [row["cross_entropy"] for row in result.history]
        assert losses[-1] < 0.3 * losses[0]
        made.eval()
        with torch.no_grad():
            right = (made(data.test.images / 255).argmax(1) == data.test.labels).float().mean()
        assert right > 0.9


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_precision(precision: str) -> None:
    runtime = Runtime(fabric=make_fabric("cpu", precision))
    case = Case(chain(Bottleneck(2), Noise(0.1), ToyAdversary()), recipe(epochs=2))
    job = case.job(runtime)
    result = fit(job, case.images, case.plan(), runtime)
    assert all(math.isfinite(value) for row in result.history for value in row.values())
    exact = case.run().fit
    assert result.history != exact.history
    for row, other in zip(result.history, exact.history, strict=True):
        assert row["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=0.1)
