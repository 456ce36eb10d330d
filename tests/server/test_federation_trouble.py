"""Sites that send nonsense, refuse, crash or are not who they say, and rounds that fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from server.history import event
from server.release import read_card
from shared.errors import CoordinatorError
from shared.protocol import LedgerHead, Reply

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (lambda u: {n: a * np.float32("nan") for n, a in u.items()}, "not finite"),
        (lambda u: {n: a.ravel() for n, a in u.items()}, "shape"),
        (lambda u: {n: a.astype(np.float64) for n, a in u.items()}, "float64"),
        (lambda u: {n: a for n, a in u.items() if "bias" in n}, "missing"),
        (lambda u: {n: a * 1e4 for n, a in u.items()}, "beyond"),
    ],
)
def test_a_bad_update_is_named_and_the_round_goes_on_without_it(world, update, reason) -> None:
    class Bad(world.plain_site):
        def answer(self, request, weights, time):
            reply, change = super().answer(request, weights, time)
            return reply, update(change)

    world.sites[3] = Bad(4.0)
    world.run()
    world.assert_released(world.expected([[1, 2]] * 3))
    assert world.states(1)["Castle"] == "failed"
    rejected = world.events("update-rejected")
    assert {event["site"] for event in rejected} == {"Castle"}
    assert len(rejected) == 3
    assert reason in rejected[0]["reason"]
    assert read_card(world.run_dir).sites["Castle"].rounds == 0


def test_a_refusal_and_a_crash_are_shown_with_their_reasons(world) -> None:
    class Refusing(world.plain_site):
        def answer(self, request, weights, time):
            return self.refuse(request, "policy-epsilon")

    class Crashing(world.plain_site):
        def answer(self, request, weights, time):
            raise RuntimeError("the node's training process failed")

    world.study = world.make_study(min_sites=1)
    world.sites[2], world.sites[3] = Refusing(0.0), Crashing(0.0)
    world.run()
    world.assert_released(world.expected([[1]] * 3))
    sites = world.lines("metrics.jsonl")[0]["sites"]
    assert (sites["Brook"]["state"], sites["Brook"]["reason"]) == ("refused", "policy-epsilon")
    assert sites["Castle"]["state"] == "failed"
    assert "training process" in sites["Castle"]["reason"]
    assert world.events("site-refused")[0]["code"] == "policy-epsilon"
    assert "training process" in world.events("site-failed")[0]["error"]


def test_a_site_that_waits_for_a_person_is_shown_so_with_what_that_person_tells(world) -> None:
    told = "our <archive> is down until Monday"

    class Waiting(world.plain_site):
        def answer(self, request, weights, time):
            return self.refuse(request, "site-attention", told if request.round > 1 else "")

    world.sites[2] = Waiting(1.0)
    world.run()
    events = world.events("site-refused")
    assert {event["code"] for event in events} == {"site-attention"}
    assert [event.get("text") for event in events] == [None, *[told] * (len(events) - 1)]
    assert world.states(1)["Brook"] == "refused"
    assert event(events[-1]).detail == f"site-attention: {told}"


def test_a_site_of_the_first_release_is_named_as_one_to_upgrade(world) -> None:
    old = json.loads((DATA / "protocol-1" / "refusal.json").read_text())

    class OfTheFirstRelease(world.plain_site):
        def answer(self, request, weights, time):
            here = {"study_digest": request.study_digest, "run": request.run}
            return Reply.model_validate(old | here | {"round": request.round}), {}

    world.sites[3] = OfTheFirstRelease(4.0)
    world.run()
    world.assert_released(world.expected([[1, 2]] * 3))
    castle = world.lines("metrics.jsonl")[0]["sites"]["Castle"]
    assert castle["state"] == "failed"
    for words in ("older release", "version 1", "version 2", "ask the site to upgrade"):
        assert words in castle["reason"]
    assert {event["site"] for event in world.events("site-failed")} == {"Castle"}


def test_the_ledger_heads_a_server_of_the_first_release_remembered_still_hold(world) -> None:
    head = {"version": 1, "entries": 40, "hash": "ab" * 32}
    book = {"Castle": {"head": head, "studies": ["cd" * 32]}}
    (world.home / "heads.json").write_text(json.dumps(book))
    world.run()
    first = world.sites[3].requests[0]
    assert first.known_head == LedgerHead(entries=40, hash="ab" * 32)
    assert {event["site"] for event in world.events("ledger-conflict")} == {"Castle"}


def test_a_site_the_server_cannot_send_to_has_failed_and_the_others_go_on(world) -> None:
    send = world.network.send

    def broken(node, *arguments):
        if node == 3:
            raise CoordinatorError("the SuperLink did not take a message", "node 3")
        return send(node, *arguments)

    world.network.send = broken
    world.run()
    assert "did not take" in world.lines("metrics.jsonl")[0]["sites"]["Castle"]["reason"]
    world.assert_released(world.expected([[1, 2]] * 3))


def test_a_failed_round_asks_the_missing_once_more_and_keeps_what_came(world) -> None:
    class Flaky(world.plain_site):
        def answer(self, request, weights, time):
            if request.round == 2 and request.attempt == 0:
                raise RuntimeError("out of memory")
            return super().answer(request, weights, time)

    world.sites[2], world.sites[3] = Flaky(2.0, patients=30), Flaky(4.0, patients=10)
    world.run()
    world.assert_released(world.expected([[1, 2, 3]] * 3))
    assert [r.round for r in world.sites[1].requests] == [1, 2, 3, 4]
    assert [(r.round, r.attempt) for r in world.sites[2].requests] == [
        (1, 0),
        (2, 0),
        (2, 1),
        (3, 0),
        (4, 0),
    ]
    # The ledger head is not confirmed before the round is safe, so updates are still kept.
    first, second = (r for r in world.sites[2].requests if r.round == 2)
    assert first.known_head == second.known_head


def test_a_round_that_keeps_failing_names_each_site_and_can_be_taken_up_again(world) -> None:
    class Broken(world.plain_site):
        broken = True

        def answer(self, request, weights, time):
            if request.round == 2 and self.broken:
                return self.refuse(request, "budget-exhausted")
            return super().answer(request, weights, time)

    world.sites[2], world.sites[3] = Broken(2.0, patients=30), Broken(4.0, patients=10)
    with pytest.raises(CoordinatorError, match="round 2 failed: 1 of at least 2") as caught:
        world.run()
    assert "Brook: refused, budget-exhausted" in caught.value.where
    assert "Castle: refused, budget-exhausted" in caught.value.where
    assert "Ashford: update" in caught.value.where
    assert world.events()[-1]["event"] == "run-failed"
    assert not (world.run_dir / "model-card.json").exists()
    Broken.broken = False
    world.run()
    world.assert_released(world.expected([[1, 2, 3]] * 3))
    assert [line["round"] for line in world.lines("metrics.jsonl")] == [1, 2, 3, 4]


def test_what_was_answered_in_a_round_that_failed_is_remembered(world) -> None:
    class Broken(world.plain_site):
        def answer(self, request, weights, time):
            raise RuntimeError("out of memory")

    world.sites[2], world.sites[3] = Broken(2.0), Broken(4.0)
    with pytest.raises(CoordinatorError, match="round 1 failed"):
        world.run()
    known = json.loads((world.home / "heads.json").read_text())
    assert known.keys() == {"Ashford"}
    assert known["Ashford"]["head"]["entries"] == world.sites[1].entries
    assert known["Ashford"]["studies"] == [world.study.digest]


def test_a_failed_evaluation_of_one_site_does_not_stop_the_release(world) -> None:
    class Private(world.plain_site):
        def answer(self, request, weights, time):
            if request.task == "evaluate":
                return self.refuse(request, "policy-evaluation")
            return super().answer(request, weights, time)

    world.sites = world.network.sites = {n: Private(1.0) for n in world.sites}
    world.run()
    assert read_card(world.run_dir).closing["auc"] is None
    assert world.states(4)["Ashford"] == "refused"


def test_a_restored_older_ledger_is_noticed_and_not_believed(world) -> None:
    class Restored(world.plain_site):
        def reply(self, request, **changes):
            reply = super().reply(request, **changes)
            if request.round < 3:
                return reply
            return reply.model_copy(update={"head": LedgerHead(entries=1, hash="e" * 64)})

    world.sites[2] = Restored(2.0, patients=30)
    world.run()
    conflicts = world.events("ledger-conflict")
    assert {event["site"] for event in conflicts} == {"Brook"}
    assert "1 entries; 4 were seen" in conflicts[0]["reason"]
    assert json.loads((world.home / "heads.json").read_text())["Brook"]["head"]["entries"] == 4


def test_an_answer_with_an_older_ledger_still_tells_that_the_study_was_answered(world) -> None:
    world.sites[2].entries = 10
    world.run()
    world.run_dir = world.run_dir.with_name("second run")
    world.change_study(name="second")
    world.sites[2].entries = -1
    world.run()
    assert world.events("ledger-conflict")[0]["site"] == "Brook"
    known = json.loads((world.home / "heads.json").read_text())["Brook"]
    assert known["head"]["entries"] == 18
    assert world.study.digest in known["studies"]
    assert len(known["studies"]) == 2


def test_nodes_that_are_not_enrolled_are_never_asked(world) -> None:
    world.sites[99] = stranger = world.plain_site(1000.0)
    world.run()
    assert stranger.requests == []
    world.assert_released(world.expected([[1, 2, 3]] * 3))


def test_an_answer_from_another_node_is_not_taken_for_the_sites_own(world) -> None:
    deliver = world.network.deliver

    def swapped(message, node, request, weights):
        received = deliver(message, node, request, weights)
        return type(received)(
            received.message, 1 if node == 3 else node, received.reply, received.update
        )

    world.network.deliver = swapped
    world.run()
    assert world.states(1)["Castle"] == "failed"
    assert "another node" in world.lines("metrics.jsonl")[0]["sites"]["Castle"]["reason"]
