"""Tables of the privacy ledger and how its SQLite file is opened: durable and append-only."""

from __future__ import annotations

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
    create_engine,
    event,
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
    CheckConstraint("kind <> 'reserve' or cohort is not null"),
)


def create_tables(connection: Connection) -> None:
    """Make the tables, and the triggers that refuse every change of what is in them."""
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        for verb in ("update", "delete"):
            connection.exec_driver_sql(
                f"create trigger {table.name}_no_{verb} before {verb} on {table.name} "
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
