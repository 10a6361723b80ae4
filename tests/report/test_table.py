from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console

from sfumato.errors import InputError
from sfumato.report import (
    ATTACK_COLUMNS,
    COLUMNS,
    csv_table,
    json_table,
    markdown_table,
    render_page,
    rich_table,
    rows,
)
from sfumato.report.comparison import entries
from sfumato.report.format import amount, call, fixed, listing, milliseconds, octets, percent
from sfumato.report.table import attack_explanations, explanations


def _parse(markdown):
    lines = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in markdown.splitlines()]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line] for line in lines]


def test_markdown_reads_back(cards):
    header, rule, *body = _parse(markdown_table(cards))
    assert len(header) == len(rule) == len(COLUMNS)
    assert [line[0] for line in body] == [
        "Undefended",
        "Noise",
        "Noise_NoPeek",
        "Noise_ARL",
        "Noise_ARL + CEM",
    ]
    assert body[0][header.index("SSIM, test ↓")] == "0.930"
    assert all(len(line) == len(header) for line in body)


@pytest.mark.parametrize("label", ["a|b", "a\\|b", "a\nb", "[x](y)", "*b*", "<script>alert(1)</script>"])
def test_no_label_breaks_markdown(card, label):
    table = markdown_table([card(label)])
    assert len(table.splitlines()) == 3
    assert len(_parse(table)[2]) == len(COLUMNS)
    assert "<script" not in table


def test_raw_figures(cards):
    first = rows(cards)[0]
    assert first["test_accuracy"] == 0.962
    assert first["attack"] == "decoder"
    assert list(first) == [column.key for column in COLUMNS]


def test_csv_and_json_hold_the_raw_figures(cards):
    expected = rows(cards)
    assert json.loads(json_table(cards)) == expected
    read = list(csv.DictReader(io.StringIO(csv_table(cards))))
    assert [float(row["test_mse"]) for row in read] == [row["test_mse"] for row in expected]


def test_a_missing_figure_is_a_dash_and_never_a_zero(card, attack):
    made = attack("decoder")
    made["test"]["psnr"] = None
    exact = card(attacks=[made])
    assert rows([exact])[0]["test_psnr"] is None
    header, _, body = _parse(markdown_table([exact]))
    assert body[header.index("PSNR (dB), test ↓")] == "–"
    assert csv_table([exact])
    assert json.loads(json_table([exact]))[0]["test_psnr"] is None


def test_rich_shows_labels_literally(card):
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(rich_table([card("[red]hostile[/red]")]))
    text = console.export_text()
    assert "[red]hostile[/red]" in text
    assert "more private" in text


def test_the_table_by_attack_has_a_row_an_attack_the_strongest_first(cards):
    made = rows(cards, by="attack")
    assert [(row["defense"], row["attack"]) for row in made[:4]] == [
        ("Undefended", "decoder"), ("Undefended", "generator"), ("Undefended", "rmle"), ("Noise", "decoder"),
    ]  # fmt: skip
    assert list(made[0]) == [column.key for column in ATTACK_COLUMNS]
    generator = cards[0].attacks[1]
    assert made[1] == {
        "defense": "Undefended",
        "attack": "generator",
        "threat_model": "gray-box",
        "trained_on": "auxiliary",
        "observations": 1,
        "images": None,
        "queries": 4000,
        **{f"{part}_{name}": getattr(getattr(generator, part), name)
           for part in ("train", "test") for name in ("mse", "psnr", "ssim")},
        "ssim_wins": 0.0,
        "mse_wins": 0.0,
        "identity": None,
        "arguments": "epochs=100, images=null, observations=1",
    }  # fmt: skip


def test_the_table_by_attack_in_every_form(cards):
    expected = rows(cards, by="attack")
    assert json.loads(json_table(cards, by="attack")) == expected
    read = list(csv.DictReader(io.StringIO(csv_table(cards, by="attack"))))
    assert [float(row["ssim_wins"]) for row in read] == [row["ssim_wins"] for row in expected]
    header, _, *body = _parse(markdown_table(cards, by="attack"))
    assert [line[1] for line in body] == [row["attack"] for row in expected]
    assert body[0][header.index("Wins, by SSIM")] == "100.0 %"
    assert body[0][header.index("Own pictures")] == "–"
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(rich_table(cards, by="attack"))
    assert "generator" in console.export_text()


def test_rows_of_another_kind_are_refused(cards):
    with pytest.raises(InputError, match=r"by: got 'defense'"):
        rows(cards, by="defense")


def test_every_column_is_explained(cards):
    titles = {line.title for line in explanations(entries(cards))}
    assert {column.figure for column in COLUMNS[1:]} <= titles
    assert {"Train", "Test"} <= titles
    own = {line.title for line in attack_explanations()}
    assert own == {"Attacker", "Observations", "Own pictures", "Queries", "Wins", "Recognized"}


@pytest.mark.parametrize("origins", [("train",), ("auxiliary",), ("train", "auxiliary")])
def test_whose_pictures_the_figures_called_train_are_of(card, attack, origins):
    """Where the attacker learned from other pictures than the model, they are not of the model's."""
    cards = [card(attacks=[attack(f"decoder ({one})", trained_on=one) for one in origins])]
    (meaning,) = (line.meaning for line in explanations(entries(cards)) if line.title == "Train")
    assert ("On the model’s training pictures" in meaning) == ("train" in origins)
    assert ("The model has not learned from it" in meaning) == ("auxiliary" in origins)
    assert meaning in render_page(cards)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (fixed(1.25, 1), "1.2"),
        (fixed(None, 2), "–"),
        (percent(0.8734), "87.3 %"),
        (amount(999_999), "1000 k"),
        (amount(1.5e9), "1.50 G"),
        (octets(999), "999 B"),
        (milliseconds(12.345), "12.3 ms"),
        (milliseconds(9.876), "9.88 ms"),
        (listing([]), ""),
        (listing(["a", "b"], "or"), "a or b"),
    ],
)
def test_formats(shown, text):
    assert shown == text


def test_a_call_reads_the_same_whatever_the_order(card):
    one, two = (card("x", [("n", dict(pairs))]) for pairs in ((("a", 1), ("b", [2])), (("b", [2]), ("a", 1))))
    assert call(one.defense.parts[0]) == call(two.defense.parts[0]) == "n(a=1, b=[2])"
