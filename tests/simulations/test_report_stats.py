"""Comparisons of strategies: told from chance, and against pooled data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simulations.records import Measurement
from simulations.report_stats import difference, gap_closed


def measured(
    values: list[float], spread: float = 0.02, patients: int = 100
) -> dict[int, Measurement]:
    return {
        seed: Measurement("s", "x", seed, "auc", v, v - spread, v + spread, patients=patients)
        for seed, v in enumerate(values)
    }


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-0.05, 0.1), st.floats(0.03, 0.15)), min_size=3, max_size=10),
    st.integers(0, 2**32 - 1),
)
def test_the_interval_of_the_gap_closed_holds_the_ratios_a_t_test_keeps(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.01, (2, len(pairs)))
    base = [0.8] * len(pairs)
    gain = [0.8 + a + e for (a, _), e in zip(pairs, noise[0], strict=True)]
    top = [0.8 + b + e for (_, b), e in zip(pairs, noise[1], strict=True)]
    gap = gap_closed(measured(gain), measured(base), measured(top))
    clear = stats.ttest_1samp(np.subtract(top, base), 0)
    if clear.pvalue > 0.05 or clear.statistic < 0:
        assert gap.value is None
        return
    assert gap.value is not None
    assert gap.low is not None
    assert gap.high is not None
    assert gap.value == pytest.approx(
        np.mean(np.subtract(gain, base)) / np.mean(np.subtract(top, base))
    )
    width = gap.high - gap.low
    for ratio, kept in (
        (gap.low + 0.01 * width, True), (gap.high - 0.01 * width, True),
        (gap.low - 0.01 * width, False), (gap.high + 0.01 * width, False),
    ):  # fmt: skip
        rest = np.subtract(gain, base) - ratio * np.subtract(top, base)
        assert (float(stats.ttest_1samp(rest, 0).pvalue) > 0.05) is kept


def test_a_gap_within_noise_is_not_defined() -> None:
    base, near = measured([0.80, 0.82, 0.84]), measured([0.82, 0.81, 0.85])
    assert gap_closed(measured([0.9, 0.9, 0.9]), base, near).reason == "the gap is within noise"
    below = measured([0.70, 0.71, 0.72])
    assert gap_closed(base, base, below).reason == "pooled data does worse"
    assert gap_closed(base, base, {}).reason == "not measured"


def test_one_seed_is_clear_only_where_bootstrap_intervals_do_not_meet() -> None:
    base = measured([0.80])
    found = [difference(measured([v]), base) for v in (0.83, 0.85, 0.75)]
    assert [d.verdict for d in found if d] == ["unclear", "higher", "lower"]
    assert gap_closed(base, base, measured([0.83])).value is None
    assert gap_closed(measured([0.85]), base, measured([0.90])).value == pytest.approx(0.5)


def test_a_handful_of_patients_makes_nothing_clear() -> None:
    # Three patients, all told wrong by one model and right by the other, in every seed.
    for seeds, patients, verdict in ((1, 3, "unclear"), (3, 3, "unclear"), (3, 30, "lower")):
        worse, better = ([value] * seeds for value in (0.0, 1.0))
        found = difference(measured(worse, 0, patients), measured(better, 0, patients))
        assert found is not None
        assert found.verdict == verdict


def test_differences_are_of_the_seeds_both_have() -> None:
    first, second = measured([0.9, 0.8, 0.7]), measured([0.5, 0.7])
    first[1] = replace(first[1], value=None)
    found = difference(first, second)
    assert found is not None
    assert (found.seeds, found.mean) == (1, pytest.approx(0.4))
    assert difference(first, {}) is None
