"""The sections of an experiment's page, each as blocks of Markdown; empty where there is nothing to say."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import yaml

from sfumato.attacks import ThreatModel
from sfumato.bench.aggregate import FIGURES, Change, Figure, Line, Spread
from sfumato.bench.costs import COSTS
from sfumato.bench.curves import Correlation, Matched
from sfumato.bench.expansion import point_label
from sfumato.bench.experiment import packaged_names
from sfumato.bench.published import PAPERS
from sfumato.bench.result import Result, Table
from sfumato.bench.runner import duration
from sfumato.bench.threats import MEASURES, Column, Faced, Measure, Origin, closest
from sfumato.report.format import MISSING, call, fixed, listing, percent, plural

_MOST_TABLES = 2
_FIGURE_OF: dict[Measure, str] = {"ssim": "ssim", "mse": "mse_test"}
_TOUCHES: dict[ThreatModel, str] = {
    "white-box": "A white-box attacker has the edge with its weights.",
    "gray-box": "A gray-box attacker knows how the edge is built, not its weights, and may query it.",
    "black-box": "A black-box attacker may only query the edge.",
}
_LEARNED_FROM: dict[Origin, str] = {
    "train": "the model’s own training images, the papers’ worst case",
    "auxiliary": "images of the attacker’s own, which the model never saw",
}


def head(result: Result) -> Iterator[str]:
    """Title, where the original is, what is there and what is missing."""
    experiment = result.experiment
    yield f"# {experiment.title}"
    if experiment.description:
        yield filled(experiment.description)
    if experiment.reference is not None:
        reference = experiment.reference
        paper = PAPERS[reference.paper]
        yield filled(f"Original: {paper.citation}; {reference.place}. {paper.note_on(reference.dataset)}")
    yield filled(_state(result))


def by_threat_model(result: Result) -> Iterator[str]:
    """All attacks side by side, where there are several threat models or more than two attacks."""
    threats = result.threats
    if not threats.worth_showing:
        return
    yield "## By threat model"
    yield filled(
        "Each column is one attack: mean ± standard deviation over seeds, in bold the one that comes closest in its "
        "row. “Strongest” takes for each image whichever attack came closest, of those under a threat model and under "
        "those that may touch less: who may touch more can do all that others can. "
        f"{' '.join(_TOUCHES[model] for model in threats.threat_models)} {_learned_from(result)}"
    )
    for measure in MEASURES:
        figure = next(figure for figure in FIGURES if figure.key == _FIGURE_OF[measure])
        yield f"### {figure.title}"
        header = ["row", *(f"{column.threat_model}: {escaped(column.title)}" for column in threats.columns)]
        header += [f"strongest {model}" for model in threats.threat_models]
        yield markdown(header, [_faced_line(result, faced, measure, figure) for faced in threats.rows[measure]])
        yield filled(_won(figure, threats.wins[measure]))


def tables(result: Result) -> Iterator[str]:
    """One table an attack, of many the first alone; the paper's figures beside ours."""
    many = len(result.tables) > _MOST_TABLES
    for table in result.tables[: 1 if many else None]:
        yield f"## Attack: {table.attack}" if len(result.tables) > 1 else "## Figures"
        if many:
            yield filled("The first of the attacks in full; the same figures of the others are in the JSON file.")
        yield filled(
            "Mean ± standard deviation over seeds; one seed has no deviation. Arrows point to more privacy. "
            "MSE and SSIM are means over images, on pixels from 0 to 1. "
            f"{'' if result.threats.worth_showing else _learned_from(result)}"
        )
        yield _table(result, table)
        if changes := _changes(result, table):
            yield filled(
                "What a row changes against the row it is compared with, seed by seed: accuracy in points, MSE as a "
                "fraction of the other’s."
            )
            yield changes


def averages(result: Result) -> Iterator[str]:
    """Means with and without, over all pairs, where there are several."""
    table = result.main
    if table is None or table.average is None:
        return
    mean = table.average
    yield f"Averages over {mean.rows} pairs of rows, without and with what is added:"
    header = ["", *(figure.title for figure in FIGURES)]
    lines = [
        ["without", *(_plain(figure, mean.without) for figure in FIGURES)],
        ["with", *(_plain(figure, mean.with_it) for figure in FIGURES)],
    ]
    if mean.published_without:
        lines += [
            ["without, paper", *(_plain(figure, mean.published_without) for figure in FIGURES)],
            ["with, paper", *(_plain(figure, mean.published_with) for figure in FIGURES)],
        ]
    yield markdown(header, lines)


