"""Writes a hospital as it would be found: a folder of DICOM files and a table of labels."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from pydicom import dcmwrite
from pydicom.uid import UID

from shared.errors import DataError
from simulations.scanners import Exam, Pixels, Scanner, scanner, to_dicom


@dataclass(frozen=True)
class Patient:
    """One patient and the images taken.

    Attributes:
        id: Patient ID.
        label: The class, as the labels table names it.
        images: Each float32 [rows, columns] or [rows, columns, 3] in [0, 1].
        scanner: What stores the images.
        sex: M, F, O or empty.
        age: Years, or None where it is not known.
    """

    id: str
    label: str
    images: Sequence[Pixels]
    scanner: Scanner
    sex: str = ""
    age: int | None = None


@dataclass(frozen=True)
class Defects:
    """How many images of a folder are spoiled on purpose, each in one way.

    Attributes:
        truncated: Files that end in the middle of the pixels.
        unlabelled: Images without a row in the labels table.
        missing: Rows of the labels table whose image is not there.
    """

    truncated: int = 0
    unlabelled: int = 0
    missing: int = 0


@dataclass(frozen=True)
class HospitalFolder:
    """A folder that was written.

    Attributes:
        name: The hospital's name.
        path: The folder.
        images: The folder of DICOM files in it.
        labels: The table of labels in it, with columns file, patient and label.
        patients: How many patients were written, incomplete ones included.
        classes: All labels of the data set.
        size: Side in pixels that is enough to learn from.
        channels: 1 for grey, 3 for colour.
        notes: What a reader should know of this folder, a clause each.
    """

    name: str
    path: Path
    images: Path
    labels: Path
    patients: int
    classes: tuple[str, ...]
    size: int
    channels: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HospitalSpec:
    """A hospital to be made up.

    Attributes:
        name: The hospital's name.
        patients: How many patients it has.
        prevalence: Part of them with the finding.
        scanner: How it takes images.
        shape: Rows and columns of its images.
    """

    name: str
    patients: int
    prevalence: float
    scanner: Scanner
    shape: tuple[int, int]


def shares(sites: int) -> list[float]:
    """Return the part of the patients each site has, largest first; the sum is 1.

    Three sites have 60, 30 and 10 %. Any other number follows a geometric law in which the
    largest site is six times the smallest.

    Raises:
        ValueError: There are no sites.
    """
    if sites < 1:
        raise ValueError("a federation needs at least one site")
    if sites == 3:
        return [0.6, 0.3, 0.1]
    weights = 6.0 ** -np.linspace(0, 1, sites)
    return [float(weight) for weight in weights / weights.sum()]


def split_counts(total: int, parts: Sequence[float]) -> list[int]:
    """Cut a number into whole numbers in these proportions; they sum to it exactly."""
    edges = np.rint(np.cumsum([0.0, *parts]) / sum(parts) * total).astype(int)
    return [int(count) for count in np.diff(edges)]


def default_hospitals(sites: int, patients: int) -> list[HospitalSpec]:
    """Describe hospitals that differ in size, prevalence, scanner and image shape.

    Raises:
        ValueError: A site would have fewer than two patients.
    """
    counts = split_counts(patients, shares(sites))
    if min(counts) < 2:
        raise ValueError(f"{patients} patients are too few for {sites} sites")
    prevalence = islice(cycle((0.45, 0.35, 0.55)), sites)
    shapes = islice(cycle(((104, 92), (96, 96), (112, 88))), sites)
    return [
        HospitalSpec(f"hospital-{index + 1}", count, part, scanner(index), shape)
        for index, (count, part, shape) in enumerate(zip(counts, prevalence, shapes, strict=True))
    ]


def write_hospital(
    path: Path,
    patients: Iterable[Patient],
    *,
    classes: Sequence[str],
    size: int,
    channels: int,
    sop_class: UID,
    seed: int,
    defects: Defects | None = None,
    notes: Sequence[str] = (),
) -> HospitalFolder:
    """Write a hospital's images and labels into a new folder.

    Files are numbered in the order of the patients, which must not depend on the labels.

    Args:
        path: The folder to make; its last part is the hospital's name.
        patients: Taken one at a time.
        classes: All labels of the data set.
        size: Side in pixels that is enough to learn from.
        channels: 1 or 3.
        sop_class: `DIGITAL_X_RAY` or `SECONDARY_CAPTURE`.
        seed: The same seed and patients give the same bytes.
        defects: What to spoil; the images are chosen by the seed.
        notes: Added to the folder's notes.

    Raises:
        DataError: The folder exists already or cannot be written.
    """
    images, labels = path / "images", path / "labels.csv"
    try:
        images.mkdir(parents=True)
        rows: list[Row] = []
        count = 0
        for patient in patients:
            count += 1
            rows += _write_images(images, len(rows), patient, path.name, sop_class, seed)
        unlabelled = _spoil(images, rows, defects or Defects(), seed)
        with labels.open("w", encoding="utf-8", newline="") as table:
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(("file", "patient", "label"))
            writer.writerows(row for row in rows if row not in unlabelled)
    except OSError as error:
        raise DataError(
            f"cannot write the images: {error.strerror}",
            str(path),
            "Give a new folder on a disk with space",
        ) from None
    told = (f"{len(rows)} images", *_describe(defects or Defects()), *notes)
    return HospitalFolder(
        path.name, path, images, labels, count, tuple(classes), size, channels, told
    )


Row = tuple[str, str, str]


def _write_images(
    folder: Path, written: int, patient: Patient, hospital: str, sop_class: UID, seed: int
) -> list[Row]:
    rows = []
    for number, image in enumerate(patient.images, start=1):
        exam = Exam(sop_class, hospital, patient.id, patient.sex, patient.age, number, seed)
        name = f"image-{written + number:06d}.dcm"
        dcmwrite(folder / name, to_dicom(image, patient.scanner, exam), enforce_file_format=True)
        rows.append((name, patient.id, patient.label))
    return rows


def _spoil(folder: Path, rows: list[Row], defects: Defects, seed: int) -> set[Row]:
    """Spoil images chosen without regard to the label; return the rows to leave out."""
    chosen = iter(np.random.default_rng([seed, len(rows)]).permutation(len(rows)))
    for index in islice(chosen, defects.truncated):
        file = folder / rows[index][0]
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    for index in islice(chosen, defects.missing):
        (folder / rows[index][0]).unlink()
    return {rows[index] for index in islice(chosen, defects.unlabelled)}


def _describe(defects: Defects) -> list[str]:
    told = {
        "truncated files": defects.truncated,
        "images without a label": defects.unlabelled,
        "labels without an image": defects.missing,
    }
    return [f"{count} {what}" for what, count in told.items() if count]
