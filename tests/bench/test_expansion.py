from __future__ import annotations

import json
from importlib import resources

import pytest
from bench_toys import SWEPT, told

from sfumato.attacks import build
from sfumato.audit import Settings
from sfumato.bench import (
    Job,
    check_experiment,
    expand,
    number_of_models,
    packaged_names,
    parse_experiment,
    point_label,
    read_experiment,
)
from sfumato.errors import InputError, together

CHAIN = {"chain": ["bottleneck", {"part": "noise", "sigma": 0.1}, {"part": "noise", "sigma": 0.2}]}


def of(*rows, **more):
    return parse_experiment(told(rows=[{"label": f"row {i}"} | row for i, row in enumerate(rows)], **more))


def parts(job: Job):
    (defense,) = job.settings.resolved_defenses().values()
    return {f"{part['part']}.{name}": value for part in defense.describe() for name, value in part.items()}


def errors_of(experiment, size="small", **more):
    with pytest.raises(InputError) as caught:
        expand(experiment, size, **more)
    return [str(error) for error in together(caught.value)]


def test_seeds_are_outermost_and_rows_keep_their_order():
    jobs = expand(parse_experiment(SWEPT), "small")
    assert [(job.seed, job.row, job.point) for job in jobs] == [
        (seed, *place)
        for seed in (0, 1)
        for place in [
            *(("noise", sigma) for sigma in (0.05, 0.2, 0.5)),
            *(("noise+CEM", sigma) for sigma in (0.05, 0.2, 0.5)),
            ("none", None),
        ]
    ]
    assert [job.label for job in jobs[3:7]] == [*(f"noise+CEM (σ = {s})" for s in (0.05, 0.2, 0.5)), "none"]
    assert len(jobs) == number_of_models(parse_experiment(SWEPT), "small")


def test_a_job_is_an_audit_of_one_defense_with_the_size_s_settings():
    experiment = parse_experiment(told())
    job = expand(experiment, "small", seeds=[7])[1]
    size = experiment.sizes["small"]
    assert job.settings.model_dump(include={"data", "model", "training", "evaluation"}) == size.model_dump(
        include={"data", "model", "training", "evaluation"}
    )
    assert job.settings.attacks == size.attacks
    assert (job.settings.seed, list(job.settings.resolved_defenses())) == (7, ["noise"])


def test_what_is_swept_is_an_argument_of_the_defense_of_a_part_or_a_field_of_the_settings():
    values = {"small": [0.3]}
    (job,) = expand(of({"defense": "cem"}, vary={"field": "sigma", "values": values}), "small", seeds=[0])
    assert parts(job)["noise.sigma"] == 0.3
    (job,) = expand(of({"defense": "cem"}, vary={"field": "cem.threshold", "values": values}), "small", seeds=[0])
    assert (parts(job)["cem.threshold"], parts(job)["noise.sigma"]) == (0.3, 0.025)
    vary = {"field": "model.cut", "values": {"small": ["block1", "block3"]}}
    jobs = expand(of({"defense": "cem"}, vary=vary), "small", seeds=[0])
    assert [job.settings.model.cut for job in jobs] == ["block1", "block3"]
    assert jobs[0].settings.model.width == 0.06
    assert jobs[0].label == "row 0 (model.cut = block1)"


def test_an_argument_inside_a_chain_is_set_in_every_part_of_that_name():
    experiment = of({"defense": CHAIN}, vary={"field": "noise.sigma", "values": {"small": [0.4]}})
    (job,) = expand(experiment, "small", seeds=[0])
    (defense,) = job.settings.resolved_defenses().values()
    assert [part["sigma"] for part in defense.describe() if part["part"] == "noise"] == [0.4, 0.4]


def test_arguments_differ_by_size():
    sizes = told()["sizes"]
    row = {"defense": {"recipe": "cem", "weight": 8}, "at": {"small": {"weight": 2, "cem.threshold": 0.5}}}
    experiment = of(row, sizes={"small": sizes["small"], "paper": sizes["small"]})
    small, paper = (parts(expand(experiment, size)[0]) for size in ("small", "paper"))
    assert (small["cem.weight"], small["cem.threshold"]) == (2, 0.5)
    assert (paper["cem.weight"], paper["cem.threshold"]) == (8, 0.125)


