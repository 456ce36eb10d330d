"""Tables of the privacy ledger and how its SQLite file is opened: durable and append-only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    column,
    create_engine,
    event,
    insert,
    literal,
    select,
    table,
)

BUSY_SECONDS = 30

metadata = MetaData()

cohort_table = Table(
    "cohort",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("size", Integer, CheckConstraint("size >= 1"), nullable=False),
)

member_table = Table(
    "cohort_member",
    metadata,
    Column("cohort", ForeignKey("cohort.id"), primary_key=True),
    Column("patient", String(64), primary_key=True),
    sqlite_with_rowid=False,
)

entry_table = Table(
    "entry",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("hidden", Integer, CheckConstraint("hidden >= 0"), nullable=False),
    Column("kind", String, nullable=False),
    Column("study", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("run", String, nullable=False),
    Column("round", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("noise_multiplier", Float, CheckConstraint("noise_multiplier >= 0"), nullable=False),
    Column("sampling_rate", Float, CheckConstraint("sampling_rate between 0 and 1")),
    Column("steps", Integer, CheckConstraint("steps >= 0"), nullable=False),
    Column("uses", Integer, CheckConstraint("uses >= 0"), nullable=False),
    Column("spares", Integer, CheckConstraint("spares >= 0"), nullable=False),
    Column("epsilon", Float, nullable=False),
    Column("delta", Float, nullable=False),
    Column("cohort", ForeignKey("cohort.id")),
    Column("refers", Integer, nullable=False),
    Column("note", String, nullable=False),
    Column("nonce", String(32), nullable=False),
    Column("time", String, nullable=False),
    Column("prev", String(64), nullable=False, unique=True),
    Column("hash", String(64), nullable=False, unique=True),
    CheckConstraint(
        "kind not in ('join', 'leave-out', 'opt-out') or cohort is not null", name="named"
    ),
)

VERSION = 2
"""Of the tables, as the file says (`user_version`): 1, which said 0, had no private entries."""


def create_tables(connection: Connection) -> None:
    """Make the tables, and the triggers that refuse every change of what is in them."""
    metadata.create_all(connection)
    for made in metadata.sorted_tables:
        _protect(connection, made)
    connection.exec_driver_sql(f"pragma user_version = {VERSION}")


def version(connection: Connection) -> int:
    """Return the version of the tables."""
    return int(connection.exec_driver_sql("pragma user_version").scalar_one())


def is_outdated(path: Path) -> bool:
    """Tell whether a ledger's file is of an earlier version, without changing it."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as file:
            made = file.execute("select count(*) from sqlite_master").fetchone()[0]
            return bool(made) and file.execute("pragma user_version").fetchone()[0] < VERSION
    except sqlite3.Error:  # there is none, or opening it will say what is wrong
        return False


def upgrade_tables(connection: Connection) -> None:
    """Take over the entries of version 1, as they are: their hashes hold, none was private."""
    for verb in ("update", "delete"):
        connection.exec_driver_sql(f"drop trigger if exists entry_no_{verb}")
    connection.exec_driver_sql("alter table entry rename to entry_1")
    entry_table.create(connection)
    names = [c.name for c in entry_table.columns if c.name != "hidden"]
    old = table("entry_1", *(column(name) for name in names))
    connection.execute(insert(entry_table).from_select([*names, "hidden"], select(old, literal(0))))
    connection.exec_driver_sql("drop table entry_1")
    _protect(connection, entry_table)
    connection.exec_driver_sql(f"pragma user_version = {VERSION}")


def _protect(connection: Connection, made: Table) -> None:
    for verb in ("update", "delete"):
        connection.exec_driver_sql(
            f"create trigger {made.name}_no_{verb} before {verb} on {made.name} "
            "begin select raise(abort, 'the ledger is append-only'); end"
        )


def open_engine(path: Path) -> Engine:
    """Open (or make, mode 0600) the ledger's file; every transaction takes the write lock at once.

    WAL with `synchronous=FULL`: what was committed survives a crash of process or machine.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: object) -> None:
        # Leave transactions to the "begin" event below; the driver would begin them deferred.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {BUSY_SECONDS * 1000}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"pragma {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("begin immediate")

    return engine
