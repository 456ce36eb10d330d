"""What is open is told from what a person has to settle, by the run's own events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.home import ServerHome
from server.standing import Standing, halt, open_runs, release, standing
from shared.errors import CoordinatorError
from shared.study import Study

PLAN = {"format": 2, "name": "lungs", "task": {"classes": ["a", "b"]}}


def begun(folder: Path, *events: str) -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps({"time": "2026-01-01T00:00:00+00:00", "event": event}) for event in events]
    (folder / "events.jsonl").write_text("\n".join([*lines, '{"cut sho']))
    return folder


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), Standing("new")),
        (("run-started", "round-started", "site-sent"), Standing("open", 1)),
        (("run-started", "run-interrupted"), Standing("open", 1)),
        (("run-started", "run-started", "round-finished", "run-started"), Standing("open", 1)),
        (("run-started",) * 4, Standing("open", 4)),
        (("run-started", "run-failed"), Standing("failed")),
        (("run-started", "run-failed", "run-started"), Standing("open", 1)),
        (("run-started", "round-finished", "run-finished"), Standing("finished")),
    ],
)
def test_how_a_run_stands(tmp_path: Path, events: tuple[str, ...], expected: Standing) -> None:
    it = standing(begun(tmp_path / "r", *events))
    assert (it.state, it.starts) == (expected.state, expected.starts)


def test_a_run_that_was_handed_over_and_has_said_nothing_is_open(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    assert standing(folder) == Standing("new")
    (folder / "process.json").write_text('{"flower_run": 7}')
    assert standing(folder) == Standing("open")


def test_open_runs_are_found_by_name(tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "a", "run-started")
    begun(tmp_path / "runs" / "b", "run-started", "run-finished")
    assert open_runs(ServerHome(tmp_path)).keys() == {"a"}


def test_a_run_that_is_halted_is_not_open_and_one_that_is_stopped_stays_so(tmp_path: Path) -> None:
    home = ServerHome.create(tmp_path / "s", "127.0.0.1:1", 1, ["localhost"])
    home.add_site("North", 7, "key")
    folder = home.create_run("r", Study.model_validate(PLAN))
    (folder / "events.jsonl").write_text(
        '{"event": "run-started"}\n{"event": "round-finished", "round": 3, "time": "2026-01-01"}\n'
    )
    assert open_runs(home).keys() == {"r"}
    halt(home, "r", "paused")
    assert open_runs(home) == {}
    listed = json.loads(typed("runs", home, "--json"))
    assert listed == [
        {"run": "r", "state": "paused", "starts": 0, "round": 3, "time": "2026-01-01"}
    ]
    assert "paused" in typed("runs", home)
    release(home, "r")
    assert open_runs(home).keys() == {"r"}
    typed("stop", home, "r")
    assert standing(folder).state == "stopped"
    with pytest.raises(CoordinatorError, match="stopped for good"):
        typed("resume", home, "r")
    with pytest.raises(CoordinatorError, match="there is no such run"):
        typed("pause", home, "other")


def typed(command: str, home: ServerHome, *words: str) -> str:
    return (
        CliRunner()
        .invoke(app, [command, "--home", str(home.path), *words], catch_exceptions=False)
        .output
    )
