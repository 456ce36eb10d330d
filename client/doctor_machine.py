"""The doctor's checks of the machine: home, disk, memory, other users, device."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from client.finding import Finding
from client.site import Site
from shared.flower import PROXIES

GIB = 2**30
SHARED_MEMORY = Path("/dev") / "shm"
LEAST_DISK, ENOUGH_DISK = 1 * GIB, 5 * GIB
LEAST_MEMORY, ENOUGH_MEMORY = 1 * GIB, 3 * GIB
FIRST_USER, NOBODY = 1000, 65534
"""Numbers of users who are persons on Linux, and of the one who is nobody."""


def home(site: Site) -> Iterator[Finding]:
    """Check that the home is this user's alone, and can be written."""
    me, found = os.getuid(), site.home.stat()
    if found.st_mode & 0o077:
        yield Finding.bad(
            "home", f"others may look into {site.home}", f"Run `chmod 700 {site.home}`"
        )
    foreign = [p for p in (site.home, *site.home.rglob("*")) if p.lstat().st_uid != me]
    if foreign:
        yield Finding.bad(
            "home",
            f"{foreign[0]} and {len(foreign) - 1} others belong to another user"
            if len(foreign) > 1
            else f"{foreign[0]} belongs to another user",
            "Run this as the node's user; if it is, give it the files: chown -R USER HOME",
        )
    try:
        with tempfile.TemporaryFile(dir=site.home):
            pass
    except OSError as error:
        yield Finding.bad(
            "home", f"cannot write into {site.home}: {error.strerror}", "Correct its rights"
        )
        return
    if not foreign:
        yield Finding.good("home", f"{site.home} is this user's alone, and can be written")


def machine(site: Site) -> Iterator[Finding]:
    """Check disk, memory, shared memory, and variables that name a proxy."""
    yield _amount("disk", shutil.disk_usage(site.home).free, LEAST_DISK, ENOUGH_DISK)
    memory = memory_available()
    if memory is not None:
        yield _amount("memory", memory, LEAST_MEMORY, ENOUGH_MEMORY)
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield Finding.warning(
            "shared memory",
            f"{SHARED_MEMORY} cannot be written",
            "Give a container some (--shm-size)",
        )
    if PROXIES:
        yield Finding.warning(
            "proxy",
            f"{', '.join(PROXIES)} name a proxy, which the node does not use",
            "The firewall must let it connect to the server directly",
        )


def neighbours(site: Site) -> Iterator[Finding]:
    """Check that nobody else works on this machine, who could reach the node's own port."""
    users = {owner for owner in _owners() if FIRST_USER <= owner != NOBODY} - {os.getuid()}
    if users:
        yield Finding.warning(
            "processes",
            f"other users work on this machine ({len(users)})",
            "They can reach the node's port on 127.0.0.1: give the node a machine of its own",
        )
    else:
        yield Finding.good("processes", "no other user works on this machine")


def device(site: Site) -> Iterator[Finding]:
    """Check that PyTorch can compute on what the settings ask for."""
    import torch

    wanted, build = site.config.compute.device, torch.__version__
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        yield Finding.good("device", f"CPU (PyTorch {build})")
        return
    try:
        torch.ones(8, device="cuda").sum().item()
    except (RuntimeError, AssertionError) as error:
        yield Finding.bad(
            "device",
            f"the GPU cannot be used: {str(error).splitlines()[0]}",
            'Repair the driver, or set compute.device = "cpu"',
        )
        return
    yield Finding.good("device", f"{torch.cuda.get_device_name()} (PyTorch {build})")


def memory_available() -> int | None:
    """Return the memory programs may still take, in bytes; None where nobody says."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _amount(what: str, free: int, least: int, enough: int) -> Finding:
    said = f"{free / GIB:.1f} GiB free"
    if free < least:
        return Finding.bad(what, said, f"At least {least / GIB:g} GiB are needed: free some")
    if free < enough:
        return Finding.warning(what, said, f"{enough / GIB:g} GiB are better")
    return Finding.good(what, said)


def _owners() -> Iterator[int]:
    """Return the user of every process."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield path.stat().st_uid
