from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sfumato.attacks import Reconstruction
from sfumato.audit import Card, audit, load_settings
from sfumato.audit import runs as runs_module
from sfumato.audit.judge import add_judgement, train_judge
from sfumato.audit.runs import load_data
from sfumato.metrics import accuracy, chance
from sfumato.storage import load_state
from sfumato.training import Runtime, make_fabric

LONGER = {"training": {"epochs": 6, "lr": 0.05}, "model": {"width": 0.125}}


def reconstruction(images):
    return Reconstruction(
        images={"test": images},
        quality={},
        threat_model="white-box",
        owned=0,
        queries=0,
        observations=1,
        seconds=0.0,
        figures={},
        diverged=False,
    )


@pytest.fixture
def runtime():
    return Runtime(fabric=make_fabric("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_settings):
    """An audit of two defenses with a judge that sees something, and the titles of everything it trained."""
    root = tmp_path_factory.mktemp("runs")
    settings = load_settings([tiny_settings, LONGER, {"evaluation": {"judge": True}}])
    titles, whole = [], runs_module.train

    def train(*arguments, title, **named):
        titles.append(title)
        return whole(*arguments, title=title, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "train", train)
        cards = audit(settings, root=root, runtime=Runtime(fabric=make_fabric("cpu")))
    return root, settings, cards, titles


@pytest.fixture
def judged(finished, runtime):
    """The judge, the judged images, and what makes a card of some reconstructions of them."""
    root, settings, cards, _ = finished
    splits = load_data(settings.data, settings.seed)
    judge = train_judge(settings, splits, root=root, runtime=runtime)
    victims = splits.test.select(torch.arange(settings.evaluation.victims))

    def judgement(images):
        return add_judgement(cards[0], judge, {"decoder": reconstruction(images)}, victims)

    return judge, victims, judgement


def test_the_judge_is_trained_once_for_all_defenses(finished):
    root, _, cards, titles = finished
    assert sorted(titles) == ["train cem", "train judge", "train none"]
    assert cards[0].judge == cards[1].judge
    assert (root / cards[0].judge.run / "run.json").is_file()


def test_the_judge_is_no_audited_model(finished):
    root, settings, cards, _ = finished
    assert cards[0].judge.run not in [card.run for card in cards]
    assert cards[0].judge.seed != settings.seed
    folders = [root / run for run in (cards[0].run, cards[0].judge.run)]
    plain, judge = (load_state(folder / "model.safetensors")["split"] for folder in folders)
    first = next(iter(plain))
    assert plain.keys() == judge.keys()
    assert not torch.equal(plain[first], judge[first])


def test_its_figure_on_the_originals_is_its_own_accuracy(finished, judged):
    _, _, cards, _ = finished
    judge, victims, _ = judged
    info = cards[0].judge
    assert info.accuracy == accuracy(judge.split, victims, generator=torch.Generator())
    assert info.accuracy > info.chance + 0.2, "a judge that sees nothing would make these tests empty"
    assert info.chance == chance(victims.labels)


def test_a_perfect_reconstruction_is_recognized_as_often_as_the_original(judged):
    _, victims, judgement = judged
    made = judgement(victims.images / 255)
    assert made.attacks[0].identity == made.judge.accuracy


def test_one_picture_for_all_is_recognized_no_more_than_by_chance(judged):
    _, victims, judgement = judged
    shares = victims.labels.bincount(minlength=10) / len(victims)
    for picture in (torch.zeros_like(victims.images[:1] / 255), victims.images[:1] / 255):
        made = judgement(picture.expand(len(victims), -1, -1, -1))
        assert made.attacks[0].identity in [pytest.approx(share) for share in shares.tolist()]
        assert made.attacks[0].identity <= made.judge.chance


def test_pictures_of_others_are_not_recognized(judged):
    _, victims, judgement = judged
    order = victims.labels.argsort(stable=True)
    shift = int(victims.labels.bincount().max())
    # Everybody gets the picture of somebody of another class.
    others = torch.empty_like(order)
    others[order] = order.roll(shift)
    assert not (victims.labels[others] == victims.labels).any()
    made = judgement(victims.images[others] / 255)
    assert made.attacks[0].identity <= 1 - made.judge.accuracy


def test_a_judge_that_sees_nothing_is_distrusted(finished, judged):
    _, _, cards, _ = finished
    judge, victims, _ = judged
    blind = replace(
        judge, split=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(victims.images[0].numel(), 10))
    )
    torch.nn.init.zeros_(blind.split[1].weight)
    card = add_judgement(cards[0], blind, {"decoder": reconstruction(victims.images / 255)}, victims)
    assert [one.code for one in card.suspicions if one not in cards[0].suspicions] == ["judge-at-chance"]
    assert "judge-at-chance" not in [one.code for one in cards[0].suspicions]
    assert f"only {card.judge.accuracy:.1%} of the originals" in card.suspicions[-1].message


def test_with_a_judge_it_is_another_card_of_the_same_run(finished, runtime, monkeypatch):
    root, settings, cards, _ = finished
    monkeypatch.setattr(runs_module, "train", None)
    without = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"judge": False})})
    plain = audit(without, root=root, runtime=runtime)
    for one, other in zip(cards, plain, strict=True):
        assert (other.judge, other.attacks[0].identity) == (None, None)
        assert one.run == other.run
        assert one.attacks[0].model_copy(update={"identity": None}) == other.attacks[0], "judging changes nothing else"
    assert audit(settings, root=root, runtime=runtime) == cards


def test_another_cut_or_edge_has_the_same_judge_and_another_seed_another(finished, runtime, monkeypatch):
    root, settings, cards, _ = finished
    splits = load_data(settings.data, settings.seed)
    trained = []

    def stopped(*_, title, **__):
        trained.append(title)
        raise RuntimeError

    monkeypatch.setattr(runs_module, "train", stopped)
    for change in ({"cut": "block1"}, {"edge_from": str(root / cards[0].run)}):
        other = settings.model_copy(update={"model": settings.model.model_copy(update=change)})
        assert train_judge(other, splits, root=root, runtime=runtime).folder.name == cards[0].judge.run
    for change in ({"seed": 2**31 - 1}, {"training": settings.training.model_copy(update={"epochs": 1})}):
        with pytest.raises(RuntimeError):
            train_judge(settings.model_copy(update=change), splits, root=root, runtime=runtime)
    assert trained == ["train judge"] * 2


def test_a_card_from_before_there_were_judges_is_read(finished, tmp_path):
    content = json.loads(finished[2][0].model_dump_json())
    del content["judge"], content["attacks"][0]["identity"]
    (tmp_path / "card.json").write_text(json.dumps(content))
    card = Card.load(tmp_path / "card.json")
    assert (card.judge, card.attacks[0].identity) == (None, None)