def matched(result: Result) -> Iterator[str]:
    """Curves compared where they reach the same accuracy."""
    if not result.matched:
        return
    yield "## At matched accuracy"
    yield filled(
        "Each row is a curve of MSE over accuracy. For each seed, both curves are made monotone (isotonic regression), "
        "joined by straight lines, and averaged over the accuracies that both reach; nothing is extrapolated."
    )
    header = ["row", "compared with", "common accuracy (%)", "MSE without", "MSE with", "gain"]
    yield markdown(header, [_matched_line(*pair, found) for pair, found in result.matched.items()], texts=3)
    for (row, over), found in result.matched.items():
        for seed, (first, second) in found.apart.items():
            yield filled(
                f"Seed {seed}: {escaped(row)} reaches {_range(*second)} and {escaped(over)} {_range(*first)}. The "
                "ranges do not overlap, so nothing can be said at matched accuracy."
            )


def entropy(result: Result) -> Iterator[str]:
    """How well entropy foretells the attacker's error."""
    found = result.entropy
    if found is None:
        return
    yield "## Entropy and error"
    if found.all.rho is None or found.all.p_value is None:
        count = found.all.count
        yield f"{count} {plural(count, 'point')}: too few different ones for a rank correlation."
        return
    each = "" if found.by_seed is None else f" For each seed alone it is {_spread(found.by_seed, 3)}."
    those = f"{found.all.count} of {len(result.cards)} models, those whose cards track it"
    yield filled(
        "Spearman’s rank correlation of relative conditional entropy and MSE is "
        f"{fixed(found.all.rho, 3)} over {those} (p = {found.all.p_value:.2g}).{each} The entropy is minus "
        f"`{result.experiment.theory}`, so it is known up to the entropy of the images, which no model changes."
    )
    if len(found.by_row) > 1:
        yield "Along each row’s own curve, over all its seeds:"
        yield markdown(["row", "models", "ρ", "p"], [_correlated(row, one) for row, one in found.by_row.items()])


def what_it_costs(result: Result) -> Iterator[str]:
    """What the halves of each row's models cost."""
    if not result.costs:
        return
    yield "## What the halves cost"
    yield filled(
        "For one image; MACs are the multiply–accumulates of convolutions and linear layers. Where the models of a row "
        "differ, the least and the most."
    )
    lines = [[escaped(row), *(_counts(*found[name]) for name in COSTS)] for row, found in result.costs.items()]
    yield markdown(["row", *COSTS.values()], lines)


def doubts(result: Result) -> Iterator[str]:
    """What the evaluations distrust about themselves."""
    if not result.suspicions:
        return
    yield "## What to distrust"
    total = len(result.cards)
    yield "\n".join(f"- `{code}`: {count} of {total} cards" for code, count in result.suspicions.items())


def what_was_run(result: Result) -> Iterator[str]:
    """The command, the settings as an audit's file, and every defense with all its arguments."""
    yield "## What was run"
    yield f"```bash\n{shlex.join(_command(result))}\n```"
    scale = result.experiment.sizes[result.size].model_dump(mode="json", exclude_unset=True, exclude={"seeds"})
    scale.get("data", {}).pop("path", None)
    yield f"```yaml\n{yaml.safe_dump(scale, sort_keys=False, allow_unicode=True, width=110).strip()}\n```"
    own = {row.label: row.settings for row in result.experiment.rows if row.settings}
    for label, settings in own.items():
        yield f"Settings of {escaped(label)} alone: `{settings}`"
    if vary := result.experiment.vary:
        values = ", ".join(point_label(result.experiment, value) for value in vary.values[result.size])
        yield filled(f"Swept: `{vary.field}`, {values}.")
    shown = {job.label: result.cards[job.key] for job in result.jobs if job.key in result.cards}
    lines = [
        [escaped(label), " → ".join(f"`{call(part)}`" for part in card.defense.parts) or "none"]
        for label, card in shown.items()
    ]
    if lines:
        yield markdown(["row", "parts, in order"], lines, texts=2)


