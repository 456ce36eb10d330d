"""The privacy ledger: every use of a patient's data, durable before it happens, never undone."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from client.privacy.anchor import Anchor
from client.privacy.budget import (
    RECOVERED,
    Limits,
    Wanted,
    check_uses,
    plans_of,
    refuse_poor,
    rounds_on,
    too_poor,
    uses_of,
)
from client.privacy.chain import Entry, Purpose
from client.privacy.groups import EVERYONE, Group, Members
from client.privacy.ledger_store import Clock, LedgerStore, Transaction, hold
from client.privacy.plans import Plan
from client.vault import Vault
from shared.errors import LedgerError, PolicyRefusal
from shared.protocol import LedgerHead


@dataclass(frozen=True)
class Reservation:
    """A charge that is on disk: its patients have paid, whatever happens next."""

    seq: int
    plan: Plan
    cohort: str


class Ledger:
    """The ledger of one site, open; use it in a `with` statement or close it.

    Args:
        path: The SQLite file; made if neither it nor its anchor exists.
        vault: Holds the key of the hash chain.
        now: The clock.

    Raises:
        LedgerError: The file is not a ledger, was edited, is gone although there was one,
            belongs to another vault key, or cannot be written.
    """

    def __init__(self, path: Path, vault: Vault, now: Clock = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._store = LedgerStore(path, vault, now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ledger for a round; the lock ends with the process, however that ends.

        Raises:
            LedgerError: Another process holds it: two nodes work on one ledger.
        """
        with hold(self.path):
            yield

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries, oldest first."""
        with self._store.transaction() as held:
            return tuple(held.entries)

    def members(self) -> Members:
        """Return the patients of every cohort.

        Raises:
            LedgerError: A cohort's patients were edited.
        """
        with self._store.transaction() as held:
            return dict(held.members())

    def head(self) -> LedgerHead:
        """Return the number and hash of the last entry: it stands for the whole ledger."""
        last = self.entries()[-1]
        return LedgerHead(entries=last.seq, hash=last.hash)

    def check_head(self, known: LedgerHead | None, studies: Collection[str] = ()) -> None:
        """Compare the ledger with what the server last saw of it, and remember the outcome.

        Args:
            known: Head the server sent along; its signature has been checked.
            studies: Digests of the studies the server has had answers in, signed with it.

        Raises:
            PolicyRefusal: `ledger-rollback`: the ledger lacks entries, or studies, that the
                server or the anchor has seen.
        """
        anchor, entries = self._store.anchor, self.entries()
        heads = [head for head in (anchor.claimed, anchor.confirmed, known) if head]
        lost = [head for head in heads if not _has(entries, head)]
        newest = max(lost or heads, key=lambda head: head.entries, default=None)
        answered = {*anchor.studies, *studies}
        unknown = answered - _studies(entries)
        if lost or unknown:
            self.claim(newest if lost else None, answered)
            what = f"the server knows answers in {len(unknown)} studies that this ledger lacks"
            if lost and newest:
                what = (
                    f"the server knows a ledger of {newest.entries} entries that this one does not "
                    "continue"
                )
            raise PolicyRefusal(
                "ledger-rollback",
                f"{what}: this is an older copy, or another node uses a copy",
                str(self.path),
                "Restore the newest ledger, or run `consilium site ledger recover`, which "
                "charges what may have been spent",
            )
        settled = Anchor(instance=anchor.instance, confirmed=newest)
        if settled != anchor:
            self._store.set_anchor(settled)

    def studies(self) -> frozenset[str]:
        """Return the digests of the studies that were charged here."""
        return _studies(self.entries())

    def plan(self, study: str, purpose: Purpose) -> Plan | None:
        """Return the plan a study's first round fixed, if there was one."""
        return plans_of(self.entries()).get((study, purpose))

    def opted_out(self) -> frozenset[str]:
        """Return the pseudonyms of the patients who take no part any more."""
        with self._store.transaction() as held:
            return held.opted_out()

    def eligible(self, use: Wanted, limits: Limits) -> frozenset[str]:
        """Return the patients of a wanted use who may take part.

        Left out are those who opted out and, in a study under way, newcomers who have spent
        too much elsewhere; nobody who began a study is left out of it for want of budget.
        """
        with self._store.transaction() as held:
            patients = use.patients - held.opted_out()
            members = held.members()
            own = [e.cohort for e in held.entries if e.study == use.plan.study and e.cohort]
            if not own or not patients:
                return patients
            begun = frozenset[str]().union(*(members[cohort] for cohort in own))
            if EVERYONE in begun:
                return patients
            poor = too_poor(held.entries, [Wanted(use.plan, patients)], members, limits)
            return patients - (_patients(poor) - begun)

    def reserve(
        self,
        wanted: Sequence[Wanted],
        limits: Limits,
        *,
        run: str,
        round_number: int,
        attempt: int = 0,
        later: Sequence[Wanted] = (),
    ) -> tuple[Reservation, ...]:
        """Charge uses of a study's plans, all or none, durably, before anything is computed.

        Args:
            wanted: The uses, all of one study; a plan seen for the first time is fixed now.
            limits: What the policy grants each patient.
            run: The server's run.
            round_number: Of the run, from 1; 0 for what comes before the first round.
            attempt: Counts repeats of the round.
            later: The study's other plans, which these uses make sense with only: they are
                fixed now and must be affordable as well, but nothing is charged for them.

        Raises:
            PolicyRefusal: `budget-exhausted`: some patients cannot afford the rest of the
                study, the study has used all its rounds, spare ones included, or was closed.
            LedgerError: Nothing could be written, and nothing was charged.
        """
        with self._store.transaction() as held:
            uses, others = _as_stored(held, wanted), _as_stored(held, later)
            opted_out = held.opted_out()
            for use in uses:
                if not use.patients or not use.patients.isdisjoint(opted_out):
                    raise LedgerError("the round's patients changed just now", todo="Try again")
                check_uses(held.entries, use, run, round_number)
            poor = too_poor(held.entries, uses + others, held.members(), limits)
            refuse_poor(held.entries, poor, limits)
            for use in others:
                _fix(held, use)
            return tuple(
                _charge(
                    held,
                    use,
                    Entry(
                        kind="reserve",
                        run=run,
                        round=round_number,
                        uses=use.uses,
                        attempt=attempt,
                    ),
                )
                for use in uses
            )

    def commit(self, reservations: Sequence[int]) -> None:
        """Record that reservations (by `seq`) were carried out; what is recorded stays as it is."""
        with self._store.transaction() as held:
            done = {e.refers for e in held.entries if e.kind == "commit"}
            for of in [e for e in held.entries if e.seq in reservations and e.seq not in done]:
                held.append(
                    Entry(
                        kind="commit",
                        study=of.study,
                        purpose=of.purpose,
                        run=of.run,
                        round=of.round,
                        attempt=of.attempt,
                        refers=of.seq,
                    )
                )

    def opt_out(self, patient: str) -> None:
        """Take a patient (pseudonym) out of every round from the next on; the charges stay."""
        with self._store.transaction() as held:
            if patient not in held.opted_out():
                cohort = held.add_cohort(frozenset({patient}))
                held.append(Entry(kind="opt-out", cohort=cohort))

    def close_study(self, study: str) -> None:
        """End a study at this site, which frees the budget its remaining rounds held back."""
        with self._store.transaction() as held:
            if not any(e.kind == "close" and e.study == study for e in held.entries):
                held.append(Entry(kind="close", study=study))

    def accept_clock(self) -> None:
        """Go on although the clock was set back; rounds dated later count as that day's."""
        with self._store.transaction() as held:
            held.append(Entry(kind="clock"))

    def rounds_today(self) -> int:
        """Return how many rounds of training were charged on the current day (UTC)."""
        entries = self.entries()
        return rounds_on(max(self._store.now(), entries[-1].when).astimezone(UTC).date(), entries)

    def lost_head(self) -> LedgerHead | None:
        """Return a head that was seen elsewhere and is not in this ledger: entries were lost."""
        anchor, entries = self._store.anchor, self.entries()
        heads = [head for head in (anchor.claimed, anchor.confirmed) if head]
        lost = [head for head in heads if not _has(entries, head)]
        return max(lost, key=lambda head: head.entries, default=None)

    def lost_studies(self) -> frozenset[str]:
        """Return the studies the server has had answers in and this ledger knows nothing of."""
        return frozenset(self._store.anchor.studies) - self.studies()

    def claim(self, head: LedgerHead | None, studies: Collection[str]) -> None:
        """Remember what was seen elsewhere, until (None, no studies) its loss was charged for."""
        update = {"claimed": head, "studies": tuple(sorted(studies))}
        self._store.set_anchor(self._store.anchor.model_copy(update=update))

    def adopt(self, wanted: Sequence[Wanted]) -> None:
        """Charge for lost entries, so that the ledger again counts no less than was spent.

        How often a plan was used in them cannot be known: the server has not seen an answer
        that was lost on its way. So all uses every plan had left are charged, to the patients
        given and to those the plan had before; later entries are numbered past the lost ones.

        Args:
            wanted: The plans of all studies that may have trained here, and their patients.
        """
        lost = self.lost_head()
        with self._store.transaction() as held:
            entry = Entry(kind="adopt")
            if lost:
                entry = replace(entry, seq=lost.entries + 1, note=_note(lost))
            held.append(entry)
            for use in _all_plans(held, wanted):
                left = use.plan.uses - uses_of(held.entries, use.plan.study, use.plan.purpose)
                if left > 0 and use.patients:
                    _charge(held, use, Entry(kind="reserve", run=RECOVERED, uses=left))
        self.claim(None, ())


