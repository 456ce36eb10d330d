"""Child processes that never outlive their parent, however it ends (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

GRACE_SECONDS = 5.0
"""How long children may take to end by themselves."""


class Processes:
    """A set of child processes, ended together with all their descendants.

    The kernel sends each child SIGTERM when this process dies, and hands this process its
    orphaned grandchildren, so that none is lost from sight.
    """

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a child; its output goes to `log`."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it died before the call above
                os._exit(1)

        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._children[name] = child
        return child

    def dead(self) -> list[str]:
        """Return the names of children that have ended."""
        return [name for name, child in self._children.items() if child.poll() is not None]

    def stop(self) -> None:
        """End every descendant: first politely, then for certain."""
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while descendants() and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.05)
        while left := descendants():
            for process in left:
                _kill(process)
            self._reap()
            time.sleep(0.02)
        self._children.clear()

    def _reap(self) -> None:
        for child in self._children.values():
            child.poll()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


class Interrupts:
    """Whether a signal came that is to end what runs."""

    came = False

    def check(self) -> None:
        """Interrupt again if code that was running when a signal came has swallowed it."""
        if self.came:
            raise KeyboardInterrupt


@contextmanager
def signals_as_interrupts() -> Iterator[Interrupts]:
    """Let SIGTERM and SIGHUP end what runs the way Ctrl-C does, also where a shell has it ignored.

    An ignored SIGHUP stays ignored: that is what `nohup` is for. Whoever waits in a loop should
    `check` what is given: an exception from a signal can come up anywhere in a library, some of
    which catch whatever comes.
    """
    interrupts = Interrupts()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.came = True
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ending_workers() -> Iterator[None]:
    """End a command's Ray workers before its process, and that at once.

    Threads that Ray leaves behind have been seen to crash (SIGSEGV) what Python does at its end.
    """
    try:
        yield
    except SystemExit as ended:
        if "ray" not in sys.modules:
            raise
        from simulations.engine import close_workers

        close_workers()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)


def descendants(root: int | None = None) -> list[int]:
    """Return the ids of all living descendants of a process (default: this one)."""
    found: list[int] = []
    waiting = [root or os.getpid()]
    while waiting:
        for children in _child_lists(waiting.pop()):
            found += children
            waiting += children
    return found


def _child_lists(parent: int) -> list[list[int]]:
    """Return the children of each thread of a process; a thread that has ended has none."""
    try:
        threads = os.listdir(f"/proc/{parent}/task")
    except OSError:
        return []
    return [_children(parent, thread) for thread in threads]


def _children(process: int, thread: str) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{process}/task/{thread}/children").read_text().split()]
    except OSError:
        return []


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
