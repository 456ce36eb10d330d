"""The round loop against sites that behave, misbehave, stay silent, die and come back."""

from __future__ import annotations

import hashlib
import json
import weakref

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.release import read_card
from shared.errors import CoordinatorError
from shared.heads import verify_head
from shared.protocol import LedgerHead


def assert_weights(folder, expected, atol: float = 1e-6) -> None:
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(weights[name], array, atol=atol)


def test_three_good_sites_train_evaluate_and_release(world) -> None:
    world.run()
    assert_weights(world.run_dir, world.expected([[1, 2, 3]] * 3))
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
    assert_weights(world.run_dir, world.expected([[1, 2]] * 3))
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
    assert_weights(world.run_dir, world.expected([[1]] * 3))
    sites = world.lines("metrics.jsonl")[0]["sites"]
    assert (sites["Brook"]["state"], sites["Brook"]["reason"]) == ("refused", "policy-epsilon")
    assert sites["Castle"]["state"] == "failed"
    assert "training process" in sites["Castle"]["reason"]
    assert world.events("site-refused")[0]["code"] == "policy-epsilon"
    assert "training process" in world.events("site-failed")[0]["error"]


def test_a_site_the_server_cannot_send_to_has_failed_and_the_others_go_on(world) -> None:
    send = world.network.send

    def broken(node, *arguments):
        if node == 3:
            raise CoordinatorError("the SuperLink did not take a message", "node 3")
        return send(node, *arguments)

    world.network.send = broken
    world.run()
    assert "did not take" in world.lines("metrics.jsonl")[0]["sites"]["Castle"]["reason"]
    assert_weights(world.run_dir, world.expected([[1, 2]] * 3))


def test_a_late_answer_is_logged_set_aside_and_not_fatal(world) -> None:
    class Slow(world.plain_site):
        def wait(self, request):
            return 1001.5 if request.round == 1 else 2.0

    world.sites[3] = Slow(4.0, patients=10)
    world.run()
    assert world.states(1)["Castle"] == "late"
    assert world.states(2)["Castle"] == "update"
    assert_weights(world.run_dir, world.expected([[1, 2], [1, 2, 3], [1, 2, 3]]))
    (late,) = world.events("site-late")
    assert (late["round"], late["site"], late["outcome"]) == (1, "Castle", "update")


def test_an_absent_site_is_listed_and_joins_when_it_comes(world) -> None:
    world.sites[3].online = lambda time: time > 60
    world.run()
    assert world.states(1)["Castle"] == "absent"
    assert world.states(3)["Castle"] == "update"
    assert_weights(world.run_dir, world.expected([[1, 2], [1, 2], [1, 2, 3]]))


def test_a_site_that_comes_online_while_the_first_round_is_open_is_asked(world) -> None:
    world.sites[3].online = lambda time: time > 40
    world.run()
    assert world.states(1)["Castle"] == "update"


def test_a_site_that_approves_in_time_takes_part_from_round_1(world) -> None:
    class Deliberating(world.plain_site):
        def answer(self, request, weights, time):
            if time < 45:
                return self.refuse(request, "study-not-approved")
            return super().answer(request, weights, time)

    world.sites[1] = Deliberating(1.0, patients=60)
    world.sites[2] = Deliberating(2.0, patients=30)
    world.run()
    assert_weights(world.run_dir, world.expected([[1, 2, 3]] * 3))
    assert {event["code"] for event in world.events("site-refused")} == {"study-not-approved"}
    assert 3 <= len([r for r in world.sites[1].requests if r.round == 1]) <= 7


def test_a_site_that_approves_as_the_door_closes_is_still_waited_for(world) -> None:
    class Deliberating(world.plain_site):
        def answer(self, request, weights, time):
            if time < 50:
                return self.refuse(request, "study-not-approved")
            return super().answer(request, weights, time)

    # It is asked for the last time 16 s before the door closes, and answers 6 s after.
    world.sites[3] = Deliberating(4.0, patients=10, delay=22)
    world.run()
    assert world.states(1)["Castle"] == "update"
    # One question at a time: it is not asked again before it has answered.
    assert [r.attempt for r in world.sites[3].requests if r.round == 1] == [0, 1, 2]


def test_a_site_that_never_approves_does_not_hold_the_others_for_ever(world) -> None:
    class Unwilling(world.plain_site):
        def answer(self, request, weights, time):
            return self.refuse(request, "study-not-approved")

    world.sites[3] = Unwilling(4.0)
    world.run()
    assert world.lines("metrics.jsonl")[0]["sites"]["Castle"]["reason"] == "study-not-approved"
    assert_weights(world.run_dir, world.expected([[1, 2]] * 3))
    assert 60 < world.time.time < 100


