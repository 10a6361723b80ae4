"""Parts of an attack's work are kept: what was stopped goes on, does nothing twice, and ends in the same bits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_toys import (
    CONTRACT,
    generator,
    identity_split,
    make_images,
    make_knowledge,
    make_split,
    runtime,
    target_of,
)
from torch import Tensor

from sfumato.attacks import (
    Attack,
    DecoderAttack,
    DeepPriorAttack,
    Knowledge,
    LatentPriorAttack,
    Reconstruction,
    RMLEAttack,
    base,
)
from sfumato.attacks.keeping import Pieces
from sfumato.data import ImageSet
from sfumato.errors import Interrupted
from sfumato.models import SplitModel, Stochastic
from sfumato.progress import Silent
from sfumato.storage import load_state, save_state

VICTIMS = {"train": make_images(5, seed=11), "test": make_images(7, seed=12)}
BATCHES = [3, 2, 3, 3, 1]
QUICK: dict[str, Attack] = {
    **CONTRACT,
    "selecting rmle": RMLEAttack(steps=4, stages=2),
    "learned input": DeepPriorAttack(steps=4, width=4, depth=2, inputs=2, optimize_input=True),
    "budget": DecoderAttack(depth=0, width=4, epochs=2, batch_size=8, queries=61),
}


class Jitter(Stochastic):
    """Draws even for its mean."""

    def forward(self, z: Tensor) -> Tensor:
        return z + 0.3 * self.normal(z)


class Counting(Silent):
    def __init__(self) -> None:
        self.steps = 0

    def advance(self, steps: int = 1) -> None:
        self.steps += steps


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BATCH", 3)


@pytest.fixture
def inverted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were really inverted."""
    sizes: list[int] = []
    for kind in {type(attack) for attack in QUICK.values()}:

        def run(self: Attack, *args: Any, run: Callable[..., Any] = kind.run, **kwargs: Any) -> Any:
            learned = run(self, *args, **kwargs)

            def invert(z: Tensor) -> Tensor:
                sizes.append(len(z))
                return learned.invert(z)

            return dataclasses.replace(learned, invert=invert)

        monkeypatch.setattr(kind, "run", run)
    return sizes


def attack(
    spec: Attack,
    model: SplitModel | None = None,
    victims: dict[str, ImageSet] = VICTIMS,
    knowledge: Knowledge | None = None,
    seed: int = 0,
    channel: int = 7,
    threat_model: Any = "white-box",
    **options: Any,
) -> Reconstruction:
    target = target_of(model or make_split(), threat_model, seed=channel)
    return spec(target, knowledge or make_knowledge(), victims, generator=generator(seed), runtime=runtime(**options))


def same(a: Reconstruction, b: Reconstruction) -> bool:
    equal = all(torch.equal(a.images[name], b.images[name]) for name in VICTIMS)
    judged = all(torch.equal(a.quality[name].ssim, b.quality[name].ssim) for name in VICTIMS)
    return equal and judged and (a.figures, a.queries, a.diverged) == (b.figures, b.queries, b.diverged)


def piece(folder: Path, name: str = "victims1") -> Path:
    return folder / f"{name}.checkpoint.safetensors"


def stop_after(folder: Path, name: str = "victims1", more: int = 0) -> Callable[[], bool]:
    """Asks to stop so many questions after the first since a piece was kept."""
    count = itertools.count()
    return lambda: piece(folder, name).exists() and next(count) >= more


@pytest.mark.parametrize("observations", [1, 2])
@pytest.mark.parametrize("name", QUICK)
def test_goes_on_after_the_first_batch(name: str, observations: int, tmp_path: Path, inverted: list[int]) -> None:
    """Under a random channel, to the last bit, with no step and no query twice."""
    spec, steps = dataclasses.replace(QUICK[name], observations=observations), [Counting() for _ in range(4)]
    whole = attack(spec, progress=steps[0])
    assert inverted == BATCHES
    with pytest.raises(Interrupted, match="batch 1 of 5"):
        attack(spec, folder=tmp_path, should_stop=stop_after(tmp_path), progress=steps[1])
    assert inverted == [*BATCHES, 3]
    assert same(attack(spec, folder=tmp_path, progress=steps[2]), whole)
    assert inverted == BATCHES + BATCHES
    assert steps[0].steps == steps[1].steps + steps[2].steps
    assert same(attack(spec, folder=tmp_path, progress=steps[3]), whole), "and once more from what is finished"
    assert (len(inverted), steps[3].steps) == (10, 0)


@pytest.mark.parametrize("more", [1, 3, 7, 9, 14])
@pytest.mark.parametrize("name", ["rmle", "selecting rmle", "deep_prior", "latent_prior"])
def test_goes_on_from_inside_a_batch(name: str, more: int, tmp_path: Path) -> None:
    spec = QUICK[name]
    whole = attack(spec)
    with pytest.raises(Interrupted):
        attack(spec, folder=tmp_path, should_stop=stop_after(tmp_path, "victims2", more))
    assert same(attack(spec, folder=tmp_path), whole)


@pytest.mark.parametrize("name", ["rmle", "deep_prior"])
@pytest.mark.parametrize("stop", [1, 4, 8, 12, 20])
def test_what_the_channel_draws_while_inverting_goes_on_too(name: str, stop: int, tmp_path: Path) -> None:
    spec, count = dataclasses.replace(QUICK[name], observations=2), itertools.count()
    whole = attack(spec, identity_split(Jitter()))
    with pytest.raises(Interrupted):
        attack(spec, identity_split(Jitter()), folder=tmp_path, should_stop=lambda: next(count) == stop)
    assert same(attack(spec, identity_split(Jitter()), folder=tmp_path), whole)


