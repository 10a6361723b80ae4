from __future__ import annotations

import math
import statistics
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.attacks import auto
from sfumato.audit import Card, attack_run, audit, load_settings, train_all
from sfumato.audit import check as audit_check
from sfumato.audit.gate import METRICS, OPERATORS, SHAPE, Condition, check, gated, measure, parse, parse_all, unmeasured
from sfumato.audit.runs import load_data
from sfumato.errors import InputError, InputErrors, together
from sfumato.training import Runtime, make_fabric

NOISE = [{"name": "bottleneck"}, {"name": "noise", "arguments": {"sigma": 0.1}}]


@pytest.fixture(scope="module")
def template(tmp_path_factory, tiny_settings):
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    return audit(settings, root=tmp_path_factory.mktemp("runs"), runtime=Runtime(fabric=make_fabric("cpu")))[0]


@pytest.fixture
def card(template):
    """Makes cards: attacks are given as name to (MSE per image, SSIM per image, identity)."""

    def make(label="noise", parts=NOISE, *, accuracy=0.9, suspicions=0, run="train-0123456789", **attacks):
        content = template.model_dump()
        like = content["attacks"][0]
        attacks = attacks or {"decoder": ([0.1, 0.2], [0.4, 0.6], None)}
        content["attacks"] = [
            like
            | {
                "attack": {"name": name},
                "kind": name.split(" (")[0],
                "test_mse": mse,
                "test_ssim": ssim,
                "identity": identity,
            }
            for name, (mse, ssim, identity) in attacks.items()
        ]
        content["defense"] = {"label": label, "parts": parts}
        content["utility"]["test_accuracy"] = accuracy
        content["suspicions"] = [{"code": "x", "message": "y"}] * suspicions
        return Card.model_validate(content | {"run": run})

    return make


def conditions():
    def fitting(name):
        metric = METRICS[name]
        every = st.sampled_from(["mean", "min", "max"]) | st.integers(1, 99).map("p{}".format)
        attack = st.none() | st.sampled_from(
            ["decoder", "decoder()", "decoder (observations=16)", "rmle", "Größe", "a.b"]
        )
        return st.builds(
            Condition,
            metric=st.just(name),
            operator=st.sampled_from(list(OPERATORS)),
            limit=st.floats(allow_nan=False, allow_infinity=False),
            statistic=every if metric.per_image else st.just("mean"),
            attack=attack if metric.of_attacks else st.none(),
        )

    return st.sampled_from(list(METRICS)).flatmap(fitting)


def outcome(text):
    try:
        return parse(text)
    except InputError as error:
        return error


@given(conditions())
def test_what_is_written_is_read_back(condition):
    assert parse(str(condition)) == condition


@given(conditions(), st.lists(st.sampled_from(["", " ", "\t", "  "]), min_size=8, max_size=8))
def test_blanks_and_capitals_mean_nothing(condition, blanks):
    scope = "" if condition.attack is None else f"{condition.attack}{blanks[1]}:"
    subject = [scope, condition.metric.upper(), ".", condition.statistic.title()]
    parts = [*subject, condition.operator, str(condition.limit)]
    text = "".join(blank + part for blank, part in zip(blanks, parts, strict=False)) + blanks[-1]
    assert parse(text) == condition


