"""The learning rates both ends reckon with."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared.schedule import learning_rates
from shared.study import Study


def make_study(rounds: int = 4, **training: Any) -> Study:
    return Study.model_validate(
        {
            "name": "s",
            "task": {"classes": ["a", "b"]},
            "training": {"learning_rate": 2.0, "local_steps": 3} | training,
            "federation": {"rounds": rounds},
        }
    )


@pytest.mark.parametrize("number", [1, 4, 5, 9])
def test_a_constant_rate_is_the_plans(number: int) -> None:
    assert learning_rates(make_study(personal_rounds=2), number) == (2.0, 2.0, 2.0)


def test_the_cosine_falls_to_zero_over_all_steps_of_all_rounds() -> None:
    study = make_study(schedule="cosine")
    found = [rate for number in (1, 2, 3, 4) for rate in learning_rates(study, number)]
    assert found == pytest.approx([1 + math.cos(math.pi * step / 12) for step in range(12)])
    assert found[0] == 2.0
    assert min(found) > 0
    assert learning_rates(study, 5) == (0, 0, 0)


def test_fine_tuning_has_a_whole_fall_of_its_own() -> None:
    study = make_study(schedule="cosine", personal_rounds=2)
    found = [rate for number in (5, 6) for rate in learning_rates(study, number)]
    assert found == pytest.approx([1 + math.cos(math.pi * step / 6) for step in range(6)])
    assert learning_rates(study, 1) == learning_rates(make_study(schedule="cosine"), 1)
