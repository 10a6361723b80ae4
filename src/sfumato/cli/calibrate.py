"""``sfumato calibrate``: theory and attack against problems whose answers are known."""

from __future__ import annotations

import dataclasses
import json as json_
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sfumato.audit.calibration import CALIBRATION_ATTACK, CALIBRATION_FITTING, NEAR, Calibration, measure
from sfumato.errors import InputError, one_of, raise_all
from sfumato.information import STANDARD_BEDS, Estimate
from sfumato.information.standard_beds import IMAGE_SHAPE
from sfumato.progress import Bar
from sfumato.training import Runtime, make_fabric

BROKEN = 3
"""Exit code where an inequality does not hold."""
_SIGMAS = (0.03, 0.1)
_RANGE = (1e-5, 1e3)
_SIDES = range(12, 33, 4)  # patches are 4×4, SSIM's window is 11×11, and covariances have side⁴ entries
_INTERRUPTED = 130
_MOST_SEEDS = 2**31


def calibrate_command(
    *,
    sigma: Annotated[
        tuple[float, ...],
        Parameter(help="Standard deviations of the channel's noise.", consume_multiple=True, negative=()),
    ] = _SIGMAS,
    bed: Annotated[
        tuple[str, ...],
        Parameter(help=f"Which beds: {', '.join(STANDARD_BEDS)}; by default all.", consume_multiple=True, negative=()),
    ] = (),
    side: Annotated[int, Parameter(help="Side of the images in pixels, a multiple of 4.")] = IMAGE_SHAPE[-1],
    attack: Annotated[bool, Parameter(help="Also train the decoder attack on every bed (a minute or two).")] = True,
    estimators: Annotated[
        bool, Parameter(negative=(), help="Also train MINE and CLUB on every bed (a quarter of a minute each).")
    ] = False,
    seed: Annotated[int, Parameter(help="Of images, noise and what is trained.")] = 0,
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")] = False,
) -> int:
    """Check theory and attack on test beds whose answers are known.

    Exit code 0 where every inequality holds: I ≤ R, theorem 1's bound ≤ mmse, mmse = MSE of the best reconstruction on
    samples, mmse ≤ MSE of the attack. 3 where one does not, beyond four standard errors.
    """
    names = bed or tuple(STANDARD_BEDS)
    raise_all(_wrong(sigma, names, side, seed))
    try:
        with Bar(Console(stderr=True)) as progress, _one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dependencies' advice to programmers is no help to a user
            runtime = Runtime(fabric=make_fabric("cpu"), progress=progress)
            found = [
                measure(
                    name,
                    STANDARD_BEDS[name].build(level, (1, side, side)),
                    attack=CALIBRATION_ATTACK if attack else None,
                    fitting=CALIBRATION_FITTING if estimators else None,
                    seed=seed,
                    runtime=runtime,
                )
                for name in names
                for level in sigma
            ]
    except KeyboardInterrupt:
        # Nothing is kept of a minute's work, so nothing of what the other commands say about going on is true here.
        Console(stderr=True).print("sfumato: stopped; the same command starts anew")
        return _INTERRUPTED
    _print(found, as_json=json)
    return BROKEN if any(row.broken() for row in found) else 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """A block in one thread: small networks gain nothing from more, and figures then do not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wrong(sigmas: Sequence[float], names: Sequence[str], side: int, seed: int) -> list[InputError]:
    low, high = _RANGE
    accepted = f"a standard deviation from {low:g} to {high:g}: features are sent in single precision"
    wrong = [InputError("sigma", s, accepted) for s in sigmas if not low <= s <= high]
    if not sigmas:
        wrong.append(InputError("sigma", "none", "one or more standard deviations"))
    wrong += [InputError("bed", n, one_of(STANDARD_BEDS, n)) for n in names if n not in STANDARD_BEDS]
    if side not in _SIDES:
        wrong.append(InputError("side", side, f"a multiple of {_SIDES.step} from {_SIDES[0]} to {_SIDES[-1]}"))
    if not 0 <= seed < _MOST_SEEDS:
        wrong.append(InputError("seed", seed, f"0 to {_MOST_SEEDS - 1}"))
    return wrong


def _print(found: Sequence[Calibration], *, as_json: bool) -> None:
    held = not any(row.broken() for row in found)
    if as_json:
        content = {"holds": held, "rows": [_as_json(row) for row in found]}
        sys.stdout.write(json_.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return
    console = Console()
    console.print(_table(found))
    if found[0].bracket is not None:
        console.print(_brackets(found))
    console.print(f"Entropies in nats, squared errors in thousandths.\n{_conclusion(found)}", highlight=False)


def _as_json(row: Calibration) -> dict[str, Any]:
    content = dataclasses.asdict(row)
    return {**content, "verdict": row.verdict(), "broken": list(row.broken())}


def _table(found: Sequence[Calibration]) -> Table:
    attacked = found[0].attack is not None
    # Without rules between the columns it fits into 80 characters.
    table = Table(title="calibration", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in ("bed", "d", "σ", "H(x|z)", "I", "R", "bound", "mmse", "best", *(("attack", "ratio") * attacked)):
        table.add_column(column, justify="left" if column == "bed" else "right", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=9)
    for row in found:
        f = row.figures
        entropies = [f.conditional_entropy.value, f.information.value, f.rate]
        errors = [f.bound.value, f.mmse.value, row.measured.value, *([row.attack.mse.value] if row.attack else [])]
        cells = [row.bed, str(f.dim), f"{f.sigma:g}", *(f"{value:.2f}" for value in entropies)]
        cells += [f"{1e3 * value:.3f}" for value in errors]
        cells += [f"{row.attack.ratio.value:.3f}"] if row.attack else []
        table.add_row(*cells, row.verdict(), style="red" if row.broken() else None)
    return table


def _brackets(found: Sequence[Calibration]) -> Table:
    table = Table(title="mutual information", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("bed", "σ", "MINE", "I", "CLUB", "its limit"):
        table.add_column(column, justify="left" if column == "bed" else "right", no_wrap=True)
    for row in found:
        if row.bracket is not None:
            figures = [_with_error(one) for one in (row.bracket.mine, row.figures.information, row.bracket.club)]
            cells = [row.bed, f"{row.figures.sigma:g}", *figures, f"{row.bracket.club_limit:.1f}"]
            table.add_row(*cells, style="red" if row.broken() else None)
    return table


def _with_error(estimate: Estimate) -> str:
    return f"{estimate.value:.2f}" + (f" ± {estimate.error:.2f}" if estimate.error else "")


def _conclusion(found: Sequence[Calibration]) -> str:
    broken = sum(bool(row.broken()) for row in found)
    text = f"{broken} of {len(found)} do not hold." if broken else f"All inequalities hold on all {len(found)}."
    ratios = [row.attack.ratio.value for row in found if row.attack is not None]
    if ratios:
        near = sum(ratio <= 1 + NEAR for ratio in ratios)
        text += f" The attack comes within {NEAR:.0%} of the minimum on {near}, {max(ratios) - 1:.1%} at worst."
    return text