@given(st.text(alphabet=st.sampled_from("ssimepnrdcoder:.<>=019 p-+eE_\n")) | st.text(max_size=30))
def test_any_other_text_is_refused_in_our_words(text):
    found = outcome(text)
    if isinstance(found, InputError):
        assert (found.field, found.value) == ("fail_if", text)
    else:
        assert parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssim>0.5", Condition("ssim", ">", 0.5)),
        ("mse.min < .01", Condition("mse", "<", 0.01, "min")),
        ("decoder (width=2) : psnr.p95>=2e1", Condition("psnr", ">=", 20.0, "p95", "decoder (width=2)")),
        ("accuracy<=1.", Condition("accuracy", "<=", 1.0)),
        ("rmle:identity>-0", Condition("identity", ">", 0.0, attack="rmle")),
        ("suspicions>0", Condition("suspicions", ">", 0.0)),
    ],
)
def test_what_conditions_say(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("ssmi>0.5", "for its metric, did you mean ssim? one of accuracy, identity, mse, psnr, ssim, suspicions; in ["),
        ("acuracy<1", "did you mean accuracy?"),
        ("ssim", "in quotes, for > and < mean something to a shell"),
        ("ssim==0.5", SHAPE),
        ("ssim>", SHAPE),
        ("ssim>half", SHAPE),
        ("ssim>0.5 mse<1", SHAPE),
        ("ssim>0x1", SHAPE),
        ("ssim>1_0", SHAPE),
        ("ssim>nan", SHAPE),
        ("ssim>inf", SHAPE),
        ("ssim>1e999", "for its limit, a finite number"),
        ("ssim>٣", SHAPE),
        (":ssim>0.5", SHAPE),
        ("  :ssim>0.5", "for its attack, an attack's name"),
        ("a:b:ssim>0.5", SHAPE),
        ("ssim.>0.5", SHAPE),
        ("ssim.p0>0.5", "for its statistic, one of mean, min, max, p1 to p99"),
        ("ssim.p100>0.5", "for its statistic, one of"),
        ("ssim.p05>0.5", "for its statistic, one of"),
        ("ssim.median>0.5", "for its statistic, one of"),
        ("accuracy.max<0.5", "for its statistic, none: accuracy is a single figure"),
        ("identity.p90>0.5", "for its statistic, none: identity is a single figure"),
        ("decoder:accuracy<0.5", "for its attack, none: accuracy is no figure of an attack"),
        ("decoder:suspicions>0", "for its attack, none"),
        ("", SHAPE),
    ],
)
def test_what_is_no_condition(text, accepted):
    with pytest.raises(InputError) as caught:
        parse(text, field="fail_if[3]")
    assert (caught.value.field, caught.value.value) == ("fail_if[3]", text)
    assert accepted in caught.value.accepted
    assert ("quotes" in caught.value.accepted) == (not set(text) & set("<>"))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"metric": "SSIM"}, "metric"),
        ({"operator": "=="}, "operator"),
        ({"limit": math.nan}, "limit"),
        ({"statistic": "p0"}, "statistic"),
        ({"attack": " decoder"}, "attack"),
        ({"attack": "a>b"}, "attack"),
        ({"attack": ""}, "attack"),
    ],
)
def test_conditions_made_by_hand_are_checked_too(wrong, field):
    with pytest.raises(InputError) as caught:
        Condition(**({"metric": "ssim", "operator": ">", "limit": 0.5} | wrong))
    assert caught.value.field == field


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(InputErrors) as caught:
        parse_all(["ssim>0.5", "smi>1", "mse", 3])
    assert [error.field for error in caught.value.errors] == ["fail_if[1]", "fail_if[2]", "fail_if[3]"]


