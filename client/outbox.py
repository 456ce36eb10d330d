"""Answers kept, encrypted, until the server has them: a crash re-sends, it does not retrain."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.vault import Vault, sync_folder
from shared.errors import SiteError
from shared.protocol import Reply, Request
from shared.transport import Weights

SPARE_BYTES = 4 * 2**20
"""Room that must be left besides the update, for the ledger and the logs."""


class Kept(BaseModel):
    """What is known of a kept answer beside its update.

    Attributes:
        reply: The answer, without the ledger's head, which is added when it is sent.
        incoming: Digest of the global weights it was computed from.
        reservations: Ledger entries (`seq`) that paid for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reply: Reply
    incoming: str
    reservations: tuple[int, ...]


@dataclass(frozen=True)
class Parcel:
    """A kept answer and its update."""

    kept: Kept
    update: Weights


class Outbox:
    """The encrypted answers of a site, one file a round.

    Args:
        folder: Where they are.
        vault: Encrypts them.
    """

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder, self._vault = folder, vault

    def check_room(self, weights: Weights) -> None:
        """Make sure that an update of the size of these weights can be kept.

        Raises:
            SiteError: The disk has too little room.
        """
        needed = 2 * sum(array.nbytes for array in weights.values()) + SPARE_BYTES
        folder = self._folder if self._folder.exists() else self._folder.parent
        if shutil.disk_usage(folder).free < needed:
            raise SiteError(
                "too little disk space to keep an update until the server has it",
                str(folder),
                f"Free at least {needed // 2**20 + 1} MiB",
            )

    def put(self, parcel: Parcel) -> None:
        """Keep an answer durably.

        Raises:
            SiteError: It cannot be written.
        """
        reply = parcel.kept.reply
        name = _name(reply.study_digest, reply.run, reply.round)
        header = parcel.kept.model_dump_json().encode()
        plain = struct.pack("<I", len(header)) + header + save(parcel.update)
        self._vault.write(self._folder / name, plain, f"outbox/{name}")

    def find(self, request: Request, weights: Weights) -> Parcel | None:
        """Return the answer to a request that was computed before, from the same weights.

        A damaged file counts as lost: it is as if the answer had never been kept.
        """
        path = self._folder / _name(request.study_digest, request.run, request.round)
        parcel = self._read(path) if path.exists() else None
        if parcel is None or parcel.kept.incoming != digest(weights):
            return None
        return parcel if _answers(parcel, request) else None

    def confirm(self, request: Request) -> None:
        """Drop answers of the study that the server has moved past, and has seen the cost of."""
        for path, parcel in list(self._parcels()):
            reply = parcel.kept.reply
            moved_on = request.study_digest == reply.study_digest and (
                request.run != reply.run or request.round > reply.round
            )
            seen = request.known_head.entries if request.known_head else 0
            if moved_on and seen > max(parcel.kept.reservations, default=0):
                path.unlink(missing_ok=True)
                sync_folder(self._folder)

    def unsendable(self) -> list[Path]:
        """Return the files that hold no answer this release could send."""
        return [path for path in sorted(self._folder.glob("*.sealed")) if not self._read(path)]

    def _parcels(self) -> Iterator[tuple[Path, Parcel]]:
        for path in sorted(self._folder.glob("*.sealed")):
            parcel = self._read(path)
            if parcel:
                yield path, parcel

    def _read(self, path: Path) -> Parcel | None:
        try:
            plain = self._vault.read(path, f"outbox/{path.name}")
            (length,) = struct.unpack_from("<I", plain)
            kept = Kept.model_validate_json(plain[4 : 4 + length])
            return Parcel(kept, load(plain[4 + length :]))
        except (SiteError, ValidationError, SafetensorError, struct.error):
            return None


def digest(weights: Weights) -> str:
    """Return the SHA-256 of weights: names, shapes and float32 values, in order of the names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], dtype="<f4")
        total.update(f"{name}\0{array.shape}\0".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _answers(parcel: Parcel, request: Request) -> bool:
    outcomes = {"describe": "described", "train": "update", "evaluate": "evaluated"}
    return parcel.kept.reply.outcome == outcomes[request.task]


def _name(study: str, run: str, round_number: int) -> str:
    """Return a file name; hashed, since a run's name comes from the server."""
    return hashlib.sha256(f"{study}/{run}/{round_number}".encode()).hexdigest() + ".sealed"
