from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import sfumato.report
from sfumato.attacks import ATTACKS
from sfumato.audit.card import Card
from sfumato.errors import InputError
from sfumato.report import entries, render_page, write_page
from sfumato.report.coverage import FAMILIES
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
    assert len(page.all("caption")) == len(page.all("table")) == 2 + 5
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
    assert "0.600 100.0 % 100.0 % 81.2 %" in page.words
    assert "0.600 0.0 % 0.0 % 0.0 %" in page.words
    assert "the undefended vgg11, width ×0.25, from seed 1000003" in page.words
    assert "train-judge" in page.words
    both = Page(render_page([card(), judged]))
    assert "100.0 % –" in both.words, "a card without a judge has a dash in that column"
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


def _contest(card, attack, name="Noise", parts=NOISE, long=False):
    """Two attacks: the first wins on even pictures, the second on odd ones; both have all fixed examples."""
    names = ("decoder (observations=16)", "rmle (steps=2000)") if long else ("decoder", "rmle")
    made = [attack(label, ssim=0.5 - 0.05 * i, mse=0.02 + 0.01 * i) for i, label in enumerate(names)]
    for i, each in enumerate(made):
        each["test_ssim"] = [0.6 if image % 2 == i else 0.3 for image in range(100)]
        for example in each["examples"]:
            if example["rank"] == "fixed":
                example["ssim"] = 0.6 if example["index"] % 2 == i else 0.3
    return card(name, parts, attacks=made)


def test_each_picture_of_the_line_up_is_by_the_attack_that_comes_closest(card, attack):
    made = _contest(card, attack)
    lineup = line_up(entries([made]))
    assert lineup is not None
    ((_, pictures),) = lineup.rows
    assert [picture.by for picture in pictures] == ["rmle", "decoder"] * 4  # the pictures 3 to 10
    assert [picture.caption for picture in pictures] == ["0.60"] * 8
    assert pictures[0].alt.startswith("What the attack rmle rebuilds of test picture 3,")
    fixed = [[e for e in each.examples if e.rank == "fixed"] for each in made.attacks]
    expected = [fixed[1 - i % 2][i].reconstruction for i in range(8)]
    assert [picture.source.split(",")[1] for picture in pictures] == expected
    assert lineup.key == ()
    page = Page(render_page([made]))
    assert "its SSIM and the attack. Data" in page.words
    assert [e for e in page.all("em") if e == {}]
    assert page.words.count("0.60 rmle") == page.words.count("0.60 decoder") == 4


def test_of_equally_close_attacks_the_first_rebuilds_the_picture(card, attack):
    lineup = line_up(entries([card(attacks=[attack("a"), attack("b")])]))
    assert lineup is not None
    assert {picture.by for picture in lineup.rows[0][1]} == {"a"}


def test_long_names_stand_in_the_line_up_as_letters(card, attack):
    cards = [_contest(card, attack, long=True), _contest(card, attack, "CEM", [("cem", {})], long=True)]
    lineup = line_up(entries(cards))
    assert lineup is not None
    assert lineup.key == (("A", "rmle (steps=2000)"), ("B", "decoder (observations=16)"))
    for _, pictures in lineup.rows:
        assert [picture.by for picture in pictures] == ["A", "B"] * 4
        assert "decoder (observations=16)" in pictures[1].alt
    words = Page(render_page(cards)).words
    assert "A rmle (steps=2000) B decoder (observations=16)" in words


def test_one_attack_is_not_named_under_every_picture(card):
    lineup = line_up(entries([card()]))
    assert lineup is not None
    assert {picture.by for picture in lineup.rows[0][1]} == {""}
    words = Page(render_page([card()])).words
    assert "decoder was the only attack." in words
    assert "What more effort buys" not in words


def test_the_table_by_attack_of_each_model(card, attack):
    page = Page(render_page([_contest(card, attack), card()]))
    # All white space is one in words, that which does not break too.
    assert "Noise : decoder on 50.0 % of the pictures and rmle on 50.0 %." in page.words
    assert "Noise: 2 attacks, strongest first." in page.words
    assert "None: 1 attack." in page.words
    assert [cell["data-label"] for cell in page.all("td") if cell.get("data-label") == "Observations"] == (
        ["Observations"] * 3
    )
    # No card says how many pictures the attacker had.
    assert not [cell for cell in page.all("td") if cell.get("data-label") == "Own pictures"]
    assert "Own pictures" not in page.words
    told = Page(render_page([card(images=900)]))
    assert [cell for cell in told.all("td") if cell.get("data-label") == "Own pictures"]


