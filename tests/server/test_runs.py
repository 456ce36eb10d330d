"""Checkpoints are whole or passed over; a run folder has one writer and one study."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.files import JsonLines, write_atomically
from server.release import SiteRecord, read_card
from server.runs import Checkpoint, open_run
from shared.errors import CoordinatorError
from shared.protocol import LedgerHead

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
REMEMBERED = {"mean/w": np.ones((2, 3), np.float32)}
START = Checkpoint(0, WEIGHTS, WEIGHTS, REMEMBERED, WEIGHTS)


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(
        round=number,
        weights={"w": WEIGHTS["w"] + number},
        average={"w": WEIGHTS["w"] - number},
        optimiser={"mean/w": REMEMBERED["mean/w"] * number},
        control={"w": WEIGHTS["w"] / number},
        sites={"Ashford": SiteRecord(rounds=number, patients=50, epsilon=0.25)},
        heads={"Ashford": LedgerHead(entries=number, hash="a" * 64)},
    )


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def open_folder(world):
    return open_run(world.run_dir, world.study, world.names, world.time.clock())


def save_rounds(world, count: int) -> None:
    with open_folder(world) as folder:
        for number in range(1, count + 1):
            folder.save(checkpoint(number))


def test_a_checkpoint_comes_back_bit_for_bit(world) -> None:
    save_rounds(world, 12)
    with open_folder(world) as folder:
        found = folder.latest(START)
    expected = checkpoint(12)
    assert (found.round, found.sites, found.heads) == (12, expected.sites, expected.heads)
    for group in ("weights", "average", "optimiser", "control"):
        arrays, wanted = getattr(found, group), getattr(expected, group)
        assert arrays.keys() == wanted.keys()
        assert all(arrays[name].tobytes() == wanted[name].tobytes() for name in wanted)


@pytest.mark.parametrize(
    "damage",
    [
        lambda stem: stem.with_suffix(".safetensors").write_bytes(b"short"),
        lambda stem: stem.with_suffix(".safetensors").unlink(),
        lambda stem: flip_last_bit(stem.with_suffix(".safetensors")),
        lambda stem: stem.with_suffix(".json").write_text('{"format": 1'),
        lambda stem: stem.with_suffix(".json").write_text("{}"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(world, damage) -> None:
    save_rounds(world, 3)
    damage(world.run_dir / "checkpoints" / "round-0003")
    with open_folder(world) as folder:
        assert folder.latest(START).round == 2
    (event,) = world.events("checkpoint-damaged")
    assert event["round"] == 3
    assert event["reason"]


def test_weights_of_another_model_are_not_taken_up(world) -> None:
    save_rounds(world, 1)
    other = Checkpoint(0, {"w": np.zeros(3, np.float32)}, {})
    with open_folder(world) as folder:
        assert folder.latest(other) is other


def test_a_checkpoint_without_what_the_study_remembers_is_not_taken_up(world) -> None:
    save_rounds(world, 1)
    for other in (replace(START, control={}), replace(START, optimiser={})):
        with open_folder(world) as folder:
            assert folder.latest(other) is other


def test_a_checkpoint_of_another_run_is_not_taken_up(world, tmp_path: Path) -> None:
    save_rounds(world, 1)
    foreign = world.run_dir
    world.run_dir = tmp_path / "runs" / "second"
    with open_folder(world) as folder:
        shutil.copytree(foreign / "checkpoints", world.run_dir / "checkpoints")
        assert folder.latest(START) is START
    assert "another run" in world.events("checkpoint-damaged")[0]["reason"]


def test_a_run_whose_identity_is_lost_is_not_begun_anew(world) -> None:
    save_rounds(world, 1)
    (world.run_dir / "run.json").write_text("{")
    with pytest.raises(CoordinatorError, match="identity"):
        save_rounds(world, 1)


def test_a_damaged_last_checkpoint_makes_its_round_again_with_the_same_result(world) -> None:
    world.run()
    released = (world.run_dir / "model.safetensors").read_bytes()
    (world.run_dir / "model-card.json").unlink()
    (world.run_dir / "checkpoints" / "round-0003.safetensors").write_bytes(b"")
    world.run()
    assert [r.round for r in world.sites[1].requests] == [1, 2, 3, 4, 3, 4]
    assert [line["round"] for line in world.lines("metrics.jsonl")] == [1, 2, 3, 4]
    assert (world.run_dir / "model.safetensors").read_bytes() == released


def test_only_one_process_writes_to_a_run(world) -> None:
    with (
        open_folder(world),
        pytest.raises(CoordinatorError, match="another process"),
        open_folder(world),
    ):
        pass
    with open_folder(world):
        pass


def test_a_run_keeps_its_id_and_refuses_another_study(world) -> None:
    with open_folder(world) as folder:
        first = folder.run
    with open_folder(world) as folder:
        assert folder.run == first
    world.study = world.make_study(rounds=4)
    with pytest.raises(CoordinatorError, match="another study"), open_folder(world):
        pass


def test_two_runs_of_one_name_have_different_ids(world, tmp_path: Path) -> None:
    with open_folder(world) as folder:
        first = folder.run
    world.run_dir = tmp_path / "elsewhere" / world.run_dir.name
    with open_folder(world) as folder:
        assert folder.run != first


def test_the_folder_says_what_is_run_and_who_may_take_part(world) -> None:
    with open_folder(world):
        pass
    assert (world.run_dir / "study.json").read_text() == world.study.canonical()
    sites = json.loads((world.run_dir / "sites.json").read_text())
    assert sites == {"1": "Ashford", "2": "Brook", "3": "Castle"}


def test_any_end_of_the_loop_is_in_the_events(world) -> None:
    with pytest.raises(ZeroDivisionError), open_folder(world):
        raise ZeroDivisionError
    (event,) = world.events("run-interrupted")
    assert "ZeroDivisionError" in event["error"]
    assert event["time"].endswith("+00:00")


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"round": 1}\n{"round": 2}\n{"rou')
    lines = JsonLines(path)
    lines.append({"round": 3})
    lines.close()
    assert [json.loads(x)["round"] for x in path.read_text().splitlines()] == [1, 2, 3]


def test_lines_that_must_not_stay_are_removed_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1}\nnot json\n{"round": 2}\n{"round": 3}\n')
    JsonLines(path, keep=lambda line: line["round"] <= 2).close()
    assert path.read_bytes() == b'{"round": 1}\n{"round": 2}\n'


def test_a_folder_that_cannot_be_written_says_what_and_where(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(CoordinatorError, match="cannot write") as caught:
        write_atomically(blocked / "below", b"content")
    assert str(blocked / "below") in caught.value.where


def test_a_missing_card_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CoordinatorError, match="no readable model card"):
        read_card(tmp_path)
