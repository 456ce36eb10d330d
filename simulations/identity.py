"""What the figures of a cell depend on, as digests: the same ones mean the same figures."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent

PACKAGES = ("client", "server", "shared", "simulations")

_SHOWS_ONLY = re.compile(
    r"(client/(privacy_)?cli"
    r"|server/(cli|charts|live|markup|report\w*)"
    r"|simulations/(\w*cli|demo\w*|plots\w*|progress|report\w*|summary|audit/report))\.py"
)
"""Modules that show figures and do not make any: a change there leaves results standing.

Named by path: `client/data/report.py` decides with the data report whether a site takes part.
"""


@cache
def code_digest() -> str:
    """Return the SHA-256 of the sources that decide the figures, and of what they stand on."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for library in ("torch", "numpy", "opacus"):
        digest.update(f"{library} {version(library)}\0".encode())
    return digest.hexdigest()


def sources() -> list[Path]:
    """Return the files of the code that decides the figures: all but what shows them only."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [path for path in files if not _SHOWS_ONLY.fullmatch(str(path.relative_to(ROOT)))]


@cache
def code_version(root: Path = ROOT) -> str:
    """Return the release, and in a checkout the commit, marked if files were changed since.

    Installed in somebody else's repository, in a virtual environment there, the code is not of
    that repository's commits.

    Args:
        root: The folder that holds the packages.
    """
    release = version("consilium-fl")
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")) != root.resolve():
            return release
        commit = _git(root, "describe", "--always", "--abbrev=12", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return release
    return f"{release}, commit {commit}"


@cache
def machine() -> str:
    """Return processor, cores, memory, accelerator and versions in one line."""
    import torch

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cuda = [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
    parts = [
        _processor(),
        f"{cores} core{'s' if cores != 1 else ''}",
        f"{memory:.0f} GiB",
        *cuda,
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
        platform.system(),
    ]
    return ", ".join(parts)


def files_digest(paths: Iterable[Path]) -> str:
    """Return a SHA-256 that changes when data files do: of a folder, names, sizes and times.

    A single file is read; the files of a folder may be too many for that.
    """
    digest = hashlib.sha256()
    for path in paths:
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                known = file.stat()
                name = file.relative_to(path)
                digest.update(f"{name}\0{known.st_size}\0{known.st_mtime_ns}\0".encode())
        elif path.is_file():
            with path.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def digest_of(*parts: object) -> str:
    """Return the SHA-256 of values that JSON can hold, 64 hex digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.strip()