def test_too_few_sites_online_ends_in_an_error_that_names_the_missing(world) -> None:
    world.sites[1].online = world.sites[3].online = lambda time: False
    with pytest.raises(CoordinatorError, match="only 1 of at least 2 sites") as caught:
        world.run()
    assert "Ashford, Castle" in caught.value.where
    assert world.events("waiting-for-sites")[0]["missing"] == ["Ashford", "Castle"]
    assert "only 1 of at least 2" in world.events("run-failed")[0]["error"]
    assert 60 <= world.time.time < 62


def test_fewer_enrolled_sites_than_the_study_needs_is_an_error_at_once(world) -> None:
    world.names = {1: "Ashford"}
    with pytest.raises(CoordinatorError, match="needs 2"):
        world.run()
    assert world.time.time == 0


def test_a_failed_round_asks_the_missing_once_more_and_keeps_what_came(world) -> None:
    class Flaky(world.plain_site):
        def answer(self, request, weights, time):
            if request.round == 2 and request.attempt == 0:
                raise RuntimeError("out of memory")
            return super().answer(request, weights, time)

    world.sites[2], world.sites[3] = Flaky(2.0, patients=30), Flaky(4.0, patients=10)
    world.run()
    assert_weights(world.run_dir, world.expected([[1, 2, 3]] * 3))
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
    assert_weights(world.run_dir, world.expected([[1, 2, 3]] * 3))
    assert [line["round"] for line in world.lines("metrics.jsonl")] == [1, 2, 3, 4]


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


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


@pytest.mark.parametrize("moment", [1, 4, 5, 8, 11])
def test_a_killed_run_goes_on_to_the_same_weights(world, tmp_path, moment: int) -> None:
    deliver, seen = world.network.deliver, []

    def dying(*arguments):
        seen.append(arguments)
        if len(seen) == moment:
            raise Killed
        return deliver(*arguments)

    world.study = world.make_study(average=0.5)
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
    assert_weights(world.run_dir, mean)
    assert read_card(world.run_dir).weights == "average"


def test_each_round_tells_a_site_its_own_countersigned_head(world) -> None:
    world.run()
    key = (world.home / "server.pub").read_bytes()
    requests = world.sites[2].requests
    assert requests[0].known_head is None
    assert requests[0].countersignature == ""
    for number, request in enumerate(requests[1:], start=1):
        assert request.known_head.entries == 2 * number
        assert verify_head(key, "Brook", request.known_head, request.countersignature)
        assert not verify_head(key, "Castle", request.known_head, request.countersignature)
    kept = json.loads((world.home / "heads.json").read_text())
    assert kept["Brook"]["entries"] == 8


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
    assert json.loads((world.home / "heads.json").read_text())["Brook"]["entries"] == 4


def test_a_restarted_node_is_asked_again_within_the_round(world) -> None:
    network = world.network

    class Restarting(world.plain_site):
        """Loses the message it has when it goes down, as a restarted SuperNode does."""

        def receive(self, request, weights, time):
            if request.round == 2 and request.attempt == 0:
                raise LookupError
            return super().receive(request, weights, time)

    deliver = network.deliver

    def lossy(message, node, request, weights):
        try:
            return deliver(message, node, request, weights)
        except LookupError:
            went_down.append(world.time.time)
            return None

    def receive(ids):
        return (r for r in type(network).receive(network, ids) if r is not None)

    went_down = []
    world.sites[3] = Restarting(
        4.0,
        patients=10,
        online=lambda time: not went_down or not 1 < time - went_down[0] < 30,
    )
    network.deliver, network.receive = lossy, receive
    world.run()
    assert world.states(2)["Castle"] == "update"
    assert [e["site"] for e in world.events("site-offline")] == ["Castle"]
    assert [e["site"] for e in world.events("site-online")] == ["Castle"]
    assert world.time.time < 100
    assert_weights(world.run_dir, world.expected([[1, 2, 3]] * 3))


def test_a_site_that_was_only_cut_off_answers_twice_and_counts_once(world) -> None:
    world.sites[1].delay = 30
    world.sites[3] = world.plain_site(
        4.0, patients=10, delay=10, online=lambda time: not 2 < time < 5
    )
    world.run()
    assert [r.attempt for r in world.sites[3].requests if r.round == 1] == [0, 1]
    assert_weights(world.run_dir, world.expected([[1, 2, 3]] * 3))
    assert world.events("site-late") == []


def test_the_failure_of_a_lost_message_does_not_count_once_another_is_on_its_way(world) -> None:
    class Restarted(world.plain_site):
        def answer(self, request, weights, time):
            if (request.round, request.attempt) == (1, 0):
                raise RuntimeError("the node's training process failed")
            return super().answer(request, weights, time)

    world.sites[3] = Restarted(4.0, patients=10, delay=10, online=lambda time: not 2 < time < 5)
    world.run()
    assert world.states(1)["Castle"] == "update"
    assert world.events("site-failed") == []


def test_nodes_that_are_not_enrolled_are_never_asked(world) -> None:
    world.sites[99] = stranger = world.plain_site(1000.0)
    world.run()
    assert stranger.requests == []
    assert_weights(world.run_dir, world.expected([[1, 2, 3]] * 3))


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
