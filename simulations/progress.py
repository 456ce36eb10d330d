"""Shows how a sweep gets on: a bar over all cells and rounds, with the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from simulations.runner import Job

LOOKED_BACK = 3600.0
"""Seconds the speed is taken from: cells take turns at being slow."""


class ProgressBar:
    """A watcher that draws; use it in a `with` statement.

    Where nobody looks (a log file), it prints a line for each cell instead.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            speed_estimate_period=LOOKED_BACK,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("preparing", total=None)
        self._weights: dict[str, int] = {}
        self._done, self._number = 0, 0

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, jobs: Sequence[Job], done: int) -> None:
        """Begin with these jobs left to do, after so many that were finished before."""
        self._weights = {job.cell.id: job.rounds for job in jobs}
        self._progress.update(self._task, total=sum(self._weights.values()))
        cells = "1 cell" if len(jobs) == 1 else f"{len(jobs)} cells"
        before = f", {done} finished before" if done else ""
        self._console.print(f"{cells} to compute (scenario x strategy x seed){before}.")

    def started(self, job: Job) -> None:
        """Begin a job."""
        self._number += 1
        counted = f"{self._number} of {len(self._weights)}"
        self._progress.update(self._task, description=f"{counted}: {_name(job)}")

    def progress(self, job: Job, part: float) -> None:
        """Note which part of a job's rounds is done, 0 to 1."""
        completed = self._done + part * self._weights[job.cell.id]
        self._progress.update(self._task, completed=completed)

    def ended(self, job: Job, reason: str) -> None:
        """End a job; the reason is empty unless it failed."""
        self._done += self._weights[job.cell.id]
        self._progress.update(self._task, completed=self._done)
        if reason or not self._console.is_terminal:
            self._console.print(f"{_name(job)}: {reason or 'done'}", markup=False, soft_wrap=True)


def _name(job: Job) -> str:
    return f"{job.cell.scenario}, {job.cell.strategy}, seed {job.cell.seed}"
