"""Sites that come late, approve late, are cut off, restart or never come."""

from __future__ import annotations

import pytest

from shared.errors import CoordinatorError
from shared.protocol import LedgerHead


def test_a_late_answer_is_logged_set_aside_and_not_fatal(world) -> None:
    class Slow(world.plain_site):
        def wait(self, request):
            return 1001.5 if request.round == 1 else 2.0

    world.sites[3] = Slow(4.0, patients=10)
    world.run()
    assert world.states(1)["Castle"] == "late"
    assert world.states(2)["Castle"] == "update"
    world.assert_released(world.expected([[1, 2], [1, 2, 3], [1, 2, 3]]))
    (late,) = world.events("site-late")
    assert (late["round"], late["site"], late["outcome"]) == (1, "Castle", "update")


def test_an_absent_site_is_listed_and_joins_when_it_comes(world) -> None:
    world.sites[3].online = lambda time: time > 60
    world.run()
    assert world.states(1)["Castle"] == "absent"
    assert world.states(3)["Castle"] == "update"
    world.assert_released(world.expected([[1, 2], [1, 2], [1, 2, 3]]))


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
    world.assert_released(world.expected([[1, 2, 3]] * 3))
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
    world.assert_released(world.expected([[1, 2]] * 3))
    assert 60 < world.time.time < 100


def test_too_few_sites_online_ends_in_an_error_that_names_the_missing(world) -> None:
    world.sites[1].online = world.sites[3].online = lambda time: False
    with pytest.raises(CoordinatorError, match="only 1 of at least 2 sites") as caught:
        world.run()
    assert "Ashford, Castle" in caught.value.where
    assert world.events("waiting-for-sites")[0]["missing"] == ["Ashford", "Castle"]
    assert "only 1 of at least 2" in world.events("run-failed")[0]["error"]
    assert 60 <= world.time.time < 62


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
    world.assert_released(world.expected([[1, 2, 3]] * 3))


def test_a_site_that_was_only_cut_off_answers_twice_and_counts_once(world) -> None:
    world.sites[1].delay = 30
    world.sites[3] = world.plain_site(
        4.0, patients=10, delay=10, online=lambda time: not 2 < time < 5
    )
    world.run()
    assert [r.attempt for r in world.sites[3].requests if r.round == 1] == [0, 1]
    world.assert_released(world.expected([[1, 2, 3]] * 3))
    assert world.events("site-late") == []
    assert world.events("ledger-conflict") == []


def test_two_copies_of_a_node_that_answer_in_one_round_are_both_told_to_stop(world) -> None:
    class Copies(world.plain_site):
        """Whichever is free answers the second time it is asked; both go on alike."""

        def reply(self, request, **changes):
            reply = super().reply(request, **changes)
            if request.round == 1:
                reply = reply.model_copy(
                    update={"head": LedgerHead(entries=2, hash=f"{request.attempt:064x}")}
                )
            return reply

    world.sites[1].delay = 30
    world.sites[3] = Copies(4.0, patients=10, delay=10, online=lambda time: not 2 < time < 5)
    world.run()
    conflict = world.events("ledger-conflict")[0]
    assert (conflict["site"], conflict["round"]) == ("Castle", 1)
    assert "two ledgers of 2 entries" in conflict["reason"]
    # Neither has this head, however many rounds it has gone on since.
    told = next(r.known_head for r in world.sites[3].requests if r.round == 2)
    assert told.entries > 1000
    assert told.hash not in (f"{0:064x}", f"{1:064x}")


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


def test_a_killed_node_is_asked_again_when_it_is_back_within_the_deadline(world) -> None:
    # One kill of two useful sites, and Flower gives the message up after a minute.
    world.names = {1: "Ashford", 2: "Brook"}
    world.network.gives_up = True
    world.sites[2] = world.plain_site(2.0, patients=30, delay=90)
    world.sites[2].online = lambda time: not 60 < time < 400
    world.run()
    assert world.states(1)["Brook"] == "update"
    assert [r.attempt for r in world.sites[2].requests if r.round == 1] == [1]
    assert world.events("site-failed") == world.events("round-repeated") == []
    world.assert_released(world.expected([[1, 2]] * 3))


def test_a_node_that_was_back_before_anyone_saw_it_go_is_asked_again(world) -> None:
    class Restarted(world.plain_site):
        """Killed and back within one look: it never answers what it was asked before."""

        def wait(self, request):
            return 1e9 if (request.round, request.attempt) == (2, 0) else 2.0

    world.sites[3] = Restarted(4.0, patients=10)
    world.sites[3].connected = lambda time: "at first" if time < 30 else "again"
    world.sites[1].delay = 20
    world.run()
    assert world.states(2)["Castle"] == "update"
    assert world.time.time < 200


def test_a_node_that_does_not_come_back_is_late_and_holds_a_round_no_longer(world) -> None:
    world.network.gives_up = True
    world.sites[1].delay = 30
    world.sites[3].delay = 30
    world.sites[3].online = lambda time: time < 5
    world.run()
    line = world.lines("metrics.jsonl")[0]["sites"]["Castle"]
    assert line["state"] == "late"
    assert "offline" in line["reason"]
    assert world.states(2)["Castle"] == "absent"
    assert 1000 <= world.time.time < 1200


def test_a_site_that_refuses_does_not_stand_for_one_that_would_take_part(world) -> None:
    class Spent(world.plain_site):
        def answer(self, request, weights, time):
            if request.round >= 2:
                return self.refuse(request, "budget-exhausted")
            return super().answer(request, weights, time)

    class SlowAtFirst(world.plain_site):
        def wait(self, request):
            return 65.0 if request.round == 1 else 2.0

    world.sites[1] = SlowAtFirst(1.0, patients=60)
    world.sites[2] = Spent(2.0, patients=30)
    world.sites[3].online = lambda time: not 60 < time < 110
    world.run()
    assert world.states(2) == {"Ashford": "update", "Brook": "refused", "Castle": "update"}


def test_a_site_that_has_declined_is_not_waited_for(world) -> None:
    class Declined(world.plain_site):
        def answer(self, request, weights, time):
            return self.refuse(request, "study-declined")

    world.sites[3] = Declined(4.0)
    world.run()
    assert world.states(1)["Castle"] == "refused"
    assert world.time.time < 60  # `start_deadline`, for which one that has not decided is awaited
