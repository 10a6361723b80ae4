"""Run an experiment's audits one after the other; what is there already is not computed again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sfumato.audit import Card, Settings, audit, check
from sfumato.bench.expansion import Job, once
from sfumato.bench.experiment import Experiment, SizeName
from sfumato.errors import CorruptFileError, InputError, raise_all, together
from sfumato.storage import hash_of
from sfumato.training import Runtime


def cards_folder(root: Path, experiment: Experiment, size: SizeName) -> Path:
    """Where the cards of an experiment's runs are kept, inside the folder of all runs."""
    return Path(root) / "bench" / experiment.name / size


def read_cards(jobs: Sequence[Job], folder: Path) -> dict[str, Card]:
    """The cards that are there, by the jobs' keys; one that is damaged counts as missing."""
    found = {}
    for job in jobs:
        path = folder / f"{job.key}.json"
        if not path.is_file():
            continue
        try:
            found[job.key] = Card.load(path)
        except CorruptFileError:
            continue
    return found


def check_jobs(jobs: Sequence[Job], *, runtime: Runtime) -> None:
    """Find out before the first hour of training that the last row cannot be set up.

    Loads the images once for each data set, and sets up every defense with the first seed.

    Raises:
        InputError: Settings that do not fit the data, the network or each other; all at once.
    """
    seed = jobs[0].seed if jobs else 0
    groups: dict[str, list[Settings]] = {}
    for job in jobs:
        if job.seed == seed:
            groups.setdefault(hash_of(job.settings.model_dump(exclude={"defenses"})), []).append(job.settings)
    errors: list[InputError] = []
    for members in groups.values():
        defenses = tuple(defense for settings in members for defense in settings.defenses)
        try:
            check(members[0].model_copy(update={"defenses": defenses}), runtime=runtime)
        except InputError as error:
            errors += together(error)
    raise_all(once(errors))


def run_jobs(jobs: Sequence[Job], *, root: Path, folder: Path, runtime: Runtime) -> dict[str, Card]:
    """Train and attack what is not there yet, and keep every card.

    Args:
        jobs: In the order in which they are done.
        root: Folder of all runs; shared with audits and other experiments, so that equal models are trained once.
        folder: Where the cards go, named by the jobs' keys.
        runtime: Where it runs.

    Returns:
        Key to card.

    Raises:
        InputError: Settings that do not fit the data, the network or each other, before anything is trained.
        Interrupted: Asked to stop; the same call goes on where it stopped.
    """
    check_jobs(jobs, runtime=runtime)
    done = read_cards(jobs, folder)
    for position, job in enumerate(jobs):
        left = seconds_left(jobs[position:], done, jobs)
        counted = _Counted(runtime, f"{position + 1} of {len(jobs)}{_in_words(left)}")
        (card,) = audit(job.settings, root=root, runtime=replace(runtime, progress=counted))
        card.save(folder / f"{job.key}.json")
        done[job.key] = card
    return done


def seconds_left(todo: Sequence[Job], done: Mapping[str, Card], jobs: Sequence[Job]) -> float | None:
    """How long the jobs to do will take, from what the cards say that others took; ``None`` without any card.

    A job is expected to take as long as its row did with other seeds and at other points, else as long as the mean of
    all that is done.
    """
    took: dict[str, list[float]] = {}
    for job in jobs:
        if job.key in done:
            timing = done[job.key].timing
            took.setdefault(job.row, []).append(timing.train_seconds + timing.attack_seconds)
    known = [seconds for found in took.values() for seconds in found]
    if not known:
        return None
    missing = [took.get(job.row, known) for job in todo if job.key not in done]
    return math.fsum(math.fsum(found) / len(found) for found in missing)


def duration(seconds: float) -> str:
    """A duration for people, coarsely.

    >>> duration(20), duration(800), duration(8000), duration(300000)
    ('less than a minute', '13 min', '2 h 13 min', '3 days 11 h')
    """
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    days, rest = divmod(hours, 24)
    if not days:
        return f"{hours} h {minutes} min"
    return f"{days} {'day' if days == 1 else 'days'} {rest} h"


def _in_words(left: float | None) -> str:
    return "" if left is None else f", {duration(left)} left"


class _Counted:
    """Progress under a run's number and the time that all of them will take."""

    def __init__(self, runtime: Runtime, prefix: str) -> None:
        self._inner, self._prefix = runtime.progress, prefix
        self.advance, self.note, self.finish = self._inner.advance, self._inner.note, self._inner.finish

    def start(self, title: str, total: int, done: int = 0) -> None:
        self._inner.start(f"{self._prefix}: {title}", total, done)
