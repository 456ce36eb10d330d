"""Combinations of remedies that cannot do what they are for are refused, each in one line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StudyError
from shared.study import Study, parse_study, study_from_json, trimmed_sites

TRIMMED = {"aggregator": "trimmed-mean", "trim": 0.25}


def study(**federation: Any) -> Study:
    values = {"name": "lungs", "task": {"classes": ["a", "b"]}, "federation": federation}
    return parse_study(values, "study.toml")


@pytest.mark.parametrize(
    ("federation", "said"),
    [
        ({"aggregator": "median"}, "raise min_sites to 3"),
        ({"sites": 9, "min_sites": 2, "aggregator": "median"}, "raise min_sites to 3"),
        ({"sites": 9, "min_sites": 3, **TRIMMED}, "it takes min_sites = 4"),
        ({"sites": 9, "min_sites": 4, **TRIMMED, "trim": 0.2}, "it takes min_sites = 5"),
        ({"sites": 99, "min_sites": 9, **TRIMMED, "trim": 0.1}, "it takes min_sites = 10"),
        ({**TRIMMED, "trim": 0.5}, "less than 0.5"),
        ({"optimiser": {"name": "adam"}}, "give one, such as 0.01"),
        ({"optimiser": {"name": "yogi", "tau": 0.1}}, "give one, such as 0.01"),
        ({"optimiser": {"name": "adagrad"}}, "'momentum'"),
    ],
)
def test_what_cannot_work_is_one_line(federation: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError) as error:
        study(**federation)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "federation",
    [
        {"aggregator": "median", "min_sites": 3},
        {"sites": 9, "min_sites": 4, **TRIMMED},
        {"optimiser": {"name": "momentum"}},
        {"optimiser": {"name": "adam", "learning_rate": 0.01}},
    ],
)
def test_what_can_work_comes_back_from_its_canonical_form(federation: dict[str, Any]) -> None:
    plan = study(**federation)
    assert study_from_json(plan.canonical()) == plan


@given(st.integers(1, 49), st.integers(1, 1000))
def test_the_trimmed_sites_are_the_whole_part_of_the_exact_product(hundredths: int, n: int) -> None:
    assert trimmed_sites(hundredths / 100, n) == hundredths * n // 100
    assert 2 * trimmed_sites(hundredths / 100, n) < n


@given(st.integers(1, 49), st.integers(1, 60))
def test_a_refusal_names_the_fewest_sites_that_do(hundredths: int, least: int) -> None:
    plan = {"sites": 200, "aggregator": "trimmed-mean", "trim": hundredths / 100}
    try:
        study(**plan, min_sites=least)
    except StudyError as error:
        enough = int(str(error).split("it takes min_sites = ")[1].split(".")[0].split(" ")[0])
        assert enough > least
        assert study(**plan, min_sites=enough)
        assert trimmed_sites(hundredths / 100, enough - 1) == 0
    else:
        assert trimmed_sites(hundredths / 100, least) > 0
