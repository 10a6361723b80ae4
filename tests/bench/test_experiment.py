from __future__ import annotations

import pytest
import yaml
from bench_toys import SWEPT, told

from sfumato.attacks import ATTACKS, GANAttack, build
from sfumato.bench import (
    PAPERS,
    Paper,
    check_experiment,
    expand,
    experiments,
    figures,
    number_of_models,
    packaged_names,
    parse_experiment,
    read_experiment,
)
from sfumato.bench.published import ATTACKS as PRINTED
from sfumato.defenses import PARTS
from sfumato.errors import InputError, together


def wrong(content):
    with pytest.raises(InputError) as caught:
        check_experiment(parse_experiment(content))
    return [str(error) for error in together(caught.value)]


def test_the_trials_are_valid():
    for content in (told(), SWEPT):
        check_experiment(parse_experiment(content))


def test_a_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SWEPT, allow_unicode=True), encoding="utf-8")
    assert read_experiment(path) == parse_experiment(SWEPT)
    assert read_experiment(str(path)).vary.values == {"small": (0.05, 0.2, 0.5)}


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean cem-table-cifar10"):
        read_experiment("cem-table-cifar1")
    with pytest.raises(InputError, match="readable YAML"):
        read_experiment("nowhere.yaml")


def test_everything_wrong_in_the_structure_is_said_at_once():
    content = told(naem="x", plots=["accuracy_mse", "pie"])
    content["sizes"]["small"]["training"]["epochz"] = 3
    content["sizes"]["small"]["seeds"] = []
    content["rows"][1]["labl"] = "noise"
    errors = wrong(content)
    assert len(errors) == 5
    text = "\n".join(errors)
    for expected in (
        "did you mean name?",
        "sizes.small.training.epochz",
        "did you mean epochs?",
        "did you mean label?",
    ):
        assert expected in text
    assert any(error.startswith("sizes.small.seeds") for error in errors)
    assert any(error.startswith("plots.1") for error in errors)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "Not A Name"}, "name: "),
        ({"rows": []}, "rows: "),
        ({"rows": [{"label": "a", "defense": "none"}] * 2}, "rows[1].label: "),
        ({"rows": [{"label": "a", "defense": "none", "over": "a"}]}, "rows[0].over: "),
        ({"rows": [{"label": "a", "defense": "none", "over": ["a"]}]}, "rows[0].over: got 'a'"),
        ({"rows": [{"label": "a", "defense": "none", "over": 5}]}, "rows.0.over: got 5"),
        ({"rows": [{"label": "a", "defense": "none", "over": [5]}]}, "rows.0.over.0: got 5"),
        ({"rows": [{"label": "a", "defense": "none", "published": "Bottleneck"}]}, "rows[0].published: "),
        ({"rows": [{"label": "a", "defense": "none", "at": {"paper": {"x": 1}}}]}, "rows[0].at: "),
        ({"vary": {"field": "sigma", "values": {"paper": [0.1]}}}, "vary.values: "),
        ({"vary": {"field": "sigma", "values": {"small": [0.1]}, "published": 0.2}}, "vary.published: "),
        ({"plots": ["entropy_mse"]}, "theory: "),
        ({"reference": {"paper": "cem", "place": ""}}, "reference.place: "),
        ({"sizes": {}}, "sizes: "),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, expected):
    assert [error for error in wrong(told(**changes)) if error.startswith(expected)]


def test_wrong_rows_are_told_together():
    rows = [{"label": "a", "defense": "none", "over": "b"}, {"label": "a", "defense": "none"}]
    assert len(wrong(told(rows=rows, plots=["entropy_mse"]))) == 3


def test_a_row_is_compared_with_none_one_or_several():
    def over(**given):
        rows = [*({"label": label, "defense": "none"} for label in "abc"), {"label": "d", "defense": "none"} | given]
        return parse_experiment(told(rows=rows)).rows[3].over

    assert over() == over(over=None) == over(over=[]) == ()
    assert over(over="b") == over(over=["b"]) == ("b",)
    assert over(over=["c", "a"]) == ("c", "a")


