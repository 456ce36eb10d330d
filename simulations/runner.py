"""Computes the cells of a sweep one after the other, so that it can be cut short at any moment."""

from __future__ import annotations

import fcntl
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from shared.errors import ConsiliumError, SimulationError
from shared.study import Study
from simulations.build import Federation, build_federation
from simulations.checks import check_parts
from simulations.datasets import describe_dataset
from simulations.experiment import Simulate, Tell, run_cell, tidy
from simulations.feasible import find_obstacle
from simulations.identity import code_digest, code_version, digest_of, files_digest, machine
from simulations.records import Cell, Outcome
from simulations.results import Results
from simulations.scenario import Scenario, study_of
from simulations.strategies import REFERENCES


@dataclass(frozen=True)
class Job:
    """A cell, the scenario it is of, and how many rounds it takes."""

    cell: Cell
    scenario: Scenario
    rounds: int


class Watcher(Protocol):
    """Is told how a sweep gets on."""

    def begin(self, jobs: Sequence[Job], done: int) -> None:
        """Begin with these jobs left to do, after so many that were finished before."""

    def started(self, job: Job) -> None:
        """Begin a job."""

    def progress(self, job: Job, part: float) -> None:
        """Note which part of a job's rounds is done, 0 to 1."""

    def ended(self, job: Job, reason: str) -> None:
        """End a job; the reason is empty unless it failed."""


def with_references(scenario: Scenario) -> Scenario:
    """Return the scenario with the strategies that everything is compared with, after its own."""
    compare = tuple(dict.fromkeys((*scenario.compare, *REFERENCES)))
    return scenario.model_copy(update={"compare": compare})


def plan_jobs(scenarios: Sequence[Scenario], command: str = "") -> list[Job]:
    """Return a job for each scenario, seed and strategy it compares.

    Args:
        scenarios: Checked ones.
        command: The command line, noted with the cells.

    Raises:
        SimulationError: The study of a strategy is not valid.
    """
    jobs = []
    for scenario in scenarios:
        sites = check_parts(scenario, describe_dataset(scenario.data))
        digest = digest_of(scenario.digest, scenario.description, files_digest(_files(scenario)))
        for seed in dict.fromkeys(scenario.seeds):
            for strategy in dict.fromkeys(scenario.compare):
                study = study_of(scenario, strategy, sites)
                cell = _cell(scenario, digest, strategy, seed, study, command)
                jobs.append(Job(cell, scenario, study.federation.rounds))
    return jobs


def run_jobs(
    jobs: Sequence[Job], folder: Path, simulate: Simulate, device: str, watcher: Watcher
) -> list[Cell]:
    """Compute the jobs that are not finished yet; return the cells that failed.

    Killed at any moment and called again, it goes on in the cell it was in. A cell that fails
    keeps its reason and does not stop the others; the next call tries it from its beginning.
    Those whose patients cannot be dealt fail before anything is computed.

    Args:
        jobs: As planned.
        folder: Of the results; made if it does not exist.
        simulate: Computes.
        device: Where to score: "auto", "cpu" or "cuda".
        watcher: Is told how it gets on.

    Raises:
        SimulationError: Another process works in the folder.
        CoordinatorError: The results file cannot be used.
    """
    failed = []
    with _locked(folder), Results(folder, create=True) as results:
        results.plan(job.cell for job in jobs)
        before = {cell.id: cell.state for cell in results.cells()}
        left = [job for job in jobs if before[job.cell.id] != "finished"]
        errors = infeasible(left)
        left.sort(key=lambda job: job.cell.id not in errors)
        watcher.begin(left, len(jobs) - len(left))
        federations = _Federations()
        for job in left:
            watcher.started(job)
            running = replace(job.cell, state="running", started=datetime.now(UTC).isoformat())
            results.note(running)
            began, place = time.monotonic(), folder / "cells" / job.cell.id
            if before[job.cell.id] != "running":
                _empty(place)
            compute = partial(_compute, job.scenario, federations, place, simulate, device)
            try:
                if job.cell.id in errors:
                    raise errors[job.cell.id]
                outcome = compute(running, partial(watcher.progress, job))
            except Exception as error:  # noqa: BLE001
                # Whatever went wrong with one cell, the others can still be computed.
                reason = _reason(error, place)
                failed.append(replace(running, state="failed", reason=reason))
                results.note(failed[-1])
            else:
                reason, seconds = "", time.monotonic() - began
                results.store(replace(outcome, cell=replace(outcome.cell, seconds=seconds)))
                tidy(place)
            watcher.ended(job, reason)
    return failed


