"""A log has one plain line an event, says a repeated warning seldom, and stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.logs import FORMAT, LogFile, frame

NOISY = """
import logging
from shared.errors import CoordinatorError
from shared.flower.quiet import log_quietly
log_quietly("node")
flower = logging.getLogger("flwr")
flower.debug("a request"); flower.info("received"); flower.error("  ")
for seconds in range(5):
    flower.warning("Connection attempt failed, retrying in %s seconds", seconds)
flower.error("Exit Code: 201")
flower.error("refused\\nby the server")
logging.getLogger("consilium").info("connected")
try:
    raise CoordinatorError("too few sites", "missing: north", "Ask them")
except CoordinatorError as error:
    flower.error("it ended", exc_info=error)
"""


def said(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[str]:
    monkeypatch.setenv(FORMAT, kind)
    run = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    return run.stderr.splitlines()


def test_only_what_matters_is_logged_a_line_each_without_colours(monkeypatch) -> None:
    lines = said(monkeypatch, "text")
    assert [line.split(" ", 1)[1] for line in lines] == [
        "WARNING node: Connection attempt failed, retrying in 0 seconds",
        "ERROR node: refused by the server",
        "INFO node: connected",
        "ERROR node: it ended: too few sites (missing: north). Ask them",
    ]
    assert all(line[:2] == "20" and "\033" not in line for line in lines)


def test_as_json_each_line_is_an_object(monkeypatch) -> None:
    lines = [json.loads(line) for line in said(monkeypatch, "json")]
    assert [line["level"] for line in lines] == ["WARNING", "ERROR", "INFO", "ERROR"]
    assert {line["process"] for line in lines} == {"node"}


def test_lines_of_several_processes_share_a_file_that_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.logs.LOG_BYTES", 2000)
    monkeypatch.setenv(FORMAT, "json")
    log = LogFile(tmp_path / "server.log")
    log.collect("runs", [b"a crash of a library\n", b'{"message": "whole"}\n', b"\n"])
    first = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert [line["message"] for line in first] == ["a crash of a library", "whole"]
    for number in range(500):
        log.write(frame("server", "INFO", f"event {number}"))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    assert sum(file.stat().st_size for file in files) <= 5 * 2000
    assert "event 499" in (tmp_path / "server.log").read_text()
