"""The folder of one run: its identity, events, metrics and checkpoints, and taking it up again."""

from __future__ import annotations

import fcntl
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from server.clock import Clock
from server.files import JsonLines, write_atomically
from server.release import Record, SiteRecord, sha256, weights_file
from shared.errors import ConsiliumError, CoordinatorError
from shared.protocol import Digest, LedgerHead, Statistics
from shared.study import Study
from shared.transport import Weights

STATISTICS = "statistics.json"
"""File of a run with the counts of all sites together, in studies that ask for them."""


class Log(Protocol):
    """Writes one event: its name, where it belongs, and plain details."""

    def __call__(self, event: str, *, round: int = 0, site: str = "", **details: Any) -> None:
        """Write the event."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        round: Rounds done; 0 before the first.
        weights: Global weights the next round starts from.
        average: Running mean of the global weights; empty when the study asks for none.
        optimiser: What the server's optimiser remembers (`server.optimise`).
        control: The server's control variate (SCAFFOLD); empty when the study asks for none.
        sites: What each site has contributed so far, by name.
        heads: Newest ledger heads of the sites, by name.
    """

    round: int
    weights: Weights
    average: Weights = field(default_factory=dict)
    optimiser: Weights = field(default_factory=dict)
    control: Weights = field(default_factory=dict)
    sites: dict[str, SiteRecord] = field(default_factory=dict)
    heads: dict[str, LedgerHead] = field(default_factory=dict)

    @property
    def counted(self) -> dict[str, int]:
        """The newest round each site's update is part of, by name."""
        return {site: record.last_round for site, record in self.sites.items()}


class RunFolder:
    """One run's files; made by `open_run`.

    Attributes:
        path: The folder.
        run: The run's id, the same after it is taken up again.
    """

    def __init__(self, path: Path, run: str, study: Study, clock: Clock) -> None:
        self.path, self.run = path, run
        self._study, self._clock = study, clock
        self._events = JsonLines(path / "events.jsonl")

    def log(self, event: str, *, round: int = 0, site: str = "", **details: Any) -> None:
        """Write one event to `events.jsonl`."""
        record: dict[str, Any] = {"time": self._clock.now().isoformat(), "event": event}
        record |= ({"round": round} if round else {}) | ({"site": site} if site else {})
        self._events.append(record | details)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; it counts from the moment its `.json` is there.

        Raises:
            CoordinatorError: The disk is full.
        """
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        content = _pack(checkpoint, self._study)
        state = _State(
            run=self.run,
            study_digest=self._study.digest,
            round=checkpoint.round,
            weights_sha256=sha256(content),
            sites=checkpoint.sites,
            heads=checkpoint.heads,
        )
        stem = folder / f"round-{checkpoint.round:04d}"
        write_atomically(stem.with_suffix(".safetensors"), content)
        write_atomically(stem.with_suffix(".json"), state.model_dump_json(indent=1).encode())

    def latest(self, start: Checkpoint) -> Checkpoint:
        """Return the newest checkpoint that is whole, or `start` if there is none.

        A damaged one is logged as `checkpoint-damaged` and passed over.
        """
        names = sorted((self.path / "checkpoints").glob("round-*.json"), key=_round_of)
        for path in reversed(names):
            try:
                return self._load(path, start)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                self.log("checkpoint-damaged", round=_round_of(path), reason=reason)
        return start

    def save_statistics(self, statistics: Statistics) -> None:
        """Write what the sites have counted together; from then on it is settled.

        Raises:
            CoordinatorError: The disk is full.
        """
        content = statistics.model_dump_json(indent=1).encode()
        write_atomically(self.path / STATISTICS, content)

    def statistics(self) -> Statistics | None:
        """Return what the sites have counted together, or None before they have.

        A damaged file is logged as `statistics-damaged` and passed over: the sites keep what
        they have sent, and send the same again.
        """
        try:
            return Statistics.model_validate_json((self.path / STATISTICS).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            self.log("statistics-damaged", reason=type(error).__name__)
            return None

    def open_metrics(self, last_round: int) -> JsonLines:
        """Open `metrics.jsonl`, less the lines of rounds a lost checkpoint makes again."""
        return JsonLines(
            self.path / "metrics.jsonl",
            keep=lambda line: bool(line["round"] <= last_round),
            sync=True,
        )

    def close(self) -> None:
        """Close the files."""
        self._events.close()

    def _load(self, path: Path, start: Checkpoint) -> Checkpoint:
        state = _State.model_validate_json(path.read_bytes())
        if (state.run, state.study_digest) != (self.run, self._study.digest):
            raise ValueError("it belongs to another run or study")
        content = path.with_suffix(".safetensors").read_bytes()
        if sha256(content) != state.weights_sha256:
            raise ValueError("its weights are not the ones that were written")
        arrays = load(content)
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != {name: array.shape for name, array in _arrays(start).items()}:
            raise ValueError("its arrays are not of the study's model")
        groups = {
            group: {name: arrays[f"{folder}/{name}"] for name in getattr(start, group)}
            for group, folder in _GROUPS.items()
        }
        return Checkpoint(round=state.round, sites=state.sites, heads=state.heads, **groups)


@contextmanager
def open_run(path: Path, study: Study, sites: dict[int, str], clock: Clock) -> Iterator[RunFolder]:
    """Open a run's folder, new or begun, for one writer; failures end up in its events.

    Args:
        path: The folder; its name becomes part of the run's id.
        study: The plan; must be the one the folder was begun with.
        sites: Node id to site name.
        clock: Gives the events their time.

    Raises:
        CoordinatorError: Another process writes here, or the run is of another plan.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        try:
            # Held by the kernel, so a killed server leaves no stale lock behind.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CoordinatorError(
                "another process is working on this run", str(path), "Wait for it, or end it"
            ) from None
        folder = RunFolder(path, _identify(path, study, sites, clock), study, clock)
        try:
            yield folder
        except ConsiliumError as error:
            folder.log("run-failed", error=str(error))
            raise
        except BaseException as error:
            # Nobody has to settle anything: the server takes the run up by itself.
            folder.log("run-interrupted", error=f"the server stopped: {type(error).__name__}")
            raise
        finally:
            folder.close()