def infeasible(jobs: Iterable[Job]) -> dict[str, ConsiliumError]:
    """Return what keeps jobs from being done, by the id of their cell; nothing is computed."""
    known: dict[tuple[str, int], ConsiliumError | None] = {}
    errors = {}
    for job in jobs:
        key = job.scenario.digest, job.cell.seed
        if key not in known:
            known[key] = find_obstacle(job.scenario, job.cell.seed)
        if error := known[key]:
            errors[job.cell.id] = error
    return errors


class _Federations:
    """The newest federation: the strategies of one seed, one after the other, share it."""

    def __init__(self) -> None:
        self._key = ""
        self._federation: Federation | None = None

    def get(self, scenario: Scenario, seed: int) -> Federation:
        """Return the federation of a scenario and seed."""
        key = digest_of(scenario.digest, seed)
        if self._federation is None or key != self._key:
            self._federation = None  # make room first
            self._key, self._federation = key, build_federation(scenario, seed)
        return self._federation


def _compute(
    scenario: Scenario,
    federations: _Federations,
    place: Path,
    simulate: Simulate,
    device: str,
    cell: Cell,
    tell: Tell,
) -> Outcome:
    federation = federations.get(scenario, cell.seed)
    return run_cell(cell, scenario, federation, place, simulate, device, tell)


def _files(scenario: Scenario) -> list[Path]:
    """Return the files and folders a scenario's data comes from."""
    named = scenario.data.model_dump(include={"path", "labels"})
    return [Path(name) for name in named.values()]


def _cell(
    scenario: Scenario, digest: str, strategy: str, seed: int, study: Study, command: str
) -> Cell:
    """Return a planned cell; its id stands for all that its figures depend on."""
    chosen = scenario.strategy(strategy)
    way = digest_of(strategy, chosen.setting, chosen.study, chosen.often)
    return Cell(
        id=digest_of(digest, way, seed, code_digest())[:16],
        scenario=scenario.name,
        strategy=strategy,
        seed=seed,
        scenario_digest=digest,
        strategy_digest=way,
        code=code_digest(),
        code_version=code_version(),
        machine=machine(),
        setting=chosen.setting,
        description=chosen.description,
        labels=scenario.labels,
        command=command,
        scenario_text=scenario.model_dump_json(),
        study_text=study.canonical(),
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _reason(error: Exception, place: Path) -> str:
    """Return in one line why a cell failed; the rest, if there is more, is in a file.

    There is of what nobody foresaw, and of errors that bring notes.

    Nothing else stays in the cell's folder: the next call begins it anew.
    """
    shutil.rmtree(place, ignore_errors=True)
    foreseen = isinstance(error, ConsiliumError)
    if foreseen and not getattr(error, "__notes__", ()):
        return str(error)
    place.mkdir(parents=True)
    (place / "error.txt").write_text("".join(traceback.format_exception(error)))
    line = (str(error).splitlines() or [""])[0]
    said = line if foreseen else f"{type(error).__name__}: {line}"
    return f"{said} (see {place / 'error.txt'})"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the results for this process; the kernel lets go however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise SimulationError(
            f"the results folder cannot be written: {error.strerror}",
            str(folder),
            "Give another --out",
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SimulationError(
                "another sweep is writing results here",
                str(folder),
                "Wait for it, end it, or give another --out",
            ) from None
        yield