def test_each_wrong_label_of_several_is_told():
    rows = [{"label": "a", "defense": "none"}, {"label": "b", "defense": "none", "over": ["a", "x", "b", "a"]}]
    assert wrong(told(rows=rows)) == [
        "rows[1].over: got 'x'; accepted: the label of another row: one of a",
        "rows[1].over: got 'b'; accepted: the label of another row: one of a",
        "rows[1].over: got 'a'; accepted: each row once",
    ]


def test_a_note_on_one_data_set_is_for_it_alone():
    paper = PAPERS["cem"]
    assert paper.note_on("cifar100").startswith("Figures as printed. In CIFAR-100's last row")
    assert paper.note_on("cifar10") == "Figures as printed."
    assert paper.note_on(None) == ""
    assert set(paper.notes) == {"cifar100"}
    assert PAPERS["gated-attention"].note_on("cifar10") == ""
    assert Paper("somebody", notes={"mnist": "Beware."}).note_on("mnist") == "Beware."


def test_the_papers_figures():
    printed = figures("cem", "cifar10", "decoder")
    assert printed["Bottleneck+CEM"] == {
        "accuracy": 0.9069, "mse_train": 0.0054, "mse_test": 0.0058, "ssim": 0.813, "psnr": 22.36,
    }  # fmt: skip
    assert figures("cem", "cifar10", "gan")["Bottleneck+CEM"]["mse_test"] == 0.0080
    assert "ssim" not in printed["No_defense"]
    assert figures("cem", "cifar10", "unheard of")["No_defense"] == {"accuracy": 0.9186}
    assert figures("gated-attention", "cifar10", "decoder")["gated attention"]["mse_test"] == 0.0473


@pytest.mark.parametrize(
    ("dataset", "rows", "base", "with_it"),
    [
        ("cifar10", 15, (0.0148, 0.0179), (0.0183, 0.0200)),
        ("cifar100", 14, (0.0117, 0.0120), (0.0165, 0.0168)),
        ("tinyimagenet", 15, (0.0167, 0.0164), (0.0199, 0.0195)),
        ("facescrub", 15, (0.0069, 0.0079), (0.0101, 0.0111)),
    ],
)
def test_the_papers_figures_add_up_to_its_own_averages(dataset, rows, base, with_it):
    printed = figures("cem", dataset, "decoder")
    assert len(printed) == rows
    for names, averages in (
        ([name for name in printed if name != "No_defense" and "+CEM" not in name], base),
        ([name for name in printed if "+CEM" in name], with_it),
    ):
        for key, average in zip(("mse_train", "mse_test"), averages):
            mean = sum(printed[name][key] for name in names) / len(names)
            assert mean == pytest.approx(average, abs=1.6e-4), (dataset, key)


def test_figures_cannot_be_changed():
    with pytest.raises(TypeError):
        figures("cem", "cifar10", "decoder")["No_defense"]["accuracy"] = 1.0


def test_the_papers_tables_and_figures_are_packaged():
    assert packaged_names() == [
        "auto-cifar10", "cem-figure-3", "cem-figure-4a", "cem-figure-4b", "cem-figure-4c", "cem-figure-5", "cem-forms",
        "cem-table-cifar10", "cem-table-cifar100", "cem-table-facescrub", "cem-table-tinyimagenet", "feature-attacks",
        "gated-attention",
    ]  # fmt: skip
    assert {name: experiment.name for name, experiment in experiments().items()} == {n: n for n in packaged_names()}


@pytest.mark.parametrize("name", packaged_names())
def test_packaged_experiments_are_valid(name):
    experiment = read_experiment(name)
    assert set(experiment.sizes) == {"paper", "small"}
    check_experiment(experiment)


@pytest.mark.parametrize("name", packaged_names())
def test_packaged_rows_have_figures_to_compare_with(name):
    experiment = read_experiment(name)
    printed = experiment.published("decoder")
    if printed:
        without = {"fusion", "noise"} if name == "gated-attention" else set()
        without |= {"No_defense"} if experiment.reference.dataset == "cifar100" else set()
        # Noise alone, which the paper did not run.
        without |= {"Bottleneck+noise"} if name.startswith(("cem-table-", "feature-attacks")) else set()
        assert {row.published or row.label for row in experiment.rows} - without == set(printed)


