"""What sites' data lack: labels, images, table values, a class or a column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy.special import expit

from shared.study_parts import Plan
from simulations.parts import Indices, Which
from simulations.patients import Facts, Patients

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Removed:
    """What one part took away at one site.

    Args:
        what: "label", "wrong label", "image", "patient" or "value".
        name: Of which class, finding, column or group.
        count: How many.
    """

    what: Literal["label", "wrong label", "image", "patient", "value"]
    name: str
    count: int


Degraded = tuple[Patients, list[Removed]]


class MissingLabels(Plan):
    """Labels nobody wrote down: they become -1."""

    kind: Literal["missing-labels"]
    sites: Which = "all"
    part: float = Field(default=1.0, gt=0, le=1, description="chance of each label to be missing")
    classes: tuple[str, ...] = Field(default=(), description="only of these classes or findings")
    only: Literal["any", "present", "absent"] = Field(
        default="any",
        description="of findings: lose any label, only those that say present, or only absent "
        "(so that with part = 1 nothing but positives is known)",
    )

    def __call__(self, patients: Patients, facts: Facts, rng: np.random.Generator) -> Degraded:
        """Return the patients with fewer labels, and how many were lost of each class."""
        lost = (rng.random(patients.labels.shape) < self.part) & (patients.labels >= 0)
        lost &= _of_classes(patients.labels, facts, self.classes)
        if self.only != "any":
            lost &= patients.labels == (1 if self.only == "present" else 0)
        labels = np.where(lost, -1, patients.labels)
        return replace(patients, labels=labels), _counted("label", lost, patients.labels, facts)


class LabelNoise(Plan):
    """Labels that are wrong: another class, each as likely; the opposite of a finding."""

    kind: Literal["label-noise"]
    sites: Which = "all"
    part: float = Field(gt=0, le=1, description="chance of each label to be another")
    classes: tuple[str, ...] = Field(default=(), description="only of these classes or findings")

    def __call__(self, patients: Patients, facts: Facts, rng: np.random.Generator) -> Degraded:
        """Return the patients with wrong labels, and how many of each (true) class are wrong."""
        labels = patients.labels
        wrong = (rng.random(labels.shape) < self.part) & (labels >= 0)
        wrong &= _of_classes(labels, facts, self.classes)
        kinds = 2 if facts.findings else len(facts.classes)
        other = (labels + rng.integers(1, kinds, labels.shape)) % kinds
        noisy = np.where(wrong, other, labels)
        return replace(patients, labels=noisy), _counted("wrong label", wrong, labels, facts)


class MissingImages(Plan):
    """Images that are not there, or whose files are broken; a patient without any is left out."""

    kind: Literal["missing-images", "broken-files"]
    sites: Which = "all"
    part: float = Field(gt=0, le=1, description="chance of each image to be lost")

    def __call__(self, patients: Patients, facts: Facts, rng: np.random.Generator) -> Degraded:
        """Return the patients with fewer images, and how many images and patients were lost."""
        kept = rng.random(len(patients.images)) >= self.part
        left = Patients(
            patients.images[kept], patients.image_patient[kept], patients.labels, patients.groups
        )
        seen = left.image_counts > 0
        removed = [Removed("image", "", int((~kept).sum()))]
        if not seen.all():
            removed.append(Removed("patient", "", int((~seen).sum())))
        return left.take(np.flatnonzero(seen)), removed


class MissingValues(Plan):
    """Values missing from columns of a table, or from groups of patients such as the age.

    At random (MCAR), dependent on another column (MAR), or on the value itself (MNAR; Rubin
    1976). The log odds of a value to be missing are a + strength * z, with z the value it depends
    on, standardised at the site (0 where that is missing itself), and a such that the chance is
    `part` on average.
    """

    kind: Literal["missing-values"]
    sites: Which = "all"
    part: float = Field(gt=0, lt=1, description="chance of each value to be missing, on average")
    columns: tuple[str, ...] = Field(
        default=(), description="columns or groups; default: all columns"
    )
    mechanism: Literal["mcar", "mar", "mnar"] = Field(
        default="mcar", description="at random; dependent on `by`; dependent on the value itself"
    )
    by: str = Field(default="", description="of mar: the column or group it depends on")
    strength: float = Field(
        default=2.0, ge=-10, le=10, description="of mar and mnar: log odds per standard deviation"
    )

    @model_validator(mode="after")
    def _by_with_mar(self) -> MissingValues:
        if (self.mechanism == "mar") != bool(self.by):
            raise ValueError("by is needed with mechanism = 'mar', and only there")
        if self.by in self.columns:
            raise ValueError("by must be another column than those with missing values")
        return self

    def __call__(self, patients: Patients, facts: Facts, rng: np.random.Generator) -> Degraded:
        """Return the patients with fewer values, and how many were lost of each column."""
        names = self.columns or tuple(column.name for column in facts.columns)
        by = values_of(patients, self.by, facts) if self.by else None
        removed = []
        changed = patients
        for name in names:
            if name == self.by:
                continue
            values = values_of(patients, name, facts)
            chance = self._chance(values if by is None else by)
            lost = (rng.random(len(patients)) < chance) & ~np.isnan(values)
            changed = without_values(changed, name, lost, facts)
            removed.append(Removed("value", name, int(lost.sum())))
        return changed, removed

    def _chance(self, values: Floats) -> Floats:
        """Return each value's chance to be missing, given what it depends on."""
        if self.mechanism == "mcar" or np.isnan(values).all() or np.nanstd(values) == 0:
            return np.full(len(values), self.part)
        z = np.nan_to_num((values - np.nanmean(values)) / np.nanstd(values))
        tilt = self.strength * z
        return np.asarray(expit(_start(tilt, self.part) + tilt))


