"""A sweep cut short at any moment goes on; what is finished is never computed again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.errors import CoordinatorError, SimulationError
from simulations.engine import Resources, simulate
from simulations.heart_disease import HOSPITALS
from simulations.records import Cell, Measurement
from simulations.results import Results
from simulations.runner import Job, plan_jobs, run_jobs
from simulations.scenario import Scenario, parse_scenario

IN_PROCESS = partial(simulate, resources=Resources(engine="local"))

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "phantoms", "patients": 60, "test_patients": 30, "size": 28},
    "sites": {"number": 2},
    "study": {
        "federation": {"rounds": 3},
        "training": {"local_steps": 1},
        "model": {"name": "cnn", "widths": [4, 4], "hidden": 0},
        "privacy": {"enabled": False},
    },
    "compare": ["pooled", "fedavg"],
}


class Notes:
    """Notes what a sweep tells; `out` prints it too."""

    def __init__(self, out: bool = False) -> None:
        self.lines: list[str] = []
        self._out = out

    def begin(self, jobs: Sequence[Job], done: int) -> None:
        self._note(f"begin {len(jobs)} {done}")

    def started(self, job: Job) -> None:
        self._note(f"started {job.cell.strategy} {job.cell.seed}")

    def progress(self, job: Job, part: float) -> None:
        self._note(f"progress {job.cell.strategy} {job.cell.seed} {part:.2f}")

    def ended(self, job: Job, reason: str) -> None:
        self._note(f"ended {job.cell.strategy} {job.cell.seed} {reason}".strip())

    def _note(self, line: str) -> None:
        self.lines.append(line)
        if self._out:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def jobs(**changes: Any) -> list[Job]:
    return plan_jobs([Scenario.model_validate(TINY | changes)])


def compute(folder: Path, planned: list[Job]) -> tuple[list[str], list[Cell]]:
    notes = Notes()
    failed = run_jobs(planned, folder, IN_PROCESS, "cpu", notes)
    return notes.lines, failed


def figures(folder: Path) -> list[Measurement]:
    with Results(folder) as results:
        return list(results.measurements())


def cells(folder: Path) -> list[Cell]:
    with Results(folder) as results:
        return results.cells()


def main(folder: str) -> None:
    """Compute all in a process of its own, telling how it gets on."""
    run_jobs(jobs(), Path(folder), IN_PROCESS, "cpu", Notes(out=True))


def start(folder: Path) -> subprocess.Popen[str]:
    code = f"import test_runner; test_runner.main({str(folder)!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


def kill_at(folder: Path, line: str) -> None:
    """Start a sweep in a process, and kill the process as soon as it prints a line."""
    with start(folder) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.strip() == line:
                process.kill()
                break
        else:
            pytest.fail(f"the sweep ended without {line!r}")
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL


def test_killed_in_the_middle_it_goes_on_and_computes_nothing_again(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_at(killed, "progress fedavg 0 0.33")
    pooled, fedavg = cells(killed)
    assert (pooled.state, fedavg.state) == ("finished", "running")

    lines, failed = compute(killed, jobs())

    assert not failed
    assert lines[0] == "begin 1 1"
    assert [line for line in lines if line.startswith("started")] == ["started fedavg 0"]
    assert cells(killed)[0] == pooled
    at_once, _ = compute(whole, jobs())
    # The round that was done before the kill is not done again either.
    assert "progress fedavg 0 0.00" in at_once
    assert "progress fedavg 0 0.00" not in lines
    assert figures(killed) == figures(whole)
    assert compute(killed, jobs())[0] == ["begin 0 2"]


def test_what_an_error_brings_along_is_kept_in_a_file(tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        error = SimulationError("a program failed", todo="Report it")
        error.add_note("its log\nof many lines")
        raise error

    (failed,) = run_jobs(jobs(compare=["fedavg"]), tmp_path, broken, "cpu", Notes())
    said, _, place = failed.reason.partition(" (see ")
    assert said == "a program failed. Report it"
    assert "its log\nof many lines" in Path(place.rstrip(")")).read_text()


def test_a_cell_that_fails_keeps_its_reason_does_not_stop_the_others_and_is_tried_again(
    tmp_path: Path,
) -> None:
    def no_fedavg(*args: Any, **options: Any) -> None:
        if args[1].name == "tiny-fedavg":
            IN_PROCESS(*args, **options)
            raise ValueError("no luck\nwith details")
        IN_PROCESS(*args, **options)

    planned = jobs(seeds=[0, 1])
    failed = run_jobs(planned, tmp_path, no_fedavg, "cpu", Notes())
    assert [(cell.strategy, cell.seed) for cell in failed] == [("fedavg", 0), ("fedavg", 1)]
    states = {(cell.strategy, cell.seed): cell for cell in cells(tmp_path)}
    assert [c.state for c in states.values()] == ["finished", "failed", "finished", "failed"]
    reason = states["fedavg", 0].reason
    assert reason.startswith("ValueError: no luck (see ")
    assert "\n" not in reason
    details = Path(reason.partition("(see ")[2].rstrip(")"))
    assert [path.name for path in details.parent.iterdir()] == ["error.txt"]
    assert "with details" in details.read_text()
    assert {m.strategy for m in figures(tmp_path)} == {"pooled"}

    lines, failed = compute(tmp_path, planned)
    assert not failed
    assert lines[0] == "begin 2 2"
    assert {cell.state for cell in cells(tmp_path)} == {"finished"}


def test_data_that_cannot_be_built_fail_their_cells_not_the_sweep(tmp_path: Path) -> None:
    """A seed for which a site is left without patients is found out only by building it."""
    gone = Scenario.model_validate(
        TINY | {"name": "gone"} | {"degrade": [{"kind": "missing-labels", "part": 1.0}]}
    )
    lines, failed = compute(tmp_path, [*plan_jobs([gone]), *jobs(compare=["pooled"])])
    assert [cell.scenario for cell in failed] == ["gone", "gone"]
    assert all("fewer than two patients" in cell.reason for cell in failed)
    assert lines[-1] == "ended pooled 0"


def test_what_cannot_work_fails_at_the_start(tmp_path: Path) -> None:
    crowded = [{"kind": "dirichlet", "alpha": 0.3, "minimum": 20}]
    planned = plan_jobs([Scenario.model_validate(TINY | {"name": "crowded", "partition": crowded})])
    lines, failed = compute(tmp_path, [*jobs(compare=["pooled"]), *planned])
    assert lines[:2] == ["begin 3 0", "started pooled 0"]
    assert "a class of 24 patients cannot have 20 at each of 2 sites" in lines[2]
    assert lines[5] == "started pooled 0"
    assert [(cell.scenario, cell.state) for cell in failed] == [("crowded", "failed")] * 2
    states = {(cell.scenario, cell.strategy): cell.state for cell in cells(tmp_path)}
    assert states == {
        ("tiny", "pooled"): "finished",
        ("crowded", "pooled"): "failed",
        ("crowded", "fedavg"): "failed",
    }


def test_what_changed_is_computed_and_told_apart(tmp_path: Path) -> None:
    compute(tmp_path, jobs(compare=["pooled"]))
    study = {**TINY["study"], "training": {"local_steps": 2}}
    lines, _ = compute(tmp_path, jobs(compare=["pooled"], study=study))
    assert lines[0] == "begin 1 0"
    (current,) = cells(tmp_path)
    assert current.id == jobs(compare=["pooled"], study=study)[0].cell.id
    lines, _ = compute(tmp_path, jobs(compare=["pooled"]))
    assert lines == ["begin 0 1"]
    assert cells(tmp_path)[0].id == jobs(compare=["pooled"])[0].cell.id


def test_a_data_file_that_changed_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "patients.csv"
    rows = [f"{i % 7},{'yes' if i % 3 else 'no'}" for i in range(40)]
    file.write_text("\n".join(["age,ill", *rows]))
    table = {
        "source": "table",
        "path": str(file),
        "columns": [{"name": "age", "low": 0, "high": 10}],
        "label": "ill",
    }
    study = {"model": {"name": "table", "layers": []}}
    first = jobs(data=table, study=study)[0].cell.id
    assert jobs(data=table, study=study)[0].cell.id == first
    file.write_text("\n".join(["age,ill", *rows, "3,yes"]))
    assert jobs(data=table, study=study)[0].cell.id != first


def test_the_files_of_a_path_that_no_key_says_count_too(tmp_path: Path) -> None:
    (tmp_path / "heart_disease").mkdir()
    files = [tmp_path / "heart_disease" / f"processed.{name}.data" for name in HOSPITALS]
    for file in files:
        file.write_text("63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n" * 9)
    values = {
        "name": "heart",
        "data": {"source": "heart-disease"},
        "partition": [{"kind": "by-group"}],
        "study": {"privacy": {"enabled": False}},
    }

    def identity() -> str:
        return plan_jobs([parse_scenario(values, "test", tmp_path)])[0].cell.id

    before = identity()
    assert identity() == before
    files[1].write_text("")
    assert identity() != before


def test_one_sweep_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin 2 0\n"
        with pytest.raises(SimulationError, match="another sweep is writing results here"):
            compute(tmp_path, jobs())
        process.kill()
        process.stdout.read()
    assert compute(tmp_path, jobs(compare=["pooled"]))[1] == []  # the lock died with it


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SimulationError, match="results folder cannot be written"):
        compute(tmp_path / "file" / "out", jobs())
    (tmp_path / "results.sqlite").write_text("nonsense" * 500)
    with pytest.raises(CoordinatorError, match="not a database"):
        compute(tmp_path, jobs())


class Impatient(Notes):
    """Presses Ctrl-C after the first round."""

    def progress(self, job: Job, part: float) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_ends_it_and_the_next_call_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs(), tmp_path, IN_PROCESS, "cpu", Impatient())
    assert [cell.state for cell in cells(tmp_path)] == ["running", "planned"]
    assert compute(tmp_path, jobs())[1] == []
