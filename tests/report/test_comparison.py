from __future__ import annotations

import pytest

from sfumato.audit.reference import is_undefended
from sfumato.errors import InputError
from sfumato.report.comparison import by_data, entries, per_image_ssim, seeds, strongest_attack

NOISE = [("bottleneck", {}), ("noise", {})]


def test_the_undefended_come_first_and_none_comes_twice(card):
    bare, noise, cem = card("None"), card("Noise", NOISE), card("CEM", NOISE)
    members = entries([cem, bare, noise, cem])
    assert [entry.name for entry in members] == ["None", "CEM", "Noise"]
    assert [entry.number for entry in members] == [1, 2, 3]


@pytest.mark.parametrize(
    ("parts", "undefended"),
    [
        ([("bottleneck", {})], True),
        ([("bottleneck", {}), ("prune", {})], True),
        ([("bottleneck", {}), ("adversary", {})], False),
        (NOISE, False),
        ([("cem", {})], False),
    ],
)
def test_a_bottleneck_alone_defends_nothing(card, parts, undefended):
    assert is_undefended(card("x", parts)) is undefended


def test_equal_labels_are_told_apart_by_what_differs(card):
    names = [entry.name for entry in entries([card("A", NOISE, seed=0), card("A", NOISE, seed=1), card("B", NOISE)])]
    assert names == ["A (seed 0)", "A (seed 1)", "B"]


def test_equal_labels_with_nothing_to_tell_them_apart_are_numbered(card):
    names = [entry.name for entry in entries([card("A", NOISE), card("A", NOISE, accuracy=0.5)])]
    assert len(set(names)) == 2


def test_the_strongest_attack_is_the_one_that_is_seen_best(card, attack):
    made = [attack("a", ssim=0.4, mse=0.001), attack("b", ssim=0.6), attack("c", ssim=0.6, mse=0.019)]
    assert strongest_attack(card(attacks=made)).attack.name == "c"
    assert strongest_attack(card(attacks=made[:2])).attack.name == "b"


def test_each_image_counts_with_its_best_attack(card, attack):
    rising, falling = attack("a", ssim=0.5, spread=0.1), attack("b", ssim=0.5, spread=-0.1)
    short = attack("c", ssim=0.9, judged=3)
    values = per_image_ssim(card(attacks=[rising, falling, short]))
    assert len(values) == 100
    assert min(values) >= 0.5
    assert max(values) == pytest.approx(0.6)


def test_other_data_stand_apart(card):
    groups = by_data(entries([card("A"), card("B", checksum="b" * 64), card("C")]))
    assert [[entry.name for entry in group] for group in groups] == [["A", "C"], ["B"]]


def test_an_edge_that_began_elsewhere_is_no_other_seed_of_the_same(card):
    here, seed = card("A", NOISE), card("A", NOISE, seed=1)
    moved = seed.model_copy(update={"model": seed.model.model_copy(update={"edge_from": "e" * 64})})
    twins = entries([here, seed])
    assert seeds(twins, twins[0]) == {0, 1}
    members = entries([here, moved])
    assert seeds(members, members[0]) == {0}


def test_no_card_is_refused():
    with pytest.raises(InputError, match=r"cards: got .*at least one card"):
        entries([])