@pytest.mark.parametrize(
    ("operator", "below", "equal", "above"),
    [(">", False, False, True), (">=", False, True, True), ("<", True, False, False), ("<=", True, True, False)],
)
def test_every_operator_below_at_and_above_the_limit(card, operator, below, equal, above):
    condition = parse(f"accuracy{operator}0.75")
    limit = 0.75
    for accuracy, expected in ((math.nextafter(limit, 0), below), (limit, equal), (math.nextafter(limit, 1), above)):
        assert bool(check([card(accuracy=accuracy)], [condition])) == expected, accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # SSIM at its highest by image: 0.6, 0.5, 0.9; MSE at its lowest: 0.1, 0.01, 0.03.
        ("ssim", 2 / 3),
        ("ssim.max", 0.9),
        ("ssim.min", 0.5),
        ("ssim.p50", 0.6),
        ("decoder:ssim", 0.5),
        ("rmle:ssim.max", 0.9),
        ("decoder (width=2):ssim.max", 0.5),
        ("mse", 0.14 / 3),
        ("mse.min", 0.01),
        ("mse.max", 0.1),
        ("decoder (width=1):mse.min", 0.2),
        ("psnr", (10 + 20 - 10 * math.log10(0.03)) / 3),
        ("psnr.max", 20),
        ("rmle:psnr.min", 10 * math.log10(1 / 0.4)),
        ("identity", 0.7),
        ("decoder:identity", 0.3),
        ("decoder (width=1):identity", 0.1),
        ("accuracy", 0.8),
        ("suspicions", 2),
    ],
)
def test_the_figure_of_the_best_attack_on_each_image(card, text, expected):
    made = card(
        accuracy=0.8,
        suspicions=2,
        **{
            "decoder (width=1)": ([0.2, 0.3, 0.4], [0.6, 0.1, 0.3], 0.1),
            "decoder (width=2)": ([0.1, 0.3, 0.3], [0.2, 0.5, 0.4], 0.3),
        },
        rmle=([0.4, 0.01, 0.03], [0.5, 0.4, 0.9], 0.7),
    )
    assert measure(made, parse(f"{text}>0")) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("attack", "expected"), [("decoder", 0.7), ("decoder()", 0.2), ("decoder (observations=16)", 0.7)]
)
def test_the_plain_attack_has_a_name_of_its_own_among_its_kind(card, attack, expected):
    figures = {"decoder": ([0.1], [0.2], None), "decoder (observations=16)": ([0.1], [0.7], None)}
    assert measure(card(**figures), parse(f"{attack}:ssim>0")) == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 99), st.floats(0, 1))
def test_quantiles_count_images(figures, share, limit):
    from sfumato.audit.gate import _summed_up

    found = _summed_up(figures, f"p{share}")
    assert found == np.quantile(figures, share / 100, method="inverted_cdf") or math.isclose(
        share * len(figures) % 100,
        0,  # numpy's product of fractions may lie a hair above the whole number
    )
    above = sum(figure > limit for figure in figures)
    below = sum(figure < limit for figure in figures)
    assert (found > limit) == (100 * above > (100 - share) * len(figures))
    assert (found < limit) == (100 * below >= share * len(figures))
    assert _summed_up(figures, "mean") == pytest.approx(statistics.fmean(figures))
    assert (_summed_up(figures, "min"), _summed_up(figures, "max")) == (min(figures), max(figures))


def test_a_tenth_of_the_images_may_hide_in_the_mean(card):
    made = card(decoder=([0.1] * 20, [0.1] * 17 + [0.9] * 3, None))
    assert check([made], parse_all(["ssim>0.5", "ssim.p85>0.5"])) == []
    assert [str(one.condition) for one in check([made], parse_all(["ssim.p86>0.5", "ssim.max>=0.9"]))] == [
        "ssim.p86>0.5",
        "ssim.max>=0.9",
    ]


def test_an_exact_copy_has_no_finite_psnr(card):
    (one,) = check([card(decoder=([0.0, 0.1], [1.0, 0.2], None))], parse_all(["psnr>60", "psnr.min>10", "psnr<5"]))
    assert one.measured == math.inf
    assert str(one) == "noise: psnr is inf, and must not be above 60"


def test_an_attack_that_judged_fewer_images_counts_on_those(card):
    made = card(decoder=([0.2, 0.3, 0.4], [0.3, 0.2, 0.1], None), rmle=([0.1], [0.9], None))
    assert measure(made, parse("ssim>0")) == pytest.approx((0.9 + 0.2 + 0.1) / 3)
    assert measure(made, parse("mse.min<1")) == 0.1


def test_the_undefended_is_the_measure_and_is_spared_beside_others(card):
    leaky, good = card("none", []), card("noise", NOISE, decoder=([0.1], [0.1], None))
    conditions = parse_all(["ssim>0.45"])
    assert check([leaky, good], conditions) == []
    assert gated([leaky, good]) == [good]
    plain = card("smaller", [{"name": "bottleneck"}])
    assert [one.defense for one in check([leaky, plain], conditions)] == ["none", "smaller"]
    assert [one.defense for one in check([leaky], conditions)] == ["none"]
    assert check([], conditions) == []


