"""Keeps a server running: starts its processes, starts again what ends, takes open runs up."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

from server.home import ServerHome
from server.link import LOG, Start, start_executor, start_link
from server.standing import MOST_STARTS, forget_process, open_runs, process_of, start_run
from shared.errors import CoordinatorError
from shared.logs import LogFile, frame
from shared.pki import certificate_end

LOOK_SECONDS = 2.0
"""Between two looks at the processes and runs."""

WARN_DAYS = 30
"""Days before the certificate's end from which on it is warned of, once a day."""

DAY = 86400.0

SHORT_LIFE = 60.0
"""Seconds; a process that ends sooner, time and again, is started again later and later."""

LONGEST_PAUSE = 30.0
"""Seconds; the longest wait before a process is started again."""

GRACE_SECONDS = 5.0
"""How long a process may take to end when the server stops."""


class Child:
    """One process that is started again when it ends.

    Args:
        name: What it is called in messages.
        start: Starts it.
        say: Told each time it ended, was started again or could not be.

    Raises:
        CoordinatorError: It cannot be started the first time.
    """

    def __init__(
        self, name: str, start: Callable[[], subprocess.Popen[bytes]], say: Callable[[str], None]
    ) -> None:
        self._name, self._start, self._say = name, start, say
        self._process: subprocess.Popen[bytes] | None = start()
        self._began, self._pause, self._again = time.monotonic(), 0.0, 0.0

    def look(self) -> None:
        """Start the process again if it has ended, the later the shorter it lived."""
        now = time.monotonic()
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            self._wait(now, f"ended ({_how(code)})")
        elif self._process is None and now >= self._again:
            try:
                self._process, self._began = self._start(), now
                self._say(f"{self._name} was started again")
            except CoordinatorError as error:
                self._wait(now, f"could not be started: {error}")

    def restart(self) -> None:
        """End the process, and start it again at the next look, which says so."""
        self.stop()
        self._process, self._again = None, 0.0

    def stop(self) -> None:
        """End the process: first politely, then for certain."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self, now: float, why: str) -> None:
        lived = now - self._began
        self._pause = 1.0 if lived > SHORT_LIFE else min(2 * self._pause + 1, LONGEST_PAUSE)
        self._again = now + self._pause
        self._say(f"{self._name} {why}; it is started again in {self._pause:.0f} s")


class Certificate:
    """The server's certificate: notices a new one, and warns of the end of an old one.

    Args:
        home: The server's home.
        say: Told once a day when it ends soon.
    """

    def __init__(self, home: ServerHome, say: Callable[[str], None]) -> None:
        self._path, self._say = home.path / "server.pem", say
        self._changed, self._next = self._path.stat().st_mtime_ns, 0.0

    def is_new(self) -> bool:
        """Tell whether it was replaced since the last look."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + DAY
            days = (certificate_end(self._path.read_bytes()) - datetime.now(UTC)).days
            if days < WARN_DAYS:
                self._say(
                    f"the server's certificate ends in {days} days; make a new one: "
                    "`consilium server renew`"
                )
        before, self._changed = self._changed, self._path.stat().st_mtime_ns
        return before != self._changed


class OpenRuns:
    """Takes up, again and again, the open runs nobody works on.

    Args:
        home: The server's home.
        say: Told of each run that goes on, and once of each that does not.
        left: Names of runs to leave alone.
    """

    def __init__(self, home: ServerHome, say: Callable[[str], None], left: set[str]) -> None:
        self._home, self._say, self._left = home, say, left
        self._said = ""

    def look(self) -> None:
        """Start every open run nobody works on; leave one alone that gets nowhere."""
        for name, it in open_runs(self._home).items():
            if name in self._left:
                continue
            if it.starts >= MOST_STARTS:
                self._left.add(name)
                self._say(
                    f"run {name} was begun {it.starts} times without finishing a round and is "
                    f"left; see {self._home.path / LOG}, then `consilium server resume`"
                )
                continue
            before = process_of(self._home.run_folder(name))
            try:
                if start_run(self._home, name) != before:
                    self._say(f"run {name} goes on")
            except CoordinatorError as error:
                # It is tried again in a moment; one line says so.
                if str(error) != self._said:
                    self._said = str(error)
                    self._say(f"run {name} cannot be taken up yet: {error}")


def run_server(home: ServerHome, *, take_up: bool, show: Callable[[str], None]) -> None:
    """Run a server until this process is interrupted.

    Args:
        home: The server's home.
        take_up: Whether runs that an earlier server left open go on by themselves.
        show: Shows one line to who watches; it is also in the log.

    Raises:
        CoordinatorError: The SuperLink cannot be started.
    """
    log = LogFile(home.path / LOG)
    start = _starter(log)

    def say(line: str) -> None:
        log.write(frame("server", "INFO", line))
        show(line)

    children = [Child("the SuperLink", lambda: start_link(home, start), say)]
    try:
        children.append(Child("the process of the runs", lambda: start_executor(home, start), say))
        left = list(open_runs(home))
        for name in left:
            forget_process(home, name)
        runs = OpenRuns(home, say, set() if take_up else set(left))
        say(f"Ready: hospitals can connect to {home.settings.fleet}")
        certificate = Certificate(home, say)
        while True:
            if certificate.is_new():
                children[0].restart()
            for child in children:
                child.look()
            runs.look()
            time.sleep(LOOK_SECONDS)
    finally:
        for child in reversed(children):
            child.stop()


def _starter(file: LogFile) -> Start:
    """Return how a process is started whose output goes to the one log of the server."""

    def start(
        name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what matters is logged, to stderr
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for this process alone
        )
        Thread(target=file.collect, args=(name, process.stderr), daemon=True).start()
        return process

    return start


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
