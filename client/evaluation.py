"""Evaluating a model on held-out patients so that only noised counts of scores leave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client.data.cohort import PatientSet
from client.privacy.counts import noised
from client.privacy.stream import RandomStream
from client.training import predict
from shared.errors import DataError
from shared.metrics import score_histogram, scored_classes, to_record
from shared.protocol import ScoreHistogram
from shared.study import Study
from shared.subgroups import CELLS, closing_sensitivity

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Noised histograms of held-out patients' scores.

    Attributes:
        overall: Of all patients.
        subgroups: By cell, `grouping:cell`, in the closing evaluation of studies that ask for
            subgroups; else empty.
    """

    overall: ScoreHistogram
    subgroups: dict[str, ScoreHistogram]


def evaluate(
    model: nn.Module,
    held_out: PatientSet,
    study: Study,
    *,
    noise_multiplier: float,
    stream: RandomStream,
    device: torch.device,
    physical_batch: int,
    subgroups: bool = False,
) -> Evaluation:
    """Return the histograms of the patients' scores with Gaussian noise on every count.

    A patient adds at most one to one cell of each target's histogram, so adding or removing one
    changes the counts by at most sqrt(targets) in L2 norm: that is the sensitivity the noise
    multiplier is relative to (Gaussian mechanism; Dwork and Roth 2014, appendix A). With
    subgroups a patient is counted once more for each grouping, and the sensitivity of all counts
    together is sqrt(targets * (1 + groupings)). One use of the site's evaluation plan covers
    either.

    Args:
        model: Moved to the device and back.
        held_out: Patients, each counted at most once per target: not where nobody knows. Without
            any the histograms are noise alone, of the same form.
        study: Gives classes, bins and groupings.
        noise_multiplier: Of the site's evaluation plan; 0: exact counts, for policies that say so.
        stream: Source of the noise.
        device: Where to compute.
        physical_batch: Images at once.
        subgroups: Whether to count the study's subgroups too.

    Raises:
        DataError: The patients have no cells in a grouping the study asks for.
    """
    scores = np.zeros((0, len(study.task.classes)))
    if len(held_out):
        findings = study.task.findings
        scores = patient_scores(model, held_out, device, physical_batch, findings=findings)
    labels = held_out.labels.numpy()
    sensitivity = closing_sensitivity(study) if subgroups else math.sqrt(len(scored_classes(study)))
    noise = noise_multiplier * sensitivity

    def release(chosen: npt.NDArray[np.bool_]) -> ScoreHistogram:
        counts = score_histogram(scores[chosen], labels[chosen], study)
        return to_record(noised(counts, noise, stream), noise)

    overall = release(np.ones(len(held_out), dtype=np.bool_))
    cells = _cells(held_out, study) if subgroups else {}
    return Evaluation(overall, {key: release(members) for key, members in cells.items()})


def patient_scores(
    model: nn.Module,
    patients: PatientSet,
    device: torch.device,
    physical_batch: int,
    *,
    findings: bool = False,
) -> Scores:
    """Return the mean over each patient's images of the class probabilities, [n, classes]."""
    predicted = predict(model, patients.images, device, physical_batch, findings=findings)
    scores = predicted.numpy().astype(np.float64)
    total = np.zeros((len(patients), scores.shape[1]))
    np.add.at(total, patients.image_patient.numpy(), scores)
    images = np.bincount(patients.image_patient.numpy(), minlength=len(patients))
    mean: Scores = total / images[:, None]
    return mean


def _cells(patients: PatientSet, study: Study) -> dict[str, npt.NDArray[np.bool_]]:
    """Return who is in each cell of each grouping: every patient in exactly one."""
    if lacking := [name for name in study.privacy.subgroups if name not in patients.groups]:
        raise DataError(
            "the patients are not told apart by a grouping the study asks for",
            lacking[0],
            "Read the cohort anew for this study",
        )
    return {
        f"{name}:{cell}": patients.groups[name].numpy() == index
        for name in study.privacy.subgroups
        for index, cell in enumerate(CELLS[name])
    }
