"""The privacy ledger: every use of a patient's data, durable before it happens, never undone."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from client.privacy.account import Limits
from client.privacy.anchor import Anchor
from client.privacy.budget import Wanted, check_uses, decide, rounds_on
from client.privacy.chain import PRIVATE, Entry, Purpose
from client.privacy.groups import (
    EVERYONE,
    Key,
    Members,
    closed_studies,
    joined,
    key_of,
    plans_of,
)
from client.privacy.ledger_entries import (
    adopt_head,
    all_plans,
    fix_plan,
    head_note,
    name_patients,
    use_plan,
    use_up,
)
from client.privacy.ledger_store import Clock, LedgerStore, check_clock, hold
from client.privacy.plans import Plan
from client.vault import Vault
from shared.errors import PolicyRefusal
from shared.protocol import LedgerHead


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
        """Return number and hash of the last entry that is not private.

        It stands for the whole ledger up to there, private entries included, and is the same
        whether or not private ones follow.
        """
        last = self._last()
        return LedgerHead(entries=last.number, hash=last.hash)

    def check_head(
        self,
        known: LedgerHead | None,
        studies: Collection[str] = (),
        sent: LedgerHead | None = None,
    ) -> None:
        """Compare the ledger with what is known of it elsewhere, and remember the outcome.

        Args:
            known: Head the server sent along; its signature has been checked.
            studies: Digests of the studies the server has had answers in, signed with it.
            sent: The newest head that left the site, as its audit log says.

        Raises:
            PolicyRefusal: `ledger-rollback`: the ledger lacks entries, or studies, that the
                server, the anchor or the audit log has seen; or the server no longer says what
                it has seen.
        """
        anchor, entries = self._store.anchor, self.entries()
        heads = [head for head in (anchor.claimed, anchor.confirmed, known) if head]
        lost = [head for head in heads if not _has(entries, head)]
        newest = max(lost or heads, key=lambda head: head.entries, default=None)
        answered = {*anchor.studies, *studies}
        unknown = answered - _studies(entries)
        if lost or unknown:
            self.claim(newest if lost else None, answered)
        if lost and newest:
            raise self._rollback(f"the server knows a ledger of {newest.entries} entries that")
        if sent and not _has(entries, sent):
            raise self._rollback(f"the audit log knows a ledger of {sent.entries} entries that")
        if unknown:
            raise self._rollback(f"the server knows answers in {len(unknown)} studies that")
        if known is None and anchor.confirmed:
            raise PolicyRefusal(
                "ledger-rollback",
                "the server does not say which ledger it knows, as it did before",
                str(self.path),
                "Ask the coordinator why; if the server was set up anew, run `consilium site "
                "ledger accept-server`",
            )
        settled = Anchor(instance=anchor.instance, confirmed=newest)
        if settled != anchor:
            self._store.set_anchor(settled)

    def _rollback(self, what: str) -> PolicyRefusal:
        return PolicyRefusal(
            "ledger-rollback",
            f"{what} this one does not hold: it is an older copy, or another node uses a copy",
            str(self.path),
            "Restore the newest ledger, or run `consilium site ledger recover`, which charges "
            "what may have been spent",
        )

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

    def join(self, wanted: Sequence[Wanted], limits: Limits) -> dict[Purpose, frozenset[str]]:
        """Settle who takes part in a study, durably; who does is charged all of it.

        Each patient is decided on once, when first wanted, from that patient's account alone.
        A plan seen for the first time is fixed now.

        Args:
            wanted: Plans of one study, each with all patients of its side.
            limits: What the policy grants each patient.

        Returns:
            Who takes part, by purpose: without those who opted out or have no budget.

        Raises:
            LedgerError: Nothing could be written, and nobody was charged.
        """
        with self._store.transaction() as held:
            opted_out = held.opted_out()
            here = [
                Wanted(fix_plan(held, use.plan), use.patients.difference(opted_out))
                for use in wanted
            ]
            for decision in decide(held.entries, held.members(), here, limits):
                if decision.joins:
                    order = f"{decision.order:g}"
                    name_patients(held, "join", decision.plan, decision.patients, order)
                else:
                    name_patients(held, "leave-out", decision.plan, decision.patients)
            have = joined(held.entries, held.members())
        return {use.plan.purpose: _of(have, use) for use in here}

    def reserve(
        self,
        wanted: Sequence[tuple[Plan, int]],
        *,
        run: str,
        round_number: int,
        attempt: int = 0,
    ) -> tuple[int, ...]:
        """Use up so many uses of each plan, all or none, before anything is computed.

        Args:
            wanted: Plans and uses; a plan seen for the first time is fixed now.
            run: The server's run.
            round_number: Of the run, from 1; 0 for what comes before the first round.
            attempt: Counts repeats of the round.

        Returns:
            Numbers of the entries, for `commit`.

        Raises:
            PolicyRefusal: `budget-exhausted`: the study has used all its rounds, spare ones
                included, or was closed.
            LedgerError: Nothing could be written, and nothing was used.
        """
        with self._store.transaction() as held:
            uses = [(fix_plan(held, plan), count) for plan, count in wanted]
            for plan, count in uses:
                check_uses(held.entries, plan, count, run, round_number)
            made = Entry(kind="reserve", run=run, round=round_number, attempt=attempt)
            return tuple(use_plan(held, plan, replace(made, uses=count)) for plan, count in uses)

    def has_reserved(self, reservations: Sequence[int], run: str, round_number: int) -> bool:
        """Tell whether all these reservations are here, and of this round."""
        here = {
            e.number
            for e in self.entries()
            if (e.kind, e.run, e.round) == ("reserve", run, round_number)
        }
        return here.issuperset(reservations)

    def check_uses(
        self, wanted: Sequence[tuple[Plan, int]], *, run: str, round_number: int
    ) -> None:
        """Refuse now what `reserve` would, should the plans have no room for so many uses.

        Raises:
            PolicyRefusal: `budget-exhausted`.
        """
        entries = self.entries()
        for plan, uses in wanted:
            check_uses(entries, plan, uses, run, round_number)

    def commit(self, reservations: Sequence[int]) -> None:
        """Record that reservations (by number) were carried out; what is recorded stays so."""
        with self._store.transaction() as held:
            done = {e.refers for e in held.entries if e.kind == "commit"}
            wanted = set(reservations) - done
            for of in [e for e in held.entries if e.kind == "reserve" and e.number in wanted]:
                held.append(
                    Entry(
                        kind="commit",
                        study=of.study,
                        purpose=of.purpose,
                        run=of.run,
                        round=of.round,
                        attempt=of.attempt,
                        refers=of.number,
                    )
                )

    def opt_out(self, patient: str) -> None:
        """Take a patient (pseudonym) out of every round from the next on; the charges stay."""
        with self._store.transaction() as held:
            if patient not in held.opted_out():
                cohort = held.add_cohort(frozenset({patient}))
                held.append(Entry(kind="opt-out", cohort=cohort))

    def close_study(self, study: str) -> None:
        """End a study at this site: who joined it is charged what was used, and no more."""
        with self._store.transaction() as held:
            if not any(e.kind == "close" and e.study == study for e in held.entries):
                held.append(Entry(kind="close", study=study))

    def accept_server(self) -> None:
        """Go on with a server that has forgotten this ledger; what it confirms counts anew."""
        self._store.set_anchor(self._store.anchor.model_copy(update={"confirmed": None}))

    def accept_clock(self) -> None:
        """Go on although the clock was set back; rounds dated later count as that day's."""
        with self._store.transaction() as held:
            held.append(Entry(kind="clock"))

    def rounds_today(self) -> int:
        """Return how many rounds of training were reserved on the current day (UTC)."""
        today = max(self._store.now(), self._last().when).astimezone(UTC).date()
        return rounds_on(today, self.entries())

    def check_clock(self) -> None:
        """Refuse now what `join` and `reserve` would, should the clock have been set back.

        Raises:
            LedgerError: It was; a person can accept it (`accept_clock`).
        """
        check_clock(self._last(), self._store.now())

    def _last(self) -> Entry:
        """Return the last entry that is not private: what follows from it tells of no patient."""
        return [entry for entry in self.entries() if entry.kind not in PRIVATE][-1]

    def lost_heads(self, sent: LedgerHead | None = None) -> tuple[LedgerHead, ...]:
        """Return the heads that were seen elsewhere and are not in this ledger, oldest first.

        Args:
            sent: The newest head that left the site, if another record than the ledger knows.
        """
        anchor, entries = self._store.anchor, self.entries()
        heads = {head for head in (anchor.claimed, anchor.confirmed, sent) if head}
        lost = (head for head in heads if not _has(entries, head))
        return tuple(sorted(lost, key=lambda head: head.entries))

    def lost_studies(self) -> frozenset[str]:
        """Return the studies the server has had answers in and this ledger knows nothing of."""
        return frozenset(self._store.anchor.studies) - self.studies()

    def claim(self, head: LedgerHead | None, studies: Collection[str]) -> None:
        """Remember what was seen elsewhere, until (None, no studies) its loss was charged for."""
        update = {"claimed": head, "studies": tuple(sorted(studies))}
        self._store.set_anchor(self._store.anchor.model_copy(update=update))

    def adopt(self, plans: Sequence[Plan], lost: Sequence[LedgerHead] = ()) -> None:
        """Charge for lost entries, so that the ledger again counts no less than was spent.

        Who joined in them, and how often a plan was used, cannot be known: the server has not
        seen an answer that was lost on its way. So everyone joins every plan, and all uses that
        are left are used up; later entries are numbered past the lost ones. Only a study that was
        closed before the newest head the server confirmed cannot have gone on in them.

        Args:
            plans: Of all studies that may have trained here, beside those in the ledger.
            lost: Heads of the entries that were lost.
        """
        confirmed = self._store.anchor.confirmed
        with self._store.transaction() as held:
            known = confirmed.entries if confirmed and _has(held.entries, confirmed) else 0
            ended = closed_studies([e for e in held.entries if e.number <= known])
            for head in lost or (None,):
                adopt_head(held, head)
            for plan in all_plans(held, plans):
                if plan.study not in ended:
                    use_up(held, plan)
        self.claim(None, ())


def _of(have: Mapping[Key, frozenset[str]], use: Wanted) -> frozenset[str]:
    """Return who of a use's patients has joined."""
    patients = have.get(key_of(use.plan), frozenset[str]())
    return use.patients if EVERYONE in patients else use.patients & patients


def _has(entries: Sequence[Entry], head: LedgerHead | None) -> bool:
    """Tell whether a head is in the chain, or its loss was charged for."""
    return head is not None and any(
        (e.number, e.hash) == (head.entries, head.hash)
        or (e.kind == "adopt" and e.note == head_note(head))
        for e in entries
    )


def _studies(entries: Sequence[Entry]) -> frozenset[str]:
    return frozenset(e.study for e in entries if e.kind == "plan")
