"""The site's audit log: one JSON object a line, append-only, chained so that edits show."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.vault import Vault
from shared.errors import SiteError
from shared.protocol import LedgerHead, RefusalCode

GENESIS = "0" * 64

MAX_BY = 200
"""Longest name of who decided, in characters."""

FormerCode = Literal["policy-cohort", "data-unusable"]
"""Codes that lines of earlier releases have; they told of patients and no longer travel."""

LATER = ("accepted",)
"""Fields that lines of earlier releases lack: those that say nothing have no part in the hash."""

EventName = Literal[
    "study-offered",
    "study-approved",
    "study-declined",
    "study-revoked",
    "round-started",
    "round-refused",
    "reply-sent",
    "patient-opted-out",
    "study-closed",
    "predictions-made",
    "clock-accepted",
    "server-accepted",
    "ledger-adopted",
    "ledger-replaced",
    "ledger-upgraded",
    "answer-dropped",  # one that was kept and can no longer be sent
    "attention-cleared",
    "attention-told",
    "split-key-imported",
    "split-key-exported",
    "log-repaired",  # the last line was cut short by a crash and has been removed
]


class Left(BaseModel):
    """What left the building with one reply: names and sizes, never values.

    Attributes:
        fields: Names of the reply's fields that carried something.
        parameters: Numbers in the update.
        bytes: Size of the update's arrays.
        sha256: Of the update: names, shapes and float32 values, in order of the names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fields: tuple[str, ...]
    parameters: int = 0
    bytes: int = 0
    sha256: str = ""


class Event(BaseModel):
    """One line of the log; no field can hold a patient, a file name or a score.

    Attributes:
        by: Who decided (approvals and other acts of a person).
        error: Class of an error, never its text.
        accepted: Conditions of the policy that a person let go unmet in a study.
        patients: Number of patients as declared to all (of training patients in a round), or of
            those predicted for.
        epsilon: Spent in the study so far, at `delta`; None: not stated, or no guarantee.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: EventName
    study: str = ""
    task: str = ""
    run: str = ""
    round: int = 0
    attempt: int = 0
    outcome: str = ""
    code: RefusalCode | FormerCode | None = None
    error: str = ""
    by: str = Field(default="", max_length=MAX_BY)
    accepted: tuple[str, ...] = ()
    patients: int = 0
    epsilon: float | None = None
    delta: float | None = None
    head: LedgerHead | None = None
    left: Left | None = None


class Line(Event):
    """An event as it stands in the log."""

    number: int
    time: str
    prev: str
    hash: str


class AuditLog:
    """The audit log of one site.

    Args:
        path: The file; made (mode 0600) with the first event.
        vault: Holds the key of the hash chain.
    """

    def __init__(self, path: Path, vault: Vault) -> None:
        self.path, self._vault = path, vault

    def write(self, event: Event, now: datetime) -> None:
        """Append an event durably.

        Args:
            event: What happened.
            now: With its time zone.

        Raises:
            SiteError: The log cannot be written, or its last line was edited.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            with os.fdopen(os.open(self.path, flags, 0o600), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                last, cut = _last_line(file)
                if cut:
                    last = self._append(file, Event(event="log-repaired"), last, now)
                self._append(file, event, last, now)
        except OSError as error:
            raise SiteError(
                f"cannot write the audit log: {error.strerror}",
                str(self.path),
                "Check disk space and rights; nothing leaves the site without an audit line",
            ) from None

    def lines(self) -> list[Line]:
        """Return all lines after checking the chain.

        Raises:
            SiteError: The log cannot be read, or a line was edited, removed or added.
        """
        lines: list[Line] = []
        for number, text in enumerate(self._texts(), start=1):
            line = self._parse(text, number)
            previous = lines[-1].hash if lines else GENESIS
            if (line.number, line.prev) != (number, previous) or line.hash != self._hash(line):
                raise self._edited(number)
            lines.append(line)
        return lines

    def newest_head(self) -> LedgerHead | None:
        """Return the ledger head of the newest line that has one, after checking that line.

        Raises:
            SiteError: The log cannot be read, or the line was edited.
        """
        texts = self._texts()
        for number in range(len(texts), 0, -1):
            line = self._parse(texts[number - 1], number)
            if line.head:
                if line.hash != self._hash(line):
                    raise self._edited(number)
                return line.head
        return None

    def _texts(self) -> list[bytes]:
        try:
            raw = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise SiteError(
                f"cannot read the audit log: {error.strerror}", str(self.path)
            ) from None
        # What follows the last line break was cut short by a crash and never took effect.
        return raw.split(b"\n")[:-1]

    def _append(self, file: BinaryIO, event: Event, last: bytes, now: datetime) -> bytes:
        before = self._parse(last, -1) if last else None
        if before and before.hash != self._hash(before):
            raise self._edited(before.number)
        line = Line(
            **event.model_dump(),
            number=before.number + 1 if before else 1,
            time=now.astimezone(UTC).isoformat(timespec="seconds"),
            prev=before.hash if before else GENESIS,
            hash="",
        )
        line = line.model_copy(update={"hash": self._hash(line)})
        text = line.model_dump_json(exclude_defaults=True).encode()
        file.write(text + b"\n")
        file.flush()
        os.fsync(file.fileno())
        return text

    def _parse(self, text: bytes, number: int) -> Line:
        try:
            return Line.model_validate_json(text)
        except ValidationError:
            raise self._edited(number) from None

    def _hash(self, line: Line) -> str:
        absent = {name for name in LATER if not getattr(line, name)}
        content = line.model_dump(exclude={"hash"} | absent)
        if line.head:
            content["head"] |= {"version": 1}  # as the first release hashed it
        return self._vault.mac("audit", json.dumps(content, sort_keys=True).encode())

    def _edited(self, number: int) -> SiteError:
        return SiteError(
            "the audit log was edited, or belongs to another vault key",
            f"{self.path}, line {number}" if number > 0 else str(self.path),
            "Keep the file as evidence under another name; a new log begins with the next event",
        )


def _last_line(file: BinaryIO) -> tuple[bytes, bool]:
    """Return the last whole line and whether a cut one behind it was removed."""
    size = file.seek(0, os.SEEK_END)
    tail = b""
    while size > len(tail) and tail[:-1].count(b"\n") < 2:
        start = max(0, size - len(tail) - 65_536)
        file.seek(start)
        tail = file.read(size - start)
    whole, _, cut = tail.rpartition(b"\n")
    if cut:
        file.truncate(size - len(cut))
    return whole.rpartition(b"\n")[2], bool(cut)
