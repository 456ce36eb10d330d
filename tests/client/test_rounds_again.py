"""Rounds asked for again, interrupted, restored or copied: nothing is spent twice unseen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from client.recovery import Told, recover
from client.rounds import handle
from shared.models import initial_weights
from shared.protocol import LedgerHead

START = datetime(2026, 3, 1, 8, tzinfo=UTC)
Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]


def test_the_same_request_again_is_resent_at_no_cost(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    first, update = ward.answer(study, 1)
    again, same = ward.answer(study, 1, attempt=1)
    assert again.resent
    assert again.head == first.head
    assert again.evaluation == first.evaluation
    for name, array in update.items():
        np.testing.assert_array_equal(array, same[name])
    assert ward.loads == 1


def test_an_answer_from_other_global_weights_is_not_sent_again(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    others = {name: array + 1 for name, array in initial_weights(study).items()}
    assert not ward.ask(study, 1, weights=others).resent
    assert ward.kinds().count(("reserve", "train")) == 2


def test_an_update_kept_but_not_committed_is_sent_and_committed(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)

    def clock() -> datetime:
        """Jump back once the update is kept, which makes the commit fail."""
        return START - timedelta(days=1) * (ward.home / "outbox").exists()

    broken = replace(ward.hospital(), now=clock)
    reply, update = handle(broken, ward.request(study, 1), initial_weights(study))
    assert (ward.code(reply), update) == ("site-attention", {})
    ward.look()
    assert ("commit", "train") not in ward.kinds()
    reply, update = ward.answer(study, 1)
    assert reply.resent
    assert update
    assert ward.kinds().count(("reserve", "train")) == 1
    assert ward.kinds().count(("commit", "train")) == 1


def test_kept_answers_are_encrypted(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    (sealed,) = (ward.home / "outbox").iterdir()
    content = sealed.read_bytes()
    assert not any(x in content for x in (b"update", b"run-1", study.digest.encode()))


def test_a_lost_update_takes_the_spare_round_and_then_the_site_sits_out(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    first = ward.ask(study, 1)
    for file in (ward.home / "outbox").iterdir():
        file.unlink()
    second = ward.ask(study, 1, attempt=1)
    assert second.outcome == "update"
    assert not second.resent
    assert first.spending is not None
    assert second.spending is not None
    assert second.spending.steps == 2 * first.spending.steps
    for file in (ward.home / "outbox").iterdir():
        file.unlink()
    assert ward.code(ward.ask(study, 1, attempt=2)) == "budget-exhausted"
    assert ward.ask(study, 2).outcome == "update"
    assert ward.ask(study, 3).outcome == "update"


def test_a_damaged_outbox_counts_as_lost(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    for file in (ward.home / "outbox").iterdir():
        file.write_bytes(b"x" + file.read_bytes()[1:])
    assert not ward.ask(study, 1).resent


def test_another_run_of_the_study_goes_on_with_what_is_left(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    for number in (1, 2, 3):
        assert ward.ask(study, number).outcome == "update"
    assert ward.ask(study, 1, run="run-2").outcome == "update"  # the spare round
    assert ward.code(ward.ask(study, 2, run="run-2")) == "budget-exhausted"
    with ward.hospital().ledger() as ledger:
        steps = sum(e.steps for e in ledger.entries() if e.purpose == "train" and e.run)
    assert steps == study.total_steps


def test_the_servers_confirmation_empties_the_outbox(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    first = ward.ask(study, 1)
    ward.ask(study, 2)  # the server has not shown that it has the first answer
    assert len(list((ward.home / "outbox").iterdir())) == 2
    head = ward.ask(study, 2, **server.seen(first.head)).head
    assert len(list((ward.home / "outbox").iterdir())) == 1
    ward.ask(study, 3, **server.seen(head))
    assert len(list((ward.home / "outbox").iterdir())) == 1


def test_an_unsigned_head_is_refused_and_changes_nothing(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    foreign = LedgerHead(entries=99, hash="ab" * 32)
    assert ward.code(ward.ask(study, 1, known_head=foreign)) == "message-invalid"
    signed = server.seen(foreign)["countersignature"]
    other = LedgerHead(entries=98, hash="ab" * 32)
    reply = ward.ask(study, 1, known_head=other, countersignature=signed)
    assert ward.code(reply) == "message-invalid"
    assert ward.ask(study, 1).outcome == "update"


def test_a_restored_home_is_noticed_and_stays_refused(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    ward.ask(study, 1)
    old = ward.copy("backup")
    head = ward.ask(study, 2).head
    assert ward.code(old.ask(study, 3, **server.seen(head))) == "ledger-rollback"
    # Even if the server then keeps silent about what it knows.
    assert ward.code(old.ask(study, 3)) == "ledger-rollback"
    last = old.audit()[-1]
    assert last.code == "ledger-rollback"


def restore(ward: Ward, old: Ward, *names: str) -> None:
    """Put files of a backup back, as they were."""
    for name in names:
        shutil.copy(old.home / name, ward.home / name)


def test_the_site_notices_by_its_own_audit_log_that_its_ledger_was_restored(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    old = ward.copy("backup")
    ward.ask(study, 2)
    restore(ward, old, "ledger.sqlite", "ledger.anchor")
    # The coordinator says nothing, or only what it had seen before.
    assert ward.code(ward.ask(study, 3)) == "ledger-rollback"
    told = Told("IT", (), exact=False)
    assert recover(ward.hospital(), told).outcome == "adopted"
    assert recover(ward.hospital(), told).outcome == "nothing-lost"
    assert ward.code(ward.ask(study, 3)) == "budget-exhausted"


def test_a_server_that_falls_silent_is_refused_until_a_person_accepts_it(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    known = ward.server().seen(ward.ask(study, 1).head)
    assert ward.ask(study, 2, **known).outcome == "update"
    assert ward.code(ward.ask(study, 3)) == "ledger-rollback"
    assert ward.audit()[-1].code == "ledger-rollback"
    with ward.hospital().ledger() as ledger:
        ledger.accept_server()
    assert ward.ask(study, 3).outcome == "update"


def test_a_kept_answer_that_nothing_in_the_ledger_paid_for_is_computed_anew(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    old = ward.copy("backup")
    ward.ask(study, 2)
    # All but what was kept for sending; as if it had never been sent, so that nobody notices.
    restore(ward, old, "ledger.sqlite", "ledger.anchor", "audit.jsonl")
    again = ward.ask(study, 2)
    assert (again.outcome, again.resent) == ("update", False)
    assert ward.kinds().count(("reserve", "train")) == 2


def test_two_nodes_on_copies_of_one_ledger_are_noticed(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    head = ward.ask(study, 1).head
    twin = ward.copy("copy")
    known = server.seen(head)
    after = server.seen(ward.ask(study, 2, **known).head)
    assert twin.ask(study, 2, **known).outcome == "update"
    assert ward.code(twin.ask(study, 3, **after)) == "ledger-rollback"


def test_two_processes_on_one_home_are_noticed(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    with ward.hospital().ledger() as ledger, ledger.locked():
        assert ward.code(ward.ask(study, 1)) == "ledger-invalid"
    assert ward.ask(study, 1).outcome == "update"


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    (ward.home / "ledger.sqlite").write_bytes(b"these are my notes " * 100)
    assert ward.code(ward.ask(study, 1)) == "ledger-invalid"
    assert (ward.home / "ledger.sqlite").read_bytes().startswith(b"these are my notes")
    assert ward.loads == 0


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("then", "now", "sent"),
    [
        ("exact", "noised", False),
        ("exact", "none", False),
        ("noised", "none", False),
        ("exact", "exact", True),
        ("noised", "noised", True),
        ("noised", "exact", True),
    ],
)
def test_what_is_sent_again_is_what_the_policy_allows_now(
    make_ward: MakeWard, then: str, now: str, sent: bool, enabled: bool
) -> None:
    ward = make_ward(evaluation=then, allow_without_privacy=True)
    study = ward.study(
        training={"personal_rounds": 1}, privacy={"subgroups": ["sex"], "enabled": enabled}
    )
    ward.approve(study)
    trained = ward.ask(study, 1)
    closed = ward.ask(study, 4, task="evaluate")
    ward.policy["evaluation"] = now
    trained_again = ward.ask(study, 1, attempt=1)
    again = ward.ask(study, 4, task="evaluate", attempt=1)
    assert trained_again.resent
    assert again.resent
    assert trained_again.evaluation == (trained.evaluation if sent else None)
    assert again.evaluation == (closed.evaluation if sent else None)
    assert again.personal == (closed.personal if sent else None)
    assert again.subgroups == (closed.subgroups if sent else {})
    named = {"evaluation", "personal", "subgroups"} & set(ward.audit()[-1].left.fields)
    # Exact counts of groups of a few patients do not leave at all.
    assert bool(closed.subgroups) == (then == "noised")
    expected = {"evaluation", "personal"} | ({"subgroups"} if closed.subgroups else set[str]())
    assert named == (expected if sent else set())
