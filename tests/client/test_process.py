"""No process of a node may leave a core dump: it would hold the vault's key and images."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import pki

NONE = (0, 0)
FORKED = """
import os, resource
from client.process import forbid_core_dumps
forbid_core_dumps()
if os.fork() == 0:
    print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)
    os._exit(0)
os.wait()
"""


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that was allowed the largest core dump there is."""
    allow = 'ulimit -S -c "$(ulimit -H -c)"; exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", allow, "sh", sys.executable, *words], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_none(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while resource.prlimit(process.pid, resource.RLIMIT_CORE) != NONE:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it may still leave a core dump"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _dumps_can_be_allowed() -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine allows no core dumps anyway")


def test_the_process_that_trains_forbids_them_before_it_loads_anything() -> None:
    with started("-m", "client.executor", "127.0.0.1:1", "0") as executor:
        wait_for_none(executor)


def test_the_node_forbids_them_before_it_speaks_to_the_server(tmp_path: Path) -> None:
    pki.create_authority(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "site.toml").write_text(
            f'name = "ward"\n[server]\naddress = "127.0.0.1:{silent.getsockname()[1]}"\n'
            '[data]\nimages = "i"\nlabels = "l"\n'
        )
        command = "from simulations.cli import main; main()"
        with started("-c", command, "site", "start", "--home", str(tmp_path)) as node:
            wait_for_none(node)


def test_what_is_forked_for_a_task_inherits_it() -> None:
    with started("-c", FORKED) as process:
        assert process.communicate(timeout=60)[0].strip() == str(NONE)
