"""Metrics from histograms agree with scikit-learn on raw scores, and their intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from shared.metrics import (
    merge,
    roc_auc,
    score_histogram,
    scored_classes,
    summarise,
    to_record,
)
from shared.study import Privacy, Study, Task

Floats = NDArray[np.float64]


def make_study(classes: int = 2, bins: int = 16, positive: str = "") -> Study:
    names = tuple(f"class {index}" for index in range(classes))
    return Study(
        name="metrics",
        task=Task(classes=names, positive=positive),
        privacy=Privacy(score_bins=bins),
    )


def draw(
    rng: np.random.Generator, positives: int, negatives: int, distance: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Scores [n, 2] of two Gaussian classes through a sigmoid, and labels [n]."""
    labels = np.repeat([1, 0], [positives, negatives])
    raw = rng.normal(labels * distance - distance / 2)
    score = 1 / (1 + np.exp(-1.5 * raw))
    return np.stack([1 - score, score], axis=1), labels


def tidy_scores(counts: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """One patient at the middle of a bin for each count of a [2, bins] histogram."""
    bins = counts.shape[1]
    scores = np.concatenate([np.repeat((np.arange(bins) + 0.5) / bins, row) for row in counts])
    return scores, np.repeat([0, 1], counts.sum(axis=1))


def test_binary_studies_score_the_positive_class_only() -> None:
    scores = [[0.9, 0.1], [0.2, 0.8], [0.0, 1.0], [0.5, 0.5]]
    counts = score_histogram(scores, [0, 1, 1, 0], make_study(bins=4))
    assert counts.tolist() == [[[1, 0, 1, 0], [0, 0, 0, 2]]]
    flipped = score_histogram(scores, [0, 1, 1, 0], make_study(bins=4, positive="class 0"))
    assert flipped.tolist() == [[[1 + 1, 0, 0, 0], [0, 0, 1, 1]]]


def test_every_class_of_three_is_scored_against_the_rest() -> None:
    study = make_study(classes=3, bins=4)
    assert scored_classes(study) == (0, 1, 2)
    counts = score_histogram(np.eye(3)[[0, 1, 2, 2]], [0, 1, 2, 1], study)
    assert counts.shape == (3, 2, 4)
    assert counts.sum(axis=(1, 2)).tolist() == [4, 4, 4]
    assert counts[:, 1].sum(axis=1).tolist() == [1, 2, 1]


def test_scores_of_a_diverged_model_count_as_one_half() -> None:
    counts = score_histogram([[np.nan, np.nan]], [1], make_study(bins=4))
    assert counts.tolist() == [[[0, 0, 0, 0], [0, 0, 1, 0]]]


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, (2, 8), elements=st.integers(0, 30)))
def test_exact_histograms_give_what_scikit_learn_gives_on_the_binned_scores(
    counts: NDArray[np.int64],
) -> None:
    counts[:, 0] += 1
    scores, labels = tidy_scores(counts)
    summary = summarise(to_record(counts[None], 0.0))
    assert summary.auc == pytest.approx(roc_auc_score(labels, scores))
    assert summary.brier == pytest.approx(brier_score_loss(labels, scores))
    assert (summary.negatives, summary.positives) == tuple(counts.sum(axis=1))


def test_many_patients_in_fine_bins_match_scikit_learn_on_raw_scores() -> None:
    rng = np.random.default_rng(4)
    bins = 256
    scores, labels = draw(rng, 20_000, 30_000, 1.6)
    counts = score_histogram(scores, labels, make_study(bins=bins))
    summary, positive = summarise(to_record(counts, 0.0)), scores[:, 1]
    same_bin = (counts[0, 0] * counts[0, 1]).sum() / (20_000 * 30_000)
    assert summary.auc == pytest.approx(roc_auc_score(labels, positive), abs=same_bin / 2)
    assert summary.average_precision == pytest.approx(
        average_precision_score(labels, positive), abs=0.005
    )
    assert summary.brier == pytest.approx(brier_score_loss(labels, positive), abs=1 / bins)
    fall_out, sensitivity, _ = roc_curve(labels, positive)
    assert summary.sensitivity_at_95_specificity == pytest.approx(
        float(np.interp(0.05, fall_out, sensitivity)), abs=0.01
    )
    groups = np.minimum((positive * 8).astype(int), 7)
    error = sum(abs((labels - positive)[groups == group].sum()) for group in range(8))
    assert summary.ece == pytest.approx(error / len(labels), abs=0.5 / bins + 0.002)


