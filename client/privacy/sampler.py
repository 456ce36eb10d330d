"""Which patients, and which of their images, a step of training sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.privacy.stream import RandomStream


@dataclass(frozen=True)
class Lot:
    """The patients of one step and the images that speak for them.

    Attributes:
        patients: Indices of the sampled patients, int64 [p], ascending.
        images: Indices of the chosen images, int64 [m], those of one patient together.
        owner: Position in `patients` of each image's patient, int64 [m], ascending.
    """

    patients: torch.Tensor
    images: torch.Tensor
    owner: torch.Tensor


def draw_lot(
    stream: RandomStream, image_patient: torch.Tensor, n_patients: int, rate: float, k: int
) -> Lot:
    """Draw a Poisson lot of patients and at most `k` images of each.

    Args:
        stream: Source of randomness.
        image_patient: Patient of each image, int64 [n_images], ascending.
        n_patients: Number of patients N.
        rate: Chance of each patient to be in the lot, in (0, 1].
        k: Most images of a patient.
    """
    patients = poisson_lot(stream, n_patients, rate)
    images, owner = choose_images(stream, image_patient, patients, k)
    return Lot(patients, images, owner)


def poisson_lot(stream: RandomStream, n_patients: int, rate: float) -> torch.Tensor:
    """Include each patient independently with probability `rate`; int64 [p], ascending.

    The probability is the rate cut to a multiple of 2^-53: never above what is accounted for.
    """
    return torch.nonzero(stream.uniform(n_patients) + 2.0**-53 <= rate).flatten()


def choose_images(
    stream: RandomStream, image_patient: torch.Tensor, patients: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose at most `k` images of each patient, uniformly and without replacement.

    Args:
        stream: Source of randomness.
        image_patient: Patient of each image, int64 [n_images], ascending.
        patients: The lot's patients, int64 [p], ascending.
        k: Most images of a patient, at least 1.

    Returns:
        Indices of the images and the position in `patients` of each, int64 [m], ascending by
        patient.
    """
    everyone = image_patient.numpy()
    first = np.searchsorted(everyone, patients.numpy(), side="left")
    count = np.searchsorted(everyone, patients.numpy(), side="right") - first
    owner = np.repeat(np.arange(len(count)), count)
    start = np.cumsum(count) - count
    images = np.arange(len(owner)) - start[owner] + first[owner]
    # Sorting by (patient, random number) shuffles within each patient; the first k are chosen.
    order = np.lexsort((stream.uniform(len(owner)).numpy(), owner))
    chosen = np.arange(len(owner)) - start[owner] < k
    return torch.from_numpy(images[order][chosen]), torch.from_numpy(owner[chosen])
