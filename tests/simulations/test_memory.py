"""The largest memory of a process and its children."""

from __future__ import annotations

import subprocess
import sys

from simulations.memory import MemoryWatch

MEBIBYTE = 2**20
CHILD = "import sys; a = bytearray(b'x') * (200 * 2**20); print(flush=True); sys.stdin.read()"


def test_memory_of_children_counts() -> None:
    with MemoryWatch() as before:
        pass
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        with MemoryWatch() as during:
            child.stdin.close()
            child.wait()
    with MemoryWatch() as after:
        pass
    assert before.peak > 10 * MEBIBYTE
    # Pages that processes share count in parts, which other processes change meanwhile.
    assert 150 * MEBIBYTE <= during.peak - before.peak <= 300 * MEBIBYTE
    assert after.peak < during.peak - 100 * MEBIBYTE