def test_multi_class_values_are_means_over_the_classes() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 6000)
    logits = rng.normal(size=(6000, 3)) + 1.5 * np.eye(3)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    study = make_study(classes=3, bins=256)
    summary = summarise(to_record(score_histogram(scores, labels, study), 0.0))
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert summary.auc == pytest.approx(expected, abs=0.002)
    assert summary.undetermined == 0


@pytest.mark.parametrize(
    ("positives", "negatives", "noise", "distance", "least"),
    [
        (20, 60, 0.0, 3.3, 0.92),
        (100, 200, 0.0, 1.2, 0.90),
        (100, 200, 2.0, 2.3, 0.92),
        (400, 300, 2.0, 1.2, 0.92),
        (400, 300, 6.0, 3.3, 0.92),
    ],
)
def test_intervals_cover_the_population_value(
    positives: int, negatives: int, noise: float, distance: float, least: float
) -> None:
    rng = np.random.default_rng(6)
    study = make_study()
    big = score_histogram(*draw(rng, 200_000, 200_000, distance), study).astype(np.float64)
    big[0] *= np.array([[negatives], [positives]]) / 200_000
    truth = summarise(to_record(big, 0.0))
    names = ("auc", "average_precision", "brier")
    covered = dict.fromkeys(names, 0)
    repeats = 150
    for _ in range(repeats):
        counts = score_histogram(*draw(rng, positives, negatives, distance), study)
        summary = summarise(to_record(counts + rng.normal(0, noise, counts.shape), noise))
        for name in names:
            low, high = getattr(summary, f"{name}_low"), getattr(summary, f"{name}_high")
            covered[name] += low <= getattr(truth, name) <= high
    assert {n: c for n, c in covered.items() if c < (least - 0.02) * repeats} == {}


def binned_truth(shares: Floats, positives: int, negatives: int) -> dict[str, float]:
    """Metrics of [2, bins] shares of the two classes, each bin one patient with a weight."""
    bins = shares.shape[1]
    middle = np.tile((np.arange(bins) + 0.5) / bins, 2)
    labels = np.repeat([0, 1], bins)
    weights = (shares * np.array([[negatives], [positives]])).ravel()
    fall_out, sensitivity, _ = roc_curve(labels, middle, sample_weight=weights)
    gaps = np.bincount((middle * 8).astype(int), weights * (labels - middle))
    return {
        "auc": roc_auc_score(labels, middle, sample_weight=weights),
        "average_precision": average_precision_score(labels, middle, sample_weight=weights),
        "sensitivity_at_95_specificity": np.interp(0.05, fall_out, sensitivity),
        "ece": np.abs(gaps).sum() / weights.sum(),
    }


@pytest.mark.parametrize("sigma", [2.55, 5.92, 15.88])
def test_all_that_is_shown_of_three_noisy_hospitals_is_covered_as_stated(sigma: float) -> None:
    # 18 evaluations at epsilon 8, 3 and 1; AUC .965 (distance 2.56), 700 held-out patients.
    rng, noise, draws = np.random.default_rng(12), sigma * np.sqrt(3), 200
    big = score_histogram(*draw(rng, 200_000, 200_000, 2.56), make_study())[0] / 200_000
    truth = binned_truth(big, 520, 180)
    assert truth["auc"] == pytest.approx(0.965, abs=0.005)
    missed, shown = dict.fromkeys(truth, 0), 0
    while shown < draws:
        counts = np.stack([rng.multinomial(180, big[0]), rng.multinomial(520, big[1])])
        summary = summarise(to_record((counts + rng.normal(0, noise, counts.shape))[None], noise))
        if summary.auc is None:
            continue
        shown += 1
        for name, value in truth.items():
            low, high = getattr(summary, f"{name}_low"), getattr(summary, f"{name}_high")
            missed[name] += not low <= value <= high
    # A true 95 % interval misses more often once in 120 000 times, for one of the twelve.
    most = binom.isf(1e-4 / 12, draws, 0.05)
    assert {name: count for name, count in missed.items() if count > most} == {}


def test_intervals_of_many_patients_are_narrow() -> None:
    counts = score_histogram(*draw(np.random.default_rng(13), 50_000, 50_000, 1.6), make_study())
    summary = summarise(to_record(counts, 0.0))
    for name in ("auc", "average_precision", "sensitivity_at_95_specificity", "ece"):
        assert getattr(summary, f"{name}_high") - getattr(summary, f"{name}_low") < 0.03