def test_every_violation_is_a_clear_line(card):
    one, two = card("noise", accuracy=0.5), card("cem", run="train-9876543210", suspicions=3)
    found = check([one, two], parse_all(["accuracy<0.6", "suspicions>=3", "decoder:ssim.p90>0.5", "mse<0.16"]))
    assert [str(violation) for violation in found] == [
        "noise: accuracy is 0.5, and must not be below 0.6",
        "noise: decoder:ssim.p90 is 0.6, and must not be above 0.5",
        "noise: mse is 0.15, and must not be below 0.16",
        "cem: suspicions is 3, and must not be 3 or above",
        "cem: decoder:ssim.p90 is 0.6, and must not be above 0.5",
        "cem: mse is 0.15, and must not be below 0.16",
    ]
    assert {(violation.defense, violation.run) for violation in found} == {("noise", one.run), ("cem", two.run)}


def test_a_line_never_contradicts_itself_by_rounding(card):
    (one,) = check([card(accuracy=0.50000001)], parse_all(["accuracy>0.5"]))
    assert str(one) == "noise: accuracy is 0.50000001, and must not be above 0.5"
    (one,) = check([card(accuracy=0.123456)], parse_all(["accuracy<0.5"]))
    assert str(one) == "noise: accuracy is 0.1235, and must not be below 0.5"


def test_models_of_the_same_label_are_told_apart(card):
    found = check([card(run="aaaaaaaaaa"), card(run="bbbbbbbbbb"), card("cem")], parse_all(["ssim>0"]))
    assert [one.defense for one in found] == ["noise (run aaaaaaaa)", "noise (run bbbbbbbb)", "cem"]


def test_a_condition_on_what_was_not_measured_is_an_error_and_no_pass(card):
    plain, seen = card(), card("cem", decoder=([0.1], [0.1], 0.25))
    with pytest.raises(InputErrors) as caught:
        check([plain, seen], parse_all(["identity>0.5", "rmle:ssim>0.5"]))
    told = [(error.value, error.accepted) for error in caught.value.errors]
    assert told == [
        ("identity>0.5", "a figure that was measured; identity is with evaluation.judge: true (card of noise)"),
        ("rmle:ssim>0.5", "an attack that is run: one of decoder (card of noise)"),
        ("rmle:ssim>0.5", "an attack that is run: one of decoder (card of cem)"),
    ]
    with pytest.raises(InputError, match=r"identity is with evaluation\.judge"):
        measure(plain, parse("identity>0.5"))
    assert check([card("none", []), seen], parse_all(["identity>0.5"])) == [], "the spared need not have the figure"
    half = card(decoder=([0.1], [0.1], 0.9), rmle=([0.1], [0.1], None))
    with pytest.raises(InputError):
        check([half], parse_all(["identity>0.5"]))
    assert check([half], parse_all(["decoder:identity>0.5"]))


def test_what_an_audit_will_not_measure_is_known_before(tiny_settings):
    with pytest.raises(InputErrors) as caught:
        load_settings(
            [tiny_settings, {"fail_if": ["identity>0.5", "decodr:ssim>0.5", "ssim>0.5"], "defenses": ["cme"]}]
        )
    fields = [(error.field, error.value) for error in caught.value.errors]
    assert fields == [("defenses[0].recipe", "cme"), ("fail_if", "identity>0.5"), ("fail_if", "decodr:ssim>0.5")]
    assert "did you mean decoder?" in caught.value.errors[2].accepted
    twice = {"attacks": ["decoder", {"attack": "decoder", "width": 2}], "evaluation": {"judge": True}}
    one = "decoder (width=2):ssim>0.5"
    settings = load_settings([twice, {"fail_if": ["identity>0.5", "decoder:ssim>0.5", one]}])
    assert [condition.attack for condition in settings.conditions()] == [None, "decoder", "decoder (width=2)"]
    with pytest.raises(InputError, match=r"did you mean decoder \(width=2\)\?"):
        load_settings([twice, {"fail_if": "decoder (width=3):ssim>0.5"}])
    assert load_settings([{"fail_if": one}], whole=False).fail_if == (one,)
    assert unmeasured(parse("identity>0"), [("decoder", "decoder")], judged=True) is None


