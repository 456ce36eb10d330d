"""Data sets of the simulation harness: patients in plain arrays, whatever they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from shared.study_parts import Column, Plan

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Patients:
    """Patients with their images, or rows of a table; `len` is the number of patients.

    Args:
        images: float32 [n_images, channels, size, size] in [-1, 1], as a hospital's pipeline
            gives them; or table rows [n_patients, columns], numbers scaled from their range to
            [-1, 1], categories as their index, NaN where a value is missing.
        image_patient: int64 [n_images], ascending: each image's index into the patients.
        labels: int64 [n_patients], class index; of findings [n_patients, findings] in {0, 1}.
            -1 where nobody knows.
        groups: Of each patient int64 [n_patients], index into the group's names, -1 unknown:
            "hospital", "scanner", "sex", "age", ...
    """

    images: npt.NDArray[np.float32]
    image_patient: Indices
    labels: Indices
    groups: dict[str, Indices] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: npt.ArrayLike) -> Patients:
        """Return the patients at these indices, in this order, with all their images."""
        index = np.asarray(chosen, dtype=np.int64)
        counts = np.bincount(self.image_patient, minlength=len(self))
        first = np.cumsum(counts) - counts
        own = counts[index]
        owners = np.repeat(np.arange(len(index)), own)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(own) - own, own)
        return Patients(
            self.images[first[index][owners] + within],
            owners.astype(np.int64),
            self.labels[index],
            {name: values[index] for name, values in self.groups.items()},
        )


def concatenate(parts: Sequence[Patients]) -> Patients:
    """Return all patients in the order of the parts, which must have the same groups."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    owners = [part.image_patient + start for part, start in zip(parts, starts, strict=False)]
    return Patients(
        np.concatenate([part.images for part in parts]),
        np.concatenate(owners),
        np.concatenate([part.labels for part in parts]),
        {
            name: np.concatenate([part.groups[name] for part in parts])
            for name in (parts[0].groups if parts else ())
        },
    )


@dataclass(frozen=True)
class Facts:
    """What is known of a data set without loading it.

    Args:
        name: For tables and titles.
        classes: Names of the classes, or of the findings.
        findings: Whether each class is a finding by itself.
        size: Side of an image in pixels; 0 for a table.
        channels: 1 or 3; 0 for a table.
        columns: Columns of a table.
        group_names: Of each group the names of its cells.
        notes: What a reader should know, a clause each.
    """

    name: str
    classes: tuple[str, ...]
    findings: bool = False
    size: int = 0
    channels: int = 0
    columns: tuple[Column, ...] = ()
    group_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A data set: patients for the sites, and the common test set."""

    facts: Facts
    train: Patients
    test: Patients


class PhantomData(Plan):
    """Chest phantoms made up in memory; nothing is needed."""

    source: Literal["phantoms"] = "phantoms"
    patients: int = Field(default=1200, ge=4, le=200_000, description="of all sites together")
    test_patients: int = Field(default=400, ge=4, le=200_000)
    prevalence: float = Field(default=0.4, gt=0, lt=1, description="patients with an opacity")
    scanners: int = Field(default=3, ge=1, le=20, description="different scanners they came to")
    images: int = Field(default=3, ge=1, le=16, description="most images of a patient")
    size: int = Field(default=32, ge=28, le=256, description="side in pixels")
    findings: bool = Field(default=False, description="the opacity as a finding that may be unknown")


class NpzData(Plan):
    """A file in the layout of MedMNIST; one image stands in for one patient."""

    source: Literal["npz"]
    path: str
    classes: tuple[str, ...] = Field(default=(), description="names; default: class-0, ...")
    size: int = Field(default=0, ge=0, le=256, description="side in pixels; 0: the file's own")
    findings: bool = Field(default=False, description="classes but the first as findings")
    patients: int = Field(default=0, ge=0, description="use only so many, by the seed; 0: all")


class DicomData(Plan):
    """A folder of DICOM images with a table of labels."""

    source: Literal["dicom"]
    path: str = Field(description="folder of images")
    labels: str = Field(description="CSV table with the columns file, patient, label")
    classes: tuple[str, ...] = Field(default=(), description="default: all labels, sorted")
    groups: tuple[str, ...] = Field(default=(), description="columns that group the patients")
    size: int = Field(default=64, ge=28, le=256, description="side in pixels")
    channels: Literal[1, 3] = 1
    window: Literal["file", "full"] | tuple[float, float] = "file"
    test_part: float = Field(default=0.25, gt=0, lt=1, description="patients for the common test")


class TableData(Plan):
    """A CSV table with a header, one row a patient."""

    source: Literal["table"]
    path: str
    columns: tuple[Column, ...] = Field(min_length=1)
    label: str = Field(description="name of the label's column")
    values: dict[str, str] = Field(default_factory=dict, description="label value -> class")
    classes: tuple[str, ...] = Field(default=(), description="default: all labels, sorted")
    groups: tuple[str, ...] = Field(default=(), description="columns that group the patients")
    missing: tuple[str, ...] = Field(default=("", "?", "NA", "NaN"), description="no value")
    zero_missing: tuple[str, ...] = Field(default=(), description="columns where 0 means that")
    test_part: float = Field(default=0.25, gt=0, lt=1, description="patients for the common test")


class HeartDiseaseData(Plan):
    """UCI heart disease: four real hospitals, 13 columns, really incomplete."""

    source: Literal["heart-disease"]
    path: str = "heart_disease"
    test_part: float = Field(default=0.25, gt=0, lt=1, description="of each hospital's patients")


Data = Annotated[
    PhantomData | NpzData | DicomData | TableData | HeartDiseaseData,
    Field(discriminator="source"),
]


def describe_dataset(data: Any) -> Facts:
    """Return what is known of a data set before it is loaded."""
    raise NotImplementedError


def load_dataset(data: Any, seed: int) -> Dataset:
    """Load a data set."""
    raise NotImplementedError