def test_a_row_s_settings_go_over_the_size_s_and_flags_over_both():
    row = {"defense": "none", "settings": {"training": {"epochs": 5, "lr": 0.2}}}
    experiment = of(row, {"defense": "noise"})
    overrides = {"data": {"path": "mine"}, "training": {"lr": 0.3}, "device": "cpu"}
    first, second = expand(experiment, "small", seeds=[0], overrides=overrides)
    assert (first.settings.training.epochs, second.settings.training.epochs) == (5, 2)
    for job in (first, second):
        assert (job.settings.training.lr, job.settings.data.path, job.settings.device) == (0.3, "mine", "cpu")
        assert job.settings.data.train_limit == 300


def test_only_some_rows():
    experiment = parse_experiment(SWEPT)
    assert {job.row for job in expand(experiment, "small", only=["none", "noise"])} == {"none", "noise"}
    assert errors_of(experiment, only=["nois"]) == [
        "only: got 'nois'; accepted: did you mean noise? one of noise, noise+CEM, none"
    ]


@pytest.mark.parametrize(("seeds", "count"), [([], 1), ([-1], 1), ([2**31], 1), ([1, 1], 1), ([-1, 1, 1], 2)])
def test_wrong_seeds_are_refused(seeds, count):
    errors = errors_of(parse_experiment(told()), seeds=seeds)
    assert len(errors) == count
    assert all(error.startswith("seeds: ") for error in errors)


def test_a_size_that_is_not_there_is_refused():
    assert errors_of(parse_experiment(told()), "paper") == [
        "size: got 'paper'; accepted: one of small (experiment digits-trial)"
    ]


def test_everything_wrong_is_said_once_and_where_it_stands():
    content = told(
        rows=[
            {"label": "a", "defense": "niose"},
            {"label": "b", "defense": {"recipe": "noise", "sigmma": 1}},
            {"label": "c", "defense": CHAIN, "at": {"small": {"sigma": 1}}},
            {"label": "d", "defense": "noise", "at": {"small": {"dropout.p": 0.1}}},
            {"label": "e", "defense": "noise", "settings": {"training": {"epochz": 1}}},
        ]
    )
    content["sizes"]["small"]["attacks"] = [{"attack": "decoder", "depht": 1}]
    errors = errors_of(parse_experiment(content))
    fields = [error.split(": ")[0] for error in errors]
    assert fields == [
        "rows[0].defense.recipe", "sizes.small.attacks[0].decoder.depht", "rows[1].defense.noise.sigmma",
        "rows[2].at.small", "rows[3].at.small", "rows[4].settings.training.epochz",
    ]  # fmt: skip
    assert "did you mean noise?" in errors[0]
    assert "PART.ARGUMENT" in errors[3]
    assert "bottleneck, noise" in errors[4]
    with pytest.raises(InputError) as caught:
        check_experiment(parse_experiment(content))
    assert [str(error) for error in together(caught.value)] == errors


def test_a_wrong_value_of_what_is_swept_is_named():
    experiment = of({"defense": "cem"}, vary={"field": "training.epochs", "values": {"small": [1, 0]}})
    short, none = errors_of(experiment)
    assert short.startswith("vary.values.small: got 1; accepted: 2 or more with cem, ")
    assert none.startswith("vary.values.small: got 0")
    experiment = of({"defense": "noise"}, vary={"field": "noise.sigma", "values": {"small": [-0.5, 0.5]}})
    assert errors_of(experiment) == ["vary.values.small: got -0.5; accepted: a standard deviation of 0 or more"]
    wrong = of({"defense": {"recipe": "noise", "sigma": -1}})
    assert errors_of(wrong) == ["rows[0].defense.noise.sigma: got -1.0; accepted: a standard deviation of 0 or more"]


def test_a_size_in_which_cem_would_never_begin_is_named():
    content = told(rows=[{"label": "a", "defense": "cem"}, {"label": "b", "defense": "none"}])
    content["sizes"]["small"]["training"]["epochs"] = 1
    (error,) = errors_of(parse_experiment(content))
    assert error.startswith("sizes.small.training.epochs: got 1; accepted: 2 or more with cem, ")
    assert len(expand(parse_experiment(content), "small", only=["b"], seeds=[0])) == 1


