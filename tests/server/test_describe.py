"""Statistics before round 1: asked once, judged, merged, kept, sent along and released."""

from __future__ import annotations

import json
import math

import pytest

from server.release import read_card
from shared.errors import CoordinatorError
from shared.protocol import Statistics

TABLE = {
    "columns": [
        {"name": "age", "low": 0, "high": 120},
        {"name": "smoker", "categories": ["no", "yes"]},
    ],
    "missing": "mean",
    "bins": 4,
}


@pytest.fixture
def tables(world):
    world.change_study(table=TABLE, model={"name": "table"})
    return world


def test_all_sites_counts_are_merged_kept_and_sent_with_every_round(tables) -> None:
    tables.run()
    asked = [(r.task, r.round) for r in tables.sites[1].requests]
    assert asked[:2] == [("describe", 0), ("train", 1)]
    merged = Statistics.model_validate_json((tables.run_dir / "statistics.json").read_bytes())
    assert merged.classes == (100.0, 0.0)
    assert merged.columns == ((100.0, 0, 0, 0, 0), (100.0, 0, 0))
    # Three sites, each with the study's noise of 10 times a sensitivity of sqrt(1 + 2 columns).
    assert merged.noise == pytest.approx(10 * math.sqrt(3) * math.sqrt(3))
    assert {r.statistics for r in tables.sites[1].requests[1:]} == {merged}
    assert tables.sites[1].requests[0].statistics is None
    assert read_card(tables.run_dir).statistics == merged
    (event,) = tables.events("described")
    assert event["sites"] == ["Ashford", "Brook", "Castle"]
    assert [line["round"] for line in tables.lines("metrics.jsonl")] == [1, 2, 3, 4]


def test_the_head_of_the_description_is_countersigned_before_training(tables) -> None:
    tables.run()
    assert [r.known_head.entries for r in tables.sites[1].requests[1:3]] == [2, 4]


def test_images_get_no_statistics_along(world) -> None:
    world.change_study(training={"loss": {"name": "class-balanced"}})
    world.run()
    tasks = [r.task for r in world.sites[1].requests]
    assert tasks == ["describe", "train", "train", "train", "evaluate"]
    assert all(r.statistics is None for r in world.sites[1].requests)
    assert read_card(world.run_dir).statistics.classes == (100.0, 0.0)


def test_a_study_that_needs_none_asks_for_none(world) -> None:
    world.run()
    assert "describe" not in [r.task for r in world.sites[1].requests]
    assert not (world.run_dir / "statistics.json").exists()
    assert read_card(world.run_dir).statistics is None


def test_a_site_that_comes_later_trains_with_the_statistics_of_the_others(tables) -> None:
    tables.sites[3].online = lambda time: time > 62
    tables.run()
    assert tables.events("described")[0]["sites"] == ["Ashford", "Brook"]
    assert tables.sites[3].requests[0].task == "train"
    assert tables.states(3)["Castle"] == "update"
    kept = json.loads((tables.run_dir / "statistics.json").read_text())
    assert kept["classes"] == [90.0, 0.0]
    assert tables.sites[3].requests[0].statistics.classes == (90.0, 0.0)


def test_a_run_taken_up_again_does_not_ask_again(tables) -> None:
    silent = tables.sites[2].online
    tables.sites[2].online = tables.sites[3].online = lambda time: time < 3
    with pytest.raises(CoordinatorError):
        tables.run()
    kept = (tables.run_dir / "statistics.json").read_bytes()
    tables.sites[2].online = tables.sites[3].online = silent
    tables.run()
    assert (tables.run_dir / "statistics.json").read_bytes() == kept
    assert [r.task for r in tables.sites[1].requests].count("describe") == 1
    assert tables.sites[1].requests[-1].statistics.classes == (100.0, 0.0)


def test_damaged_statistics_are_asked_for_again(tables) -> None:
    tables.run()
    kept = (tables.run_dir / "statistics.json").read_bytes()
    (tables.run_dir / "model-card.json").unlink()
    (tables.run_dir / "statistics.json").write_bytes(kept[:20])
    tables.run()
    assert (tables.run_dir / "statistics.json").read_bytes() == kept
    assert len(tables.events("statistics-damaged")) == 1


def test_too_few_descriptions_end_the_run_with_each_sites_reason(tables) -> None:
    class Unwilling(tables.plain_site):
        def answer(self, request, weights, time):
            return self.refuse(request, "site-attention")

    tables.sites[2], tables.sites[3] = Unwilling(0.0), Unwilling(0.0)
    with pytest.raises(CoordinatorError, match="the description of the data failed: 1 of") as got:
        tables.run()
    assert "Brook: refused, site-attention" in str(got.value)
    assert not (tables.run_dir / "statistics.json").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": (1.0, 2.0, 3.0)}, "classes and columns"),
        ({"columns": ()}, "classes and columns"),
        ({"columns": ((1, 2, 3, 4), (1, 2, 3))}, "classes and columns"),
        ({"noise": 0.0}, "noise of its counts is 0; the study asks for 17.32"),
        ({"noise": 100.0}, "noise of its counts is 100"),
        ({"classes": (1e12, 0.0)}, "more patients"),
        ({"columns": ((0, 0, 0, 0, -1e12), (1, 2, 3))}, "more patients"),
    ],
)
def test_odd_statistics_are_refused_and_the_others_merged(tables, changes, reason) -> None:
    class Odd(tables.plain_site):
        def describe(self, request):
            reply = super().describe(request)
            odd = reply.statistics.model_copy(update=changes)
            return reply.model_copy(update={"statistics": odd})

    tables.sites[3] = Odd(4.0, patients=10)
    tables.run()
    (event,) = tables.events("update-rejected")
    assert reason in event["reason"]
    assert tables.events("described")[0]["sites"] == ["Ashford", "Brook"]
    # What is odd about its counts does not bar it from training.
    assert tables.states(1)["Castle"] == "update"


def test_an_update_in_place_of_a_description_is_refused(tables) -> None:
    class Confused(tables.plain_site):
        def describe(self, request):
            return self.reply(request.model_copy(update={"round": 1}), outcome="update", patients=5)

    tables.sites[3] = Confused(4.0, patients=10)
    tables.run()
    assert "round is not the one asked for" in tables.events("update-rejected")[0]["reason"]