def test_curves_stand_on_the_page_where_there_are_any(card, attack):
    def one(name, gain, parts=NOISE):
        made = [attack(f"decoder ({k})", observations=k, ssim=0.4 + gain * k, epochs=3) for k in (1, 4)]
        return card(name, parts, attacks=made)

    page = Page(render_page([one("None", 0.0, None), one("Noise", 0.05)]))
    svgs = [svg for svg in page.all("svg") if "observations of the same picture" in svg["aria-label"]]
    assert len(svgs) == 2
    assert all("Noise: 0.45 at 1, 0.60 at 4" in svg["aria-label"] for svg in svgs)
    assert "An attacker who sees the same picture 4 times and averages" in page.words
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_hostile_text_stays_text_in_tables_curves_and_letters(card, attack):
    made = [attack(f"decoder {HOSTILE} {k}", observations=k, ssim=0.4 + k / 50) for k in (1, 4)]
    page = Page(render_page([card(HOSTILE, NOISE, attacks=made)]))
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(page.all("svg")) == 4


def test_what_was_tried_names_budgets_and_threat_models(card, attack):
    made = [
        attack("decoder (1)", observations=1, images=100, queries=500),
        attack("decoder (2)", observations=16, images=900, queries=72000, threat_model="black-box"),
        attack("rmle", images=900, queries=0),
    ]
    del made[1]["attack"]["arguments"]["observations"]  # the card's own figure counts
    words = Page(render_page([card(attacks=made)])).words
    assert (
        "decoder: white-box and black-box; each picture seen 1 or 16 times, and averaged; 100 to 900 pictures of its "
        "own; 500 to 72,000 pictures sent through the device’s half."
    ) in words
    assert "rmle: white-box; each picture seen once; 900 pictures of its own; no pictures sent" in words
    assert "Each picture is sent up to 16 times, without a change, by a device" in words
    assert "Attackers who intercept the same picture more than 16 times." in words
    assert "Averaging over repeated observations by rmle; only decoder did." in words
    assert "Not run: averaging" not in words
    assert "Not run: a decoder" not in words
    once = Page(render_page([card()])).words
    assert "Each picture is sent once, by a device" in once
    assert "Not run: averaging" in once


@pytest.mark.parametrize(
    ("origins", "said"),
    [
        (("train", "train"), ["All attackers learned from the model’s training pictures, the papers’ worst case."]),
        (("auxiliary", "auxiliary"), ["All attackers learned from other pictures of the same kind."]),
        (
            ("train", "auxiliary"),
            [
                "Some attackers learned from the model’s training pictures, the papers’ worst case: decoder.",
                "Some attackers learned from other pictures of the same kind: rmle.",
            ],
        ),
    ],
)
def test_the_page_says_which_pictures_attackers_learned_from(card, attack, origins, said):
    made = [attack(name, threat_model="black-box", trained_on=one) for name, one in zip(("decoder", "rmle"), origins)]
    words = Page(render_page([card(attacks=made)])).words
    for line in said:
        assert line in words
    assert words.count(" attackers learned from ") == len(said)
    assert "A black-box attacker may only query the device’s half." in words


def test_the_same_attack_under_another_label_is_not_called_missing(card, attack):
    several = [
        attack("decoder (observations=1)", epochs=5),
        attack("decoder (observations=4)", epochs=5, observations=4),
    ]
    words = Page(render_page([card(attacks=several), card("CEM", NOISE, attacks=[attack("decoder", epochs=5)])])).words
    assert "CEM was spared the attack decoder (observations=4) that others had to face" in words
    assert "None was spared" not in words


def test_every_registered_attack_is_missed_where_it_was_not_run(card, attack):
    assert set(FAMILIES) == set(ATTACKS)
    for kind, title in FAMILIES.items():
        others = [attack(other) for other in FAMILIES if other != kind]
        assert f"Not run: {title}." in Page(render_page([card(attacks=others)])).words
        words = Page(render_page([card(attacks=[attack(kind)])])).words
        assert title not in words
        assert words.count("Not run: ") == len(FAMILIES), "the others, and averaging"
