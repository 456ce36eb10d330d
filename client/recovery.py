"""Going on after ledger entries were lost: everything that may have been spent is charged."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.audit import Event
from client.hospital import Hospital
from client.privacy.anchor import Anchor, anchor_path, read_anchor, write_anchor
from client.privacy.budget import Wanted
from client.privacy.chain import Entry
from client.privacy.ledger import Ledger
from client.privacy.ledger_store import hold
from client.privacy.plans import Plan, description_plan, evaluation_plan, training_plan
from client.vault import sync_folder
from shared.errors import LedgerError


@dataclass(frozen=True)
class Recovery:
    """What was done.

    Attributes:
        outcome: "nothing-lost", "adopted" (an older ledger goes on, the rest was charged) or
            "replaced" (a new ledger began, everything approved was charged).
        set_aside: Where the ledger that could not be used is kept.
    """

    outcome: Literal["nothing-lost", "adopted", "replaced"]
    set_aside: Path | None = None


def recover(hospital: Hospital, by: str) -> Recovery:
    """Make the site able to train again after its ledger was restored, edited, copied or lost.

    All uses that the plans of known and approved studies had left are charged, so these
    studies get no further round from this site; others go on with the budget that remains.
    Patients who opted out in entries that are lost must be opted out again.

    Args:
        hospital: The site.
        by: Who decided, for the audit log.

    Raises:
        LedgerError: The ledger is in use, or cannot be written.
        DataError: The patients of an approved study cannot be read, so not be charged.
    """
    with hold(hospital.site.ledger):
        if not _is_sound(hospital):
            return _replace(hospital, by)
        with hospital.ledger() as ledger:
            if ledger.lost_head() is None:
                return Recovery("nothing-lost")
            ledger.adopt(_approved_uses(hospital))
        hospital.log(Event(event="ledger-adopted", by=by))
        return Recovery("adopted")


def _is_sound(hospital: Hospital) -> bool:
    """Tell whether the ledger is whole, be it an older copy."""
    try:
        with hospital.ledger() as ledger:
            ledger.members()
    except LedgerError:
        return False
    return True


def _replace(hospital: Hospital, by: str) -> Recovery:
    """Begin a new ledger that has everything charged, and swap it in.

    Killed at any point, the site either still refuses to train or has the new ledger.
    """
    path, vault = hospital.site.ledger, hospital.vault
    known = _known_anchor(hospital)
    write_anchor(path, vault, known)
    new = path.with_name("recovered.sqlite")
    for file in _files(new):
        file.unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.set-aside-{hospital.now():%Y%m%dT%H%M%S%f}")
    uses, opted_out = _approved_uses(hospital), set[str]()
    for old in (*path.parent.glob(f"{path.name}.set-aside-*[0-9]"), path):
        saved = _salvage(old)
        uses = saved.uses + uses
        opted_out |= saved.opted_out
    with Ledger(new, vault, hospital.now) as ledger:
        ledger.claim(known.claimed)
        ledger.adopt(uses)
        for patient in sorted(opted_out):
            ledger.opt_out(patient)
    # The log files first: a new database must not find an old one's.
    for end in ("-shm", "-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    new.rename(path)
    anchor_path(new).rename(anchor_path(path))
    sync_folder(path.parent)
    hospital.log(Event(event="ledger-replaced", by=by))
    return Recovery("replaced", aside if aside.exists() else None)


def _known_anchor(hospital: Hospital) -> Anchor:
    """Return an anchor that names no ledger, with the newest head that is known."""
    anchor = None
    with contextlib.suppress(LedgerError):
        anchor = read_anchor(hospital.site.ledger, hospital.vault)
    heads = [head for head in (anchor.claimed, anchor.confirmed) if head] if anchor else []
    newest = max(heads, key=lambda head: head.entries, default=None)
    return Anchor(instance="(lost)", claimed=newest)


def _approved_uses(hospital: Hospital) -> list[Wanted]:
    """Return the plans of every approved study with the patients it would have today."""
    uses = []
    for approval in hospital.approvals.approved():
        study = approval.study
        cohort = hospital.load_cohort(hospital.site, study)
        train, held_out = frozenset(cohort.train.patients), frozenset(cohort.held_out.patients)
        uses.append(Wanted(training_plan(study, len(train)), train))
        if study.needs_statistics:
            uses.append(Wanted(description_plan(study, len(train)), train))
        policy = hospital.site.config.policy.evaluation
        kinds = {"none": (False,), "noised": (False,), "exact": (False, True)}[policy]
        for exact in kinds:
            uses.append(Wanted(evaluation_plan(study, len(train), exact=exact), held_out))
    return uses


@dataclass(frozen=True)
class _Saved:
    uses: list[Wanted]
    opted_out: frozenset[str]


def _salvage(path: Path) -> _Saved:
    """Read what can be read of a ledger that cannot be trusted: plans, patients, opt-outs."""
    uses: list[Wanted] = []
    opted_out: frozenset[str] = frozenset()
    with contextlib.suppress(sqlite3.Error, TypeError), _reading(path) as rows:
        opted_out = frozenset(
            row["patient"]
            for row in rows.execute(
                "select patient from entry join cohort_member using (cohort) where kind = 'opt-out'"
            )
        )
        for row in rows.execute("select * from entry where kind = 'plan'").fetchall():
            plan = Plan.of_entry(Entry(**dict(row)))
            patients = rows.execute(
                "select distinct patient from entry join cohort_member using (cohort) "
                "where study = ? and purpose = ?",
                (plan.study, plan.purpose),
            )
            uses.append(Wanted(plan, frozenset(row["patient"] for row in patients)))
    return _Saved(uses, opted_out)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.close()


def _files(path: Path) -> list[Path]:
    return [path, anchor_path(path), *(path.with_name(path.name + e) for e in ("-wal", "-shm"))]