class _Identity(Record):
    run: str
    study_digest: Digest
    created: str


class _State(Record):
    format: Literal[1] = 1
    run: str
    study_digest: Digest
    round: int
    weights_sha256: Digest
    sites: dict[str, SiteRecord]
    heads: dict[str, LedgerHead]


def _identify(path: Path, study: Study, sites: dict[int, str], clock: Clock) -> str:
    """Return the run's id, making it at first; the plan and the sites are written beside it.

    The id has a random part: sites remember runs by it, and folder names come again.
    """
    file = path / "run.json"
    if not file.exists():
        created = _Identity(
            run=f"{re.sub(r'[^A-Za-z0-9._-]', '-', path.name)[:40]}-{secrets.token_hex(8)}",
            study_digest=study.digest,
            created=clock.now().isoformat(),
        )
        write_atomically(path / "study.json", study.canonical().encode())
        write_atomically(file, created.model_dump_json(indent=1).encode())
    try:
        identity = _Identity.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise CoordinatorError("the run's identity cannot be read", str(file)) from None
    if identity.study_digest != study.digest:
        raise CoordinatorError(
            "this run was begun with another study",
            str(path),
            "Give the study it was begun with, or start a new run",
        )
    names = {str(node): name for node, name in sites.items()}
    write_atomically(path / "sites.json", json.dumps(names, indent=1).encode())
    return identity.run


_GROUPS = {
    "weights": "global",
    "average": "average",
    "optimiser": "optimiser",
    "control": "control",
}
"""The array fields of a checkpoint, and what stands before their names in the file."""


def _arrays(checkpoint: Checkpoint) -> Weights:
    """Return all arrays of a checkpoint under the names they have in its file."""
    return {
        f"{folder}/{name}": array
        for group, folder in _GROUPS.items()
        for name, array in getattr(checkpoint, group).items()
    }


def _pack(checkpoint: Checkpoint, study: Study) -> bytes:
    arrays = _arrays(checkpoint)
    return weights_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, study)


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