def test_points_are_shown_with_four_digits():
    experiment = parse_experiment(SWEPT)
    assert point_label(experiment, 0.1**0.5) == "σ = 0.3162"
    assert point_label(experiment, None) == ""
    plain = of({"defense": "cem"}, vary={"field": "model.cut", "values": {"small": ["block1"]}})
    assert point_label(plain, "block1") == "model.cut = block1"


def key(row=None, seed=0, **overrides):
    experiment = of({"defense": "noise"} | (row or {}))
    return expand(experiment, "small", seeds=[seed], overrides=overrides)[0].key


def test_a_key_names_what_determines_the_result_and_nothing_else():
    plain = key()
    assert plain.startswith("row-0-seed0-")
    same = [
        key({"defense": {"recipe": "noise", "sigma": 0.025}}),
        key({"defense": {"chain": [{"part": "bottleneck"}, {"part": "noise"}]}}),
        key(device="cpu"),
        key(data={"path": "my copy"}),
        key(attacks=[{"attack": "decoder", "depth": 0, "width": 4, "epochs": 1, "batch_size": 32, "lr": 1e-3}]),
    ]
    assert set(same) == {plain}
    other = [
        key({"defense": {"recipe": "noise", "sigma": 0.026}}),
        key({"label": "other"}),
        key(seed=1),
        key(training={"epochs": 3}),
        key(model={"width": 0.1}),
        key(data={"train_limit": 200}),
        key(attacks=["decoder"]),
        key(evaluation={"victims": 13}),
        key(precision="64-true"),
    ]
    assert len({plain, *other}) == len(other) + 1
    assert "/" not in key({"label": "a/b: c*"})


def test_what_a_row_is_compared_with_changes_no_key():
    def keys(over, **vary):
        rows = [*({"label": label, "defense": "none"} for label in "ab"), {"label": "c", "defense": "noise"} | over]
        sweep = {"field": "model.width", "values": {"small": [0.06, 0.1]}} | vary
        return [job.key for job in expand(parse_experiment(told(rows=rows, vary=sweep)), "small")]

    plain = keys({})
    assert len(set(plain)) == 12
    assert keys({"over": "a"}) == keys({"over": ["b"]}) == keys({"over": ["b", "a"]}) == plain
    assert keys({}, published=0.1) == plain


def test_experiments_on_one_data_set_share_their_models():
    def models(name: str) -> dict[tuple[object, ...], Settings]:
        jobs = expand(read_experiment(name), "small", only=["noise"])
        return {(job.seed, job.point): job.settings for job in jobs}

    one, other = models("cem-figure-3"), models("cem-figure-4a")
    shared = one.keys() & other.keys()
    assert {seed for seed, _ in shared} == {0, 1}
    for key in shared:
        assert one[key].model_dump(exclude={"defenses"}) == other[key].model_dump(exclude={"defenses"})
        assert list(one[key].resolved_defenses().values()) == list(other[key].resolved_defenses().values())


def trained(name: str, size: str, *, rows: dict[str, str] | None = None) -> dict[str, set[str]]:
    """What the models of each row are made from, the attacks on them left out; ``rows`` names some of them anew."""
    found: dict[str, set[str]] = {}
    for job in expand(read_experiment(name), size, only=list(rows or ())):
        (defense,) = job.settings.resolved_defenses().values()
        made = [job.settings.model_dump(include={"data", "model", "training", "seed"}), defense.describe()]
        label = rows[job.row] if rows else job.row
        found.setdefault(label, set()).add(json.dumps(made, sort_keys=True, default=str))
    return found


WEIGHTS = {"λ = 0": "Noise_ARL", "λ = 16": "Noise_ARL+CEM"}
CUTS = {"cut 2": "Noise_ARL", "cut 2+CEM": "Noise_ARL+CEM"}


@pytest.mark.parametrize(
    ("name", "rows", "size", "models"),
    [
        ("cem-figure-4b", WEIGHTS, "small", 6),
        ("cem-figure-4b", WEIGHTS, "paper", 21),
        ("cem-figure-4c", CUTS, "small", 4),
        ("cem-figure-4c", CUTS, "paper", 21),
    ],
)
def test_figures_share_with_figure_4_a_what_their_headers_say(name, rows, size, models):
    theirs = trained("cem-figure-4a", size)
    for label, some in trained(name, size, rows=rows).items():
        assert len(some) == models
        assert some <= theirs[label]
    everything = set().union(*theirs.values())
    others = [row.label for row in read_experiment(name).rows if row.label not in rows]
    assert others
    for some in trained(name, size, rows={label: label for label in others}).values():
        assert not some & everything


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("name", ["auto-cifar10", "feature-attacks"])
def test_other_attacks_are_on_the_models_of_the_table(name, size):
    table = trained("cem-table-cifar10", size)
    for label, some in trained(name, size).items():
        assert some == table[label]


