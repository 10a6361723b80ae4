"""The recipe, its schedules, and where it runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from training_toys import FABRIC, generator, make_images

from sfumato.errors import InputError
from sfumato.training import Plan, Runtime, Training, make_fabric, make_optimizer, make_schedule
from sfumato.training.loop import _batches, steps_per_epoch
from sfumato.training.settings import factor

SCHEDULES = ["step", "cosine", "one_cycle", "constant"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 1),
        ("optimizer", "rmsprop"),
        ("lr", 0.0),
        ("lr", math.inf),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-9),
        ("schedule", "linear"),
        ("patience", -1),
        ("select", "first"),
        ("select_from", 1.0),
        ("select_from", -0.1),
        ("augment", "mixup"),
        ("typo", 1),
    ],
)
def test_settings_are_validated(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Training.model_validate({field: value})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Training.model_validate({"epochs": 0, "lr": -1, "select": "no"})
    assert {error["loc"][0] for error in caught.value.errors()} == {"epochs", "lr", "select"}


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Training().lr = 1.0  # type: ignore[misc]


def test_defaults_are_the_papers() -> None:
    t = Training()
    assert (t.epochs, t.batch_size, t.optimizer, t.lr, t.momentum, t.weight_decay) == (240, 128, "sgd", 0.05, 0.9, 5e-4)
    assert (t.schedule, t.augment) == ("step", "preset")


@pytest.mark.parametrize("epochs", [240, 120, 24, 8])
def test_step_schedule_falls_at_the_papers_epochs(epochs: int) -> None:
    steps = 7
    found = [factor("step", epoch * steps + k, epochs, steps) for epoch in range(epochs) for k in range(steps)]
    falls = [i / steps for i in range(1, len(found)) if found[i] != found[i - 1]]
    assert falls == [epochs * part / 240 for part in (60, 120, 180, 210)]
    assert sorted(set(found), reverse=True) == pytest.approx([1, 0.2, 0.04, 0.008, 0.0016])
    assert found[0] == 1


def test_values_of_the_other_schedules() -> None:
    assert factor("cosine", 0, 10, 10) == 1
    assert factor("cosine", 50, 10, 10) == pytest.approx(0.505)
    assert factor("cosine", 100, 10, 10) == pytest.approx(0.01)
    assert factor("one_cycle", 0, 10, 10) == pytest.approx(0.04)
    assert factor("one_cycle", 15, 10, 10) == pytest.approx(0.52)
    assert factor("one_cycle", 30, 10, 10) == pytest.approx(1)
    assert factor("one_cycle", 65, 10, 10) == pytest.approx(0.5)
    assert factor("one_cycle", 100, 10, 10) == pytest.approx(0)
    assert {factor("constant", step, 10, 10) for step in range(101)} == {1.0}


@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.integers(1, 50), st.data())
def test_schedules_stay_between_zero_and_one(name: str, epochs: int, steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, epochs * steps))
    value, after = factor(name, step, epochs, steps), factor(name, step + 1, epochs, steps)
    assert 0 <= value <= 1
    if name != "one_cycle" or step >= 0.3 * epochs * steps:
        assert after <= value + 1e-12


def test_schedule_resumes_from_its_state() -> None:
    for name in [*SCHEDULES, "plateau"]:
        training = Training(schedule=name, epochs=4, patience=1, lr=0.3)

        def start(training: Training = training) -> Any:
            optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], training)
            return optimizer, make_schedule(optimizer, training, 5)

        def advance(optimizer: Any, schedule: Any, steps: range) -> list[float]:
            found = []
            for step in steps:
                found.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step()
                if step % 5 == 4:
                    schedule.epoch_end(1.0)
            return found

        whole = advance(*start(), range(20))
        optimizer, schedule = start()
        advance(optimizer, schedule, range(7))
        again, fresh = start()
        again.load_state_dict(optimizer.state_dict())
        fresh.load_state_dict(schedule.state_dict())
        assert advance(again, fresh, range(7, 20)) == whole[7:]


def test_plateau_halves_once_the_loss_has_not_fallen_for_patience_epochs() -> None:
    training = Training(schedule="plateau", patience=2, lr=0.8)
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], training)
    schedule, found = make_schedule(optimizer, training, 3), []
    for loss in (1.0, 0.9, 0.95, 0.95, 0.95, 0.8, 0.8, 0.8, 0.8):
        schedule.epoch_end(loss)
        schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2]


def test_optimizers_have_the_settings() -> None:
    weight = [torch.nn.Parameter(torch.zeros(1))]
    sgd = make_optimizer(weight, Training(lr=0.3, momentum=0.7, weight_decay=0.2))
    assert isinstance(sgd, torch.optim.SGD)
    assert {k: sgd.defaults[k] for k in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.3,
        "momentum": 0.7,
        "weight_decay": 0.2,
    }
    adam = make_optimizer(weight, Training(optimizer="adam", lr=0.3, momentum=0.7, weight_decay=0.2))
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["lr"], adam.defaults["betas"], adam.defaults["weight_decay"]) == (0.3, (0.7, 0.999), 0.2)


class World:
    """A fabric of several processes, seen from one."""

    def __init__(self, world_size: int, rank: int) -> None:
        self.world_size, self.global_rank, self.device = world_size, rank, torch.device("cpu")


@given(st.integers(1, 60), st.integers(2, 70), st.integers(1, 5))
def test_steps_per_epoch_is_the_number_of_batches(n: int, batch_size: int, world: int) -> None:
    images = make_images(max(n, world))
    steps = steps_per_epoch(len(images), batch_size, world)
    sizes = []
    for rank in range(world):
        runtime = Runtime(fabric=World(world, rank))  # type: ignore[arg-type]
        batches = _batches(images, Plan(1, batch_size, 0), generator(0), runtime, 0)
        sizes.append([len(y) for _, y in batches])
        assert len(sizes[-1]) == steps
    if world == 1 and n >= batch_size:
        assert sizes == [[batch_size] * (n // batch_size)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("cuda", "32-true", 4096),
        ("abacus", "32-true", 1),
        ("cpu", "31-true", 1),
        ("cpu", "32-true", 0),
        ("cpu", "32-true", -2),
    ],
)
def test_devices_that_are_not_there(arguments: tuple[str, str, int]) -> None:
    with pytest.raises(InputError, match="device, precision, processes"):
        make_fabric(*arguments)


def test_half_precision_of_the_gpu_is_refused_on_the_cpu() -> None:
    with pytest.raises(InputError, match="16-mixed"):
        make_fabric("cpu", "16-mixed")


def test_runtime_streams() -> None:
    """Each process has a stream of its own, one that is shared the first's."""

    def draw(rank: int, seed: int, shared: bool) -> list[int]:
        runtime = Runtime(fabric=World(2, rank))  # type: ignore[arg-type]
        return torch.randint(1000, (8,), generator=runtime.generator(seed, shared=shared)).tolist()

    streams = [draw(rank, seed, False) for rank in (0, 1) for seed in (0, 1)]
    assert len({tuple(stream) for stream in streams}) == 4
    assert draw(0, 7, False) == draw(0, 7, True) == draw(1, 7, True)


def test_runtime_at_another_folder(tmp_path: Any) -> None:
    runtime = Runtime(fabric=FABRIC, checkpoint_seconds=3.0, tensorboard=True)
    moved = runtime.at(tmp_path)
    assert (moved.folder, runtime.folder) == (tmp_path, None)
    assert (moved.fabric, moved.checkpoint_seconds, moved.tensorboard) == (FABRIC, 3.0, True)
    assert moved.device == torch.device("cpu")