def test_noise_alone_does_not_bias_the_auc() -> None:
    rng = np.random.default_rng(7)
    counts = score_histogram(*draw(rng, 300, 300, 1.6), make_study())
    exact = summarise(to_record(counts, 0.0)).auc
    noised = [
        summarise(to_record(counts + rng.normal(0, 4, counts.shape), 4.0)).auc for _ in range(200)
    ]
    spread = float(np.std(np.array(noised, dtype=float)))
    assert np.mean(np.array(noised, dtype=float)) == pytest.approx(
        exact, abs=4 * spread / np.sqrt(200)
    )


def test_noise_widens_the_interval() -> None:
    counts = score_histogram(*draw(np.random.default_rng(8), 200, 200, 1.6), make_study())
    exact, noised = summarise(to_record(counts, 0.0)), summarise(to_record(counts, 5.0))
    assert exact.auc == noised.auc
    assert noised.auc_high - noised.auc_low > 1.3 * (exact.auc_high - exact.auc_low)


@pytest.mark.parametrize("positives", [0, 3])
def test_a_class_that_noise_could_have_made_up_gives_no_value(positives: int) -> None:
    counts = score_histogram(*draw(np.random.default_rng(9), positives, 100, 2.0), make_study())
    summary = summarise(to_record(counts, 3.0))
    assert summary.auc is None
    assert (summary.auc_low, summary.auc_high) == (0.0, 1.0)
    assert summary.undetermined == 1


def test_a_perfect_score_on_few_patients_is_not_certain() -> None:
    counts = np.zeros((1, 2, 16))
    counts[0, 0, 0], counts[0, 1, 15] = 12, 6
    summary = summarise(to_record(counts, 0.0))
    assert summary.auc == 1.0
    assert summary.auc_high == 1.0
    assert summary.auc_low < 0.98


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, (1, 2, 8), elements=st.floats(-1e6, 1e6)),
    st.sampled_from([0.0, 0.5, 30.0]),
)
def test_any_noised_counts_give_ordered_values_between_0_and_1(
    counts: Floats, noise: float
) -> None:
    summary = summarise(to_record(counts, noise))
    for name in ("auc", "average_precision", "sensitivity_at_95_specificity", "ece", "brier"):
        value = getattr(summary, name)
        low, high = getattr(summary, f"{name}_low"), getattr(summary, f"{name}_high")
        assert 0 <= low <= high <= 1
        assert value is None or low <= value <= high


def test_merging_sites_equals_pooling_their_patients() -> None:
    rng = np.random.default_rng(10)
    study = make_study()
    parts = [draw(rng, 40, 60, 1.5), draw(rng, 30, 10, 1.0)]
    pooled = score_histogram(
        np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), study
    )
    merged = merge(
        [
            to_record(score_histogram(*p, study), noise)
            for p, noise in zip(parts, (3.0, 4.0), strict=True)
        ]
    )
    assert merged == to_record(pooled, 5.0)


def test_histograms_of_different_shapes_do_not_merge() -> None:
    with pytest.raises(ValueError, match="one shape"):
        merge([to_record(np.zeros((1, 2, 4)), 0.0), to_record(np.zeros((1, 2, 8)), 0.0)])
    with pytest.raises(ValueError, match="must exist"):
        merge([])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.data())
def test_exact_auc_equals_scikit_learn_ties_included(
    scores: list[int], data: st.DataObject
) -> None:
    size = len(scores)
    positive = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    if len(set(positive)) < 2:
        with pytest.raises(ValueError, match="both classes"):
            roc_auc(scores, positive)
    else:
        assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_of_findings_only_what_is_known_is_counted_each_by_its_own_score() -> None:
    findings = Study(
        name="findings",
        task={"classes": ("edema", "nodule"), "findings": True},
        privacy={"score_bins": 4},
    )
    labels = np.array([[1, 0], [0, -1], [-1, 1], [1, 1], [-1, -1]])
    scores = np.array([[0.9, 0.1], [0.3, 0.9], [0.9, 0.6], [0.6, 0.9], [0.1, 0.1]])
    counts = score_histogram(scores, labels, findings)
    expected = np.zeros((2, 2, 4), dtype=int)
    for patient, row in enumerate(labels):
        for finding, known in enumerate(row):
            if known >= 0:
                expected[finding, known, int(scores[patient, finding] * 4)] += 1
    assert np.array_equal(counts, expected)
    assert counts.sum() == 6
    assert scored_classes(findings) == (0, 1)
