"""Evaluating a model on held-out patients so that only noised counts of scores leave."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from client.data.cohort import PatientSet
from client.privacy.counts import noised
from client.privacy.stream import RandomStream
from client.training import predict
from shared.metrics import score_histogram, scored_classes, to_record
from shared.protocol import ScoreHistogram
from shared.study import Study


def evaluate(
    model: nn.Module,
    held_out: PatientSet,
    study: Study,
    *,
    noise_multiplier: float,
    stream: RandomStream,
    device: torch.device,
    physical_batch: int,
) -> ScoreHistogram:
    """Return the histograms of the patients' scores with Gaussian noise on every count.

    A patient adds one to one cell in each target's histogram, so adding or removing one
    changes the counts by sqrt(targets) in L2 norm: that is the sensitivity the noise multiplier
    is relative to (Gaussian mechanism; Dwork and Roth 2014, appendix A).

    Args:
        model: Global model; moved to the device and back.
        held_out: Patients, each counted exactly once per target.
        study: Gives classes and bins.
        noise_multiplier: Of the site's evaluation plan; 0: exact counts, for policies that say so.
        stream: Source of the noise.
        device: Where to compute.
        physical_batch: Images at once.
    """
    exact = score_histogram(
        patient_scores(model, held_out, device, physical_batch), held_out.labels.numpy(), study
    )
    noise = noise_multiplier * math.sqrt(len(scored_classes(study)))
    return to_record(noised(exact, noise, stream), noise)


def patient_scores(
    model: nn.Module, patients: PatientSet, device: torch.device, physical_batch: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the mean over each patient's images of the class probabilities, [n, classes]."""
    scores = predict(model, patients.images, device, physical_batch).numpy().astype(np.float64)
    total = np.zeros((len(patients), scores.shape[1]))
    np.add.at(total, patients.image_patient.numpy(), scores)
    images = np.bincount(patients.image_patient.numpy(), minlength=len(patients))
    mean: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = total / images[:, None]
    return mean