def environment(result: Result) -> Iterator[str]:
    """Where the cards were made, and how long it took."""
    # Rows of one method share their model and its attacks: what was done once is counted once.
    cards = list({card.run: card for card in result.cards.values()}.values())
    if not cards:
        return
    yield "## Environment"
    first = cards[0]
    places = dict.fromkeys(
        f"sfumato {e.sfumato}, torch {e.torch}, Python {e.python}, {e.platform}, {e.device}, {e.threads} "
        f"{plural(e.threads, 'thread')}"
        for e in (card.environment for card in cards)
    )
    sources = dict.fromkeys(
        f"{d.source}: {d.train:,} training, {d.validation:,} validation and {d.test:,} test images of "
        f"{len(d.classes)} classes"
        for d in (card.data for card in cards)
    )
    took = sum(card.timing.train_seconds + card.timing.attack_seconds for card in cards)
    last = max(card.timing.finished for card in cards)
    mean = first.mean_image
    done = f"{len(cards)} {plural(len(cards), 'model')}"
    facts = [
        *places,
        *sources,
        f"{done}, {duration(took)} of training and attacks, the last finished on {last[:10]}",
        f"answering every feature with the mean training image: MSE {fixed(mean.mse, 4)}, SSIM {fixed(mean.ssim, 3)}",
    ]
    yield "\n".join(f"- {fact}" for fact in facts)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A table whose first columns are text and whose others are figures."""
    rule = ["---" if i < texts else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    line = re.sub(r"\s+", " ", text).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def filled(text: str) -> str:
    """Text in lines of at most 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _state(result: Result) -> str:
    total, there = len(result.jobs), len(result.cards)
    text = f"Size: {result.size}. {there} of {total} runs are there."
    if not result.missing:
        return text
    run = _rows_that_were_run(result)
    rows = dict.fromkeys(escaped(job.row) for job in result.jobs if job.row not in run)
    seeds: dict[str, list[str]] = {job.label: [] for job in result.jobs if job.row in run}  # in the order of the table
    for job in result.missing:
        if job.row in run:
            seeds[job.label].append(str(job.seed))
    some = [f"{escaped(label)} ({plural(len(s), 'seed')} {listing(s)})" for label, s in seeds.items() if s]
    return f"{text} **Missing: {listing([*some, *rows])}.**"


def _rows_that_were_run(result: Result) -> set[str]:
    return {job.row for job in result.jobs if job.key in result.cards}


def _command(result: Result) -> Iterator[str]:
    """The words that run what is there again: all rows, or those that have a run."""
    # One of the user's own is run from its file.
    name = result.experiment.name
    yield from ("sfumato", "bench", name if name in packaged_names() else f"{name}.yaml", "--size", result.size)
    yield from ("--seeds", *dict.fromkeys(str(job.seed) for job in result.jobs))
    run = _rows_that_were_run(result)
    if run and run != {job.row for job in result.jobs}:
        yield from ("--only", *(row.label for row in result.experiment.rows if row.label in run))


def _faced_line(result: Result, faced: Faced, measure: Measure, figure: Figure) -> list[str]:
    threats, best = result.threats, closest(faced.attacks, measure)
    at = point_label(result.experiment, faced.point)
    cells = [escaped(f"{faced.row}, {at}" if at else faced.row)]
    for column in threats.columns:
        shown = _shown(figure, faced.attacks.get(column))
        cells.append(f"**{shown}**" if column == best else shown)
    return cells + [_shown(figure, faced.by_threat_model.get(model)) for model in threats.threat_models]


def _won(figure: Figure, wins: Mapping[Column, int]) -> str:
    rows = sum(wins.values())
    each = [f"{column.threat_model} {escaped(column.title)} in {count}" for column, count in wins.items()]
    return f"By {figure.title.split(',')[0]}, of {rows} {plural(rows, 'row')}, closest is {listing(each)}."


def _learned_from(result: Result) -> str:
    found = result.threats.learned_from
    if len(found) == 1:
        (origin,) = found
        return f"All attackers learn from {_LEARNED_FROM[origin]}."
    each = [
        f"against {listing([escaped(row) for row in rows])} from {_LEARNED_FROM[origin]}"
        for origin, rows in found.items()
    ]
    return f"Attackers learn {'; '.join(each)}."