@pytest.mark.parametrize(
    ("level", "threat_model", "condition", "accepted"),
    [
        ("quick", "white-box", "gan:ssim>0.5", False),
        ("quick", "white-box", "generator:ssim>0.5", False),
        ("quick", "white-box", "rmle:ssim>0.5", True),
        ("quick", "black-box", "rmle:ssim>0.5", False),
        ("quick", "black-box", "decoder (observations=16):ssim>0.5", True),
        ("quick", "black-box", "decoder():ssim>0.5", True),
        ("quick", "black-box", "generator():ssim>0.5", False),
        ("standard", "gray-box", "generator:ssim>0.5", True),
        ("standard", "white-box", "rmle (observations=16):ssim>0.5", True),
        ("standard", "white-box", "decoder (architecture=unet):ssim>0.5", True),
        ("standard", "white-box", "deep_prior:ssim>0.5", False),
        ("thorough", "white-box", "deep_prior:ssim>0.5", True),
        ("thorough", "black-box", "gan:mse<0.01", True),
        ("thorough", "black-box", "decodr (observations=16):ssim>0.5", False),
    ],
)
def test_what_auto_can_never_run_is_known_from_the_settings(level, threat_model, condition, accepted):
    layer = {
        "attacks": [{"attack": "auto", "level": level}],
        "evaluation": {"threat_model": threat_model},
        "fail_if": [condition],
    }
    if accepted:
        assert len(load_settings([layer]).conditions()) == 1
    else:
        with pytest.raises(InputError, match="an attack that is run") as caught:
            load_settings([layer])
        assert caught.value.value == condition


def test_attacks_beside_auto_are_known_too():
    attacks = ["generator", {"attack": "auto", "level": "quick"}]
    fail_if = ["generator:ssim>0.5", "decoder:ssim>0.5", "decoder (observations=16):mse<0.1"]
    assert len(load_settings([{"attacks": attacks, "fail_if": fail_if}]).conditions()) == 3
    with pytest.raises(InputError, match="one of decoder, decoder \\(observations=16\\), generator, rmle"):
        load_settings([{"attacks": attacks, "fail_if": ["gan:ssim>0.5"]}])


@pytest.mark.parametrize(
    ("level", "defenses", "condition", "refused"),
    [
        ("quick", ["none", "noise"], "decoder (observations=16):ssim>2", ()),
        ("quick", ["noise", "dist_corr"], "decoder (observations=16):ssim>2", ("dist_corr",)),
        ("quick", ["none"], "decoder (observations=16):ssim>2", ("none",)),
        ("quick", ["none", "noise"], "decoder (architecture=unet):ssim>2", ("noise",)),
        ("standard", ["noise"], "decoder (architecture=unet):ssim>2", ()),
        ("standard", ["noise", "dist_corr"], "decoder (observations=4):ssim>2", ("dist_corr",)),
    ],
)
def test_what_auto_does_not_run_on_a_defense_is_said_before_training(
    tmp_path, tiny_settings, level, defenses, condition, refused
):
    layer = {
        "defenses": defenses,
        "attacks": [{"attack": "auto", "level": level}],
        "evaluation": {"threat_model": "black-box", "victims": 12},
        "fail_if": [condition],
    }
    settings, runtime = load_settings([tiny_settings, layer]), Runtime(fabric=make_fabric("cpu"))
    if not refused:
        audit_check(settings, runtime=runtime)
        return
    for run in (audit_check, partial(audit, root=tmp_path)):
        with pytest.raises(InputError) as caught:
            run(settings, runtime=runtime)
        errors = together(caught.value)
        assert [error.value for error in errors] == [condition] * len(refused)
        assert [error.accepted.rpartition(" (defense ")[2] for error in errors] == [f"{name})" for name in refused]
    assert not list(tmp_path.iterdir())


