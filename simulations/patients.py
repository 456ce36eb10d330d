"""Patients in plain arrays, whatever they came from, and what is known of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared.errors import SimulationError
from shared.study_parts import Column
from simulations.parts import Indices


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

    @property
    def image_counts(self) -> Indices:
        """int64 [n_patients]: how many images each patient has."""
        return np.bincount(self.image_patient, minlength=len(self)).astype(np.int64)

    def take(self, chosen: npt.ArrayLike) -> Patients:
        """Return the patients at these indices, in this order, with all their images."""
        index = np.asarray(chosen, dtype=np.int64)
        counts = self.image_counts
        first, own = (np.cumsum(counts) - counts)[index], counts[index]
        owners = np.repeat(np.arange(len(index), dtype=np.int64), own)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(own) - own, own)
        return Patients(
            self.images[first[owners] + within],
            owners,
            self.labels[index],
            {name: values[index] for name, values in self.groups.items()},
        )


def concatenate(parts: Sequence[Patients]) -> Patients:
    """Return all patients in the order of the parts, of which there must be one at least.

    Groups that not every part has are left out.
    """
    starts = np.cumsum([0, *(len(part) for part in parts)])
    owners = [part.image_patient + start for part, start in zip(parts, starts, strict=False)]
    shared = [name for name in parts[0].groups if all(name in part.groups for part in parts)]
    return Patients(
        np.concatenate([part.images for part in parts]),
        np.concatenate(owners),
        np.concatenate([part.labels for part in parts]),
        {name: np.concatenate([part.groups[name] for part in parts]) for name in shared},
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


def without_pixels(count: int) -> npt.NDArray[np.float32]:
    """Return images that say no more than how many there are, float32 [count, 1, 0, 0]."""
    return np.zeros((count, 1, 0, 0), dtype=np.float32)


def require_classes(
    labels: Indices,
    facts: Facts,
    who: str = "patient anywhere",
    todo: str = "Leave it out of the task",
) -> None:
    """Refuse patients among whom a class, or a finding, does not occur.

    Args:
        labels: Of the patients, as in `Patients`.
        facts: The names of the classes.
        who: What one of these patients is called.
        todo: The remedy.

    Raises:
        SimulationError: Naming the class.
    """
    places = range(len(facts.classes))
    if facts.findings:
        there = [bool((labels[:, place] == 1).any()) for place in places]
    else:
        there = [bool((labels == place).any()) for place in places]
    if not all(there):
        name = facts.classes[there.index(False)]
        kind = "finding" if facts.findings else "class"
        raise SimulationError(f"no {who} has the {kind} {name!r}", facts.name, todo)


def strata(labels: Indices) -> Indices:
    """Return a class for each patient, also where the labels are findings.

    Args:
        labels: int64 [n_patients], or [n_patients, findings].

    Returns:
        int64 [n_patients]: the label itself; of findings 1 + the first one that is present, 0
        where none is known to be.
    """
    if labels.ndim == 1:
        return labels
    present = labels == 1
    return np.where(present.any(axis=1), 1 + present.argmax(axis=1), 0).astype(np.int64)


def split_stratified(
    cells: Indices, part: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Split patients in two, each cell in the same proportion as nearly as whole numbers go.

    The second part has round(part * n) patients in all, but at least one, and leaves one.

    Args:
        cells: int64 [n], the cell of each patient (class, or class and hospital).
        part: Share of the second part, in (0, 1).
        rng: Chooses the patients.

    Returns:
        Indices of the first and of the second part, both ascending.
    """
    total = len(cells)
    wanted = min(max(1, round(part * total)), total - 1)
    _, members = np.unique(cells, return_inverse=True)
    exact = np.bincount(members) * (wanted / total)
    counts = largest_remainders(exact, wanted)
    order = rng.permutation(total)
    order = order[np.argsort(members[order], kind="stable")]
    sizes = np.bincount(members)
    rank = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    second = rank < np.repeat(counts, sizes)
    return np.sort(order[~second]), np.sort(order[second])


def largest_remainders(exact: npt.ArrayLike, total: int) -> Indices:
    """Round numbers so that they sum to a total: down, then up where most was cut off.

    Args:
        exact: float [n], at least 0, summing to about `total`.
        total: What the result sums to.
    """
    values = np.asarray(exact, dtype=np.float64)
    counts = np.floor(values).astype(np.int64)
    rest = total - int(counts.sum())
    if rest > 0:
        first = np.argsort(counts - values, kind="stable")
        counts[first[np.arange(rest) % len(first)]] += 1
    return counts
