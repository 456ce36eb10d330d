"""The patients of a simulation in files that all processes map, so that memory holds them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from client.augment import is_active
from client.data.cohort import PatientSet
from shared.models import build_model
from shared.models.front import SeesWavelets
from shared.study import Study
from shared.subgroups import CELLS
from simulations.patients import Patients

if TYPE_CHECKING:
    from simulations.build import Federation

Images = npt.NDArray[np.float32]

MOST_SEEN = 2**31
"""Most bytes for what the first steps make of all images; more is not kept, but made each time."""

_BATCH = 256


class Span(BaseModel):
    """Where one side of a site is in the files: rows of images, and of patients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_image: int
    images: int
    first_patient: int
    patients: int


class Sides(BaseModel):
    """Where a site's patients are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Span
    held_out: Span


def write_stage(folder: Path, federation: Federation, study: Study) -> tuple[Sides, ...]:
    """Write all sites' patients, one after the other, and tell where each site's are.

    Patients without a class are left out, as a hospital sets them aside; of findings, those of
    which nothing is known. Where the model has fixed first steps and nothing changes the images
    before them, what those make of the images is written in their place, for the work of the
    steps would be done again in every round; if that fits in `MOST_SEEN` bytes.

    Args:
        folder: An existing folder.
        federation: The sites.
        study: Says which groups of patients are needed.
    """
    pairs = [(_labelled(site.train), _labelled(site.held_out)) for site in federation.sites]
    parts = [part for pair in pairs for part in pair]
    images, patients = sum(len(part.images) for part in parts), sum(map(len, parts))
    _write(folder / "images.npy", _prepared([part.images for part in parts], study), images)
    _write(folder / "owners.npy", (part.image_patient for part in parts), images)
    _write(folder / "labels.npy", (part.labels for part in parts), patients)
    for name in study.privacy.subgroups:
        cells = (_cells(part, name) for part in parts)
        _write(folder / f"group-{name}.npy", cells, patients)
    spans, image, patient = [], 0, 0
    for part in parts:
        spans.append(
            Span(
                first_image=image,
                images=len(part.images),
                first_patient=patient,
                patients=len(part),
            )
        )
        image, patient = image + len(part.images), patient + len(part)
    return tuple(
        Sides(train=train, held_out=held_out)
        for train, held_out in zip(spans[::2], spans[1::2], strict=True)
    )


class Stage:
    """The files of `write_stage`, mapped into memory.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        # Mapped copy-on-write: PyTorch warns of arrays that cannot be written to, and nobody
        # writes, so all processes share the pages.
        self._arrays = {p.stem: np.load(p, mmap_mode="c") for p in folder.glob("*.npy")}

    def patients(self, span: Span) -> PatientSet:
        """Return one side of a site, in the order it was written."""
        images = slice(span.first_image, span.first_image + span.images)
        patients = slice(span.first_patient, span.first_patient + span.patients)
        return PatientSet(
            images=torch.from_numpy(self._arrays["images"][images]),
            image_patient=torch.from_numpy(self._arrays["owners"][images]),
            labels=torch.from_numpy(self._arrays["labels"][patients]),
            # In place of keyed hashes, which would shuffle the patients anew in every run.
            patients=tuple(f"{number:064x}" for number in range(patients.start, patients.stop)),
            groups={
                name.removeprefix("group-"): torch.from_numpy(cells[patients])
                for name, cells in self._arrays.items()
                if name.startswith("group-")
            },
        )


def _labelled(patients: Patients) -> Patients:
    known = patients.labels >= 0
    stays = known.any(axis=1) if known.ndim == 2 else known
    return patients if stays.all() else patients.take(np.flatnonzero(stays))


def _cells(patients: Patients, name: str) -> npt.NDArray[np.int64]:
    """Return each patient's cell; those of whom it is not known are in the last."""
    last = len(CELLS[name]) - 1
    cells = patients.groups.get(name, np.full(len(patients), last, np.int64))
    return np.where(cells < 0, last, cells)


def _prepared(parts: list[Images], study: Study) -> Iterator[Images]:
    """Yield the images, or what the model's fixed first steps make of them."""
    model = None if study.table else build_model(study)
    if not isinstance(model, SeesWavelets) or is_active(study.training.augment):
        yield from parts
        return
    one = _seen(model, np.zeros((1, *parts[0].shape[1:]), np.float32))
    fits = one.nbytes * sum(map(len, parts)) <= MOST_SEEN
    yield from (_seen(model, part) if fits else part for part in parts)


def _seen(model: SeesWavelets, images: Images) -> Images:
    """Make the first steps, on one thread and in full batches, lest the last bits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    blank = np.zeros((_BATCH, *images.shape[1:]), images.dtype)
    seen = []
    try:
        with torch.no_grad():
            for start in range(0, max(1, len(images)), _BATCH):
                part = images[start : start + _BATCH]
                seen.append(model.see(torch.tensor(np.concatenate([part, blank[len(part) :]]))))
        return np.concatenate(seen)[: len(images)]
    finally:
        torch.set_num_threads(threads)


def _write(path: Path, parts: Iterable[npt.NDArray[np.generic]], length: int) -> None:
    """Write arrays one after the other into one file, without joining them in memory."""
    rest = iter(parts)
    first = next(rest)
    shape = (length, *first.shape[1:])
    whole = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=shape)
    start = 0
    for part in chain([first], rest):
        whole[start : start + len(part)] = part
        start += len(part)
    whole.flush()
