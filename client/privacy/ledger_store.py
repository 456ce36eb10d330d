"""The ledger's file: verified when read, appended to in transactions that hold or never were."""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, bindparam, insert, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from client.privacy.anchor import Anchor, anchor_path, read_anchor, write_anchor
from client.privacy.chain import Entry, cohort_id, link, verify
from client.privacy.ledger_schema import (
    VERSION,
    cohort_table,
    create_tables,
    entry_table,
    member_table,
    open_engine,
    upgrade_tables,
    version,
)
from client.vault import Vault
from shared.errors import LedgerError

Clock = Callable[[], datetime]
"""Returns the time now, with its time zone."""

# Made once: putting a statement together takes longer than SQLite takes to run it.
_ENTRIES = select(entry_table).order_by(entry_table.c.seq)
_NEWEST = select(entry_table.c.seq, entry_table.c.hash).order_by(entry_table.c.seq.desc()).limit(1)
_APPEND = insert(entry_table)
_COHORTS = select(cohort_table.c.id)
_MEMBERS = select(member_table.c.patient).where(member_table.c.cohort == bindparam("of"))

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far the clock may go back (it is corrected over the network) before the ledger objects."""

WAIT_SECONDS = 3.0
"""How long to wait for a command that holds the ledger's lock."""


class LedgerStore:
    """The entries and cohorts of a ledger on disk.

    Args:
        path: The SQLite file; made if neither it nor its anchor exists.
        vault: Holds the key of the hash chain.
        now: The clock.

    Raises:
        LedgerError: The file is not a ledger, was edited, is gone although there was one,
            belongs to another vault key, or cannot be written.
    """

    def __init__(self, path: Path, vault: Vault, now: Clock) -> None:
        self.path, self.now = path, now
        self._vault = vault
        self._entries: tuple[Entry, ...] = ()
        self._members: dict[str, frozenset[str]] = {}
        with explained(path):
            if not path.exists() and anchor_path(path).exists():
                raise _gone(path)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_magic(path)
            self._engine = open_engine(path)
        try:
            self.anchor = self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Hold the file for reading and writing; all that is appended stays, or none.

        Raises:
            LedgerError: The file cannot be read or written, or was edited.
        """
        with explained(self.path):
            with self._engine.begin() as connection:
                self._refresh(connection)
                transaction = Transaction(connection, self._entries, self._mac, self.now)
                transaction.cohorts = dict(self._members)
                yield transaction
            # Only now is it certain that the file holds what was appended.
            self._entries, self._members = tuple(transaction.entries), transaction.cohorts

    def set_anchor(self, anchor: Anchor) -> None:
        """Store the anchor durably."""
        write_anchor(self.path, self._vault, anchor)
        self.anchor = anchor

    def _open(self) -> Anchor:
        """Make the tables of a new ledger, check an old one, and return its anchor.

        What an earlier release wrote is taken over whole, or is left as it is.
        """
        with explained(self.path), self._engine.begin() as connection:
            if not inspect(connection).has_table(entry_table.name):
                if anchor_path(self.path).exists():
                    raise _gone(self.path)
                create_tables(connection)
                start = Entry(kind="start", note=secrets.token_hex(16))
                Transaction(connection, (), self._mac, self.now).append(start)
            elif version(connection) < VERSION:
                upgrade_tables(connection)
            elif version(connection) > VERSION:
                raise LedgerError(
                    "the privacy ledger was written by a newer release",
                    str(self.path),
                    "Install that release, or a newer one; this one would count too little",
                )
            self._refresh(connection)
        if not self._entries:
            raise _gone(self.path)
        anchor = read_anchor(self.path, self._vault)
        if anchor is None and len(self._entries) == 1:
            # A ledger just made, by this process or by one that was killed right after.
            anchor = Anchor(instance=self._entries[0].note)
            write_anchor(self.path, self._vault, anchor)
        if anchor is None or anchor.instance != self._entries[0].note:
            raise LedgerError(
                "the privacy ledger is not the one this site began",
                str(self.path),
                "Restore ledger and anchor together from backup, or run "
                "`consilium site ledger recover`",
            )
        return anchor

    def _refresh(self, connection: Connection) -> None:
        """Read and verify the entries anew if the file holds others than were read last."""
        last = connection.execute(_NEWEST).first()
        known = (self._entries[-1].seq, self._entries[-1].hash) if self._entries else None
        if (tuple(last) if last else None) == known:
            return
        entries = tuple(Entry(**row) for row in connection.execute(_ENTRIES).mappings())
        verify(entries, self._mac)
        self._entries = entries

    def _mac(self, message: bytes) -> str:
        return self._vault.mac("ledger", message)


class Transaction:
    """The ledger while it is held: read `entries`, append to them.

    Args:
        connection: In a transaction that holds the write lock.
        entries: As they are in the file, verified.
        mac: Keyed hash of the chain.
        now: The clock.
    """

    def __init__(
        self,
        connection: Connection,
        entries: tuple[Entry, ...],
        mac: Callable[[bytes], str],
        now: Clock,
    ) -> None:
        self.entries = list(entries)
        self.cohorts: dict[str, frozenset[str]] = {}
        self._connection, self._mac, self._now = connection, mac, now

    def append(self, entry: Entry) -> Entry:
        """Link an entry to the chain and write it.

        Raises:
            LedgerError: The clock was set back; only a "clock" entry may say so.
        """
        last = self.entries[-1] if self.entries else None
        time = self._now()
        if last and entry.kind != "clock":
            check_clock(last, time)
            time = max(time, last.when)
        linked = link(entry, last, time, self._mac)
        self._connection.execute(_APPEND, vars(linked))
        self.entries.append(linked)
        return linked

    def add_cohort(self, patients: frozenset[str]) -> str:
        """Write a set of patients, if it is new, and return its id."""
        identity = cohort_id(patients)
        if identity not in self.members():
            row = {"id": identity, "size": len(patients)}
            self._connection.execute(insert(cohort_table).values(row))
            members = [{"cohort": identity, "patient": patient} for patient in sorted(patients)]
            self._connection.execute(insert(member_table), members)
        return identity

    def members(self) -> dict[str, frozenset[str]]:
        """Return the patients of every cohort: of all that entries name, and that are written.

        Raises:
            LedgerError: Patients of a cohort were edited or removed.
        """
        named = {e.cohort for e in self.entries if e.cohort}
        written = set(self._connection.scalars(_COHORTS))
        for identity in named | written:
            if identity not in self.cohorts:
                patients = frozenset(self._connection.scalars(_MEMBERS, {"of": identity}))
                if identity not in written or cohort_id(patients) != identity:
                    raise LedgerError(
                        "the patients of a cohort in the privacy ledger were edited or removed",
                        f"cohort {identity[:12]}",
                        "Restore the ledger from backup, or run `consilium site ledger recover`",
                    )
                self.cohorts[identity] = patients
        return self.cohorts

    def opted_out(self) -> frozenset[str]:
        """Return the patients who take no part any more."""
        members = self.members()
        return frozenset().union(
            *(members[e.cohort] for e in self.entries if e.kind == "opt-out" and e.cohort)
        )


def check_clock(last: Entry, now: datetime) -> None:
    """Refuse to go on where the clock was set back behind an entry.

    Raises:
        LedgerError: It was, by more than the tolerance.
    """
    if now < last.when - CLOCK_TOLERANCE:
        raise LedgerError(
            "the clock was set back: the last ledger entry is later than now",
            last.time,
            "Correct it; if it is right now, run `consilium site ledger accept-clock`",
        )


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a ledger's lock, which ends with the process, however that ends.

    A person's command, an opt-out for instance, holds it for a moment, and no answer of the node
    may tell of that: so a moment is waited for.

    Raises:
        LedgerError: Another process holds it, and goes on to.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    with contextlib.ExitStack() as stack:
        with explained(path):
            file = stack.enter_context(open(path.with_suffix(".lock"), "ab"))
            while not _taken(file):
                if time.monotonic() > deadline:
                    raise LedgerError(
                        "another process is in a round on this ledger",
                        str(path),
                        "Run one node per home, and wait for its round to end",
                    )
                time.sleep(0.02)
        yield


def _taken(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn failures of the file or the database into a clear ledger error."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = str(getattr(error, "orig", error))
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
        raise LedgerError(
            f"the privacy ledger cannot be used: {reason}", str(path), _remedy(reason)
        ) from None


def _check_magic(path: Path) -> None:
    """Refuse a file that is no database; SQLite would overwrite a very short one."""
    if path.exists():
        with open(path, "rb") as file:
            if file.read(16) not in (b"", b"SQLite format 3\0"):
                raise sqlite3.DatabaseError("file is not a database")


_DAMAGE = ("not a database", "malformed", "no such table", "no such column")
"""What SQLite says of a file that is no ledger, or no more."""


def _remedy(reason: str) -> str:
    if any(sign in reason for sign in _DAMAGE):
        return "Restore it from backup, or run `consilium site ledger recover`"
    return "Check disk space and rights; nothing was computed, and what was reserved stays charged"


def _gone(path: Path) -> LedgerError:
    return LedgerError(
        "the privacy ledger is gone or was emptied",
        str(path),
        "Restore it from backup, or run `consilium site ledger recover`",
    )
