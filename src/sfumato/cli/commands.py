"""The commands.

Exit codes: 0 fine, 1 an error of the program, 2 bad input, 3 a calibration that does not hold, 4 a defense that fails a
condition of ``--fail-if``, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError, UnusedCliTokensError
from cyclopts.validators import Number
from rich.console import Console

import sfumato
from sfumato.audit import Card, Settings, attack_run, audit, load_settings, preset, read_yaml, reopen, train_all
from sfumato.audit.gate import Condition, parse_all
from sfumato.cli.calibrate import calibrate_command
from sfumato.cli.catalogue import CATALOGUE, as_blocks
from sfumato.cli.flags import DEFAULT_PRESET, nested, takes_sections, takes_settings, unknown_flags, without
from sfumato.cli.gate import Gate
from sfumato.cli.interrupt import program, stop_on_interrupt
from sfumato.errors import InputError, Interrupted, SfumatoError, raise_all, together
from sfumato.progress import Bar
from sfumato.report import conclude, entries, judge_all, rich_table, rows, write_page
from sfumato.storage import require_writable, storage_errors
from sfumato.training import Runtime, make_fabric

app = App(
    name="sfumato",
    version=sfumato.__version__,
    suppress_keyboard_interrupt=False,
    help="Private split inference: train split models, attack them, report what leaks.\n\n"
    "Exit codes: 0 fine, 1 an error of the program, 2 bad input, 3 a calibration that does not hold, "
    "4 a defense fails a condition of --fail-if, 130 interrupted (the same command resumes).",
)
app.register_install_completion_command()
app.command(calibrate_command, name="calibrate")

Config = Annotated[Path | None, Parameter(help="YAML file with the fields below; flags override it.")]
Preset = Annotated[
    str | None,
    Parameter(
        help="Settings that stand in for the defaults below (sfumato list presets). [default: digits, unless --config]"
    ),
]
Runs = Annotated[Path, Parameter(help="Folder of all runs; what is there is not computed again.")]
Out = Annotated[Path, Parameter(help="Folder for the page and copies of the cards.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of tables.")]
TensorBoard = Annotated[bool, Parameter(negative=(), help="Also log for TensorBoard (extra tensorboard).")]
Seconds = Annotated[float, Parameter(help="Save a checkpoint at least this often.", validator=Number(gte=0))]
Kind = Literal["data", "models", "defenses", "recipes", "attacks", "presets", "experiments"]

_RUNS = Path("runs")
# One for each command, lest attacking a run replace the page of the audit that it came from.
_PAGE, _ATTACK, _REPORT = Path("sfumato-page"), Path("sfumato-attack"), Path("sfumato-report")


@app.command(name="audit")
@takes_settings
def audit_command(
    *,
    config: Config = None,
    preset: Preset = None,
    runs: Runs = _RUNS,
    out: Out = _PAGE,
    json: Json = False,
    tensorboard: TensorBoard = False,
    checkpoint_seconds: Seconds = 60.0,
    flags: dict[str, Any],
) -> int:
    """Train defenses, attack them, and write a page that shows what leaks (the main job)."""
    settings = _settings(preset, config, flags)
    for folder in (runs, out):
        require_writable(folder)
    with _runtime(settings, tensorboard, checkpoint_seconds) as runtime:
        cards = audit(settings, root=runs, runtime=runtime)
    return _report(cards, settings.conditions(), out, as_json=json)


@app.command(name="train")
@takes_settings
def train_command(
    *,
    config: Config = None,
    preset: Preset = None,
    runs: Runs = _RUNS,
    json: Json = False,
    tensorboard: TensorBoard = False,
    checkpoint_seconds: Seconds = 60.0,
    flags: dict[str, Any],
) -> None:
    """Train every defense that the settings name; print where each run is kept."""
    settings = _settings(preset, config, flags)
    require_writable(runs)
    with _runtime(settings, tensorboard, checkpoint_seconds) as runtime:
        made = train_all(settings, root=runs, runtime=runtime)
    found = [
        {
            "defense": run.label,
            "run": str(run.folder),
            "validation_accuracy": run.fit.history[run.fit.epoch_kept]["validation_accuracy"],
            "epoch_kept": run.fit.epoch_kept,
        }
        for run in made
    ]
    _print_rows("runs", found, as_json=json)


@app.command(name="attack")
@takes_sections("attacks", "evaluation", "fail_if")
def attack_command(
    run: Annotated[list[Path], Parameter(help="Folders of trained runs.", negative=())],
    /,
    *,
    out: Out = _ATTACK,
    json: Json = False,
    checkpoint_seconds: Seconds = 60.0,
    flags: dict[str, Any],
) -> int:
    """Attack trained runs; what is not given is as the run was told when it was trained."""
    load_settings([flags], whole=False)  # a run that is not there should not hide what is wrong with the flags
    told = [load_settings([reopen.settings_of(folder), flags]) for folder in run]
    require_writable(out)
    cards = []
    for folder, settings in zip(run, told, strict=True):
        with _runtime(settings, False, checkpoint_seconds) as runtime:
            trained, splits = reopen.run_of(folder, settings, runtime=runtime)
            cards.append(attack_run(trained, settings, splits, runtime=runtime))
    return _report(cards, told[0].conditions(), out, as_json=json)


@app.command(name="report")
@takes_sections("fail_if")
def report_command(
    card: Annotated[list[Path], Parameter(help="Cards, or folders that hold some.", negative=())],
    /,
    *,
    out: Out = _REPORT,
    json: Json = False,
    flags: dict[str, Any],
) -> int:
    """Make the page from cards."""
    conditions = parse_all(flags.get("fail_if", ()))
    found = [file for path in card for file in _cards_in(path)]
    return _report([Card.load(file) for file in found], conditions, out, as_json=json)


@app.command(name="list")
def list_command(
    kind: Annotated[Kind | None, Parameter(help="What to list; by default everything.")] = None,
    /,
    *,
    json: Json = False,
) -> None:
    """List data, models, defenses, recipes, attacks, presets and experiments with their arguments and sources."""
    chosen = {name: rows_of() for name, rows_of in CATALOGUE.items() if kind in (None, name)}
    if json:
        _print_json(chosen)
        return
    for name, found in chosen.items():
        Console().print(as_blocks(name, found))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    complaint = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except Interrupted as stop:
        again = shlex.join([*program(), *arguments])
        complaint.print(f"sfumato: {stop}; nothing is lost. To go on: {again}")
        return 130
    except KeyboardInterrupt as stop:
        again = shlex.join([*program(), *arguments])
        complaint.print("; ".join(["sfumato: stopped at once", *map(str, stop.args), f"to go on: {again}"]))
        return 130
    except (SfumatoError, CycloptsError) as error:
        for line in _everything_wrong(arguments, error) if isinstance(error, CycloptsError) else _lines(error):
            complaint.print(f"sfumato: {line}")
        return 2
    return code if isinstance(code, int) else 0


def _everything_wrong(arguments: list[str], first: CycloptsError) -> list[str]:
    """A line for each flag that the command does not have, and for each bad value beside them."""
    if not arguments or arguments[0] not in app:
        return _lines(first)
    command, *words = arguments
    known = app[command].assemble_argument_collection()
    unknown = unknown_flags(takewhile(lambda word: word != "--", words), command, known)
    unused = _lines(first) if isinstance(first, UnusedCliTokensError) else []
    return [*unknown.values(), *unused, *_bad_values(command, words, unknown)] or _lines(first)


def _bad_values(command: str, words: list[str], unknown: Collection[str]) -> Iterator[str]:
    """What parser and settings say. The parser stops at each bad value: it is taken out, and both are asked again."""
    fewer = words
    try:
        _, bound, _, _ = app.parse_known_args([command, *words])
        given = bound.arguments
        # What attack and report do not read of the settings is elsewhere, and so is what they measure.
        whole = command in ("audit", "train")
        _settings(given.get("preset"), given.get("config"), nested(given), whole=whole)
    except SfumatoError as error:
        yield from _lines(error)
    except UnknownOptionError:  # a command that takes names complains about each flag among them
        fewer = [word for word in words if word not in unknown]
    except CycloptsError as error:
        error.verbose = False  # its text is for a user, as where the parser ends a call itself
        yield from _lines(error)
        fewer = without(words, error.argument)
    if fewer != words:
        yield from _bad_values(command, fewer, unknown)


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines()


def _settings(name: str | None, config: Path | None, flags: dict[str, Any], *, whole: bool = True) -> Settings:
    sources: list[Callable[[], dict[str, Any]]] = []
    # A file says everything itself; the default preset is for calls that say nothing.
    if name is not None or config is None:
        sources.append(partial(preset, name or DEFAULT_PRESET))
    if config is not None:
        sources.append(partial(read_yaml, config))
    layers: list[dict[str, Any]] = []
    errors: list[InputError] = []
    for read in sources:
        try:
            layers.append(read())
        except InputError as error:
            errors.append(error)
    try:
        settings = load_settings([*layers, flags], whole=whole and not errors)
    except InputError as error:
        errors += together(error)
    raise_all(errors)
    return settings


@contextmanager
def _runtime(settings: Settings, tensorboard: bool, checkpoint_seconds: float) -> Iterator[Runtime]:
    fabric = make_fabric(settings.device, settings.precision)
    with Bar(Console(stderr=True)) as progress, stop_on_interrupt() as should_stop, _quiet():
        yield Runtime(
            fabric=fabric,
            progress=progress,
            should_stop=should_stop,
            tensorboard=tensorboard,
            checkpoint_seconds=checkpoint_seconds,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Dependencies' advice to programmers is no help to a user.
        warnings.simplefilter("ignore")
        yield


def _report(cards: list[Card], conditions: tuple[Condition, ...], out: Path, *, as_json: bool) -> int:
    """Write page and cards, print what they say, and return the exit code."""
    gate = Gate.over(cards, conditions)  # first: a condition on what was not measured is bad input
    page, folder = out / "page.html", out / "cards"
    written = set()
    for i, card in enumerate(cards):
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in card.defense.label)
        written.add(folder / f"{i:02d}-{safe}.json")
        card.save(folder / f"{i:02d}-{safe}.json")
    write_page(cards, page)
    with storage_errors(folder):
        for old in folder.glob("[0-9][0-9]*-*.json"):  # ours; whatever else is there stays
            if old not in written:
                old.unlink()
    if as_json:
        told = {"rows": rows(cards), "attacks": rows(cards, by="attack"), "gate": gate.as_json()}
        _print_json({"page": str(page), "cards": str(folder), **told})
        return gate.tell()
    console = Console()
    members = entries(cards)
    console.print(rich_table(cards))
    if any(len(card.attacks) > 1 for card in cards):
        console.print(rich_table(cards, by="attack"))
    words = conclude(members, judge_all(members))
    console.print(f"\n[bold]{words.headline}[/bold]\n{' '.join(words.sentences)}", highlight=False)
    console.print(f"\nPage: {page.resolve().as_uri()}", soft_wrap=True, highlight=False)
    return gate.tell(console)


def _cards_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*.json") if p.name == "card.json" or p.parent.name == "cards")
    if not found:
        raise InputError("card", str(path), "a card, or a folder that holds some")
    return found


def _print_rows(title: str, found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        _print_json({title: found})
    else:
        Console().print(as_blocks(title, found))


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
