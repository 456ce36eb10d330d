"""What a process may use of a machine: all of it, or, in a container, what its limits leave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def free_bytes(root: Path = ROOT) -> int:
    """Return the memory that is free, of the machine's or of a control group's (Linux).

    Args:
        root: Where `proc` and `sys` are.
    """
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    for group in _groups(root):
        limit = _words(group / "memory.max")
        if limit and limit != ["max"]:
            used, told = _words(group / "memory.current"), _words(group / "memory.stat")
            # Files that were read stay in memory until something else needs it.
            kept = dict(zip(told[::2], told[1::2], strict=True))["inactive_file"]
            free = min(free, int(limit[0]) - int(used[0]) + int(kept))
    return free


def free_cores(root: Path = ROOT) -> float:
    """Return the processor cores this process may use, as a control group limits them (Linux).

    Args:
        root: Where `proc` and `sys` are.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for group in _groups(root):
        limit = _words(group / "cpu.max")
        if limit and limit[0] != "max":
            cores = min(cores, int(limit[0]) / int(limit[1]))
    return cores


def _groups(root: Path) -> Iterator[Path]:
    """Yield the control group (version 2) of this process, and all those it is in."""
    top = root / "sys/fs/cgroup"
    lines = (root / "proc/self/cgroup").read_text().splitlines()
    for own in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        group = top / own
        yield group
        while group != top:
            group = group.parent
            yield group


def _words(path: Path) -> list[str]:
    """Return what a file says; a group without such a limit has no such file."""
    try:
        return path.read_text().split()
    except OSError:
        return []
