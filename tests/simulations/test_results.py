"""The results file: what is kept, what counts, and what is refused."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from shared.errors import CoordinatorError
from simulations.aggregate import aggregate
from simulations.records import MEAN, Cell, Measurement, Missing, Outcome, Part, SiteRow
from simulations.results import FILE, Results

CELL = Cell(
    id="0123456789abcdef",
    scenario="ladder",
    strategy="fedavg",
    seed=0,
    scenario_digest="a",
    strategy_digest="b",
    code="c",
    code_version="0.1.0",
    machine="a machine",
    labels={"rung": "dirichlet-0.1"},
)
DONE = replace(CELL, state="finished", epsilon=7.9, classes=("no", "yes"), notes=("a note",))
AUC = Measurement("ladder", "fedavg", 0, "auc", 0.9, 0.8, 0.95)


def finish(results: Results, cell: Cell, *values: float) -> None:
    cell = replace(cell, state="finished")
    results.store(Outcome(cell, [replace(AUC, value=value) for value in values]))


def test_a_finished_cell_comes_back_as_it_was_written(tmp_path: Path) -> None:
    outcome = Outcome(
        DONE,
        [AUC, replace(AUC, metric="ece", value=None, low=None, high=None, over=0, round=3)],
        [SiteRow(CELL.id, "north", 80, 20, 90, (50, 30), (), 7.9, 1e-5, 1.1)],
        [Part(CELL.id, 1, "north", "late", "no answer within 2 s")],
        [Missing(CELL.id, "north", "labels", "yes", "at random", 5, 30)],
    )
    with Results(tmp_path, create=True) as results:
        results.plan([CELL])
        assert results.cells() == [CELL]
        results.store(outcome)
    with Results(tmp_path) as results:
        assert results.cells(state="finished") == [DONE]
        assert list(results.measurements()) == list(outcome.measurements)
        assert list(results.measurements(metric="ece", round=3)) == [outcome.measurements[1]]
        assert results.sites(CELL.id) == list(outcome.sites)
        assert results.parts(CELL.id) == list(outcome.parts)
        assert results.missing(CELL.id) == list(outcome.missing)


def test_an_axis_of_a_sweep_may_be_renamed(tmp_path: Path) -> None:
    with Results(tmp_path, create=True) as results:
        results.plan([CELL])
        finish(results, CELL, 0.9)
        results.plan([replace(CELL, labels={"label skew": "dirichlet-0.1"})])
        (cell,) = results.cells(state="finished")
        assert cell.labels == {"label skew": "dirichlet-0.1"}
        assert [m.value for m in results.measurements()] == [0.9]


def test_any_tool_for_sqlite_can_read_the_figures(tmp_path: Path) -> None:
    with Results(tmp_path, create=True) as results:
        results.plan([CELL])
        finish(results, CELL, 0.75)
    with sqlite3.connect(tmp_path / FILE) as connection:
        query = (
            "select scenario, strategy, metric, value from measurement join cell on cell.id=cell"
        )
        assert connection.execute(query).fetchall() == [("ladder", "fedavg", "auc", 0.75)]


def test_figures_of_a_cell_that_is_not_finished_are_not_told(tmp_path: Path) -> None:
    with Results(tmp_path, create=True) as results:
        results.plan([CELL])
        finish(results, CELL, 0.75)
        results.note(replace(CELL, state="failed", reason="no site came online"))
        assert list(results.measurements()) == []
        assert [cell.reason for cell in results.cells(state="failed")] == ["no site came online"]


def test_planning_again_keeps_what_is_finished(tmp_path: Path) -> None:
    more = replace(CELL, id="1", seed=1)
    with Results(tmp_path, create=True) as results:
        results.plan([CELL])
        finish(results, CELL, 0.75)
        results.plan([CELL, more])
        assert [(cell.seed, cell.state) for cell in results.cells()] == [
            (0, "finished"),
            (1, "planned"),
        ]
        assert [m.value for m in results.measurements()] == [0.75]


@pytest.mark.parametrize("change", ["scenario_digest", "code", "strategy_digest"])
def test_what_changed_never_mixes_with_what_was(tmp_path: Path, change: str) -> None:
    other_strategy = replace(CELL, id="1", strategy="alone", strategy_digest="x")
    elsewhere = replace(CELL, id="2", scenario="another", scenario_digest="y")
    changed = replace(CELL, id="3", **{change: "new"})
    with Results(tmp_path, create=True) as results:
        results.plan([CELL, other_strategy, elsewhere])
        for cell in (CELL, other_strategy, elsewhere):
            finish(results, cell, 0.5)
        results.plan([changed])
        # Another strategy's cells stay comparable where only this strategy has changed.
        stays = {"1"} if change == "strategy_digest" else set()
        assert {cell.id for cell in results.cells()} == {"2", "3"} | stays
        results.plan([CELL])
        finish(results, CELL, 0.6)
        assert "3" not in {cell.id for cell in results.cells()}


def test_a_new_attempt_replaces_the_figures_of_the_cell(tmp_path: Path) -> None:
    with Results(tmp_path, create=True) as results:
        results.plan([CELL])
        finish(results, CELL, 0.5, 0.6)
        finish(results, CELL, 0.7)
        assert [m.value for m in results.measurements()] == [0.7]


def test_no_results_other_results_and_no_database_are_each_one_line(tmp_path: Path) -> None:
    with pytest.raises(CoordinatorError, match="there are no results here"):
        Results(tmp_path / "empty")
    (tmp_path / FILE).write_text("this is not a database, however long it may be " * 50)
    with pytest.raises(CoordinatorError, match="not a database"):
        Results(tmp_path)
    (tmp_path / FILE).unlink()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("pragma user_version = 99")
    with pytest.raises(CoordinatorError, match="have format 99"):
        Results(tmp_path)


def test_seeds_are_merged_into_a_mean_with_students_interval() -> None:
    values = [0.81, 0.84, 0.90, 0.79]
    group = [replace(AUC, seed=seed, value=value) for seed, value in enumerate(values)]
    (merged,) = aggregate(group)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (merged.value, merged.low, merged.high) == pytest.approx((0.835, low, high))
    assert (merged.source, merged.seeds, merged.defined) == ("seeds", 4, 4)
    assert (merged.patients_low, merged.patients_high) == pytest.approx((0.8, 0.95))


def test_one_seed_has_the_interval_of_its_patients() -> None:
    (merged,) = aggregate([AUC])
    assert (merged.value, merged.low, merged.high, merged.source) == (0.9, 0.8, 0.95, "patients")


def test_what_is_undefined_is_counted_and_what_differs_is_kept_apart() -> None:
    undefined = replace(AUC, seed=1, value=None, low=None, high=None)
    sites = replace(AUC, site=MEAN, where="own", over=5, of=8)
    first, second, third = aggregate(
        [AUC, undefined, sites, replace(sites, seed=1, over=3), replace(AUC, round=2, low=None)]
    )
    assert (first.value, first.seeds, first.defined, first.source) == (0.9, 2, 1, "patients")
    assert (second.site, second.over, second.of, second.defined) == (MEAN, 3, 8, 2)
    assert (third.round, third.low, third.source) == (2, None, "")
    (nothing,) = aggregate([undefined])
    assert (nothing.value, nothing.low, nothing.source, nothing.defined) == (None, None, "", 0)
