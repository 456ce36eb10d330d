"""The live view of a run: its round, its AUC, and what each hospital does and has spent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.history import (
    UNKNOWN,
    Estimate,
    Event,
    RoundRecord,
    event,
    parse_line,
    round_record,
)
from shared.study import Study

MOST_ROWS = 20
"""Hospitals shown one by one; the others are counted."""

Doing = Literal["waiting", "training", "evaluating", "done", "refused", "failed", "late", "offline"]

STYLES: dict[Doing, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "training": ("▸", "cyan"),
    "evaluating": ("▸", "cyan"),
    "done": ("✓", "green"),
    "refused": ("✗", "yellow"),
    "failed": ("✗", "red"),
    "late": ("✗", "yellow"),
    "offline": ("○", "dim"),
}
"""Sign and colour of what a hospital does."""

_OF_STATE: dict[str, Doing] = {
    "update": "done",
    "evaluated": "done",
    "refused": "refused",
    "failed": "failed",
    "late": "late",
    "absent": "offline",
}
_OF_EVENT: dict[str, Doing] = {
    "site-replied": "done",
    "site-refused": "refused",
    "site-failed": "failed",
    "update-rejected": "failed",
    "site-offline": "offline",
    "site-online": "waiting",
}

SAID = {
    "site-sent": "asked",
    "site-replied": "answered",
    "site-refused": "refused",
    "site-failed": "failed",
    "site-late": "answered too late",
    "site-offline": "went offline",
    "site-online": "came online",
    "round-started": "started",
}
"""What the events are called in plain lines; the others by their own names."""


@dataclass(frozen=True)
class Hospital:
    """What is known of one hospital now.

    Attributes:
        doing: What it does in this round.
        why: Reason of a refusal or failure.
        epsilon: Privacy spent.
        budget: Most it may spend.
        asked: When it was last asked, in seconds since 1970.
        took: Seconds its last answer took.
    """

    doing: Doing = "waiting"
    why: str = ""
    epsilon: float | None = None
    budget: float | None = None
    asked: float | None = None
    took: float | None = None


@dataclass(frozen=True)
class State:
    """Everything the view shows; each event and each finished round gives the next state.

    Attributes:
        study: The plan.
        hospitals: By name.
        round: The round in progress; 0 before the first, rounds + 1 for the closing evaluation.
        auc: Latest AUC, over all hospitals.
        durations: Seconds of each finished round of training.
        began: When the round in progress began, in seconds since 1970; None between rounds.
        finished: Whether the run has ended well.
        error: Why it ended otherwise; empty while it goes on.
    """

    study: Study
    hospitals: Mapping[str, Hospital]
    round: int = 0
    auc: Estimate = UNKNOWN
    durations: Mapping[int, float] = field(default_factory=dict)
    began: float | None = None
    finished: bool = False
    error: str = ""

    @classmethod
    def begin(cls, study: Study, sites: Sequence[str]) -> State:
        """Return the state before anything has happened."""
        return cls(study, {name: Hospital() for name in sites})

    def apply(self, it: Event) -> State:
        """Return the state after an event; unknown events change nothing."""
        match it.name:
            case "run-started":
                return replace(self, finished=False, error="")
            case "round-started" if it.round:
                return self._in_round(it)
            case "site-sent" if it.round:
                later = self if it.round <= self.round else self._in_round(it)
                training = it.round <= self.study.federation.rounds
                doing: Doing = "training" if training else "evaluating"
                return later._with(it.site, doing=doing, why="", asked=it.seconds)
            case name if name in _OF_EVENT and it.site:
                return self._after_answer(it, _OF_EVENT[name])
            case "run-finished":
                return replace(self, finished=True, error="")
            case "run-failed":
                return replace(self, error=it.detail or "the run failed")
        return self

    def record(self, line: RoundRecord) -> State:
        """Return the state with a finished round's figures."""
        state = self
        for name, site in line.sites.items():
            changes: dict[str, Any] = {}
            if site.epsilon is not None:
                changes |= {"epsilon": site.epsilon, "budget": site.budget}
            # The next round may have begun when this line is read.
            if line.number >= self.round and site.state in _OF_STATE:
                changes |= {"doing": _OF_STATE[site.state], "why": site.reason}
            state = state._with(name, **changes)
        if line.auc.value is not None:
            state = replace(state, auc=line.auc)
        if not line.closing and line.seconds is not None:
            state = replace(state, durations={**self.durations, line.number: line.seconds})
        return replace(state, began=None) if line.number >= self.round else state

    def seconds_left(self, now: float) -> float | None:
        """Estimate the time to the end from the finished rounds; None if none has finished."""
        left = self.study.federation.rounds - len(self.durations)
        if not self.durations or self.finished:
            return None
        usual = sum(self.durations.values()) / len(self.durations)
        gone = 0.0 if self.began is None else min(max(now - self.began, 0.0), usual)
        return max(left * usual - gone, 0.0)

    def _in_round(self, it: Event) -> State:
        waiting = {
            name: each if each.doing == "offline" else replace(each, doing="waiting", why="")
            for name, each in self.hospitals.items()
        }
        return replace(self, round=it.round or 0, began=it.seconds, hospitals=waiting)

    def _after_answer(self, it: Event, doing: Doing) -> State:
        changes: dict[str, Any] = {"doing": doing, "why": it.detail}
        if it.epsilon is not None:
            changes["epsilon"] = it.epsilon
        asked = self.hospitals.get(it.site, Hospital()).asked
        if doing == "done" and asked is not None and it.seconds is not None:
            changes["took"] = max(it.seconds - asked, 0.0)
        return self._with(it.site, **changes)

    def _with(self, name: str, **changes: Any) -> State:
        site = replace(self.hospitals.get(name, Hospital()), **changes)
        return replace(self, hospitals={**self.hospitals, name: site})


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
        f"{title} finished: AUC {_interval(line.auc)}, {delivered} of {len(line.sites)} hospitals"
        + (f"; epsilon spent: {spent}" if spent else "")
    )


def _headline(state: State, now: float) -> Text:
    left = state.seconds_left(now)
    parts = [
        state.study.name,
        _round_name(state.round, state.study.federation.rounds),
        f"AUC {_interval(state.auc)}",
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


def _interval(auc: Estimate) -> str:
    if auc.value is None:
        return "not known yet"
    ends = "" if auc.low is None or auc.high is None else f" ({auc.low:.3f} to {auc.high:.3f})"
    return f"{auc.value:.3f}{ends}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"
