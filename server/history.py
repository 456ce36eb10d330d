"""What happened in a run, read back from its folder; a damaged line is counted, never fatal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from shared.errors import CoordinatorError
from shared.study import Study, study_from_json

PERSONAL = "personal_"
"""Before the names of measures of models fine-tuned at the hospitals, in `metrics.jsonl`."""


@dataclass(frozen=True)
class Estimate:
    """A measured value with its interval; None where it is not known.

    Attributes:
        value: The value itself.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None


UNKNOWN = Estimate()


@dataclass(frozen=True)
class SiteRound:
    """One hospital in one round, as the server saw it.

    Attributes:
        state: "update", "evaluated", "refused", "failed", "late" or "absent".
        reason: Why it did not take part; empty if it did.
        patients: Training patients N, from the size the hospital declared.
        epsilon: Privacy spent so far in this study.
        budget: Most it may spend.
        delta: Delta the two hold for.
        noise_multiplier: Sigma of its training.
        sampling_rate: Chance of a patient to be in a step's lot.
        auc: AUC on its own held-out patients.
        personal_auc: The same of the model fine-tuned there, in the closing evaluation.
    """

    state: str = ""
    reason: str = ""
    patients: int | None = None
    epsilon: float | None = None
    budget: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    sampling_rate: float | None = None
    auc: Estimate = UNKNOWN
    personal_auc: Estimate = UNKNOWN


@dataclass(frozen=True)
class RoundRecord:
    """One line of `metrics.jsonl`.

    Attributes:
        number: The round, counted from 1; the closing evaluation comes one after the last.
        closing: Whether this is the closing evaluation, in which nobody trains.
        seconds: How long it took.
        metrics: Measures of the model that went out in this round, by name.
        personal: The same of the models fine-tuned at the hospitals.
        subgroups: The same as `metrics` for each group of patients, by its key.
        sites: The hospitals by name.
    """

    number: int
    closing: bool = False
    seconds: float | None = None
    metrics: dict[str, Estimate] = field(default_factory=dict)
    personal: dict[str, Estimate] = field(default_factory=dict)
    subgroups: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    sites: dict[str, SiteRound] = field(default_factory=dict)

    @property
    def auc(self) -> Estimate:
        """AUC of the model that went out in this round, over all hospitals."""
        return self.metrics.get("auc", UNKNOWN)

    @property
    def rounds_before(self) -> int:
        """Rounds of training the evaluated model has behind it."""
        return self.number - 1

    @property
    def rounds_after(self) -> int:
        """Rounds of training that are done when this one is."""
        return self.number - 1 if self.closing else self.number


@dataclass(frozen=True)
class Event:
    """One line of `events.jsonl`.

    Attributes:
        name: What happened, such as "site-replied".
        time: When, ISO 8601.
        round: In which round.
        site: At which hospital; empty: at the server.
        detail: Its code, reason or error.
        epsilon: Privacy the hospital has spent, in its replies.
    """

    name: str
    time: str = ""
    round: int | None = None
    site: str = ""
    detail: str = ""
    epsilon: float | None = None

    @property
    def seconds(self) -> float | None:
        """When it happened, in seconds since 1970, or None if its time cannot be read."""
        try:
            return datetime.fromisoformat(self.time).timestamp()
        except (ValueError, OverflowError):
            return None


@dataclass(frozen=True)
class History:
    """A run as its folder tells it.

    Attributes:
        study: The plan.
        sites: Names of all hospitals of the run, in the order they were enrolled.
        rounds: Finished rounds, ascending, the closing evaluation last; repeats: the last counts.
        events: All events in order.
        unreadable: Lines that could not be read.
    """

    study: Study
    sites: tuple[str, ...] = ()
    rounds: tuple[RoundRecord, ...] = ()
    events: tuple[Event, ...] = ()
    unreadable: int = 0


def read_history(run_dir: Path) -> History:
    """Read a run's folder; a run that has not begun yet has an empty history.

    Raises:
        CoordinatorError: The folder holds no `study.json`, or a file cannot be read.
        StudyError: `study.json` is not a valid plan.
    """
    plan = _text(run_dir / "study.json")
    if plan is None:
        raise CoordinatorError(
            "this is not the folder of a run: it holds no study.json",
            str(run_dir),
            "Give the folder that holds metrics.jsonl",
        )
    lines, bad_lines = _records(run_dir / "metrics.jsonl")
    rounds = {(r.closing, r.number): r for r in map(round_record, lines) if r is not None}
    events, bad_events = _records(run_dir / "events.jsonl")
    return History(
        study=study_from_json(plan, str(run_dir / "study.json")),
        sites=_site_names(run_dir, rounds.values()),
        rounds=tuple(rounds[key] for key in sorted(rounds)),
        events=tuple(map(event, events)),
        unreadable=bad_lines + bad_events + sum(round_record(line) is None for line in lines),
    )


