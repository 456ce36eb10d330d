"""The largest memory a process and its children take together, while something runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from simulations.processes import descendants

SECONDS = 0.5
"""Between two looks."""


class MemoryWatch:
    """Looks at the memory in the background; use it in a `with` statement (Linux).

    Memory that several processes share counts once (proportional set size).

    Attributes:
        peak: Largest sum seen so far, in bytes.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(SECONDS):
            self._look()

    def _look(self) -> None:
        own = os.getpid()
        self.peak = max(self.peak, sum(_proportional(p) for p in [own, *descendants(own)]))


def _proportional(process: int) -> int:
    """Return a process's share of memory in bytes; 0 once it has ended."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in rollup.splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] == "Pss:")
