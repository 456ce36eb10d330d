"""Writing files so that a crash leaves either the old content or the new, and lines whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.errors import CoordinatorError


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file's content: temporary file, fsync, rename, fsync of the folder.

    Of two processes that write at once, one wins: each has a temporary file of its own.

    Raises:
        CoordinatorError: The disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from None


class JsonLines:
    """A file of one JSON object a line, appended to and flushed line by line.

    A last line that a crash cut short is dropped on opening.

    Args:
        path: The file; made if it does not exist.
        keep: Which of the lines already there stay, none that is damaged; default: all.
        sync: Whether a line must survive a power cut, not only the end of this process.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep: Callable[[dict[str, Any]], bool] | None = None,
        sync: bool = False,
    ) -> None:
        self.path, self._sync = path, sync
        before = path.read_bytes() if path.exists() else b""
        whole = before[: before.rfind(b"\n") + 1]
        if keep is not None:
            lines = whole.splitlines(keepends=True)
            whole = b"".join(line for line in lines if _stays(line, keep))
        if whole != before:
            write_atomically(path, whole)
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise _cannot_write(path, error) from None

    def append(self, record: dict[str, Any]) -> None:
        """Write one line and flush it.

        Raises:
            CoordinatorError: The disk is full.
        """
        line = json.dumps(record, allow_nan=False, ensure_ascii=True).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            if self._sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _stays(line: bytes, keep: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return keep(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return False


def _cannot_write(path: Path, error: OSError) -> CoordinatorError:
    return CoordinatorError(
        f"cannot write: {error.strerror}", str(path), "Free space or correct the folder's rights"
    )