def round_record(line: dict[str, Any]) -> RoundRecord | None:
    """Return a line of `metrics.jsonl` as a record, or None if it names no round."""
    round_ = number(line.get("round"))
    if round_ is None or round_ < 1:
        return None
    measures = _metrics(line)
    return RoundRecord(
        number=int(round_),
        closing=line.get("closing") is True,
        seconds=number(line.get("seconds")),
        metrics={n: it for n, it in measures.items() if not n.startswith(PERSONAL)},
        personal={
            n.removeprefix(PERSONAL): it for n, it in measures.items() if n.startswith(PERSONAL)
        },
        subgroups={name: _metrics(values) for name, values in _objects(line.get("subgroups"))},
        sites={name: _site_round(values) for name, values in _objects(line.get("sites"))},
    )


def event(line: dict[str, Any]) -> Event:
    """Return a line of `events.jsonl` as an event."""
    round_ = number(line.get("round"))
    return Event(
        name=words(line.get("event")),
        time=words(line.get("time")),
        round=None if round_ is None else int(round_),
        site=words(line.get("site")),
        detail=": ".join(
            words(line[k]) for k in ("code", "text", "reason", "error") if line.get(k)
        ),
        epsilon=number(line.get("epsilon")),
    )


LARGEST = 1e12
"""No number of a run comes near this size."""


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Return one line of a `.jsonl` file, or None if it is not a JSON object."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def number(value: object) -> float | None:
    """Return a number, or None for anything else, NaN, infinity and what nothing here can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None


def words(value: object, longest: int = 300) -> str:
    """Return text as one printable line of bounded length; anything but text is empty.

    Reasons come from other machines: control characters could rewrite the reader's terminal.
    """
    if not isinstance(value, str):
        return ""
    line = "".join(c if c.isprintable() else " " for c in value[: 2 * longest])
    line = " ".join(line.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _site_round(values: dict[str, Any]) -> SiteRound:
    patients = number(values.get("patients"))
    return SiteRound(
        state=words(values.get("state")),
        reason=words(values.get("reason")),
        patients=None if patients is None else int(patients),
        epsilon=number(values.get("epsilon")),
        budget=number(values.get("budget")),
        delta=number(values.get("delta")),
        noise_multiplier=number(values.get("noise_multiplier")),
        sampling_rate=number(values.get("sampling_rate")),
        auc=_estimate(values, "auc"),
        personal_auc=_estimate(values, f"{PERSONAL}auc"),
    )


def _metrics(line: dict[str, Any]) -> dict[str, Estimate]:
    """Return the measures of a line: its numbers, each with its `_low` and `_high`."""
    numbers = [name for name, value in line.items() if number(value) is not None]
    names = dict.fromkeys(n.removesuffix("_low").removesuffix("_high") for n in numbers)
    return {n: _estimate(line, n) for n in names if n not in ("round", "seconds")}


def _objects(values: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what of a JSON object is itself one, by its printable name."""
    for name, each in values.items() if isinstance(values, dict) else ():
        if isinstance(each, dict):
            yield words(name), each


def _estimate(values: dict[str, Any], name: str) -> Estimate:
    return Estimate(*(number(values.get(name + end)) for end in ("", "_low", "_high")))


def _site_names(run_dir: Path, rounds: Iterable[RoundRecord]) -> tuple[str, ...]:
    """Return the enrolled hospitals, then any others the rounds name."""
    enrolled = parse_line(_text(run_dir / "sites.json") or "") or {}
    named = [name for record in rounds for name in record.sites]
    return tuple(dict.fromkeys([*filter(None, map(words, enrolled.values())), *named]))


def _records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects of a `.jsonl` file, and how many of its lines are none."""
    lines = [line for line in (_text(path) or "").split("\n") if line.strip()]
    records = [parse_line(line) for line in lines]
    return [r for r in records if r is not None], sum(r is None for r in records)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CoordinatorError(
            f"cannot read a file of the run: {error.strerror}", str(path), "Check its permissions"
        ) from None
