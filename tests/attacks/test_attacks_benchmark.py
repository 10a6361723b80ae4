"""What ``benchmarks/attacks.py`` times against the library does the same work as the library."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attack_toys import runtime

from benchmarks import attacks as program
from sfumato.training.loop import training_batches


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    smaller = dataclasses.replace(program.DECODER, depth=1, width=8, lr=0.01)
    for name, value in {
        "IMAGES": 96,
        "BATCH_SIZE": 32,
        "VICTIMS": 5,
        "ALONE": 3,
        "RMLE": dataclasses.replace(program.RMLE, steps=12),
        "DECODER": smaller,
    }.items():
        monkeypatch.setattr(program, name, value)


def test_the_loop_written_by_hand_trains_the_same_decoder() -> None:
    """Three steps on the very same batches end in the same network, and three in another order in another one."""
    images = program.make_knowledge().train
    numbered = dataclasses.replace(images, labels=torch.arange(len(images)), classes=("image",) * len(images))
    batches = training_batches(numbered, program.BATCH_SIZE, program.seeded(), runtime())
    order = torch.cat([index for _, index in batches])
    assert sorted(order.tolist()) == list(range(96))
    sides = [
        program.our_decoder(runtime()),
        program.decoder_by_hand(runtime(), lambda _: order),
        program.decoder_by_hand(runtime(), lambda _: order.flip(0)),
    ]
    z = torch.rand(8, *program.make_split().feature.shape, generator=program.seeded(5))
    # In training mode: a bias before batch norm has no gradient but rounding, which Adam makes steps of.
    before = sides[0][1].train()(z).detach()
    for epoch, _ in sides:
        epoch()
    ours, same, other = (decoder.train()(z).detach() for _, decoder in sides)
    assert float((ours - before).abs().max()) > 0.02
    assert float((same - ours).abs().max()) < 1e-3 < float((other - ours).abs().max())


def test_one_victim_at_a_time_gives_the_pictures_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision, for in single the search parts at the edge's corners."""
    make_split = program.make_split
    monkeypatch.setattr(program, "make_split", lambda: make_split().double())
    together, alone = (side() for side in program.rmle_sides(runtime()))
    assert together.shape == (5, 3, 32, 32)
    torch.testing.assert_close(alone, together[:3], atol=1e-5, rtol=0)
    assert float((together[0] - together[1]).abs().max()) > 0.1, "each is a picture of its own"


def test_sides_take_turns() -> None:
    calls: list[str] = []
    times = program.in_turns((lambda: calls.append("a"), lambda: calls.append("b")), torch.device("cpu"), rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert len(times) == 3
