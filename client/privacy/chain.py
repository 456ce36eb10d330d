"""Entries of the privacy ledger and the keyed hash chain that makes every edit visible."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from shared.errors import LedgerError

Purpose = Literal["", "describe", "train", "evaluate", "exact-evaluation"]
Kind = Literal[
    "start",  # first entry; `note` holds the ledger's instance id
    "plan",  # the mechanism a study may use here, and how often; fixed at its first round
    "join",  # the cohort is charged all uses of the plan
    "leave-out",  # the cohort has no budget for the plan and takes no part in it
    "reserve",  # uses of a plan: used whether or not a commit follows
    "commit",  # the reservation in `refers` was carried out
    "opt-out",  # the cohort's one patient takes no part any more; what was spent stays
    "close",  # the study will not train here any more; uses nobody made are free again
    "adopt",  # entries were lost and charged for; `note` holds the head that knew them
    "clock",  # a person accepted that the clock was set back
]

PRIVATE: frozenset[Kind] = frozenset({"join", "leave-out", "opt-out"})
"""Entries that depend on patients: hashed like all others, and not counted in heads."""

GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger; which fields carry meaning depends on `kind`.

    Attributes:
        seq: Position; grows by one, and past the lost entries at an "adopt".
        hidden: How many entries up to this one are private. Ledgers of releases that had none
            say 0 throughout.
        noise_multiplier: Standard deviation of the noise over the sensitivity; 0: no noise.
        sampling_rate: Chance of each patient to be in a step.
        steps: Steps of one use (plan), or of all that are reserved.
        uses: Most uses (plan), or uses reserved.
        spares: Part of `uses` a plan keeps for repeats.
        epsilon: Budget of the study (plan).
        delta: At which that budget holds (plan).
        cohort: Id of the patients concerned. Whoever is named with a plan has joined it, unless
            it is to be left out; releases without "join" named patients with each reservation.
        refers: `number` of the reservation a commit belongs to; 0: none.
        nonce: Random, so that two copies of a ledger never go on alike.
        time: UTC, ISO 8601.
        prev: Hash of the entry before.
        hash: Keyed hash of all other fields.
    """

    seq: int = 0
    hidden: int = 0
    kind: Kind
    study: str = ""
    purpose: Purpose = ""
    run: str = ""
    round: int = 0
    attempt: int = 0
    noise_multiplier: float = 0.0
    sampling_rate: float = 0.0
    steps: int = 0
    uses: int = 0
    spares: int = 0
    epsilon: float = 0.0
    delta: float = 0.0
    cohort: str | None = None
    refers: int = 0
    note: str = ""
    nonce: str = ""
    time: str = ""
    prev: str = GENESIS
    hash: str = ""

    @property
    def number(self) -> int:
        """Position among the entries that heads count; a private one has that of the last."""
        return self.seq - self.hidden

    @property
    def when(self) -> datetime:
        """Time of the entry."""
        return datetime.fromisoformat(self.time).astimezone(UTC)


Mac = Callable[[bytes], str]
"""Keyed hash of bytes as 64 hex digits."""


def link(entry: Entry, last: Entry | None, time: datetime, mac: Mac) -> Entry:
    """Return the entry as it stands in the chain behind `last`."""
    follows = last.seq + 1 if last else 1
    linked = replace(
        entry,
        seq=max(entry.seq, follows),
        hidden=(last.hidden if last else 0) + (entry.kind in PRIVATE),
        nonce=secrets.token_hex(16),
        time=time.astimezone(UTC).isoformat(timespec="microseconds"),
        prev=last.hash if last else GENESIS,
    )
    return replace(linked, hash=mac(_content(linked)))


def verify(entries: Sequence[Entry], mac: Mac) -> None:
    """Check that no entry was changed, removed, added or moved.

    Raises:
        LedgerError: Naming the first entry that does not belong.
    """
    last: Entry | None = None
    for entry in entries:
        expected = last.seq + 1 if last else 1
        sound = (
            (entry.seq == expected or (entry.kind == "adopt" and entry.seq > expected))
            and entry.prev == (last.hash if last else GENESIS)
            and entry.hash == mac(_content(entry))
            and (entry.kind == "start") == (last is None)
        )
        if not sound:
            raise LedgerError(
                "the privacy ledger was edited, or belongs to another vault key",
                f"entry {entry.seq}",
                "Restore ledger and vault key from backup, or run "
                "`consilium site ledger recover`, which charges what cannot be vouched for",
            )
        last = entry


def cohort_id(patients: Iterable[str]) -> str:
    """Return the id of a set of patients: SHA-256 of their sorted pseudonyms."""
    return hashlib.sha256("\n".join(sorted(patients)).encode()).hexdigest()


def _content(entry: Entry) -> bytes:
    fields = dict(vars(entry))
    del fields["hash"]
    if not entry.hidden:
        del fields["hidden"]  # as releases that hid nothing hashed it
    for name in ("noise_multiplier", "sampling_rate", "epsilon", "delta"):
        fields[name] = float(fields[name])  # as the database returns it
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
