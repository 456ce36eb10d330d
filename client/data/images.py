"""Decoding the labelled images, or taking them from the encrypted cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import SystemRandom

import numpy as np
import numpy.typing as npt
from safetensors import numpy as safetensors

from client.data.folder import ImageFile, content_digest
from client.data.reasons import PASSING, Reason
from client.data.worker import Decoded, DecodeWorker
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


RETRY_SECONDS = 60.0
"""Longest time one look at the cohort spends on files that failed before, but for the last one."""


def decode_images(
    jobs: Sequence[Job], spec: Input, config: SiteConfig, groupings: Sequence[str] = ()
) -> Images:
    """Decode files one by one in a process that is killed and replaced when one harms it.

    Raises:
        SiteError: The decoding process does not start.
    """
    return _collected(len(jobs), _decoded(jobs, spec, config, groupings), spec, groupings)


def try_again(
    images: Images,
    jobs: Sequence[Job],
    spec: Input,
    config: SiteConfig,
    groupings: Sequence[str] = (),
    seconds: float = RETRY_SECONDS,
) -> Images:
    """Decode those files again that failed for a reason that passes.

    Files may be as slow as before: no new one is begun after so many seconds, and the order is
    another each time, so that each has its turn.

    Args:
        images: What became of the jobs.
        jobs: All of them.
        spec: The study's input.
        config: The site's settings.
        groupings: Those for which the image's cell is wanted too.
        seconds: To spend on it.

    Returns:
        The same object if nothing is otherwise now.

    Raises:
        SiteError: The decoding process does not start.
    """
    failed = [at for at, reason in enumerate(images.reasons) if reason in PASSING]
    SystemRandom().shuffle(failed)
    fresh: dict[int, Decoded] = {}
    deadline = time.monotonic() + seconds
    tried = _decoded([jobs[at] for at in failed], spec, config, groupings)
    for at, result in zip(failed, tried, strict=True):
        if result.reason != images.reasons[at]:
            fresh[at] = result
        if time.monotonic() > deadline:
            break
    if not fresh:
        return images
    return _collected(len(jobs), _merged(images, fresh), spec, groupings)


def _decoded(
    jobs: Sequence[Job], spec: Input, config: SiteConfig, groupings: Sequence[str]
) -> Iterator[Decoded]:
    """Yield what becomes of each job."""
    limits = config.compute
    with DecodeWorker(
        spec,
        seconds=limits.decode_seconds,
        memory_mb=limits.decode_memory_mb,
        groupings=groupings,
    ) as worker:
        for job in jobs:
            result = worker.decode(job.file.path, want_patient=job.want_patient)
            if result.image is not None and job.want_patient and not result.patient:
                result = _stand_in(result, job, config)
            yield result


def _merged(images: Images, fresh: Mapping[int, Decoded]) -> Iterator[Decoded]:
    """Yield what became of each job, as it is now."""
    kept = zip(images.pixels, images.cells, strict=True)
    for at, (reason, patient) in enumerate(zip(images.reasons, images.patients, strict=True)):
        if at in fresh:
            yield fresh[at]
        elif reason:
            yield Decoded(reason=reason)
        else:
            pixels, cells = next(kept)
            yield Decoded(image=pixels, patient=patient, cells=tuple(cells))


def _collected(
    count: int, results: Iterable[Decoded], spec: Input, groupings: Sequence[str]
) -> Images:
    # Pages that are never written cost no memory, so failed jobs cost none.
    pixels = np.empty((count, spec.channels, spec.size, spec.size), dtype=np.float32)
    cells = np.zeros((count, len(groupings)), dtype=np.uint8)
    reasons: list[Reason | None] = []
    patients: list[str] = []
    decoded = 0
    for result in results:
        if result.image is not None:
            pixels[decoded], cells[decoded] = result.image, result.cells
            decoded += 1
        reasons.append(result.reason)
        patients.append(result.patient)
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


def _stand_in(result: Decoded, job: Job, config: SiteConfig) -> Decoded:
    """Return an image nobody says whose it is with the patient the site decided it has.

    The stand-in follows from the file's content, so that renaming it opens no fresh account.
    """
    if config.data.without_patient_id == "refuse":
        return Decoded(reason=Reason.NO_PATIENT_ID)
    try:
        return replace(result, patient=f"image/{content_digest(job.file.path)}")
    except OSError:
        return Decoded(reason=Reason.UNREADABLE_FILE)


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
