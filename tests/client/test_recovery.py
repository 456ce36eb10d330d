"""After its ledger was lost in any way, a site refuses, and recovers by charging everything."""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
from typing import Any

import pytest

from client.privacy.budget import uses_of
from client.recovery import recover
from client.spending import spending_report
from shared.errors import LedgerError

Ward = Any  # the class in conftest.py


def charged(ward: Ward, study: Any) -> tuple[int, int]:
    """Uses of training and of evaluation the ledger counts."""
    with ward.hospital().ledger() as ledger:
        entries = ledger.entries()
    return tuple(uses_of(entries, study.digest, purpose) for purpose in ("train", "evaluate"))


def test_a_sound_ledger_is_left_alone(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    before = ward.kinds()
    assert recover(ward.hospital(), "IT").outcome == "nothing-lost"
    assert ward.kinds() == before


def test_a_restored_home_goes_on_with_everything_charged(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    first = ward.ask(study, 1)
    old = ward.copy("backup")
    known = server.seen(ward.ask(study, 2, **server.seen(first.head)).head)
    old.ask(study, 3, **known)
    assert recover(old.hospital(), "IT").outcome == "adopted"
    assert charged(old, study) == (4, 5)
    # The study is used up; another one with budget left goes on, and the server is content.
    reply = old.ask(study, 3, **known)
    assert reply.refusal.code == "budget-exhausted"
    old.policy["max_epsilon_per_patient"] = 50
    other = ward.study(privacy={"epsilon": 2.0})
    old.approve(other)
    reply = old.ask(other, 1, **known)
    assert reply.outcome == "update"
    assert reply.head.entries > known["known_head"].entries
    assert old.ask(other, 2, **server.seen(reply.head)).outcome == "update"
    assert [line.event for line in old.audit()].count("ledger-adopted") == 1


def spoil(ward: Ward, how: str) -> None:
    ledger = ward.home / "ledger.sqlite"
    if how == "deleted":
        for path in ward.home.glob("ledger.sqlite*"):
            path.unlink()
    elif how == "overwritten":
        ledger.write_bytes(b"my notes " * 500)
    elif how == "anchor":
        (ward.home / "ledger.anchor").unlink()
    else:
        with sqlite3.connect(ledger) as database:
            database.execute("drop trigger entry_no_update")
            database.execute("drop trigger cohort_member_no_delete")
            database.execute(how)


@pytest.mark.parametrize(
    "how",
    [
        "deleted",
        "overwritten",
        "anchor",
        "update entry set steps = 0 where kind = 'reserve'",
        # Any patient but the one who opted out, whose wish would be lost with the row.
        "delete from cohort_member where patient = (select max(patient) from cohort_member where "
        "patient not in (select patient from entry join cohort_member using (cohort) "
        "where kind = 'opt-out'))",
    ],
)
def test_a_ledger_that_cannot_vouch_is_set_aside_and_everything_charged(
    ward: Ward, how: str
) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    head = ward.ask(study, 1).head
    assert ward.ask(study, 2, **server.seen(head)).outcome == "update"
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-1"))
    spoil(ward, how)
    known = server.seen(head)
    assert ward.ask(study, 3, **known).refusal.code == "ledger-invalid"
    assert recover(ward.hospital(), "IT").outcome == "replaced"
    assert charged(ward, study) == (4, 5)
    with ward.hospital().ledger() as ledger:
        ledger.check_head(None)
        assert bool(ledger.opted_out()) == (how not in ("deleted", "overwritten"))
        assert ledger.lost_head() is None
    assert ward.ask(study, 3).refusal.code == "budget-exhausted"
    kept = [path.name for path in ward.home.glob("ledger.sqlite.set-aside*")]
    assert bool(kept) == (how != "deleted")
    assert not list(ward.home.glob("recovered*"))


def test_a_lost_vault_key_means_a_new_ledger_with_everything_charged(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    (ward.home / "vault.key").unlink()
    assert ward.ask(study, 2).refusal.code == "ledger-invalid"
    (ward.home / "audit.jsonl").rename(ward.home / "audit.old.jsonl")
    assert recover(ward.hospital(), "IT").outcome == "replaced"
    assert charged(ward, study) == (4, 5)
    with ward.hospital().ledger() as ledger:
        report = spending_report(ledger, budget=10.0, delta=1e-5)
    # Patients known by their old pseudonyms, who cannot be told from the new ones, are kept too.
    assert report.patients == 2 * (ward.train + ward.held_out)


def test_recovery_waits_for_a_round_to_end(ward: Ward) -> None:
    with (
        ward.hospital().ledger() as ledger,
        ledger.locked(),
        pytest.raises(LedgerError, match="another process"),
    ):
        recover(ward.hospital(), "IT")


@pytest.mark.parametrize("how", ["anchor", "update entry set steps = 0 where kind = 'reserve'"])
def test_a_recovery_killed_at_any_step_refuses_training_until_it_is_done(
    ward: Ward, how: str
) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    spoil(ward, how)
    for step in range(1, 20):
        copy = ward.copy(f"killed-{step}")
        if ended_by_itself(copy, step):
            break
        if (copy.home / "ledger.sqlite").exists() or (copy.home / "ledger.anchor").exists():
            assert copy.ask(study, 2).refusal.code in ("ledger-invalid", "budget-exhausted")
        else:
            pytest.fail(f"killed at rename {step}: the next start would begin with nothing spent")
        recover(copy.hospital(), "IT")
        assert charged(copy, study) == (4, 5)
    assert step > 4


def ended_by_itself(ward: Ward, step: int) -> bool:
    """Recover in a forked process that dies when it is about to rename a file for that time."""
    child = os.fork()
    if child == 0:
        renames = itertools.count(1)

        def die(event: str, _: tuple[object, ...]) -> None:
            if event == "os.rename" and next(renames) == step:
                os._exit(9)

        sys.addaudithook(die)
        try:
            recover(ward.hospital(), "IT")
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