def test_the_forms_start_from_the_noise_of_the_table():
    shared = trained("cem-forms", "small", rows={"noise": "Bottleneck+noise"})["Bottleneck+noise"]
    assert trained("cem-table-cifar10", "small")["Bottleneck+noise"] < shared
    forms, table = (read_experiment(name).sizes["small"] for name in ("cem-forms", "cem-table-cifar10"))
    assert forms.attacks == table.attacks


@pytest.mark.parametrize("size", ["small", "paper"])
def test_the_pictures_are_of_the_models_of_the_table(size):
    pictures, table = trained("cem-figure-5", size), trained("cem-table-tinyimagenet", size)
    assert set(table) - set(pictures) == {"Bottleneck+noise"}
    for label, some in pictures.items():
        assert len(some) == 1
        assert some < table[label]
    if size == "small":  # the paper's table has the GAN attack too
        one, other = (read_experiment(name).sizes[size] for name in ("cem-figure-5", "cem-table-tinyimagenet"))
        assert one.attacks == other.attacks


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("data", ["cifar10", "cifar100", "tinyimagenet", "facescrub"])
def test_rows_that_are_the_same_method_are_one_model(data, size):
    models = trained(f"cem-table-{data}", size)
    assert models["DistCorr+CEM"] == models["Noise_Nopeek+CEM"]
    assert models["ResSFL+CEM"] == models["Noise_ARL+CEM"]
    assert models["DistCorr"] != models["Noise_Nopeek"]


def parts_of(name: str, label: str) -> dict[str, dict[str, object]]:
    (job,) = expand(read_experiment(name), "small", seeds=[0], only=[label])[:1]
    (defense,) = job.settings.resolved_defenses().values()
    return {str(part["part"]): part for part in defense.describe()}


@pytest.mark.parametrize("data", ["cifar100", "tinyimagenet", "facescrub"])
def test_small_tables_have_the_figures_of_the_first(data):
    """What was chosen for CIFAR-10: the constant weight, distance correlation's, and an adversary that is punished."""
    name = f"cem-table-{data}"
    for row in read_experiment(name).rows:
        here, there = parts_of(name, row.label), parts_of("cem-table-cifar10", row.label)
        assert set(here) == set(there)
        for part in ("cem", "distance_correlation", "adversary"):
            if part in here:
                own = {"threshold"} if part == "cem" else set()
                same = [{k: v for k, v in one[part].items() if k not in own} for one in (here, there)]
                assert same[0] == same[1], row.label
    adversary = parts_of(name, "ResSFL")["adversary"]
    assert (adversary["alpha"], adversary["lr"], adversary["threshold"]) == (0.5, 0.005, 0.2)
    cem = parts_of(name, "Bottleneck+CEM")["cem"]
    assert (cem["variant"], cem["weight"], cem["schedule"]) == ("isotropic", 0.02, "constant")


def test_the_weights_of_figure_4_b_are_in_the_papers_proportion():
    for weight in (2, 8, 16, 32):
        cem = parts_of("cem-figure-4b", f"λ = {weight}")["cem"]
        assert cem["weight"] == pytest.approx(0.3 * weight / 16)
        assert cem["schedule"] == "constant"


@pytest.mark.parametrize("name", packaged_names())
def test_headers_say_how_epochs_are_selected_and_where_the_gan_starts(name):
    folder = resources.files("sfumato.bench") / "experiments"
    header = folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8").split("\nname:")[0]
    size = read_experiment(name).sizes["paper"]
    assert size.training.select_from == 0.75
    assert "select_from: 0.75" in header
    (gan,) = [build(one) for one in size.attacks if one["attack"] == "gan"] or [None]
    assert ("start: decoder" in header) == (gan is not None)
    if gan is not None:
        assert (gan.start, gan.pretrain_epochs) == ("decoder", 50)
        assert "trained for 50" in header
