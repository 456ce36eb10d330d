"""The audit log holds every event in order, and shows every edit."""

from __future__ import annotations

import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from client.audit import AuditLog, Event
from client.vault import Vault
from shared.errors import SiteError

VAULT = Vault(bytes(range(32)))
NOW = datetime(2026, 3, 1, 8, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "audit.jsonl", VAULT)
    for number in range(1, 5):
        log.write(Event(event="round-started", run="run", round=number), NOW)
    return log


def test_events_are_kept_in_order_in_a_private_file(log: AuditLog) -> None:
    assert [(line.number, line.round) for line in log.lines()] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert {line.time for line in log.lines()} == {"2026-03-01T08:00:00+00:00"}
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("change", ["edit", "drop", "repeat"])
def test_a_change_of_any_line_but_cutting_the_end_is_noticed(
    log: AuditLog, line: int, change: str
) -> None:
    lines = log.path.read_text().splitlines(keepends=True)
    match change:
        case "edit":
            lines[line] = lines[line].replace('"run":"run"', '"run":"fun"')
        case "drop":
            del lines[line]
        case "repeat":
            lines.insert(line, lines[line])
    log.path.write_text("".join(lines))
    if change == "drop" and line == 3:
        assert len(log.lines()) == 3  # the ledger's head in the server's hands tells this
        return
    with pytest.raises(SiteError, match="edited"):
        log.lines()


def test_nothing_is_appended_behind_an_edited_line(log: AuditLog) -> None:
    log.path.write_text(log.path.read_text().replace('"round":4', '"round":5'))
    with pytest.raises(SiteError, match="edited"):
        log.write(Event(event="round-started"), NOW)


def test_a_line_cut_short_by_a_crash_is_removed_and_that_is_on_record(log: AuditLog) -> None:
    whole = log.path.read_bytes()
    for cut in (1, 10, 100):
        log.path.write_bytes(whole[:-cut])
        assert len(log.lines()) == 3
        log.write(Event(event="round-refused", code="site-unready"), NOW)
        assert [line.event for line in log.lines()[3:]] == ["log-repaired", "round-refused"]


def test_another_key_cannot_read_or_continue_the_log(log: AuditLog) -> None:
    other = AuditLog(log.path, Vault(bytes(32)))
    with pytest.raises(SiteError, match="another vault key"):
        other.lines()
    with pytest.raises(SiteError, match="another vault key"):
        other.write(Event(event="round-started"), NOW)


def test_an_event_has_declared_fields_only() -> None:
    with pytest.raises(ValidationError):
        Event.model_validate({"event": "round-started", "patient": "4711"})
    with pytest.raises(ValidationError):
        Event.model_validate({"event": "patient 4711 came"})


def test_a_long_log_is_continued_at_its_end(log: AuditLog) -> None:
    for _ in range(300):
        log.write(Event(event="study-approved", by="x" * 200), NOW)
    assert len(log.lines()) == 304


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    code = (
        "import sys; from datetime import datetime, UTC; from pathlib import Path\n"
        "from client.audit import AuditLog, Event; from client.vault import Vault\n"
        "log = AuditLog(Path(sys.argv[1]), Vault(bytes(range(32))))\n"
        "[log.write(Event(event='round-started', round=i), datetime.now(UTC)) for i in range(20)]"
    )
    path = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(AuditLog(path, VAULT).lines()) == 60


def test_a_log_that_cannot_be_written_is_an_error_of_the_site(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot write"):
        AuditLog(tmp_path / "none" / "audit.jsonl", VAULT).write(Event(event="round-started"), NOW)
