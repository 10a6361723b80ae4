from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import sfumato.report
from sfumato.audit.card import Card
from sfumato.errors import InputError
from sfumato.report import entries, render_page, write_page
from sfumato.report.gallery import line_up

NOISE = [("bottleneck", {}), ("noise", {"sigma": 0.1})]
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every tag is closed where it must be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def html(cards):
    return render_page(cards)


def test_the_page_needs_no_other_file(html):
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    page = Page(html)
    assert not page.all("script")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (name, attributes[name])
    assert "url(" not in html.split("<style>")[1].split("</style>")[0]


def test_links_lead_somewhere_and_ids_are_unique(html):
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in page.all("a")} | {
        name for _, a in page.tags for name in (a.get("aria-labelledby") or "").split()
    }
    assert targets <= set(ids)


def test_everyone_can_read_it(html):
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(cell.get("scope") for cell in page.all("th"))
    assert all(region.get("tabindex") == "0" for region in page.all("div") if region.get("role") == "region")


def test_the_order_of_the_sections(html):
    page = Page(html)
    sections = [section["id"] for section in page.all("section")]
    assert sections == [
        "verdict", "gallery", "figures", "plot", "attacks", "suspicions", "limits", "provenance",
    ]  # fmt: skip
    linked = [link["href"][1:] for link in page.all("a")]
    assert linked[1 : 1 + len(sections)] == sections


def test_what_the_page_says(html, cards):
    words = Page(html).words
    for text in (
        "One of four defenses withstood the attacks that were run.",
        "Noise fails as a defense",
        "The evaluation distrusts its own figures for Noise_ARL.",
        "The attack rmle is worse than the mean image",
        "noise(sigma=0.025) → adversary(weight=0.5) → cem(weight=16)",
        "No black-box attacker",
        "Not run: averaging over repeated observations",
        "one seed only",
        "vgg11, width ×0.25",
        "Every model was trained with one seed only",
    ):
        assert text in words
    for card in cards:
        assert card.fingerprint() in words
    assert cards[0].data.checksum in words
    assert cards[0].run in words


def test_the_gallery_shows_best_median_and_worst_beside_the_undefended(html, cards):
    images = Page(html).all("img")
    assert len(images) == (1 + 5) * 8 + 3 * 2 + 4 * 3 * 3
    assert all(image["class"] == "pixelated" and image["width"] == "32" for image in images)
    sources = Counter(image["src"].removeprefix("data:image/png;base64,") for image in images)
    strongest = [example for card in cards for example in card.attacks[0].examples]
    assert set(sources) == {e.original for e in strongest} | {e.reconstruction for e in strongest}
    lined_up = [example for example in strongest if example.rank == "fixed"]
    assert {sources[image] for e in lined_up for image in (e.original, e.reconstruction)} == {1}


def test_the_same_cards_give_the_same_bytes(cards, html):
    assert render_page(list(cards)) == html


HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=y>"


def test_hostile_text_stays_text(card, attack):
    made = attack("decoder", label=HOSTILE, note=HOSTILE)
    made["attack"]["name"] = HOSTILE
    page = Page(
        render_page(
            [
                card(),
                card(HOSTILE, [(HOSTILE, {HOSTILE: HOSTILE})], attacks=[made], classes=[HOSTILE, "b"],
                     suspicions=[(HOSTILE, HOSTILE)]),
            ],
            title=HOSTILE,
        )
    )  # fmt: skip
    assert not page.all("script")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE in "".join(page.text)


@pytest.mark.parametrize("bad", ["", "no base64!", "aGVsbG8=", '" onerror="alert(1)'])
def test_a_picture_that_is_none_is_refused(card, attack, bad):
    made = attack()
    made["examples"][0]["original"] = bad
    with pytest.raises(InputError, match=r"example\.original"):
        render_page([card(attacks=[made])])


def test_what_a_classifier_recognizes_stands_in_verdict_table_and_provenance(card, attack):
    seen = [attack("decoder", identity=0.8125), attack("rmle", identity=0.0)]
    judged = card("CEM", NOISE, attacks=seen, judge=(0.962, 0.1))
    page = Page(render_page([judged]))
    assert (
        "recognizes 96.2 % of the originals and 81.2 % of the reconstructions by decoder (chance: 10.0 %)" in page.words
    )
    assert [cell.get("data-label") for cell in page.all("td")].count("Recognized") == 2
    assert "0.600 81.2 %" in page.words
    assert "0.600 0.0 %" in page.words
    assert "the undefended vgg11, width ×0.25, from seed 1000003" in page.words
    assert "train-judge" in page.words
    both = Page(render_page([card(), judged]))
    assert "0.600 –" in both.words, "a card without a judge has a dash in that column"
    alone = Page(render_page([card()]))
    assert "Recognized" not in alone.words
    assert "classifier" not in alone.words