@pytest.mark.parametrize(
    "spec",
    [
        RMLEAttack(steps=6, tv=0.1, start="noise", restarts=3, stages=2),
        LatentPriorAttack(width=4, epochs=1, batch_size=8, restarts=3, steps=6, refine_steps=3),
    ],
    ids=["rmle", "latent_prior"],
)
def test_restarts_are_kept(spec: Attack, tmp_path: Path) -> None:
    """Stopped as soon as the second start of the second batch of victims is done: none of its steps is lost."""
    steps = [Counting() for _ in range(3)]
    whole = attack(spec, progress=steps[0])
    done = itertools.count()

    def asked() -> bool:
        if not piece(tmp_path).exists():
            return False
        return next(done) == 1 + 2 * 6  # after the batch, after each step of two starts, the first of a third

    with pytest.raises(Interrupted):
        attack(spec, folder=tmp_path, should_stop=asked, progress=steps[1])
    assert same(attack(spec, folder=tmp_path, progress=steps[2]), whole)
    assert steps[1].steps + steps[2].steps == steps[0].steps + 1


def test_a_rehearsal_is_kept(tmp_path: Path) -> None:
    """Stopped in the first batch of victims: the attacker's own images are not met again."""
    for name in ("selecting rmle", "deep_prior"):
        folder, steps = tmp_path / name, [Counting() for _ in range(3)]
        whole = attack(QUICK[name], progress=steps[0])
        with pytest.raises(Interrupted):
            attack(QUICK[name], folder=folder, should_stop=stop_after(folder, "rehearsal"), progress=steps[1])
        assert same(attack(QUICK[name], folder=folder, progress=steps[2]), whole)
        assert steps[1].steps + steps[2].steps == steps[0].steps + 1


NOISY = RMLEAttack(steps=4, stages=2, start="noise")


def changed(what: str) -> dict[str, Any]:
    knowledge = make_knowledge()
    return {
        "victims": {"victims": {"train": make_images(5, seed=13), "test": make_images(7, seed=14)}},
        "own images": {"knowledge": dataclasses.replace(knowledge, train=make_images(24, seed=5))},
        "images to select on": {"knowledge": dataclasses.replace(knowledge, validation=make_images(9, seed=6))},
        "attack": {"spec": dataclasses.replace(NOISY, lr=0.02)},
        "seed": {"seed": 1},
        "channel": {"channel": 8},
        "model": {"model": identity_split()},
    }[what]


@pytest.mark.parametrize("what", ["victims", "own images", "images to select on", "attack", "seed", "channel", "model"])
def test_what_was_made_of_something_else_is_not_taken(what: str, tmp_path: Path, inverted: list[int]) -> None:
    given = {"spec": NOISY, **changed(what)}
    attack(NOISY, folder=tmp_path)
    fresh = attack(**given)
    found = attack(**given, folder=tmp_path)
    assert same(found, fresh)
    assert inverted == 3 * BATCHES, "nothing is taken, even where it would be the same"


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    save_state(path, [1.0])


@pytest.mark.parametrize("damage", [shorten, flip, empty, replace])
def test_what_is_damaged_is_made_again(damage: Callable[[Path], None], tmp_path: Path, inverted: list[int]) -> None:
    spec = QUICK["rmle"]
    whole = attack(spec, folder=tmp_path)
    before = load_state(piece(tmp_path, "victims2"))["made"].clone()
    damage(piece(tmp_path, "victims2"))
    damage(piece(tmp_path, "rehearsal"))
    assert same(attack(spec, folder=tmp_path), whole)
    assert inverted == [*BATCHES, 2]
    assert torch.equal(load_state(piece(tmp_path, "victims2"))["made"], before), "and kept again"


def test_an_impatient_user_gets_there(tmp_path: Path) -> None:
    """Every call that is stopped at the first question after it finished a batch adds one."""
    spec = QUICK["decoder"]
    attack(spec, victims={"test": make_images(1, seed=1)}, folder=tmp_path)  # trains
    whole, stops = attack(spec), 0
    for _ in range(10):
        try:
            found = attack(spec, folder=tmp_path, should_stop=lambda: True)
            break
        except Interrupted:
            stops += 1
    assert stops == 4
    assert same(found, whole)


def test_nothing_is_kept_without_a_folder_and_nothing_hashed() -> None:
    def refuse() -> Any:
        raise AssertionError("hashed for nothing")

    pieces = Pieces(refuse, target_of(make_split()), generator(0), runtime())
    assert [pieces("a", lambda: 3, 1.0), pieces("a", lambda: 4, 1.0)] == [3, 4]


def test_a_piece_comes_back_whole(tmp_path: Path) -> None:
    def pieces(target: Any, draws: torch.Generator) -> Pieces:
        return Pieces(lambda: {"who": 1}, target, draws, runtime(folder=tmp_path))

    target, draws = target_of(make_split()), generator(0)

    def make() -> Any:
        target.query(make_images(2).images / 255)
        return {"a": (torch.rand(3, generator=draws), [1, None]), "b": float("inf")}

    made = pieces(target, draws)("part", make, 1.0)
    other, again = target_of(make_split()), generator(0)
    taken = pieces(other, again)("part", lambda: None, 1.0)
    assert torch.equal(taken["a"][0], made["a"][0])
    assert (taken["a"][1], taken["b"]) == ([1, None], float("inf"))
    assert other.queries == target.queries == 2
    assert torch.equal(other.state_dict()["generator"], target.state_dict()["generator"])
    assert torch.equal(again.get_state(), draws.get_state())
    taken["a"][0].zero_()
    assert not torch.equal(load_state(piece(tmp_path, "part"))["made"]["a"][0], taken["a"][0]), "memory of its own"