@pytest.mark.parametrize("name", packaged_names())
def test_the_paper_size_is_the_papers_protocol(name):
    size = read_experiment(name).sizes["paper"]
    resnet = size.data.source == "tiny-imagenet"
    training = size.training
    assert (training.epochs, training.batch_size, training.lr) == (120 if resnet else 240, 128, 0.05)
    assert (training.schedule, training.weight_decay, training.momentum) == ("step", 5e-4, 0.9)
    assert (size.model.backbone, size.model.width) == ("resnet20" if resnet else "vgg11", 1.0)
    touched = {"threat_model": "black-box"} if name == "feature-attacks" else {}
    assert size.attacks[0] == touched | {
        "attack": "decoder", "depth": 8, "width": 64, "epochs": 50, "batch_size": 256,
    }  # fmt: skip


@pytest.mark.parametrize("name", packaged_names())
def test_every_attack_that_the_paper_printed_is_of_the_paper_size(name):
    experiment = read_experiment(name)
    attacks = experiment.sizes["paper"].attacks
    if name == "auto-cifar10":
        assert attacks[-1] == {"attack": "auto", "level": "thorough"}
    found = [build(attack) for attack in attacks if attack["attack"] != "auto"]
    printed = {kind for kind in ("decoder", "gan") if any(experiment.published(kind).values())}
    if name.startswith("cem-table-"):
        assert printed == {attack.name for attack in found} == {"decoder", "gan"}
        assert found[1] == GANAttack(), "whose defaults are the paper's"
    elif name == "feature-attacks":
        assert printed < {attack.name for attack in found}
        assert GANAttack(threat_model="black-box") in found
    else:
        assert {attack.name for attack in found} == {"decoder"}


TABLES = [name for name in packaged_names() if name.startswith("cem-table-")]


@pytest.mark.parametrize("name", [*TABLES, "feature-attacks", "cem-figure-5"])
def test_every_pair_is_compared(name):
    rows = {row.label: row for row in read_experiment(name).rows}
    assert len(rows) == 15 + (name != "cem-figure-5")
    if name != "cem-figure-5":
        assert rows.pop("Bottleneck+noise").over == ()  # a control, and no pair in the averages
    assert {label: row.over for label, row in rows.items() if row.over} == {
        f"{base}+CEM": (base,) for base in rows if base != "No_defense" and not base.endswith("+CEM")
    }


@pytest.mark.parametrize("name", packaged_names())
def test_adversaries_work_at_the_small_size(name):
    """None has the published threshold, which it would never pass in so short a training, and so never act."""
    experiment, published = read_experiment(name), PARTS["adversary"]()
    for job in expand(experiment, "small", seeds=[0]):
        (defense,) = job.settings.resolved_defenses().values()
        for part in defense.parts():
            if part.name == "adversary":
                assert part.threshold < published.threshold, job.label
                assert part.lr > published.lr, job.label
                assert part.alpha > published.alpha, job.label
    for job in expand(experiment, "paper", seeds=[0]):
        (defense,) = job.settings.resolved_defenses().values()
        assert all(part == published for part in defense.parts() if part.name == "adversary"), job.label


def test_forms_are_compared_with_noise_and_with_the_isotropic_form():
    over = {row.label: row.over for row in read_experiment("cem-forms").rows}
    both = ("noise", "CEM isotropic")
    assert over["CEM isotropic"] == ("noise",)
    assert over["CEM full"] == over["gated attention"] == over["slot attention"] == both


def test_surrogates_are_swept_from_the_proposal_s_noise():
    experiment = read_experiment("gated-attention")
    assert experiment.vary.published == 0.025
    for size, values in experiment.vary.values.items():
        assert values[0] == 0.025
        for row in experiment.rows:
            jobs = expand(experiment, size, seeds=[0], only=[row.label])
            parts = [next(iter(job.settings.resolved_defenses().values())).describe() for job in jobs]
            assert [part["sigma"] for found in parts for part in found if part["part"] == "noise"] == list(values)


def test_attacks_with_printed_figures_are_named_like_ours():
    assert set(PRINTED) & set(ATTACKS)


@pytest.mark.parametrize("name", packaged_names())
def test_packaged_experiments_are_documented(name, request):
    text = (request.config.rootpath / "docs" / "bench.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    assert line.endswith(f" | {number_of_models(read_experiment(name), 'small')} |")
