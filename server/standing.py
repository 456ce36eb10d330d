"""How a run stands, read from its folder, and starting it or taking it up in the SuperLink."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.files import write_atomically
from server.history import parse_line, words
from server.home import ServerHome
from server.link import control
from shared.errors import CoordinatorError

MOST_STARTS = 5
"""How often a run is taken up by itself without finishing a round in between."""

SITES = "sites.json"
"""File of a run with who may take part."""

_PROCESS = "process.json"
"""File of a run with Flower's id of the process that last worked on it."""

_HELD = "held.json"
"""File of a run that a person has halted: "paused" or "stopped"."""

State = Literal["new", "open", "paused", "stopped", "failed", "finished"]


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        state: "new": never begun; "open": begun, and not ended by itself; "paused", "stopped":
            halted by a person, until taken up again or for good; "failed": a person has
            something to settle first; "finished": released.
        starts: How often it was begun since a round was last finished.
        round: The newest round that was finished.
        time: When something last happened, ISO 8601; empty: nothing has.
    """

    state: State
    starts: int = 0
    round: int = 0
    time: str = ""


def standing(folder: Path) -> Standing:
    """Return how the run of a folder stands; damaged lines of its events are passed over."""
    try:
        lines = (folder / "events.jsonl").read_bytes().splitlines()
    except OSError:
        lines = []
    # One that was started and has written nothing yet is open too.
    state: State = "new" if process_of(folder) is None else "open"
    starts, number, time = 0, 0, ""
    for event in filter(None, map(parse_line, lines)):
        time = words(event.get("time")) or time
        match event.get("event"):
            case "run-started":
                state, starts = "open", starts + 1
            case "round-finished":
                starts, number = 0, event.get("round") or number
            case "run-failed":
                state, starts = "failed", 0
            case "run-finished":
                state, starts = "finished", 0
    if state in ("new", "open", "failed"):
        state = _held(folder) or state
    return Standing(state, starts, number, time)


def all_runs(home: ServerHome) -> dict[str, Standing]:
    """Return every run, by name."""
    folders = sorted(path for path in (home.path / "runs").glob("*") if path.is_dir())
    return {folder.name: standing(folder) for folder in folders}


def open_runs(home: ServerHome) -> dict[str, Standing]:
    """Return the runs that were begun and have not ended by themselves, by name."""
    return {name: it for name, it in all_runs(home).items() if it.state == "open"}


def halt(home: ServerHome, name: str, state: Literal["paused", "stopped"]) -> None:
    """End the process of a run, and let the server leave it alone.

    Raises:
        CoordinatorError: There is no such run, it is over, or the server does not answer.
    """
    folder = existing(home, name)
    if (now := standing(folder).state) in ("finished", "stopped"):
        raise CoordinatorError(f"the run is {now}", name, "Nothing is to be done")
    write_atomically(folder / _HELD, json.dumps({"state": state}).encode())
    forget_process(home, name)


def release(home: ServerHome, name: str) -> None:
    """Let a paused run go on.

    Raises:
        CoordinatorError: There is no such run, or it was stopped for good.
    """
    folder = existing(home, name)
    if _held(folder) == "stopped":
        raise CoordinatorError("the run was stopped for good", name, "Start a new one")
    (folder / _HELD).unlink(missing_ok=True)


def existing(home: ServerHome, name: str) -> Path:
    """Return the folder of a run that there is.

    Raises:
        CoordinatorError: There is none.
    """
    folder = home.run_folder(name)
    if not (folder / "study.json").exists():
        raise CoordinatorError("there is no such run", name, "`consilium server runs` lists them")
    return folder


def _held(folder: Path) -> Literal["paused", "stopped"] | None:
    try:
        state = json.loads((folder / _HELD).read_bytes())["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return "stopped" if state == "stopped" else "paused"


def start_run(home: ServerHome, name: str) -> int:
    """Start a run, new or begun, unless a process works on it; return Flower's id of it.

    Raises:
        CoordinatorError: The SuperLink does not answer or refuses.
    """
    folder, api = home.run_folder(name), control(home)
    with _alone(folder):
        last = process_of(folder)
        if last is not None and not api.run_status(last).finished:
            return last
        _find_sites_again(home, folder)
        run_id = api.start_run(name)
        write_atomically(folder / _PROCESS, json.dumps({"flower_run": run_id}).encode())
    return run_id


def sites_of(folder: Path) -> dict[int, str]:
    """Return who may take part in a run, node id to name."""
    return {int(node): name for node, name in json.loads((folder / SITES).read_bytes()).items()}


def _find_sites_again(home: ServerHome, folder: Path) -> None:
    """Bring the nodes of a run's sites up to date: enrolled again, with a new key, or renamed."""
    enrolled = home.sites()
    nodes = {site.name: site.node for site in enrolled}
    names = {site.node: site.name for site in enrolled}
    now = {
        str(nodes.get(name, node)): name if name in nodes else names.get(node, name)
        for node, name in sites_of(folder).items()
    }
    write_atomically(folder / SITES, json.dumps(now, indent=1).encode())


def process_of(folder: Path) -> int | None:
    """Return Flower's id of the process that last worked on a run; None if there was none."""
    try:
        return int(json.loads((folder / _PROCESS).read_bytes())["flower_run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_process(home: ServerHome, name: str) -> None:
    """Tell the SuperLink that the process of a run is gone, so that it can be taken up at once.

    The SuperLink itself would wait a minute for a sign of life.
    """
    folder, api = home.run_folder(name), control(home)
    last = process_of(folder)
    if last is not None and not api.run_status(last).finished:
        api.stop_run(last)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two from starting the same run; the lock ends with the process."""
    try:
        file = (folder / "start.lock").open("ab")
    except OSError as error:
        raise CoordinatorError(
            f"cannot write into the run's folder: {error.strerror}",
            str(folder),
            "Correct its rights",
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
