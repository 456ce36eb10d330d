"""What a plan states of its noise, and that no plan reaches noise whose numbers overflow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from client.privacy.counts import GRID, noised
from client.privacy.dpsgd import Grid, add_noise
from client.privacy.plans import description_plan, evaluation_plan, training_plan
from client.privacy.rounded_gaussian import LARGEST, at_least
from shared.accounting import LEAST_NOISE, MOST_NOISE, Mechanism, before_training, epsilon
from shared.explain_noise import site_noise
from shared.statistics import statistics_sensitivity
from shared.study import Study
from shared.subgroups import closing_sensitivity
from simulations.seeded import SeededStream

WEIGHTED = {"loss": {"name": "class-balanced"}}


def make_study(**sections: dict[str, Any]) -> Study:
    return Study.model_validate({"name": "t", "task": {"classes": ["a", "b"]}} | sections)


def test_a_study_whose_noise_was_raised_states_the_smaller_epsilon_everywhere() -> None:
    study = make_study(
        privacy={"epsilon": 50.0, "spare_rounds": 0},
        training={"sampling_rate": 0.001, "local_steps": 1} | WEIGHTED,
        federation={"rounds": 1},
    )
    training, described = training_plan(study, 200), description_plan(study, 200)
    counted = evaluation_plan(study, 200, exact=False)
    shown = site_noise(study, 200)
    assert training.noise_multiplier == counted.noise_multiplier == LEAST_NOISE
    whole = [Mechanism(0.5, 0.001, 1), *before_training(study)]
    assert training.epsilon == described.epsilon == shown.epsilon == epsilon(whole, 1e-5) < 10
    cost = epsilon([Mechanism(0.5, 1.0, study.evaluations)], 1e-5)
    assert counted.epsilon == shown.held_out_epsilon == cost < 50


def test_other_studies_state_their_own_epsilon() -> None:
    study = make_study(privacy={"epsilon": 3.0}, training=WEIGHTED)
    plans = [
        training_plan(study, 500),
        description_plan(study, 500),
        evaluation_plan(study, 500, exact=False),
    ]
    assert {plan.epsilon for plan in plans} == {3.0}
    assert site_noise(study, 500).epsilon == site_noise(study, 500).held_out_epsilon == 3.0
    assert evaluation_plan(study, 500, exact=True).epsilon == 0.0


@pytest.mark.parametrize("clip", [1e-3, 0.9999, 1.0, 1000.0])
def test_the_largest_noise_of_training_overflows_nothing(clip: float) -> None:
    grid = Grid.of(clip)
    assert at_least(MOST_NOISE * clip / grid.step) <= LARGEST
    assert math.log2(grid.step) % 1 == 0
    total = [torch.full((2000,), grid.radius * 2**35, dtype=torch.int64)]
    add_noise(total, grid, MOST_NOISE, SeededStream(1))
    assert total[0].min() > 0, "it would wrap round to below zero"
    # As an update: divided by the smallest unit of a lot, in float32.
    update = (total[0].double() * (grid.step / (1e-4 * clip))).float()
    assert update.isfinite().all()


def test_the_largest_noise_of_counts_overflows_nothing() -> None:
    classes = [f"c{i}" for i in range(20)]
    widest = make_study(
        task={"classes": classes, "findings": True},
        privacy={"subgroups": ["sex", "age", "scanner"], "statistics_noise": 1000},
    )
    columns = [{"name": f"x{i}", "low": 0, "high": 1} for i in range(256)]
    table = make_study(
        task={"classes": classes, "findings": True},
        table={"columns": columns, "missing": "mean", "bins": 256},
        model={"name": "table"},
    )
    sizes = [closing_sensitivity(widest), statistics_sensitivity(table)]
    noise = MOST_NOISE * max(sizes)
    assert at_least(noise * GRID) <= LARGEST
    seen = noised(np.full(5000, 10**7), noise, SeededStream(2))
    assert np.abs(seen / noise).max() < 6
    assert np.array_equal(seen * GRID, np.round(seen * GRID))
