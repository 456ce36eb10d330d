"""Simulated federations: the same bits wherever they run, and what a real run leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_kit import least_patients
from federation_kit import LOCAL, ROUNDS, federation, study

from client.hospital import Hospital
from shared.errors import CoordinatorError, SimulationError
from shared.study import Study
from simulations.behaviour_plan import Behaviour, Dropout, Nonsense, Slow
from simulations.build import SiteData
from simulations.engine import Resources, _prepare, close_workers, simulate, size_to_declare
from simulations.patients import Patients


def model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def states(folder: Path, number: int) -> dict[str, str]:
    line = next(line for line in lines(folder) if line["round"] == number)
    return {site: entry["state"] for site, entry in line["sites"].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in this process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    simulate(federation(), study(), folder, seed=5, resources=LOCAL)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _no_workers_left() -> Iterator[None]:
    yield
    close_workers()


def test_leaves_what_a_real_run_leaves(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} >= {
        *("study.json", "sites.json", "run.json", "events.jsonl", "metrics.jsonl"),
        *("checkpoints", "model.safetensors", "model-card.json"),
    }
    assert not (whole / "simulation").exists()
    assert [line["round"] for line in lines(whole)] == [1, 2, 3, 4]
    assert set(states(whole, 2).values()) == {"update"}
    spent = [line["sites"]["site-1"]["epsilon"] for line in lines(whole)[:3]]
    assert 0 < spent[0] < spent[1] < spent[2] <= 8


def test_another_seed_gives_another_model_the_same_seed_the_same(
    whole: Path, tmp_path: Path
) -> None:
    simulate(federation(), study(), tmp_path / "same", seed=5, resources=LOCAL)
    simulate(federation(), study(), tmp_path / "other", seed=6, resources=LOCAL)
    assert model(tmp_path / "same") == model(whole) != model(tmp_path / "other")
    assert lines(tmp_path / "same") == lines(whole)


def test_ray_gives_the_same_bits_with_any_number_of_workers(whole: Path, tmp_path: Path) -> None:
    for workers in (2, 1):
        folder = tmp_path / str(workers)
        simulate(federation(), study(), folder, seed=5, resources=Resources(workers=workers))
        assert model(folder) == model(whole)
        assert lines(folder) == lines(whole)


def test_progress_and_the_hospitals_at_the_end(tmp_path: Path) -> None:
    told: list[int] = []
    seen: dict[str, int] = {}

    def inspect(hospitals: dict[str, Hospital]) -> None:
        for name, hospital in hospitals.items():
            with hospital.ledger() as ledger:
                seen[name] = sum(e.kind == "reserve" for e in ledger.entries())

    simulate(
        federation(2),
        study(2),
        tmp_path / "run",
        seed=0,
        resources=LOCAL,
        on_round=told.append,
        inspect=inspect,
    )
    assert told == [0, 1, 2, 3]
    # An evaluation and a training in each round, and the closing evaluation.
    assert seen == {"site-1": 2 * ROUNDS + 1, "site-2": 2 * ROUNDS + 1}


def test_sites_behave_as_planned_without_waiting(tmp_path: Path) -> None:
    behaviour = Behaviour(
        dropouts=(Dropout(sites=(1,), rounds=(1, 2)),),
        slow=(Slow(sites=(2,), seconds=1e6),),
        nonsense=(Nonsense(sites=(3,), kind="nan", from_round=3),),
    )
    folder = tmp_path / "run"
    plan = study(4)
    simulate(federation(4), plan, folder, seed=0, behaviour=behaviour, resources=LOCAL)
    assert states(folder, 1) == {
        "site-1": "absent",
        "site-2": "late",
        "site-3": "update",
        "site-4": "update",
    }
    assert states(folder, 3) == {
        "site-1": "update",
        "site-2": "late",
        "site-3": "failed",
        "site-4": "update",
    }


def test_a_round_that_must_fail_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    behaviour = Behaviour(dropouts=(Dropout(rounds=(2,)),))
    with pytest.raises(SimulationError, match="round 2"):
        simulate(federation(), study(), tmp_path / "run", seed=0, behaviour=behaviour)
    assert not (tmp_path / "run").exists()


def test_a_site_that_refuses_sits_out(tmp_path: Path) -> None:
    with least_patients(14):
        simulate(federation(), study(), tmp_path / "run", seed=0, resources=LOCAL)
    assert states(tmp_path / "run", 1)["site-1"] == "refused"
    nobody = "0 of at least 1 sites delivered"
    with least_patients(99), pytest.raises(CoordinatorError, match=nobody):
        simulate(federation(), study(), tmp_path / "huge", seed=0, resources=LOCAL)


def test_nothing_is_left_of_a_run_that_failed_and_all_of_one_that_was_cut_short(
    tmp_path: Path,
) -> None:
    def homes() -> set[Path]:
        owners = Path("/dev/shm").glob("consilium-sites-*/owner")
        return {path for path in owners if str(tmp_path) in path.read_text()}

    def end_with(error: BaseException) -> None:
        def after_a_round(done: int) -> None:
            if done:
                raise error

        folder = tmp_path / "run"
        simulate(federation(), study(), folder, seed=0, resources=LOCAL, on_round=after_a_round)

    with pytest.raises(OSError, match="full"):
        end_with(OSError("the disk is full"))
    assert not (tmp_path / "run").exists()
    assert not homes()
    with pytest.raises(KeyboardInterrupt):
        end_with(KeyboardInterrupt())
    assert (tmp_path / "run" / "simulation" / "images.npy").exists()
    assert homes()
    simulate(federation(), study(), tmp_path / "run", seed=0, resources=LOCAL)
    assert not homes()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SimulationError, match="not empty"):
        simulate(federation(), study(), tmp_path, seed=0, resources=LOCAL)


def test_killed_and_taken_up_again_the_bits_are_the_same(whole: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
from pathlib import Path
from experiment_kit import least_patients
from federation_kit import LOCAL, federation, study
from simulations.engine import simulate
import simulations.hospital
found = simulations.hospital.Cast.hospital
def dying(cast, number, request):
    if request.round == 2 and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return found(cast, number, request)
simulations.hospital.Cast.hospital = dying
simulate(federation(), study(), Path({str(tmp_path / "run")!r}), seed=5, resources=LOCAL)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoints" / "round-0001.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    simulate(federation(), study(), tmp_path / "run", seed=5, resources=LOCAL)
    assert model(tmp_path / "run") == model(whole)
    assert lines(tmp_path / "run") == lines(whole)
    started = [e for e in lines(tmp_path / "run", "events.jsonl") if e["event"] == "run-started"]
    assert [event["rounds_done"] for event in started] == [0, 1]


@pytest.mark.parametrize(
    ("resources", "goes_on"),
    [
        (Resources(workers=7), True),
        (Resources(ray_address="10.0.0.1:6379"), False),
        (Resources(gpus_per_client=0.5), False),
    ],
    ids=["here", "cluster", "gpu"],
)
def test_what_cannot_be_gone_on_with_begins_anew(
    tmp_path: Path, resources: Resources, goes_on: bool
) -> None:
    begun = _prepare(federation(), study(), tmp_path / "run", 0, LOCAL)
    try:
        assert begun.homes.parent == Path("/dev/shm")
        scene = _prepare(federation(), study(), tmp_path / "run", 0, resources)
        assert (scene == begun) == goes_on == begun.homes.exists()
        assert scene.device == ("cuda" if resources.gpus_per_client else "cpu")
        if resources.ray_address:
            assert scene.homes.is_relative_to(tmp_path)
            assert _prepare(federation(), study(), tmp_path / "run", 0, resources) == scene
    finally:
        for owner in Path("/dev/shm").glob("consilium-sites-*/owner"):
            if str(tmp_path) in owner.read_text():
                shutil.rmtree(owner.parent)


@pytest.mark.parametrize(("missing", "trains"), [("drop", 7), ("indicator", 10)])
def test_a_hospital_declares_what_those_it_trains_on_follow_from(missing: str, trains: int) -> None:
    rows = np.zeros((10, 2), np.float32)
    rows[:3, 1] = np.nan
    everybody = Patients(rows, np.arange(10), np.arange(10) % 2)
    site = SiteData("ward", everybody, everybody.take(range(9)))
    columns = [{"name": name, "low": 0, "high": 1} for name in ("age", "dose")]
    plan = Study.model_validate(
        {
            "name": "rows",
            "task": {"classes": ("no", "yes")},
            "table": {"columns": columns, "missing": missing},
            "model": {"name": "table"},
        }
    )
    assert plan.training_size(size_to_declare(site, plan)) == trains
