"""``sfumato bench``: the papers' tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfumato.bench import (
    FIGURES,
    Result,
    Written,
    cards_folder,
    evaluate,
    expand,
    lines_as_rows,
    point_label,
    read_cards,
    read_experiment,
    run_jobs,
    write_result,
)
from sfumato.cli.catalogue import CATALOGUE, as_blocks
from sfumato.cli.commands import Json, Runs, Seconds, TensorBoard, _print_json, _runtime, app
from sfumato.errors import InputError, Interrupted
from sfumato.report.format import fixed
from sfumato.storage import require_writable

_RUNS, _OUT = Path("runs"), Path("sfumato-bench")
_Many = Parameter(consume_multiple=True, negative=())


@app.command(name="bench")
def bench_command(
    experiment: Annotated[
        str | None, Parameter(help="An experiment's name, or a YAML file of your own; without it they are listed.")
    ] = None,
    /,
    *,
    size: Annotated[
        Literal["small", "paper"], Parameter(help="small: an hour or so on two cores; paper: as published.")
    ] = "small",
    seeds: Annotated[list[int] | None, _Many, Parameter(help="In place of the experiment's own.")] = None,
    only: Annotated[list[str] | None, _Many, Parameter(help="Run these rows alone, by their labels.")] = None,
    data_path: Annotated[str | None, Parameter(name="--data.path", help="Your own copy of the images.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where it runs.")] = "auto",
    precision: Annotated[
        Literal["32-true", "bf16-mixed", "16-mixed", "64-true"], Parameter(help="Of the arithmetic.")
    ] = "32-true",
    runs: Runs = _RUNS,
    out: Annotated[Path, Parameter(help="Folder for the page, its plots and its figures as JSON.")] = _OUT,
    report_only: Annotated[bool, Parameter(negative=(), help="Run nothing; make the page from what is there.")] = False,
    json: Json = False,
    tensorboard: TensorBoard = False,
    checkpoint_seconds: Seconds = 60.0,
) -> None:
    """Run a table or figure of a paper over defenses and seeds, and write its page."""
    if experiment is None:
        _list(as_json=json)
        return
    chosen = read_experiment(experiment)
    for place in (runs, out):
        require_writable(place)
    overrides: dict[str, Any] = {"device": device, "precision": precision}
    if data_path is not None:
        overrides["data"] = {"path": data_path}
    # Whatever runs now, the page is of the whole experiment and says which rows it lacks.
    everything = expand(chosen, size, seeds=seeds, overrides=overrides)
    jobs = expand(chosen, size, seeds=seeds, only=only or (), overrides=overrides)
    folder = cards_folder(runs, chosen, size)
    if not report_only:
        try:
            with _runtime(jobs[0].settings, tensorboard, checkpoint_seconds) as runtime:
                run_jobs(jobs, root=runs, folder=folder, runtime=runtime)
        except Interrupted:
            if there := read_cards(everything, folder):
                write_result(evaluate(chosen, size, everything, there), out)
            raise
    there = read_cards(everything, folder)
    if not there:
        raise InputError("report-only", str(folder), "a folder with cards of this experiment; run it first")
    result = evaluate(chosen, size, everything, there)
    _tell(result, write_result(result, out), as_json=json)


def _list(*, as_json: bool) -> None:
    found = CATALOGUE["experiments"]()
    if as_json:
        _print_json({"experiments": found})
    else:
        Console().print(as_blocks("experiments", found))


def _tell(result: Result, written: Written, *, as_json: bool) -> None:
    missing = [f"{job.label}, seed {job.seed}" for job in result.missing]
    if as_json:
        _print_json(
            {
                "page": str(written.page),
                "data": str(written.data),
                "plots": [str(path) for path in written.plots],
                "missing": missing,
                "rows": list(lines_as_rows(result)),
            }
        )
        return
    console = Console()
    console.print(_table(result))
    if missing:
        console.print(f"Missing: {len(missing)} of {len(result.jobs)} runs.", highlight=False)
    console.print(f"\nPage: {written.page.resolve().as_uri()}", soft_wrap=True, highlight=False)


def _table(result: Result) -> Table:
    table = Table(caption="↑ higher is more private, ↓ lower is more private", caption_justify="left")
    table.add_column("row")
    table.add_column("seeds", justify="right")
    for figure in FIGURES:
        table.add_column(Text(figure.title), justify="right")
    for line in result.main.lines if result.main else ():
        at = point_label(result.experiment, line.point)
        means = (
            fixed(figure.scale * line.figures[figure.key].mean if figure.key in line.figures else None, figure.digits)
            for figure in FIGURES
        )
        # Text, not a string: square brackets in a label are no markup.
        table.add_row(Text(f"{line.row}, {at}" if at else line.row), str(len(line.seeds)), *means)
    return table
