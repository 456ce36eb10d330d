"""What a process logs: one line an event, quiet, without colours; and one rotated file of them."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from logging.handlers import RotatingFileHandler
from pathlib import Path

from shared.errors import ConsiliumError

FORMAT = "CONSILIUM_LOG"
"""Environment variable: `json` for one JSON object a line, else plain text; children inherit it."""

LOG_BYTES = 5 * 2**20
"""Size at which a log file is rotated."""

LOG_FILES = 4
"""Rotated files that are kept beside the current one."""

SELDOM_SECONDS = 60.0
"""Time in which a repeated warning is said once only."""


def log_to_stderr(process: str) -> None:
    """Let this process log to stderr: its own events from INFO on, libraries' from WARNING on.

    Args:
        process: What the process is called in each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(process))
    handler.addFilter(_Seldom())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("consilium").setLevel(logging.INFO)


class LogFile:
    """A rotated file of lines that several processes have written, each whole; one writer.

    Args:
        path: The file; rotated ones get `.1`, `.2` and so on behind it.
    """

    def __init__(self, path: Path) -> None:
        self._handler = RotatingFileHandler(
            path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"
        )

    def write(self, line: str) -> None:
        """Append a line."""
        record = logging.LogRecord("", logging.INFO, "", 0, "%s", (line,), None)
        self._handler.handle(record)

    def collect(self, process: str, lines: Iterable[bytes]) -> None:
        """Append what a process writes until it ends; a line that it did not log is framed."""
        for raw in lines:
            if line := raw.decode(errors="replace").rstrip():
                own = not as_json() or line.startswith("{")
                self.write(line if own else frame(process, "INFO", line))


def frame(process: str, level: str, message: str, seconds: float | None = None) -> str:
    """Return a message as a line of the log, as text or as JSON.

    Args:
        process: Where it comes from.
        level: How serious it is.
        message: What happened.
        seconds: When, since 1970; default: now.
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    if as_json():
        return json.dumps({"time": when, "level": level, "process": process, "message": message})
    return f"{when} {level} {process}: {message}"


def as_json() -> bool:
    """Tell whether lines are JSON objects."""
    return os.environ.get(FORMAT) == "json"


class _LineFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; a traceback follows in text, and is part of JSON."""
        message = " ".join(record.getMessage().split())
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConsiliumError):
            message = f"{message}: {error}"  # it says what to do; where it came up helps nobody
        elif record.exc_info and error is not None:
            trace = self.formatException(record.exc_info)
            message = f"{message}\n{trace}" if not as_json() else f"{message} {trace}"
        return frame(self._process, record.levelname, message, record.created)


class _Seldom(logging.Filter):
    """Drops empty messages, and a warning that only repeats itself, as a lost connection does."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is worth a line."""
        if not record.getMessage().strip():
            return False
        if record.levelno != logging.WARNING:
            return True
        said = self._last.get(str(record.msg), float("-inf"))
        if record.created - said < SELDOM_SECONDS:
            return False
        self._last[str(record.msg)] = record.created
        return True
