"""Files in the layout of MedMNIST as a data set: one image stands in for one patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from client.data.resize import fit
from shared.errors import DataError, SimulationError
from shared.study_parts import Plan
from simulations.data_files import find_data
from simulations.medmnist import MedMnist, Pool, read_medmnist
from simulations.parts import Indices
from simulations.patients import Dataset, Facts, Patients, require_classes, without_pixels

Scaled = Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.float32]]
"""Brings images to a side in pixels, as a study takes them."""


class NpzData(Plan):
    """A MedMNIST file: training and validation part for the sites, test part for the test."""

    source: Literal["npz"]
    path: str
    classes: tuple[str, ...] = Field(default=(), description="names; default: class-0, ...")
    size: int = Field(default=0, ge=0, le=256, description="side in pixels; 0: the file's own")
    findings: bool = Field(
        default=False, description="every class but the first as a finding that may be unknown"
    )
    patients: int = Field(default=0, ge=0, description="so many, chosen by the seed; 0: all")

    def facts(self) -> Facts:
        """Return what the file says, its doubles already counted.

        Raises:
            SimulationError: It is missing, not of this layout, or the names do not fit.
        """
        return self._facts(self._told())

    def load(self, seed: int) -> Dataset:
        """Load the file.

        Raises:
            SimulationError: As `facts`.
        """
        return self._dataset(_read(Path(find_data(self.path))), seed, _scaled)

    def outline(self, seed: int) -> Dataset:
        """Return the same patients with images of no pixels; once the file is known, at once."""
        return self._dataset(self._told(), seed, lambda images, _: without_pixels(len(images)))

    def _dataset(self, data: MedMnist, seed: int, scaled: Scaled) -> Dataset:
        facts, pool = self._facts(data), data.hospitals
        if 0 < self.patients < len(pool):
            chosen = np.random.default_rng([seed, 11]).permutation(len(pool))[: self.patients]
            pool = pool[np.sort(chosen)]
        train, test = (
            Patients(
                scaled(part.images, facts.size),
                np.arange(len(part), dtype=np.int64),
                _labels(part, facts),
            )
            for part in (pool, data.test)
        )
        return Dataset(facts, train, test)

    def _told(self) -> MedMnist:
        path = Path(find_data(self.path))
        known = path.stat()
        return _read_once(path, known.st_size, known.st_mtime_ns)

    def _facts(self, data: MedMnist) -> Facts:
        several = data.test.labels.ndim == 2
        found = data.test.labels.shape[1] if several else _classes(data)
        start = int(self.findings and not several)
        names = self.classes or tuple(f"class-{index}" for index in range(start, found))
        if len(names) != found - start:
            raise SimulationError(
                f"the data has {found - start} {'findings' if several or start else 'classes'}, "
                f"but {len(names)} names are given",
                self.path,
                "Name every one in data.classes"
                + (", without the first class, which is none of them" if start else ""),
            )
        side = max(data.test.images.shape[1:3])
        facts = Facts(
            name=Path(self.path).stem,
            classes=names,
            findings=several or self.findings,
            size=self.size or min(max(side, 28), 256),
            channels=1 if data.test.images.ndim == 3 else 3,
            notes=data.notes,
        )
        require_classes(_labels(data.hospitals, facts), facts)
        return facts


def _read(path: Path) -> MedMnist:
    try:
        return read_medmnist(path, several=True)
    except DataError as error:
        raise SimulationError(error.what, error.where, error.todo) from None


@lru_cache(maxsize=8)  # reading takes seconds, and a sweep asks about the same file for each cell
def _read_once(path: Path, size: int, changed: int) -> MedMnist:
    """Read a file of this size and time of change, and keep all but the pixels.

    Images of the test part keep their shape, without its memory, and the hospitals' have none.
    """
    data = _read(path)
    labels, test = data.hospitals.labels, data.test
    return replace(
        data,
        hospitals=Pool(np.zeros((len(labels), 0, 0), dtype=np.uint8), labels),
        test=Pool(np.broadcast_to(np.uint8(0), test.images.shape), test.labels),
    )


def _labels(pool: Pool, facts: Facts) -> Indices:
    """Return labels as a study has them; of classes as findings, one a finding."""
    if facts.findings and pool.labels.ndim == 1:
        classes = np.arange(1, len(facts.classes) + 1)
        return np.asarray(pool.labels[:, None] == classes, dtype=np.int64)
    return pool.labels


def _classes(data: MedMnist) -> int:
    return int(max(data.hospitals.labels.max(initial=0), data.test.labels.max(initial=0))) + 1


def _scaled(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float32]:
    """Bring images to float32 [n, channels, size, size] in [-1, 1], as hospitals do."""
    grey = images.astype(np.float32) / np.float32(255)
    planes = grey[:, None] if grey.ndim == 3 else np.moveaxis(grey, 3, 1)
    if planes.shape[2:] != (size, size):
        planes = np.stack([fit(image, size) for image in planes])
    return np.ascontiguousarray(np.clip(planes * 2 - 1, np.float32(-1), np.float32(1)))
