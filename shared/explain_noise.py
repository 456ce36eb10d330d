"""The noise a study means at a site of a given size, and whether it learns in spite of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.accounting import (
    Mechanism,
    before_training,
    calibrate,
    default_delta,
    replacement_epsilon,
    stated_epsilon,
)
from shared.metrics import scored_classes
from shared.study import Study

EXAMPLE_SITES = (100, 300, 1000, 3000)
"""Training patients of the sites that the noise is shown for."""


@dataclass(frozen=True)
class SiteNoise:
    """What the study's privacy means at a site of a given size.

    Attributes:
        patients: Training patients N.
        delta: Delta the site's epsilon holds for.
        epsilon: What the whole study costs a training patient at most: the study's, or less.
        held_out_epsilon: The same for a held-out patient.
        replacement_epsilon: The larger of both where a patient's data is replaced by other data
            and not by nothing; see `shared.accounting.replacement_epsilon`.
        lot: Patients in a step, on average.
        noise_multiplier: Sigma: noise over one patient's largest contribution.
        noise_to_signal: Sigma over the lot: the noise in each weight's step, in units of the
            largest step the lot could make if all its patients agreed.
        count_noise: Standard deviation of the noise on each count of the score histograms, in
            patients.
        verdict: What this means for the site, in plain words.
    """

    patients: int
    delta: float
    epsilon: float
    held_out_epsilon: float
    replacement_epsilon: float
    lot: float
    noise_multiplier: float
    noise_to_signal: float
    count_noise: float
    verdict: str


def site_noise(study: Study, patients: int) -> SiteNoise:
    """Return the noise a site adds, calibrated as the site itself does.

    Args:
        study: A study with privacy enabled.
        patients: The site's training patients N, at least 1.

    Raises:
        StudyError: No noise keeps the study's budget.
    """
    budget, delta = study.privacy.epsilon, _delta(study, patients)
    rate = study.training.sampling_rate
    sigma = training_noise(study, patients)
    counted = calibrate(budget, delta, 1.0, study.evaluations)
    training = Mechanism(sigma, rate, study.total_steps)
    evaluation = Mechanism(counted, 1.0, study.evaluations)
    return SiteNoise(
        patients=patients,
        delta=delta,
        epsilon=stated_epsilon(budget, delta, training, before_training(study)),
        held_out_epsilon=stated_epsilon(budget, delta, evaluation),
        replacement_epsilon=max(
            replacement_epsilon([training], delta, before_training(study)),
            replacement_epsilon([], delta, [evaluation]),
        ),
        lot=rate * patients,
        noise_multiplier=sigma,
        noise_to_signal=sigma / (rate * patients),
        # A held-out patient is in one bin of each target's histogram.
        count_noise=math.sqrt(score_targets(study)) * counted,
        verdict=verdict(sigma / (rate * patients), study.model.name),
    )


def training_noise(study: Study, patients: int) -> float:
    """Return the noise multiplier of a site's training; see `site_noise`."""
    rate, delta = study.training.sampling_rate, _delta(study, patients)
    beside = before_training(study)
    return calibrate(study.privacy.epsilon, delta, rate, study.total_steps, beside)


MOSTLY_NOISE, NOISY, BEARABLE = 0.1, 0.06, 0.02
"""Bounds of noise over signal; see `verdict`."""


def verdict(noise_to_signal: float, model: str = "cnn") -> str:
    """Return what a site's noise over signal means for its contribution, in plain words.

    The bounds come from one site training a small cnn alone for 10 rounds on 100, 300 and 1000
    chest radiographs of 28 pixels (PneumoniaMNIST), two settings, two or three seeds each. AUC
    on validation images was .98 without noise, .97 at a ratio of .02, .92 to .96 at .04, .90 to
    .95 at .06, .78 at .11, .67 at .13 and .5 at .3.
    The linear model has a ninth of the cnn's weights; the length of the noise grows with their
    root, so it bears three times as much.

    Args:
        noise_to_signal: As in `SiteNoise`.
        model: Its name in the study.
    """
    noise_to_signal /= 3 if model == "linear" else 1
    if noise_to_signal >= MOSTLY_NOISE:
        return "will mostly contribute noise"
    if noise_to_signal >= NOISY:
        return "noisy: helps only together with larger sites"
    if noise_to_signal >= BEARABLE:
        return "bearable: learns, with a visible loss"
    return "learns well: little is lost to noise"


def score_targets(study: Study) -> int:
    """Return how many score histograms an evaluation has: one for two classes, else one each."""
    return len(scored_classes(study))


def _delta(study: Study, patients: int) -> float:
    return default_delta(patients) if study.privacy.delta is None else study.privacy.delta
