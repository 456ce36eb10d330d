"""Held-out patients leave as noised counts, one count a patient and target."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from client.data.cohort import PatientSet
from client.evaluation import evaluate, patient_scores
from client.privacy.counts import GRID
from client.privacy.stream import OsStream
from shared.protocol import ScoreHistogram
from shared.study import Study

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Logits by which the probability of the last class is the image's mean."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.unit = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        last = images.mean(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6) * self.unit
        rest = ((1 - last) / (self.classes - 1))[:, None].expand(-1, self.classes - 1)
        return torch.cat([rest, last[:, None]], dim=1).log()


def study(classes: int) -> Study:
    names = tuple(f"class-{i}" for i in range(classes))
    return Study.model_validate(
        {"name": "s", "task": {"classes": names}, "privacy": {"score_bins": 4}}
    )


def patients(means: list[list[float]], labels: list[int]) -> PatientSet:
    """Patients whose images have these mean values."""
    flat = torch.tensor([value for images in means for value in images])
    owner = torch.arange(len(means)).repeat_interleave(torch.tensor([len(m) for m in means]))
    names = tuple(f"{i:064x}" for i in range(len(means)))
    images = flat[:, None, None, None].expand(-1, 1, 28, 28).contiguous()
    return PatientSet(images, owner, torch.tensor(labels), names)


def run(held_out: PatientSet, classes: int, noise: float) -> ScoreHistogram:
    return evaluate(
        Brightness(classes),
        held_out,
        study(classes),
        noise_multiplier=noise,
        stream=OsStream(),
        device=CPU,
        physical_batch=3,
    ).overall


def test_a_patients_score_is_the_mean_over_their_images() -> None:
    held_out = patients([[0.1, 0.3], [0.9], [0.5, 0.5, 0.8]], [0, 1, 1])
    scores = patient_scores(Brightness(2), held_out, CPU, 2)
    np.testing.assert_allclose(scores[:, 1], [0.2, 0.9, 0.6], atol=1e-6)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


def test_exact_counts_are_those_counted_by_hand() -> None:
    held_out = patients([[0.1, 0.3], [0.9], [0.6, 0.4], [0.05]], [0, 1, 1, 0])
    histogram = run(held_out, 2, 0.0)
    assert histogram.noise == 0
    assert histogram.counts == (2, 0, 0, 0, 0, 0, 1, 1)


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 3)])
def test_one_patient_more_moves_the_counts_by_the_sensitivity(classes: int, targets: int) -> None:
    means, labels = [[0.1], [0.9], [0.4]], [0, 1, classes - 1]
    with_all = np.array(run(patients(means, labels), classes, 0.0).counts)
    without = np.array(run(patients(means[:-1], labels[:-1]), classes, 0.0).counts)
    sensitivity = float(np.linalg.norm(with_all - without))
    assert sensitivity == pytest.approx(math.sqrt(targets))
    assert run(patients(means, labels), classes, 2.0).noise == pytest.approx(2 * sensitivity)


def test_the_noise_is_gaussian_of_the_stated_size_and_on_a_coarse_grid() -> None:
    held_out = patients([[0.1], [0.9]], [0, 1])
    exact = np.array(run(held_out, 3, 0.0).counts)
    noises = []
    for _ in range(100):
        histogram = run(held_out, 3, 2.0)
        noises.append(np.array(histogram.counts) - exact)
    noise = np.concatenate(noises)
    assert stats.kstest(noise / histogram.noise, "norm").pvalue > 1e-4
    np.testing.assert_array_equal(noise * GRID, np.round(noise * GRID))


def test_a_model_that_diverged_still_counts_every_patient_once() -> None:
    model = Brightness(2)
    model.unit.data.fill_(float("nan"))
    held_out = patients([[0.1], [0.9], [0.4]], [0, 1, 1])
    histogram = evaluate(
        model,
        held_out,
        study(2),
        noise_multiplier=0.0,
        stream=OsStream(),
        device=CPU,
        physical_batch=8,
    )
    assert sum(histogram.overall.counts) == 3
