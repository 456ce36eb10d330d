"""How much of a machine may be used, told from files as Linux has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simulations.limits import free_bytes, free_cores

GIB = 2**30


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write the files of a machine with 16 GiB free, whose process is in a control group."""
    everything = {
        "proc/meminfo": f"MemTotal: {24 * 2**20} kB\nMemAvailable: {16 * 2**20} kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in everything.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


LIMITED = {
    "memory.max": f"{4 * GIB}\n",
    "memory.current": f"{3 * GIB}\n",
    "memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
    "cpu.max": "50000 100000\n",
}
NO_LIMITS = {"memory.max": "max\n", "memory.current": f"{GIB}\n", "cpu.max": "max 100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "free", "cores"),
    [
        ("0::/\n", LIMITED, 3 * GIB, 0.5),
        ("0::/a/b\n", {f"a/{name}": text for name, text in LIMITED.items()}, 3 * GIB, 0.5),
        ("0::/a\n", {f"a/{name}": text for name, text in NO_LIMITS.items()}, 16 * GIB, None),
        ("4:memory:/old\n0::/\n", {}, 16 * GIB, None),
        ("", LIMITED, 16 * GIB, None),
    ],
    ids=["container", "group around", "no limits", "none told", "version 1"],
)
def test_the_limits_of_a_container_count(
    tmp_path: Path, groups: str, files: dict[str, str], free: int, cores: float | None
) -> None:
    root = machine(tmp_path, groups, files)
    assert free_bytes(root) == free
    assert free_cores(root) == (len(os.sched_getaffinity(0)) if cores is None else cores)


def test_this_machine_has_something_free() -> None:
    assert free_bytes() > 0
    assert free_cores() > 0
