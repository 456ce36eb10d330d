"""What a site tells of its training patients before training: noised counts, released once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from client.data.cohort import PatientSet
from client.hospital import Hospital
from client.privacy.counts import noised
from client.privacy.stream import RandomStream
from shared.errors import SiteError
from shared.protocol import Statistics
from shared.statistics import statistics_layout, statistics_sensitivity
from shared.study import Study, Table

Counts = npt.NDArray[np.int64]


def describe(
    patients: PatientSet, study: Study, *, noise_multiplier: float, stream: RandomStream
) -> Statistics:
    """Return the patients' noised counts by class and, where the study asks, by column.

    Args:
        patients: The training patients; rows of a table, one each, or images.
        study: Says what is counted (`shared.statistics.statistics_layout`).
        noise_multiplier: Noise over how far one patient can change the counts; 0: exact.
        stream: Source of the noise.
    """
    noise = noise_multiplier * statistics_sensitivity(study)
    exact = [_by_class(patients, study), *_by_column(patients, study)]
    classes, *columns = (tuple(noised(counts, noise, stream).tolist()) for counts in exact)
    return Statistics(classes=classes, columns=tuple(columns), noise=noise)


def keep_statistics(hospital: Hospital, study: Study, statistics: Statistics) -> None:
    """Keep what is to be released, encrypted: it is sent again, never drawn anew.

    Raises:
        SiteError: It cannot be written.
    """
    path = hospital.site.local / f"{study.digest}.statistics"
    hospital.vault.write(path, statistics.model_dump_json().encode(), _context(study))


def own_statistics(hospital: Hospital, study: Study) -> Statistics | None:
    """Return the counts this site released for the study; None if it has not.

    A file that was damaged, or that another vault sealed, counts as lost.
    """
    path = hospital.site.local / f"{study.digest}.statistics"
    try:
        plain = hospital.vault.read(path, _context(study))
        return Statistics.model_validate_json(plain)
    except (SiteError, ValidationError):
        return None


def _context(study: Study) -> str:
    return f"local/{study.digest}/statistics"


def _by_class(patients: PatientSet, study: Study) -> Counts:
    """Count patients by class; of findings, without and with each one."""
    labels = patients.labels.numpy()
    length = statistics_layout(study)[0]
    if not study.task.findings:
        return np.bincount(labels, minlength=length)
    known = labels >= 0
    cells = 2 * np.arange(labels.shape[1]) + labels
    return np.bincount(cells[known], minlength=length)


def _by_column(patients: PatientSet, study: Study) -> list[Counts]:
    """Count patients by equal bins of a number or by category, and last those without."""
    lengths = statistics_layout(study)[1]
    if not lengths or study.table is None:
        return []
    rows = patients.images.numpy()
    return [
        np.bincount(_cells(rows[:, at], study.table, at), minlength=length)
        for at, length in enumerate(lengths)
    ]


def _cells(values: npt.NDArray[np.float32], table: Table, column: int) -> Counts:
    """Return the cell each patient's value of a column is in."""
    categories = len(table.columns[column].categories)
    last = categories or table.bins
    missing = np.isnan(values)
    filled = np.where(missing, 0, values).astype(np.float64)
    if not categories:
        filled = np.clip(np.floor((filled + 1) / 2 * table.bins), 0, table.bins - 1)
    cells: Counts = np.where(missing, last, filled).astype(np.int64)
    return cells
