"""No child outlives its parent, however the parent ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.processes import Processes, descendants, signals_as_interrupts


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def test_stop_ends_children_grandchildren_and_those_that_ignore_it(tmp_path: Path) -> None:
    stubborn = (
        "import os, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'],"
        " start_new_session=True)\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    log = tmp_path / "log"
    log.touch()
    with Processes() as processes:
        processes.start("stubborn", [sys.executable, "-c", stubborn], os.environ, log)
        while "ready" not in log.read_text():
            assert not processes.dead()
        family = descendants()
        assert len(family) >= 2
    assert not [process for process in family if alive(process)]


def test_children_die_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = f"""
import os, sys
from pathlib import Path
from simulations.processes import Processes
with Processes() as processes:
    code = "import signal; signal.pause()"
    log = Path({str(tmp_path / "log")!r})
    child = processes.start("child", [sys.executable, "-c", code], os.environ, log)
    print(child.pid, flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert alive(child)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if alive(child):
        assert select.select([os.pidfd_open(child)], [], [], 10)[0], "the child outlived its parent"
    process.communicate()


def test_dead_names_the_child_that_ended(tmp_path: Path) -> None:
    with Processes() as processes:
        child = processes.start("short", [sys.executable, "-c", ""], os.environ, tmp_path / "log")
        child.wait()
        assert processes.dead() == ["short"]


def test_looking_for_descendants_survives_processes_that_end_meanwhile() -> None:
    code = "import subprocess\nfor _ in range(60): subprocess.run(['true'])"
    child = subprocess.Popen([sys.executable, "-c", code])
    while child.poll() is None:
        assert child.pid in descendants() or child.poll() is not None


def test_an_interrupt_that_a_library_swallows_is_not_lost() -> None:
    with signals_as_interrupts() as interrupts:
        interrupts.check()
        with contextlib.suppress(BaseException):  # as a library may do
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("no interrupt came")
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
