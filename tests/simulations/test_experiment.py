"""Cells computed by the real engine in this process: what is scored, counted and noted."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiment_kit import ROUNDS, compute, least_patients, only, select, tiny, with_study
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from shared.errors import SimulationError
from shared.models import build_model, set_weights
from simulations.build import Federation, build_federation
from simulations.experiment import tidy
from simulations.records import MEAN, METRICS, WORST, Cell, Outcome
from simulations.report import write_report
from simulations.results import Results
from simulations.runner import plan_jobs
from simulations.scenario import Scenario, study_of
from simulations.trace import read_trace


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return tiny()


@pytest.fixture(scope="module")
def federation(scenario: Scenario) -> Federation:
    return build_federation(scenario, 0)


@pytest.fixture(scope="module")
def together(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("fedavg")
    return compute(scenario, "fedavg", folder), folder


@pytest.fixture(scope="module")
def each_alone(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    with least_patients(12):
        return compute(tiny(), "alone", tmp_path_factory.mktemp("alone"))


def test_the_released_model_is_scored_on_the_test_set_and_at_every_site(
    scenario: Scenario, federation: Federation, together: tuple[Outcome, Path]
) -> None:
    outcome, folder = together
    model = build_model(study_of(scenario, "fedavg", 3)).eval()
    set_weights(model, load_file(folder / "run" / "model.safetensors"))
    everyone = {"": federation.test, **{s.name: s.held_out for s in federation.sites}}
    own = {}
    for name, patients in everyone.items():
        with torch.no_grad():
            images = model(torch.tensor(patients.images)).softmax(1)[:, 1].double().numpy()
        scores = [images[patients.image_patient == i].mean() for i in range(len(patients))]
        expected = None
        if len(set(patients.labels.tolist())) == 2:
            expected = pytest.approx(roc_auc_score(patients.labels, scores))
        found = only(outcome, where="own" if name else "test", site=name)
        assert found.value == expected
        assert found.patients == len(patients)
        own[name] = found.value
    defined = [value for name, value in own.items() if name and value is not None]
    mean, worst = (only(outcome, where="own", site=site) for site in (MEAN, WORST))
    assert mean.value == pytest.approx(np.mean(defined))
    assert worst.value == pytest.approx(min(defined))
    assert (mean.over, mean.of) == (worst.over, worst.of) == (len(defined), 3)
    assert {m.model for m in outcome.measurements} == {"global"}


def test_every_metric_has_an_interval_and_every_group_of_the_test_set_a_score(
    federation: Federation, together: tuple[Outcome, Path]
) -> None:
    outcome, _ = together
    for metric in METRICS:
        found = only(outcome, metric=metric, where="test", site="")
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert "scanner" in federation.test.groups
    for name, cells in federation.test.groups.items():
        for index, cell in enumerate(federation.dataset.group_names[name]):
            group = select(outcome, where="test", metric="accuracy", subgroup=f"{name}:{cell}")
            assert [m.patients for m in group] == ([n] if (n := (cells == index).sum()) else [])


def test_the_curve_ends_where_the_released_model_is(together: tuple[Outcome, Path]) -> None:
    outcome, _ = together
    for metric in METRICS:
        curve = [only(outcome, metric=metric, round=n, where="test") for n in (1, ROUNDS)]
        assert curve[-1].value == only(outcome, metric=metric, where="test", site="").value
        assert {m.low for m in curve} == {None}


def test_rounds_bytes_sites_and_who_took_part_are_noted(
    federation: Federation, together: tuple[Outcome, Path]
) -> None:
    outcome, folder = together
    cell = outcome.cell
    weights = load_file(folder / "run" / "model.safetensors")
    size = 4 * sum(array.size for array in weights.values())
    assert cell.state == "finished"
    assert (cell.rounds, cell.bytes_up) == (ROUNDS, 3 * ROUNDS * size)
    assert cell.bytes_down == 3 * (ROUNDS + 1) * size
    assert (cell.private, cell.seeded_noise, cell.epsilon) == (False, False, None)
    assert cell.test_patients == len(federation.test)
    assert cell.peak_bytes > 50e6
    for row, site in zip(outcome.sites, federation.sites, strict=True):
        assert (row.site, row.train_images) == (site.name, len(site.train.images))
        assert row.train_patients == sum(row.counts) == len(site.train)
        assert row.counts[1] == (site.train.labels == 1).sum()
    states = {(p.round, p.site): p.state for p in outcome.parts}
    assert len(states) == 3 * (ROUNDS + 1)
    assert {state for (number, _), state in states.items() if number <= ROUNDS} == {"update"}


def test_who_was_away_or_sent_nonsense_is_noted_and_what_was_sent_in_vain_is_counted(
    tmp_path: Path,
) -> None:
    behaviour = {
        "dropouts": [{"sites": [2], "rounds": [2]}],
        "nonsense": [{"sites": [1], "kind": "nan"}],
    }
    outcome = compute(tiny(behaviour=behaviour), "fedavg", tmp_path)
    states = {(p.round, p.site): p.state for p in outcome.parts}
    assert states == {
        (1, "site-1"): "failed",
        (1, "site-2"): "update",
        (1, "site-3"): "update",
        (2, "site-1"): "failed",
        (2, "site-2"): "absent",
        (2, "site-3"): "update",
        **{(3, f"site-{n}"): "evaluated" for n in (1, 2, 3)},
    }
    reasons = {p.reason for p in outcome.parts if p.state == "failed"}
    assert all(reason.startswith("rejected") for reason in reasons)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    size = 4 * sum(array.size for array in weights.values())
    assert (outcome.cell.bytes_up, outcome.cell.bytes_down) == (5 * size, 8 * size)


def test_what_was_sent_in_rounds_that_were_cut_short_is_counted_once(
    scenario: Scenario, together: tuple[Outcome, Path], tmp_path: Path
) -> None:
    """Killed in the middle of round 2 and of the closing evaluation, with all that was logged."""
    run = shutil.copytree(together[1] / "run", tmp_path / "run")
    lines = (run / "events.jsonl").read_text().splitlines()
    replied = [n for n, line in enumerate(lines) if json.loads(line)["event"] == "site-replied"]
    start = next(json.loads(line) for line in lines if "run-started" in line)
    second, closing = replied[3 + 1] + 1, replied[3 * ROUNDS] + 1

    def again(done: int) -> str:
        return json.dumps(start | {"rounds_done": done})

    after = next(n for n, line in enumerate(lines) if '"round-finished"' in line) + 1
    evaluated = [n for n, line in enumerate(lines) if '"round-finished"' in line][-1] + 1
    killed = [
        *lines[:second], again(1), *lines[after:second], again(1), *lines[after:closing],
        again(ROUNDS), *lines[evaluated:],
    ]  # fmt: skip
    assert len(killed) > len(lines) + 6
    (run / "events.jsonl").write_text("\n".join(killed) + "\n")
    trace = read_trace(run, study_of(scenario, "fedavg", 3), "cell")
    cell = together[0].cell
    assert (trace.bytes_up, trace.bytes_down) == (cell.bytes_up, cell.bytes_down)


def test_the_same_seed_gives_the_same_figures_to_the_last_bit(
    scenario: Scenario, together: tuple[Outcome, Path], tmp_path: Path
) -> None:
    again = compute(scenario, "fedavg", tmp_path / "again")
    assert list(again.measurements) == list(together[0].measurements)
    other = compute(scenario, "fedavg", tmp_path / "other", seed=1)
    assert only(other, where="test").value != only(again, where="test").value


def test_a_site_alone_is_scored_by_its_own_model_and_one_that_cannot_train_is_counted(
    each_alone: Outcome,
) -> None:
    assert {m.model for m in each_alone.measurements} == {"local"}
    for where in ("test", "own"):
        values = [only(each_alone, where=where, site=f"site-{n}").value for n in (1, 2, 3)]
        assert values[2] is None
        mean, worst = (only(each_alone, where=where, site=site) for site in (MEAN, WORST))
        assert mean.value == pytest.approx((values[0] + values[1]) / 2)
        assert worst.value == pytest.approx(min(values[:2]))
        assert (mean.over, mean.of) == (2, 3)
    (said,) = (note for note in each_alone.cell.notes if "could not train by itself" in note)
    assert said.startswith("site-3 could not train by itself: round 1 failed")
    assert said.endswith("(refused, policy-rounds)")
    assert (each_alone.cell.bytes_up, each_alone.cell.bytes_down) == (0, 0)
    assert {p.site for p in each_alone.parts} == {"site-1", "site-2"}
    assert len(each_alone.sites) == 3


def test_sites_alone_learn_from_their_own_patients_only(
    each_alone: Outcome, federation: Federation
) -> None:
    first, second = (only(each_alone, where="test", site=f"site-{n}") for n in (1, 2))
    assert first.value != second.value
    trained = {row.site: row.train_patients for row in each_alone.sites}
    assert trained == {site.name: len(site.train) for site in federation.sites}


def test_where_no_site_can_train_alone_the_cell_fails_in_one_line(tmp_path: Path) -> None:
    nobody = "no site could train by itself"
    with least_patients(60), pytest.raises(SimulationError, match=nobody) as caught:
        compute(tiny(), "alone", tmp_path)
    assert "\n" not in str(caught.value)


def test_pooled_is_one_site_with_everybody_scored_at_every_site(
    scenario: Scenario, federation: Federation, tmp_path: Path
) -> None:
    outcome = compute(scenario, "pooled", tmp_path / "first")
    (row,) = outcome.sites
    assert row.train_patients == sum(len(site.train) for site in federation.sites)
    assert (outcome.cell.bytes_up, outcome.cell.rounds) == (0, ROUNDS)
    assert only(outcome, where="own", site=MEAN).of == 3
    assert only(outcome, where="own", site="site-1").patients == len(federation.sites[0].held_out)
    first = only(outcome, where="test", site="", round=1)
    # On the same patients another seed trains otherwise.
    other = compute(scenario, "pooled", tmp_path / "other", 1, federation)
    assert only(other, where="test", site="", round=1).value != first.value


def test_what_the_sites_lack_is_noted_and_summed_up_where_they_are_pooled(tmp_path: Path) -> None:
    gaps = tiny(degrade=[{"kind": "missing-labels", "part": 0.2}])
    lacking = build_federation(gaps, 0).missing
    told = compute(gaps, "fedavg", tmp_path / "fedavg").missing
    assert [(m.site, m.cause, m.count, m.of) for m in told] == [
        (m.site, m.cause, m.count, m.total) for m in lacking
    ]
    pooled = compute(gaps, "pooled", tmp_path / "pooled").missing
    assert {m.site for m in pooled} == {"pooled"}
    assert sum(m.count for m in pooled) == sum(m.count for m in lacking)
    assert sum(m.of for m in pooled) == sum(m.total for m in lacking)


TABLE: dict[str, Any] = {
    "name": "tiny-table",
    "data": {"source": "made-up-table", "patients": 120, "test_patients": 60},
    "sites": {"number": 2},
    "degrade": [{"kind": "missing-values", "part": 0.3, "columns": ["pressure", "glucose"]}],
    "study": {
        "federation": {"rounds": 1},
        "training": {"local_steps": 1},
        "model": {"layers": []},
        "table": {"missing": "indicator"},
        "privacy": {"enabled": False},
    },
    "strategies": {
        "whole-rows": {
            "description": "only patients without a gap train",
            "study": {"table": {"missing": "drop"}},
        }
    },
    "compare": ["fedavg", "whole-rows"],
}


def test_patients_a_study_leaves_out_are_not_told_as_trained_on(tmp_path: Path) -> None:
    scenario = Scenario.model_validate(TABLE)
    sites = build_federation(scenario, 0).sites
    for strategy in ("fedavg", "whole-rows"):
        rows = compute(scenario, strategy, tmp_path / strategy).sites
        for row, site in zip(rows, sites, strict=True):
            whole = ~np.isnan(site.train.images).any(axis=1)
            stays = whole if strategy == "whole-rows" else np.ones_like(whole)
            assert row.train_patients == row.train_images == stays.sum()
            assert row.counts == tuple(np.bincount(site.train.labels[stays], minlength=2))
            assert whole.sum() < len(whole)


def test_the_report_tells_which_remedies_ran(tmp_path: Path) -> None:
    with Results(tmp_path, create=True) as results:
        results.plan(job.cell for job in plan_jobs([Scenario.model_validate(TABLE)]))
    page = write_report(tmp_path).read_text().partition("How to read this")[0]
    told = dict(re.findall(r"<dt>(fedavg|whole-rows)</dt><dd>(.*?)</dd>", page))
    averaged = "The mean of the updates (McMahan et al. 2017). Missing values: indicator: "
    assert told["fedavg"].startswith(averaged)
    assert "Only patients without a gap train. Missing values: drop" in told["whole-rows"]


def test_of_a_finished_cell_models_and_logs_stay_and_scratch_goes(
    together: tuple[Outcome, Path], tmp_path: Path
) -> None:
    shutil.copytree(together[1], tmp_path / "cell")
    assert list(tmp_path.rglob("round-*.safetensors"))
    tidy(tmp_path / "cell")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    names = ("events.jsonl", "metrics.jsonl", "model-card.json", "model.safetensors", "study.json")
    assert left == {f"cell/run/{name}" for name in names}


@pytest.fixture(scope="module")
def personal(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    private = with_study(privacy={"enabled": True, "epsilon": 8})
    return compute(private, "personal", tmp_path_factory.mktemp("personal"))


def test_models_that_stay_at_the_sites_are_scored_beside_the_global_one(
    personal: Outcome,
) -> None:
    for site in ("site-1", "site-2", "site-3"):
        stays = only(personal, model="personal", where="test", site=site)
        assert stays.value is not None
        assert stays.value != only(personal, model="global", where="test").value
    assert only(personal, model="personal", where="own", site=MEAN).of == 3


def test_what_privacy_cost_is_that_of_the_worst_site_and_its_noise_is_called_seeded(
    personal: Outcome,
) -> None:
    cell = personal.cell
    spent = [row.epsilon for row in personal.sites]
    assert all(epsilon is not None and 0 < epsilon <= 8 for epsilon in spent)
    assert cell.epsilon == max(epsilon for epsilon in spent if epsilon is not None)
    assert (cell.private, cell.seeded_noise) == (True, True)
    assert all((row.noise_multiplier or 0) > 0 for row in personal.sites)


def test_a_cell_is_another_one_when_anything_its_figures_depend_on_changes(
    scenario: Scenario,
) -> None:
    def ids(changed: Scenario) -> list[str]:
        return [job.cell.id for job in plan_jobs([changed])]

    first = ids(scenario)
    assert len(set(first)) == 3
    assert ids(tiny()) == first
    assert ids(scenario.model_copy(update={"compare": ("fedavg",)})) == [first[2]]
    for changed in (
        tiny(seeds=[1]),
        tiny(partition=[{"kind": "shares", "shares": [0.4, 0.4, 0.2]}]),
        with_study(training={"local_steps": 3}),
        tiny(strategies={n: {"study": {"privacy": {"clip": 2}}} for n in scenario.compare}),
    ):
        assert not set(first) & set(ids(changed))


def test_a_cell_tells_where_it_comes_from(scenario: Scenario) -> None:
    cell: Cell = plan_jobs([scenario], "consilium simulate run tiny.toml")[0].cell
    assert cell.command == "consilium simulate run tiny.toml"
    assert "torch" in cell.machine
    assert cell.code_version
    assert len(cell.code) == 64
    assert Scenario.model_validate_json(cell.scenario_text).digest == scenario.digest
    assert replace(cell, state="planned") == cell


def test_a_cell_tells_who_learns_together(scenario: Scenario) -> None:
    own = {"my-pool": {"setting": "pooled"}, "my-way": {"study": {"privacy": {"clip": 2}}}}
    more = tiny(strategies=own, compare=[*scenario.compare, *own])
    assert [job.cell.setting for job in plan_jobs([more])] == [
        *("alone", "pooled", "federated", "pooled", "federated")
    ]
