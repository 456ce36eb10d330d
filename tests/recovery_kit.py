"""Wards whose ledgers are lost or spoilt, and what their ledgers then count."""

from __future__ import annotations

import sqlite3
from typing import Any

from client.privacy.budget import uses_of

Ward = Any  # the class in client/conftest.py


def charged(ward: Ward, study: Any) -> tuple[int, int]:
    """Uses of training and of evaluation the ledger counts."""
    with ward.hospital().ledger() as ledger:
        entries = ledger.entries()
    return tuple(uses_of(entries, study.digest, purpose) for purpose in ("train", "evaluate"))


def spoil(ward: Ward, how: str) -> None:
    ledger = ward.home / "ledger.sqlite"
    if how == "deleted":
        for path in ward.home.glob("ledger.sqlite*"):
            path.unlink()
    elif how == "overwritten":
        ledger.write_bytes(b"my notes " * 500)
    elif how == "anchor":
        (ward.home / "ledger.anchor").unlink()
    else:
        with sqlite3.connect(ledger) as database:
            database.execute("drop trigger entry_no_update")
            database.execute("drop trigger cohort_member_no_delete")
            database.execute(how)
