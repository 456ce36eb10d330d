"""The round loop with sites that behave: course, card, restart, and what is told to whom."""

from __future__ import annotations

import hashlib
import json
import weakref

import numpy as np
import pytest

from server.release import read_card
from shared.errors import CoordinatorError
from shared.heads import verify_head


def test_three_good_sites_train_evaluate_and_release(world) -> None:
    world.run()
    world.assert_released(world.expected([[1, 2, 3]] * 3))
    lines = world.lines("metrics.jsonl")
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert [line.get("closing", False) for line in lines] == [False] * 3 + [True]
    for line in lines:
        assert line["auc_low"] <= line["auc"] <= line["auc_high"]
        site = line["sites"]["Ashford"]
        assert site["epsilon"] == 0.5 * line["round"]
        assert site["auc_low"] <= line["auc"] <= site["auc_high"]
    assert world.states(1) == dict.fromkeys(("Ashford", "Brook", "Castle"), "update")
    assert world.states(4) == dict.fromkeys(("Ashford", "Brook", "Castle"), "evaluated")
    names = [event["event"] for event in world.events()]
    assert names[0] == "run-started"
    assert names[-2:] == ["evaluation-finished", "run-finished"]
    assert names.count("round-finished") == 3
    tasks = [(r.round, r.task, r.attempt) for r in world.sites[1].requests]
    assert tasks == [(1, "train", 0), (2, "train", 0), (3, "train", 0), (4, "evaluate", 0)]
    # Nobody is waited for once all have answered: four trips of about two seconds.
    assert world.time.time < 15


def test_the_card_tells_what_was_done_and_by_whom(world) -> None:
    world.run()
    card = read_card(world.run_dir)
    assert (card.study, card.study_digest) == (world.study, world.study.digest)
    assert {name: site.rounds for name, site in card.sites.items()} == {
        "Ashford": 3,
        "Brook": 3,
        "Castle": 3,
    }
    assert card.sites["Brook"].patients == 30
    assert card.sites["Brook"].epsilon == 2.0
    assert card.test_auc is None
    closing = world.lines("metrics.jsonl")[-1]
    assert card.closing["auc"] == closing["auc"]
    content = (world.run_dir / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == card.weights_sha256


def test_fewer_enrolled_sites_than_the_study_needs_is_an_error_at_once(world) -> None:
    world.names = {1: "Ashford"}
    with pytest.raises(CoordinatorError, match="needs 2"):
        world.run()
    assert world.time.time == 0


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


REMEDIES = {
    "training": {"control": True},
    "federation": {"optimiser": {"name": "yogi", "learning_rate": 0.1}, "average": 0.5},
}


@pytest.mark.parametrize("moment", [1, 4, 5, 8, 11])
@pytest.mark.parametrize("parts", [{"federation": {"average": 0.5}}, REMEDIES])
def test_a_killed_run_goes_on_to_the_same_weights(world, tmp_path, moment: int, parts) -> None:
    deliver, seen = world.network.deliver, []

    def dying(*arguments):
        seen.append(arguments)
        if len(seen) == moment:
            raise Killed
        return deliver(*arguments)

    plan = world.study.federation.model_dump() | parts["federation"]
    world.change_study(**parts | {"federation": plan})
    world.network.deliver = dying
    with pytest.raises(Killed):
        world.run()
    world.network.deliver = deliver
    world.run()
    interrupted = (world.run_dir / "model.safetensors").read_bytes()
    assert len({r.run for r in world.sites[1].requests}) == 1
    assert [line["round"] for line in world.lines("metrics.jsonl")] == [1, 2, 3, 4]

    (tmp_path / "whole").mkdir()
    whole = type(world)(tmp_path / "whole")
    whole.study = world.study
    whole.run()
    assert (whole.run_dir / "model.safetensors").read_bytes() == interrupted


def test_a_finished_run_is_left_as_it_is(world) -> None:
    world.run()
    before = {p: p.read_bytes() for p in world.run_dir.rglob("*") if p.is_file()}
    world.run()
    assert {p: p.read_bytes() for p in world.run_dir.rglob("*") if p.is_file()} == before


def test_the_running_mean_is_evaluated_and_released_while_training_goes_on_raw(world) -> None:
    sent = {}

    class Watching(world.plain_site):
        def answer(self, request, weights, time):
            sent[request.round] = weights
            return super().answer(request, weights, time)

    world.study = world.make_study(average=0.5)
    world.sites[1] = Watching(1.0, patients=60)
    world.run()
    after = [world.expected([[1, 2, 3]] * n) for n in (1, 2, 3)]
    for n in (1, 2):
        np.testing.assert_allclose(sent[n + 1]["layer.bias"], after[n - 1]["layer.bias"], atol=1e-6)
    mean = {
        name: (after[0][name] + 2 * after[1][name] + 4 * after[2][name]) / 7 for name in after[0]
    }
    np.testing.assert_allclose(sent[4]["layer.weight"], mean["layer.weight"], atol=1e-6)
    world.assert_released(mean)
    assert read_card(world.run_dir).weights == "average"


def test_each_round_tells_a_site_its_own_countersigned_head(world) -> None:
    world.run()
    key = (world.home / "server.pub").read_bytes()
    requests = world.sites[2].requests
    assert requests[0].known_head is None
    assert requests[0].countersignature == ""
    for number, request in enumerate(requests[1:], start=1):
        assert request.known_head.entries == 2 * number
        assert request.known_studies == (world.study.digest,)
        signed = request.known_head, request.known_studies, request.countersignature
        assert verify_head(key, "Brook", *signed)
        assert not verify_head(key, "Castle", *signed)
    kept = json.loads((world.home / "heads.json").read_text())
    assert kept["Brook"]["head"]["entries"] == 8


def test_updates_are_held_one_at_a_time(world) -> None:
    class Counting(world.plain_site):
        def answer(self, request, weights, time):
            reply, update = super().answer(request, weights, time)
            for array in update.values():
                live.append(weakref.ref(array))
            most.append(sum(ref() is not None for ref in live))
            return reply, update

    live, most = [], []
    world.names = {node: f"Site {node}" for node in range(1, 31)}
    world.sites = world.network.sites = {node: Counting(1.0) for node in world.names}
    world.run()
    arrays_in_an_update = 2
    # The one just made, and the one before it while the generator still holds it.
    assert max(most) <= 2 * arrays_in_an_update
