"""The live view of a run: its round, its AUC, and what each hospital does and has spent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.history import Estimate, Event, RoundRecord, event, parse_line, round_record
from server.live_state import Doing, Hospital, State
from shared.study import Study

MOST_ROWS = 20
"""Hospitals shown one by one; the others are counted."""

STYLES: dict[Doing, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "describing": ("▸", "cyan"),
    "training": ("▸", "cyan"),
    "evaluating": ("▸", "cyan"),
    "done": ("✓", "green"),
    "refused": ("✗", "yellow"),
    "failed": ("✗", "red"),
    "late": ("✗", "yellow"),
    "offline": ("○", "dim"),
}
"""Sign and colour of what a hospital does."""

SAID = {
    "site-sent": "asked",
    "site-replied": "answered",
    "site-refused": "refused",
    "site-failed": "failed",
    "site-late": "answered too late",
    "described": "the hospitals have described their data",
    "site-offline": "went offline",
    "site-online": "came online",
    "round-started": "started",
}
"""What the events are called in plain lines; the others by their own names."""


class LiveView:
    """Follows a run's folder; on a terminal a table that is redrawn, elsewhere plain lines.

    Use as a context manager and call `refresh` a few times a second.

    Args:
        run_dir: The run's folder; its files need not exist yet.
        study: The plan.
        sites: Names of the hospitals, in the order to show them.
        console: Where to draw.
        since: Failures before this time (seconds since 1970) are of an earlier attempt and are
            not shown as the run's end.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        run_dir: Path,
        study: Study,
        sites: Sequence[str],
        console: Console,
        *,
        since: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = State.begin(study, sites)
        self._events = Tail(run_dir / "events.jsonl")
        self._rounds = Tail(run_dir / "metrics.jsonl")
        self._console, self._since, self._clock = console, since, clock
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        """Start drawing."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        self.refresh()
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Read what is new and show it."""
        for it in map(event, self._events.read()):
            if it.name == "run-failed" and (it.seconds or self._since) < self._since:
                continue
            self.state = self.state.apply(it)
            self._say(event_line(it))
        for line in filter(None, map(round_record, self._rounds.read())):
            self.state = self.state.record(line)
            self._say(round_line(line, self.state.study))
        if self._live is not None:
            self._live.update(render(self.state, self._clock()), refresh=True)

    def _say(self, line: str) -> None:
        if self._live is None and line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Tail:
    """Reads the whole new lines of a growing `.jsonl` file; starts over if it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._done = path, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the objects written since the last call; other lines are passed over."""
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._file or about.st_size < self._done:
                    self._file, self._done = about.st_ino, 0
                file.seek(self._done)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._done += len(whole)
        objects = (parse_line(line) for line in whole.split(b"\n"))
        return [it for it in objects if it is not None]


def render(state: State, now: float) -> RenderableType:
    """Return the picture of a state at a time (seconds since 1970)."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("hospital", "state", "epsilon spent", "", "this round"):
        table.add_column(title, no_wrap=title != "state")
    names = list(state.hospitals)
    for name in names[:MOST_ROWS]:
        table.add_row(*_row(name, state.hospitals[name], state, now))
    parts: list[RenderableType] = [_headline(state, now), table]
    if rest := [state.hospitals[name].doing for name in names[MOST_ROWS:]]:
        counts = ", ".join(f"{rest.count(doing)} {doing}" for doing in STYLES if doing in rest)
        parts.append(Text(f"and {len(rest)} more: {counts}", style="dim"))
    if state.error:
        parts.append(Text(state.error, style="red"))
    return Group(*parts)


def event_line(it: Event) -> str:
    """Return an event as one plain line; empty for those a round's own line repeats."""
    if it.name in ("", "round-finished", "evaluation-finished"):
        return ""
    where = [f"round {it.round}"] if it.round else []
    said = [SAID.get(it.name, it.name.replace("-", " ")), *([it.detail] if it.detail else [])]
    line = ": ".join([*where, *([it.site] if it.site else []), *said])
    return line if it.seconds is None else f"{it.time[11:19]} {line}"


def round_line(line: RoundRecord, study: Study) -> str:
    """Return a finished round as one plain line."""
    delivered = sum(site.state in ("update", "evaluated") for site in line.sites.values())
    spent = ", ".join(
        f"{name} {site.epsilon:.2f} of {site.budget or 0:g}"
        for name, site in line.sites.items()
        if site.epsilon is not None and study.privacy.enabled
    )
    title = _round_name(line.number, study.federation.rounds)
    return (
        f"{title} finished: AUC {_interval(line.auc, study)}, "
        f"{delivered} of {len(line.sites)} hospitals"
        + (f"; epsilon spent: {spent}" if spent else "")
    )


def _headline(state: State, now: float) -> Text:
    left = state.seconds_left(now)
    parts = [
        state.study.name,
        _round_name(state.round, state.study.federation.rounds),
        f"AUC {_interval(state.auc, state.study)}",
        *([f"about {_duration(left)} left"] if left is not None else []),
        *(["finished"] if state.finished else []),
    ]
    line = Text("  ·  ".join(parts), style="bold")
    if not state.study.privacy.enabled:
        line.append("  ·  NO PRIVACY", style="bold red")
    return line


def _row(name: str, site: Hospital, state: State, now: float) -> list[RenderableType]:
    sign, style = STYLES[site.doing]
    doing = Text(f"{sign} {site.doing}", style=style)
    if site.why:
        doing.append(f" ({site.why})", style="default")
    return [Text(name), doing, *_spent(site, state.study), Text(_this_round(site, now))]


def _spent(site: Hospital, study: Study) -> tuple[RenderableType, RenderableType]:
    if not study.privacy.enabled:
        return Text("no privacy", style="red"), Text("")
    spent, budget = site.epsilon or 0.0, site.budget or study.privacy.epsilon
    bar = ProgressBar(total=budget, completed=min(spent, budget), width=20, complete_style="blue")
    return bar, Text(f"{spent:.2f} of {budget:g}")


def _this_round(site: Hospital, now: float) -> str:
    if site.doing == "done":
        return "" if site.took is None else f"took {_duration(site.took)}"
    if site.doing not in ("training", "evaluating") or site.asked is None:
        return ""
    since = max(now - site.asked, 0.0)
    if site.took is None:
        return f"for {_duration(since)}"
    return f"about {_duration(site.took - since)} left" if since < site.took else "any moment"


def _round_name(number: int, rounds: int) -> str:
    if number < 1:
        return "waiting for hospitals"
    return f"round {number} of {rounds}" if number <= rounds else "closing evaluation"


def _interval(auc: Estimate, study: Study) -> str:
    if auc.value is None:
        return "not known yet"
    if auc.low is None or auc.high is None:
        return f"{auc.value:.3f}"
    # Much of its width is the counts' noise, and says nothing against the model.
    noise = ", noise included" if study.privacy.enabled else ""
    return f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}{noise})"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"
