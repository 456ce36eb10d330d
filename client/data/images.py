"""Decoding the labelled images, or taking them from the encrypted cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import numpy as safetensors

from client.data.folder import ImageFile, content_digest
from client.data.reasons import Reason
from client.data.worker import DecodeWorker
from client.site import SiteConfig
from client.vault import Vault
from shared.errors import SiteError
from shared.study import Input
from shared.subgroups import CELLS

PIPELINE = (
    "attributes",
    "display",
    "frames",
    "geometry",
    "header",
    "kinds",
    "lookup",
    "pixels",
    "reasons",
    "resize",
    "streams",
    "text",
)
"""Modules beside this one that have a say in what a file decodes to: a change of any is another
pipeline, and what the one before decoded is not taken from the cache."""

DECODERS = (
    "pydicom",
    "python-gdcm",
    "pillow",
    "numpy",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "pyjpegls",
)
"""Packages that have a say in it too."""


@dataclass(frozen=True)
class Job:
    """One file to decode."""

    file: ImageFile
    want_patient: bool  # whether the labels table leaves open whose it is


@dataclass(frozen=True)
class Images:
    """What became of a list of jobs, in their order."""

    pixels: npt.NDArray[np.float32]  # [decoded jobs, channels, size, size] in [-1, 1]
    reasons: tuple[Reason | None, ...]  # one a job; None: decoded
    patients: tuple[str, ...]  # one a job; empty unless it was wanted and found
    cells: npt.NDArray[np.uint8]  # [decoded jobs, groupings]


def decode_images(
    jobs: Sequence[Job], spec: Input, config: SiteConfig, groupings: Sequence[str] = ()
) -> Images:
    """Decode files one by one in a process that is killed and replaced when one harms it.

    Raises:
        SiteError: The decoding process does not start.
    """
    # Pages that are never written cost no memory, so failed jobs cost none.
    pixels = np.empty((len(jobs), spec.channels, spec.size, spec.size), dtype=np.float32)
    reasons: list[Reason | None] = []
    patients: list[str] = []
    cells = np.zeros((len(jobs), len(groupings)), dtype=np.uint8)
    decoded = 0
    compute = config.compute
    with DecodeWorker(
        spec,
        seconds=compute.decode_seconds,
        memory_mb=compute.decode_memory_mb,
        groupings=groupings,
    ) as worker:
        for job in jobs:
            result = worker.decode(job.file.path, want_patient=job.want_patient)
            reason, patient = result.reason, result.patient
            if result.image is not None:
                if job.want_patient and not patient:
                    reason, patient = _stand_in(job, config)
                pixels[decoded], cells[decoded] = result.image, result.cells
                decoded += reason is None
            reasons.append(reason)
            patients.append(patient)
    return Images(pixels[:decoded], tuple(reasons), tuple(patients), cells[:decoded])


def read_cache(path: Path, vault: Vault, key: str) -> Images | None:
    """Return what `write_cache` kept, or None if that is absent, changed, or of another key."""
    try:
        content = vault.read(path, _context(key))
    except SiteError:
        return None
    tensors = safetensors.load(content)
    facts = json.loads(tensors["facts"].tobytes())
    reasons = tuple(Reason(code) if code else None for code in facts["reasons"])
    return Images(tensors["pixels"], reasons, tuple(facts["patients"]), tensors["cells"])


def write_cache(path: Path, vault: Vault, key: str, images: Images) -> None:
    """Keep decoded images, encrypted, in place of what was kept before.

    Raises:
        SiteError: The file cannot be written; what was there before is untouched.
    """
    facts = {"reasons": [str(reason or "") for reason in images.reasons]}
    facts["patients"] = list(images.patients)
    content = safetensors.save(
        {
            "pixels": np.ascontiguousarray(images.pixels),
            "cells": np.ascontiguousarray(images.cells),
            "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        }
    )
    vault.write(path, content, _context(key))


def cache_key(
    jobs: Sequence[Job], spec: Input, config: SiteConfig, groupings: Sequence[str] = ()
) -> str:
    """Return a digest of all that decides what `decode_images` returns.

    Labels have no part in it: they are read from the table every time and never cached.
    """
    compute = config.compute
    facts = {
        "pipeline": _pipeline(),
        "decoders": {name: _version(name) for name in DECODERS},
        "input": spec.model_dump(mode="json"),
        "groupings": [(name, CELLS[name]) for name in groupings],
        "limits": [compute.decode_seconds, compute.decode_memory_mb],
        "without_patient_id": config.data.without_patient_id,
        "jobs": [
            (job.file.path, job.file.size, job.file.modified, job.want_patient) for job in jobs
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _stand_in(job: Job, config: SiteConfig) -> tuple[Reason | None, str]:
    """Return the patient of an image nobody says whose it is, as the site decided.

    The stand-in follows from the file's content, so that renaming it opens no fresh account.
    """
    if config.data.without_patient_id == "refuse":
        return Reason.NO_PATIENT_ID, ""
    try:
        return None, f"image/{content_digest(job.file.path)}"
    except OSError:
        return Reason.UNREADABLE_FILE, ""


@cache
def _pipeline() -> str:
    """Return a digest of the pipeline's source."""
    folder = Path(__file__).parent
    source = b"".join((folder / f"{name}.py").read_bytes() for name in PIPELINE)
    return hashlib.sha256(source).hexdigest()


def _context(key: str) -> str:
    return f"images/{key}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