def _as_stored(held: Transaction, wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return the wanted uses with the plans that were fixed before, if they were."""
    stored = plans_of(held.entries)
    return [
        replace(use, plan=stored.get((use.plan.study, use.plan.purpose), use.plan))
        for use in wanted
    ]


def _charge(held: Transaction, use: Wanted, entry: Entry) -> Reservation:
    """Append a charge of `entry.uses` uses, after the plan itself if it is new."""
    terms = _fix(held, use)
    charge = replace(
        terms,
        kind="reserve",
        run=entry.run,
        round=entry.round,
        attempt=entry.attempt,
        uses=entry.uses,
        steps=entry.uses * terms.steps,
        spares=0,
    )
    return Reservation(held.append(charge).seq, use.plan, terms.cohort or "")


def _fix(held: Transaction, use: Wanted) -> Entry:
    """Append a plan, unless it is fixed already, and return its terms for these patients."""
    plan = use.plan
    terms = Entry(
        kind="plan",
        study=plan.study,
        purpose=plan.purpose,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        steps=plan.steps,
        uses=plan.uses,
        spares=plan.spares,
        epsilon=plan.epsilon,
        delta=plan.delta,
        cohort=held.add_cohort(use.patients),
    )
    if (plan.study, plan.purpose) not in plans_of(held.entries):
        held.append(terms)
    return terms


def _all_plans(held: Transaction, wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return the plans wanted and those in the ledger, each with all patients it may have had.

    Of several versions of a plan the one in the ledger counts, else what costs most.
    """
    members = held.members()
    own = [
        Wanted(plan, frozenset(members[e.cohort]))
        for key, plan in plans_of(held.entries).items()
        for e in held.entries
        if e.cohort and (e.study, e.purpose) == key
    ]
    uses: dict[tuple[str, Purpose], Wanted] = {}
    for use in (*wanted, *own):
        key = (use.plan.study, use.plan.purpose)
        before = uses.get(key, use)
        plan = before.plan.or_costlier(use.plan)
        uses[key] = Wanted(plan, before.patients | use.patients)
    return _as_stored(held, list(uses.values()))


def _has(entries: Sequence[Entry], head: LedgerHead | None) -> bool:
    """Tell whether a head is in the chain, or its loss was charged for."""
    return head is not None and any(
        (e.seq, e.hash) == (head.entries, head.hash)
        or (e.kind == "adopt" and e.note == _note(head))
        for e in entries
    )


def _studies(entries: Sequence[Entry]) -> frozenset[str]:
    return frozenset(e.study for e in entries if e.kind == "plan")


def _note(head: LedgerHead) -> str:
    return f"{head.entries}:{head.hash}"


def _patients(groups: Sequence[Group]) -> frozenset[str]:
    return frozenset[str]().union(*(group.patients for group in groups))
