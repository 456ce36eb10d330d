"""Tables of `results.sqlite` and how the file is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import (
    JSON,
    URL,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
)

FORMAT = 2
"""Stored as SQLite's `user_version`."""

metadata = MetaData()

cell_table = Table(
    "cell",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("current", Boolean, nullable=False),
    Column("scenario", String, nullable=False),
    Column("strategy", String, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("scenario_digest", String, nullable=False),
    Column("strategy_digest", String, nullable=False),
    Column("code", String, nullable=False),
    Column("code_version", String, nullable=False),
    Column("machine", String, nullable=False),
    Column("setting", String, nullable=False),
    Column("description", String, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("command", String, nullable=False),
    Column("scenario_text", String, nullable=False),
    Column("study_text", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("started", String, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("study_digest", String, nullable=False),
    Column("private", Boolean, nullable=False),
    Column("seeded_noise", Boolean, nullable=False),
    Column("epsilon", Float),
    Column("delta", Float),
    Column("rounds", Integer, nullable=False),
    Column("bytes_up", Integer, nullable=False),
    Column("bytes_down", Integer, nullable=False),
    Column("peak_bytes", Integer, nullable=False),
    Column("dataset", String, nullable=False),
    Column("classes", JSON, nullable=False),
    Column("findings", Boolean, nullable=False),
    Column("test_patients", Integer, nullable=False),
    Column("notes", JSON, nullable=False),
)

measurement_table = Table(
    "measurement",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cell", ForeignKey("cell.id"), nullable=False, index=True),
    Column("metric", String, nullable=False),
    Column("value", Float),
    Column("low", Float),
    Column("high", Float),
    Column("where", String, nullable=False),
    Column("model", String, nullable=False),
    Column("site", String, nullable=False),
    Column("subgroup", String, nullable=False),
    Column("round", Integer, nullable=False),
    Column("patients", Integer, nullable=False),
    Column("over", Integer, nullable=False),
    Column("of", Integer, nullable=False),
)

site_table = Table(
    "site",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cell", ForeignKey("cell.id"), nullable=False, index=True),
    Column("site", String, nullable=False),
    Column("train_patients", Integer, nullable=False),
    Column("held_out_patients", Integer, nullable=False),
    Column("train_images", Integer, nullable=False),
    Column("counts", JSON, nullable=False),
    Column("unknown", JSON, nullable=False),
    Column("epsilon", Float),
    Column("delta", Float),
    Column("noise_multiplier", Float),
)

part_table = Table(
    "part",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cell", ForeignKey("cell.id"), nullable=False),
    Column("round", Integer, nullable=False),
    Column("site", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Index("part_of_cell", "cell", "round"),
)

missing_table = Table(
    "missing",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cell", ForeignKey("cell.id"), nullable=False, index=True),
    Column("site", String, nullable=False),
    Column("what", String, nullable=False),
    Column("name", String, nullable=False),
    Column("cause", String, nullable=False),
    Column("count", Integer, nullable=False),
    Column("of", Integer, nullable=False),
)


def open_engine(path: Path) -> Engine:
    """Open the file in WAL mode, so that a report can read while a sweep writes."""
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: object) -> None:
        # Leave transactions to the "begin" event below; the driver would begin them late.
        connection.isolation_level = None
        for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "foreign_keys = ON"):
            connection.execute(f"pragma {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("begin")

    return engine