def test_a_condition_on_what_auto_runs_is_held_against_the_card(tmp_path, tiny_settings, monkeypatch):
    monkeypatch.setitem(auto._SIZES, "quick", auto._Size(steps=4, depth=0, width=4))
    layer = {
        "defenses": ["none", "noise"],
        "attacks": [{"attack": "auto", "level": "quick"}],
        "evaluation": {"threat_model": "black-box", "victims": 12},
        "fail_if": ["decoder (observations=16):ssim<2"],
    }
    settings = load_settings([tiny_settings, layer])
    cards = audit(settings, root=tmp_path, runtime=Runtime(fabric=make_fabric("cpu")))
    assert [one.defense for one in check(cards, settings.conditions())] == ["noise"]


def test_a_condition_on_what_auto_does_not_run_is_said_before_a_trained_run_is_attacked(tmp_path, tiny_settings):
    settings, runtime = load_settings([tiny_settings, {"defenses": ["dist_corr"]}]), Runtime(fabric=make_fabric("cpu"))
    (run,) = train_all(settings, root=tmp_path, runtime=runtime)
    condition = "decoder (observations=16):ssim>2"
    layer = {"attacks": [{"attack": "auto", "level": "quick"}], "fail_if": [condition]}
    asked, before = load_settings([tiny_settings, layer]), sorted(run.folder.iterdir())
    with pytest.raises(InputError, match=r"fail_if.*an attack that is run: .*\(defense dist_corr\)"):
        attack_run(run, asked, load_data(settings.data, settings.seed), runtime=runtime)
    assert sorted(run.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "fail_if: got 3; accepted: a condition or a list of these: ["),
        ([3], "fail_if[0]: got 3; accepted: text: ["),
        ([{"decoder": "ssim>0.5"}], "fail_if[0]: got {'decoder': 'ssim>0.5'}; accepted: text: ["),
        ("ssmi>1", "fail_if[0]: got 'ssmi>1'; accepted: for its metric, did you mean ssim?"),
    ],
)
def test_what_is_no_list_of_conditions(value, expected):
    with pytest.raises(InputError) as caught:
        load_settings([{"fail_if": value}])
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_a_condition_changes_neither_run_nor_card(tiny_settings, tmp_path, monkeypatch):
    runtime = Runtime(fabric=make_fabric("cpu"))
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    first = audit(settings, root=tmp_path, runtime=runtime)
    monkeypatch.setattr("sfumato.audit.runs.train", None)
    monkeypatch.setattr("sfumato.audit.protocol._attack", None)
    gated_ = load_settings([tiny_settings, {"defenses": ["none"], "fail_if": ["ssim>0.5"]}])
    assert audit(gated_, root=tmp_path, runtime=runtime) == first


def test_a_condition_changes_no_job_of_an_experiment(tiny_settings):
    from sfumato.bench.expansion import Job

    keys = set()
    for more in ({}, {"fail_if": ["ssim>0.5"]}):
        settings = load_settings([tiny_settings, {"defenses": ["none"]}, more])
        keys.add(Job("none", None, 0, settings, "none").key)
    assert len(keys) == 1


def test_a_run_does_not_carry_the_conditions_of_the_audit_that_made_it(tiny_settings, tmp_path):
    from sfumato.audit import reopen, train_all

    settings = load_settings([tiny_settings, {"defenses": ["none"], "fail_if": ["ssim>0.5"]}])
    (run,) = train_all(settings, root=tmp_path, runtime=Runtime(fabric=make_fabric("cpu")))
    assert "fail_if" not in reopen.settings_of(run.folder)
