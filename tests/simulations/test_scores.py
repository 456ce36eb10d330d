"""Scores against scikit-learn, and what happens where they are not defined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
)

from shared.study import Task
from simulations.records import METRICS
from simulations.scores import Floats, Ints, Score, over_sites, score

BINARY = Task(classes=("no", "yes"))
FIRST = Task(classes=("yes", "no"), positive="yes")
THREE = Task(classes=("a", "b", "c"))
FINDINGS = Task(classes=("effusion", "mass", "nodule"), findings=True)


def made_up(task: Task, patients: int, seed: int) -> tuple[Floats, Ints]:
    """Return probabilities on a coarse grid, so that there are ties, and labels."""
    random = np.random.default_rng(seed)
    classes = len(task.classes)
    grid = random.integers(1, 9, (patients, classes)).astype(np.float64)
    if task.findings:
        return grid / 10, random.integers(-1, 2, (patients, classes))
    labels = random.permutation(np.arange(patients) % classes)
    return grid / grid.sum(axis=1, keepdims=True), labels


def reference(probabilities: Floats, labels: Ints, task: Task) -> dict[str, float]:
    """Return every metric as scikit-learn has it; calibration as a loop over the bins."""
    if task.findings:
        each = []
        for column, truth in zip(probabilities.T, labels.T, strict=True):
            known = truth >= 0
            both = np.stack([1 - column[known], column[known]], axis=1)
            each.append(reference(both, truth[known], BINARY))
        return {metric: float(np.mean([part[metric] for part in each])) for metric in METRICS}
    called = probabilities.argmax(axis=1)
    targets = [task.positive_index] if len(task.classes) == 2 else range(len(task.classes))
    pairs = [(labels == target, probabilities[:, target]) for target in targets]
    return {
        "auc": float(np.mean([roc_auc_score(*pair) for pair in pairs])),
        "average_precision": float(np.mean([average_precision_score(*pair) for pair in pairs])),
        "balanced_accuracy": float(balanced_accuracy_score(labels, called)),
        "accuracy": float(accuracy_score(labels, called)),
        "ece": float(np.mean([calibration_error(*pair) for pair in pairs])),
    }


def calibration_error(truth: np.ndarray, scores: Floats) -> float:
    total = 0.0
    for number in range(10):
        inside = [i for i, s in enumerate(scores) if min(int(s * 10), 9) == number]
        total += abs(sum(float(truth[i]) - scores[i] for i in inside))
    return total / len(scores)


@pytest.mark.parametrize("task", [BINARY, FIRST, THREE, FINDINGS])
@given(patients=st.integers(20, 80), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_values_are_those_of_scikit_learn(task: Task, patients: int, seed: int) -> None:
    probabilities, labels = made_up(task, patients, seed)
    found = score(probabilities, labels, task, resamples=0)
    expected = reference(probabilities, labels, task)
    assert {m: s.value for m, s in found.items()} == pytest.approx(expected, abs=1e-12)
    assert all(len(s.replicates) == 0 and s.patients == patients for s in found.values())


@pytest.mark.parametrize("task", [BINARY, THREE, FINDINGS])
def test_each_replicate_is_the_score_of_the_patients_that_were_drawn(task: Task) -> None:
    probabilities, labels = made_up(task, 60, 4)
    found = score(probabilities, labels, task, resamples=20, seed="x")
    random = np.random.default_rng([*b"bootstrap", *b"x"])
    drawn = random.integers(0, 60, (20, 60))
    for row, patients in enumerate(drawn):
        expected = reference(probabilities[patients], labels[patients], task)
        actual = {metric: s.replicates[row] for metric, s in found.items()}
        assert actual == pytest.approx(expected, abs=1e-12)


def test_resamples_do_not_depend_on_how_many_fit_into_memory_at_once() -> None:
    """Models on one test set are compared on the same resamples."""
    probabilities, labels = made_up(BINARY, 9000, 1)
    few = score(probabilities, labels, BINARY, resamples=3, seed="test")["auc"].replicates
    many = score(probabilities, labels, BINARY, resamples=500, seed="test")["auc"].replicates
    assert many[:3] == pytest.approx(few, abs=0)
    assert len(many) == 500


def test_the_interval_of_the_auc_is_that_of_hanley_and_mcneil() -> None:
    random = np.random.default_rng(3)
    labels = np.repeat([0, 1], [300, 200])
    values = 1 / (1 + np.exp(-(random.normal(size=500) + labels)))
    found = score(np.stack([1 - values, values], axis=1), labels, BINARY)["auc"]
    assert found.value is not None
    auc, positive, negative = found.value, 200, 300
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc**2) + (negative - 1) * (q2 - auc**2)
    half = 1.96 * np.sqrt(variance / positive / negative)
    assert found.interval == pytest.approx((auc - half, auc + half), abs=0.15 * half)


def patients_of(random: np.random.Generator, number: int) -> tuple[Floats, Ints]:
    """Draw patients, three in ten of them ill, whose scores are 1.5 deviations higher."""
    labels = (np.arange(number) < 0.3 * number).astype(np.int64)
    return outspoken(random.normal(size=number) + 1.5 * labels), labels


def outspoken(scores: Floats) -> Floats:
    values = 1 / (1 + np.exp(-scores))
    return np.stack([1 - values, values], axis=1)


def overconfident(random: np.random.Generator, number: int) -> tuple[Floats, Ints]:
    """Draw patients of whom the model is twice as sure, in log odds, as it should be."""
    odds = 1.5 * random.normal(size=number)
    ill = random.random(number) < 1 / (1 + np.exp(-odds))
    return outspoken(2 * odds), ill.astype(np.int64)


def test_the_interval_of_the_worst_of_equal_sites_covers_the_auc_they_share() -> None:
    truth = float(norm.cdf(1.5 / np.sqrt(2)))
    random, runs = np.random.default_rng(1), 100
    covered = 0
    for run in range(runs):
        sites = [
            score(*patients_of(random, 30), BINARY, resamples=200, seed=f"{run} {site}")["auc"]
            for site in range(8)
        ]
        _, worst = over_sites("auc", sites)
        low, high = worst.interval
        assert low is not None
        assert high is not None
        assert worst.value is not None
        assert 0 <= low <= worst.value <= high <= 1
        covered += low <= truth <= high
    # 95 of 100 and three standard deviations; the percentile interval covers it in about 15.
    assert covered >= 88


def test_the_interval_of_the_calibration_error_covers_that_of_the_population() -> None:
    random, runs = np.random.default_rng(2), 100
    everybody, ill = overconfident(random, 200_000)
    truth = calibration_error(ill, everybody[:, 1])
    covered = 0
    for run in range(runs):
        found = score(*overconfident(random, 120), BINARY, resamples=200, seed=str(run))["ece"]
        low, high = found.interval
        assert low is not None
        assert high is not None
        assert found.value is not None
        assert 0 <= low <= found.value <= high <= 1
        covered += low <= truth <= high
    # The percentile interval covers it in about 55.
    assert covered >= 88


def test_a_biased_figure_has_its_replicates_mirrored_at_it() -> None:
    replicates = np.linspace(0.2, 0.6, 401)  # 95 % of them lie from 0.21 to 0.59
    assert Score(0.5, replicates, 9, 1, 1).interval == pytest.approx((0.21, 0.59))
    assert Score(0.5, replicates, 9, 1, 1, biased=True).interval == pytest.approx((0.41, 0.79))
    assert Score(0.1, replicates, 9, 1, 1, biased=True).interval == pytest.approx((0, 0.1))
    assert Score(0.9, replicates, 9, 1, 1, biased=True).interval == pytest.approx((0.9, 1))


def test_without_a_class_what_needs_it_is_missing_and_the_rest_is_not() -> None:
    probabilities, _ = made_up(BINARY, 30, 0)
    found = score(probabilities, np.zeros(30, dtype=np.int64), BINARY)
    for metric in ("auc", "average_precision", "balanced_accuracy"):
        assert found[metric].value is None
        assert found[metric].interval == (None, None)
    assert found["auc"].over == 0
    assert found["auc"].of == 1
    assert found["accuracy"].value == pytest.approx((probabilities.argmax(axis=1) == 0).mean())
    assert found["ece"].value is not None


def test_a_mean_over_findings_says_over_how_many() -> None:
    probabilities, labels = made_up(FINDINGS, 60, 0)
    labels[:, 1] = -1
    labels[:, 2] = 0
    found = score(probabilities, labels, FINDINGS)
    known = labels[:, 0] >= 0
    assert found["auc"].value == pytest.approx(
        roc_auc_score(labels[known, 0], probabilities[known, 0])
    )
    assert (found["auc"].over, found["auc"].of) == (1, 3)
    assert (found["balanced_accuracy"].over, found["balanced_accuracy"].of) == (1, 3)
    assert (found["accuracy"].over, found["ece"].over) == (2, 2)


def test_nobody_to_score_is_missing_not_an_error() -> None:
    for task, labels in ((BINARY, (0,)), (FINDINGS, (0, 3))):
        empty = np.zeros((0, len(task.classes)))
        found = score(empty, np.zeros(labels, dtype=np.int64), task)
        assert [s.value for s in found.values()] == [None] * len(METRICS)


def test_a_model_that_diverged_is_as_good_as_a_coin() -> None:
    found = score(np.full((20, 2), np.nan), np.arange(20) % 2, BINARY, resamples=10)
    assert found["auc"].value == 0.5
    assert found["ece"].value == 0.0


def test_the_mean_over_sites_leaves_out_the_undefined_and_counts_them() -> None:
    scores = [
        Score(0.8, np.array([0.7, 0.9]), 10, 1, 1),
        Score(None, np.empty(0), 5, 0, 1),
        Score(0.6, np.array([0.5, np.nan]), 20, 1, 1),
    ]
    mean, worst = over_sites("auc", scores, of=4)
    assert mean.value == pytest.approx(0.7)
    assert mean.replicates == pytest.approx([0.6, 0.9])
    assert (mean.over, mean.of, mean.patients) == (2, 4, 30)
    assert worst.value == 0.6
    assert worst.replicates == pytest.approx([0.5, 0.9])
    _, most_wrong = over_sites("ece", scores)
    assert (most_wrong.value, most_wrong.of) == (0.8, 3)
    assert over_sites("auc", scores[1:2])[0].value is None
