"""What the live view of a run knows: the state of each hospital, event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from server.history import UNKNOWN, Estimate, Event, RoundRecord
from shared.study import Study

Doing = Literal[
    "waiting",
    "describing",
    "training",
    "evaluating",
    "done",
    "refused",
    "failed",
    "late",
    "offline",
]
"""What a hospital does."""

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

SITS_OUT: tuple[Doing, ...] = ("offline", "refused")
"""What a hospital still is when the next round begins."""


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
                return later._asked(it, "training" if training else "evaluating")
            case "site-sent":
                return self._asked(it, "describing")
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
            name: each if each.doing in SITS_OUT else replace(each, doing="waiting", why="")
            for name, each in self.hospitals.items()
        }
        return replace(self, round=it.round or 0, began=it.seconds, hospitals=waiting)

    def _asked(self, it: Event, doing: Doing) -> State:
        before = self.hospitals.get(it.site, Hospital())
        if before.doing == "refused":  # it sits out until it says otherwise
            return self._with(it.site, asked=it.seconds)
        return self._with(it.site, doing=doing, why="", asked=it.seconds)

    def _after_answer(self, it: Event, doing: Doing) -> State:
        changes: dict[str, Any] = {"doing": doing, "why": it.detail}
        if it.epsilon is not None:
            changes["epsilon"] = it.epsilon
        before = self.hospitals.get(it.site, Hospital())
        trained = doing == "done" and before.doing != "describing"
        if trained and before.asked is not None and it.seconds is not None:
            changes["took"] = max(it.seconds - before.asked, 0.0)
        return self._with(it.site, **changes)

    def _with(self, name: str, **changes: Any) -> State:
        site = replace(self.hospitals.get(name, Hospital()), **changes)
        return replace(self, hospitals={**self.hospitals, name: site})
