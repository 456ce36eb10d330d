"""Reading what is left of a ledger that cannot be used, and how far it can be believed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.privacy.chain import Entry, cohort_id, verify
from client.privacy.groups import plans_of
from client.privacy.plans import Plan
from client.vault import Vault
from shared.errors import LedgerError


@dataclass(frozen=True)
class Salvage:
    """What a ledger still says.

    Attributes:
        plans: Of the studies it knew. Who joined them it no longer vouches for.
        opt_outs: How many patients had opted out.
        opted_out: Those of them whose pseudonyms hold under the present key.
    """

    plans: tuple[Plan, ...]
    opt_outs: int
    opted_out: frozenset[str]


def salvage(path: Path, vault: Vault) -> Salvage:
    """Read all that can be read of a ledger; a missing file, or none of ours, says nothing."""
    entries: list[Entry] = []
    members: dict[str, set[str]] = defaultdict(set)
    with contextlib.suppress(sqlite3.Error, TypeError), _reading(path) as database:
        for row in database.execute("select cohort, patient from cohort_member"):
            members[row["cohort"]].add(row["patient"])
        for row in database.execute("select * from entry order by seq"):
            entries.append(Entry(**dict(row)))
    cohorts = {e.cohort: frozenset(members[e.cohort]) for e in entries if e.cohort}
    whole = {identity for identity, patients in cohorts.items() if cohort_id(patients) == identity}
    opt_outs = {e.cohort for e in entries if e.kind == "opt-out" and e.cohort}
    held = opt_outs & whole if _verified(entries[:1], vault) else set[str]()
    return Salvage(
        # Their costs may have been edited: without the note they are computed anew.
        tuple(plans_of([replace(e, note="") for e in entries]).values()),
        len(opt_outs),
        frozenset[str]().union(*(cohorts[identity] for identity in held)),
    )


def _verified(entries: Sequence[Entry], vault: Vault) -> bool:
    try:
        verify(entries, lambda message: vault.mac("ledger", message))
    except (LedgerError, TypeError, ValueError):
        return False
    return bool(entries)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.close()