def _start(tilt: Floats, part: float) -> float:
    """Return the a with which expit(a + tilt) is `part` on average, by bisection."""
    reach = 40 + float(np.abs(tilt).max())
    low, high = -reach, reach
    for _ in range(80):
        middle = (low + high) / 2
        if expit(middle + tilt).mean() < part:
            low = middle
        else:
            high = middle
    return (low + high) / 2


class AbsentClass(Plan):
    """A class no one at these sites has ever recorded: its patients are not there.

    A finding becomes unknown in every patient.
    """

    kind: Literal["absent-class"]
    sites: Which = "all"
    name: str

    def __call__(self, patients: Patients, facts: Facts, rng: np.random.Generator) -> Degraded:
        """Return the patients without the class, and how many patients or labels were lost."""
        place = facts.classes.index(self.name)
        if facts.findings:
            labels = patients.labels.copy()
            known = int((labels[:, place] >= 0).sum())
            labels[:, place] = -1
            return replace(patients, labels=labels), [Removed("label", self.name, known)]
        others = np.flatnonzero(patients.labels != place)
        return patients.take(others), [Removed("patient", self.name, len(patients) - len(others))]


class AbsentColumn(Plan):
    """A column of a table, or a group such as the age, no one at these sites ever recorded."""

    kind: Literal["absent-column"]
    sites: Which = "all"
    name: str

    def __call__(self, patients: Patients, facts: Facts, rng: np.random.Generator) -> Degraded:
        """Return the patients without the column, and how many values were lost."""
        known = ~np.isnan(values_of(patients, self.name, facts))
        changed = without_values(patients, self.name, known, facts)
        return changed, [Removed("value", self.name, int(known.sum()))]


Degrade = Annotated[
    MissingLabels | LabelNoise | MissingImages | MissingValues | AbsentClass | AbsentColumn,
    Field(discriminator="kind"),
]
"""Each is called with a site's patients, the facts of the data set and a generator."""


def values_of(patients: Patients, name: str, facts: Facts) -> Floats:
    """Return a column or a group as float64 [n_patients], NaN where it is missing."""
    columns = [column.name for column in facts.columns]
    if name in columns:
        return patients.images[:, columns.index(name)].astype(np.float64)
    group = patients.groups[name]
    return np.where(group < 0, np.nan, group)


def without_values(
    patients: Patients, name: str, lost: npt.NDArray[np.bool_], facts: Facts
) -> Patients:
    """Return the patients with values of a column or group missing."""
    columns = [column.name for column in facts.columns]
    if name not in columns:
        groups = patients.groups | {name: np.where(lost, -1, patients.groups[name])}
        return replace(patients, groups=groups)
    rows = patients.images.copy()
    rows[lost, columns.index(name)] = np.nan
    return replace(patients, images=rows)


def _of_classes(labels: Indices, facts: Facts, names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Return which labels are of these classes, or about these findings; no names: all."""
    if not names:
        return np.ones(labels.shape, dtype=bool)
    places = [facts.classes.index(name) for name in names]
    if facts.findings:
        about = np.isin(np.arange(len(facts.classes)), places)
        return np.broadcast_to(about, labels.shape)
    return np.isin(labels, places)


def _counted(
    what: Literal["label", "wrong label"],
    chosen: npt.NDArray[np.bool_],
    labels: Indices,
    facts: Facts,
) -> list[Removed]:
    """Count chosen labels by their class, or by finding."""
    if facts.findings:
        counts = chosen.sum(axis=0)
    else:
        counts = np.bincount(labels[chosen], minlength=len(facts.classes))
    return [Removed(what, name, int(n)) for name, n in zip(facts.classes, counts, strict=True)]
