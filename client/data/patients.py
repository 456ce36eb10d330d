"""Patients as training and evaluation take them: tensors, labels and pseudonyms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from client.data.report import DataReport
from shared.study import Study


@dataclass(frozen=True)
class PatientSet:
    """Patients with their images, or rows of a table; `len` is the number of patients.

    Args:
        images: float32 [n_images, channels, size, size] in [-1, 1]. In studies of a table the
            rows [n_rows, columns]: numbers scaled from their range to [-1, 1], categories as
            their index, NaN where a value is missing.
        image_patient: int64 [n_images], ascending: each image's index into the patients.
        labels: int64 [n_patients]: each patient's class index in the study. In studies of
            findings [n_patients, findings]: 0 or 1, and -1 where nobody knows.
        patients: Each patient's pseudonym (keyed hash, 64 hex digits), ascending.
        groups: In studies that ask for subgroups, for each grouping int64 [n_patients]: each
            patient's index into the grouping's cells, `shared.subgroups.CELLS`.
    """

    images: torch.Tensor
    image_patient: torch.Tensor
    labels: torch.Tensor
    patients: tuple[str, ...]
    groups: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.patients)

    def only(self, stays: torch.Tensor) -> PatientSet:
        """Return the patients that stay, with all that belongs to them.

        Args:
            stays: Whether each patient does, bool [n_patients].
        """
        images = stays[self.image_patient]
        return PatientSet(
            images=self.images[images],
            image_patient=(stays.cumsum(0) - 1)[self.image_patient[images]],
            labels=self.labels[stays],
            patients=tuple(itertools.compress(self.patients, stays.tolist())),
            groups={name: cells[stays] for name, cells in self.groups.items()},
        )


def trainable(patients: PatientSet, study: Study) -> PatientSet:
    """Return the patients a study trains on: only complete ones, where it drops the others.

    Those held out are scored all the same, since a model must have an answer for everybody.
    """
    if study.table is None or study.table.missing != "drop":
        return patients
    incomplete = patients.images.isnan().any(dim=1)
    return patients.only(~incomplete) if bool(incomplete.any()) else patients


@dataclass(frozen=True)
class Cohort:
    """A study's patients at a site, each on one side only.

    Attributes:
        train: To train on.
        held_out: To evaluate on.
        report: What the data came to.
        names: Each patient's id by pseudonym, for the hospital's own eyes.
    """

    train: PatientSet
    held_out: PatientSet
    report: DataReport
    names: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def patients(self) -> int:
        """Number of patients, of both sides."""
        return len(self.train) + len(self.held_out)

    def __post_init__(self) -> None:
        if not set(self.train.patients).isdisjoint(self.held_out.patients):
            raise ValueError("a patient is both trained on and held out")
