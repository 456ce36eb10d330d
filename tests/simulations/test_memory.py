"""The largest memory of a process and its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MEBIBYTE = 2**20
WATCH = """
import json, subprocess, sys
from simulations.memory import MemoryWatch

mine = bytearray(b"x") * (20 * 2**20)
with MemoryWatch() as before:
    pass
held = "import sys; a = bytearray(b'x') * (200 * 2**20); print(flush=True); sys.stdin.read()"
with subprocess.Popen(
    [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
) as child:
    child.stdout.readline()
    with MemoryWatch() as during:
        child.stdin.close()
        child.wait()
with MemoryWatch() as after:
    pass
print(json.dumps([before.peak, during.peak, after.peak]))
"""


def test_memory_of_children_counts() -> None:
    # In a small process: this one's share of PyTorch changes with who else has it loaded.
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.check_output([sys.executable, "-c", WATCH], env={**os.environ, **paths})
    before, during, after = json.loads(told)
    assert before > 20 * MEBIBYTE
    assert 200 * MEBIBYTE <= during - before <= 300 * MEBIBYTE
    assert after < during - 150 * MEBIBYTE