def _table(result: Result, table: Table) -> str:
    printed = [figure for figure in FIGURES if any(figure.key in line.published for line in table.lines)]
    header = ["row", "seeds"]
    for figure in FIGURES:
        header += [figure.title, *(["paper"] if figure in printed else [])]
    lines, run = [], _rows_that_were_run(result)
    for line in table.lines:
        if line.row not in run and not line.published:  # nothing to show, and named as missing
            continue
        cells = [_name(result, line), str(len(line.seeds))]
        for figure in FIGURES:
            cells.append(_figure(figure, line.figures))
            if figure in printed:
                cells.append(_plain(figure, line.published))
        lines.append(cells)
    return markdown(header, lines)


def _changes(result: Result, table: Table) -> str:
    lines = [line for line in table.lines if line.changes]
    if not lines:
        return ""
    shown = [("accuracy", "accuracy (points)"), ("mse_train", "MSE, train"), ("mse_test", "MSE, test")]
    every = [change for line in lines for found in line.changes.values() for change in found.values()]
    with_paper = any(change.published is not None for change in every)
    header = ["row", "compared with"]
    for _, title in shown:
        header += [title, *(["paper"] if with_paper else [])]
    body = []
    for line in lines:
        for over, found in line.changes.items():
            cells = [_name(result, line), escaped(over)]
            for key, _ in shown:
                ours, theirs = _change(key, found.get(key))
                cells += [ours, *([theirs] if with_paper else [])]
            body.append(cells)
    return markdown(header, body, texts=2)


def _change(key: str, change: Change | None) -> tuple[str, str]:
    if change is None:
        return MISSING, MISSING
    if key == "accuracy":
        paper = MISSING if change.published is None else f"{100 * change.published:+.2f}"
        return _spread(change.difference, 2, 100, sign=True), paper
    paper = MISSING if change.published_ratio is None else f"{100 * change.published_ratio:+.1f} %"
    ours = MISSING if change.ratio is None else f"{_spread(change.ratio, 1, 100, sign=True)} %"
    return ours, paper


def _correlated(row: str, found: Correlation) -> list[str]:
    p_value = MISSING if found.p_value is None else f"{found.p_value:.2g}"
    return [escaped(row), str(found.count), fixed(found.rho, 3), p_value]


def _matched_line(row: str, over: str, found: Matched) -> list[str]:
    matches = list(found.by_seed.values())
    if not matches or found.gain is None:
        return [escaped(row), escaped(over), "none", MISSING, MISSING, MISSING]
    ranges = dict.fromkeys(_range(match.low, match.high) for match in matches)
    means = [sum(values) / len(matches) for values in zip(*((m.without, m.with_it) for m in matches))]
    gain = f"{_spread(found.gain, 1, 100, sign=True)} %"
    return [escaped(row), escaped(over), "; ".join(ranges), *(fixed(mean, 4) for mean in means), gain]


def _range(low: float, high: float) -> str:
    return percent(low) if low == high else f"{fixed(100 * low, 1)} to {percent(high)}"


def _counts(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _name(result: Result, line: Line) -> str:
    at = point_label(result.experiment, line.point)
    return escaped(f"{line.row}, {at}" if at else line.row)


def _figure(figure: Figure, figures: Mapping[str, Spread]) -> str:
    return _shown(figure, figures.get(figure.key))


def _shown(figure: Figure, found: Spread | None) -> str:
    return MISSING if found is None else _spread(found, figure.digits, figure.scale)


def _plain(figure: Figure, figures: Mapping[str, float]) -> str:
    value = figures.get(figure.key)
    return fixed(None if value is None else figure.scale * value, figure.digits)


def _spread(value: Spread, digits: int, scale: float = 1.0, *, sign: bool = False) -> str:
    # Adding zero turns the "-0.0" that rounding a tiny negative leaves into "+0.0".
    mean = f"{round(scale * value.mean, digits) + 0.0:+.{digits}f}" if sign else fixed(scale * value.mean, digits)
    return mean if value.deviation is None else f"{mean} ± {fixed(scale * value.deviation, digits)}"