def test_one_defended_card_alone(card):
    words = Page(render_page([card("CEM", NOISE, mse=0.04, ssim=0.3)])).words
    assert "No undefended model was audited" in words
    assert "None: the evaluation found nothing in itself to distrust" in words


def test_one_undefended_card_alone(card):
    words = Page(render_page([card(mse=0.003, ssim=0.9)])).words
    assert "Undefended, the feature gives the picture away." in words


def test_many_cards_on_two_data_sets(card):
    made = [card(f"D{i}", NOISE, ssim=0.2 + i / 40, seed=i % 2) for i in range(12)]
    page = Page(render_page([*made, card("Other", NOISE, checksum="b" * 64)]))
    assert len(page.all("svg")) == 4
    assert "12 D11" in page.words


def test_missing_figures_are_dashes(card, attack):
    made = attack(mse=0.0, ssim=1.0)
    assert made["test"]["psnr"] is made["train"]["psnr"] is None
    made["examples"] = []
    words = Page(render_page([card(attacks=[made])])).words
    assert words.count(" – ") == 3
    assert not {"nan", "inf"} & set(words.lower().split())
    assert "The card holds no example pictures." in words


def test_attacks_that_some_were_spared_are_named(card, attack):
    both = [attack("decoder"), attack("rmle", observations=4)]
    words = Page(render_page([card(attacks=both), card("CEM", NOISE, attacks=both[:1])])).words
    assert "CEM was spared the attack rmle" in words
    assert "Not run: averaging" not in words


def test_several_seeds_are_not_called_one(card):
    made = [card("None", seed=seed, accuracy=0.9 + seed / 100) for seed in (0, 1)]
    assert "one seed only" not in Page(render_page(made)).words


def test_writing(cards, html, tmp_path):
    path = tmp_path / "deep" / "page.html"
    write_page(cards, path)
    assert path.read_text(encoding="utf-8") == html
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_exported_names():
    assert sorted(sfumato.report.__all__, key=str.lower) == sorted(set(sfumato.report.__all__), key=str.lower)
    assert all(hasattr(sfumato.report, name) for name in sfumato.report.__all__)


def test_every_model_shows_the_same_pictures_under_the_originals(card):
    members = entries([card("None"), card("Noise", [("noise", {"sigma": 0.1})], mse=0.05, ssim=0.3)])
    lineup = line_up(members)
    assert lineup is not None
    assert [picture.alt.split(",")[0] for picture in lineup.originals] == [
        f"Original test picture {i}" for i in range(3, 11)
    ]
    assert [entry.name for entry, _ in lineup.rows] == ["None", "Noise"]
    for entry, pictures in lineup.rows:
        fixed = [example for example in entry.strongest.examples if example.rank == "fixed"]
        assert [picture.source.split(",")[1] for picture in pictures] == [each.reconstruction for each in fixed]


def test_the_line_up_leaves_a_gap_where_a_card_lacks_a_picture(card, attack):
    made = attack("decoder", mse=0.05, ssim=0.3)
    del made["examples"][5]
    cards = [card("None"), card("Noise", NOISE, attacks=[made])]
    lineup = line_up(entries(cards))
    assert lineup is not None
    assert len(lineup.originals) == 8
    whole, gap = ([picture is None for picture in pictures] for _, pictures in lineup.rows)
    assert whole == [False] * 8
    assert gap == [False, False, True, False, False, False, False, False]
    assert len([cell for cell in Page(render_page(cards)).all("td") if not cell.get("data-label")]) == 3 * 8


def test_each_data_set_has_a_line_up_of_its_own(card):
    other = card("Other", checksum="b" * 64).model_dump()
    other["data"] |= {"image_shape": (3, 112, 96), "source": "faces"}
    page = Page(render_page([card(), Card.model_validate(other)]))
    assert [image["width"] for image in page.all("img")[:32]] == ["32"] * 16 + ["96"] * 16
    assert [image.get("class") for image in page.all("img")[:32]] == ["pixelated"] * 16 + [None] * 16
    assert page.words.count("The same test pictures") == 2
    assert "its SSIM. Data: digits." in page.words
    assert "its SSIM. Data: faces." in page.words


def test_cards_without_fixed_pictures_have_no_line_up(card, attack):
    made = attack("decoder")
    made["examples"] = [each for each in made["examples"] if each["rank"] != "fixed"]
    assert line_up(entries([card(attacks=[made])])) is None
    assert 'class="lineup"' not in render_page([card(attacks=[made])])
