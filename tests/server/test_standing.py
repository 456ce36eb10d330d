"""What is open is told from what a person has to settle, by the run's own events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.home import ServerHome
from server.standing import Standing, open_runs, standing


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
    assert standing(begun(tmp_path / "r", *events)) == expected


def test_a_run_that_was_handed_over_and_has_said_nothing_is_open(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    assert standing(folder) == Standing("new")
    (folder / "process.json").write_text('{"flower_run": 7}')
    assert standing(folder) == Standing("open")


def test_open_runs_are_found_by_name(tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "a", "run-started")
    begun(tmp_path / "runs" / "b", "run-started", "run-finished")
    assert open_runs(ServerHome(tmp_path)) == {"a": Standing("open", 1)}
