"""The ledger charges before use and keeps every promise it made."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
from ledger_kit import (
    ANN_BOB,
    ANN_BOB_EVE,
    DELTA,
    LIMITS,
    VAULT,
    charged,
    join,
    people,
    plan,
    train,
    used,
)

from client.privacy.account import Limits
from client.privacy.budget import Wanted
from client.privacy.groups import EVERYONE
from client.privacy.ledger import Ledger
from client.privacy.ledger_schema import open_engine
from client.spending import spending_report, study_epsilon
from shared.accounting import Mechanism, epsilon
from shared.errors import LedgerError, PolicyRefusal

WHOLE = epsilon([Mechanism(3, 1, 4)], DELTA)
"""What a study of the kit costs in all: three rounds and a spare one."""


def test_a_reservation_is_on_disk_before_it_is_returned_and_counts_without_commit(
    path: Path,
) -> None:
    ledger = Ledger(path, VAULT)
    ledger.reserve([(plan(), 1)], run="run", round_number=1)
    with Ledger(path, VAULT) as other:  # the first never closed, as after a crash
        assert study_epsilon(other.entries(), plan()) == epsilon([Mechanism(3, 1, 1)], DELTA)
    ledger.close()


def test_the_file_is_durable_private_and_append_only(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
    engine = open_engine(path)
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"pragma {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    engine.dispose()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as database:
        for change in (
            "update entry set uses = 0",
            "delete from entry",
            "delete from cohort_member",
            "update cohort set size = 1",
        ):
            with pytest.raises(sqlite3.DatabaseError, match="append-only"):
                database.execute(change)


def test_who_joins_is_charged_the_whole_study_at_once_and_rounds_charge_nothing_more(
    path: Path,
) -> None:
    with Ledger(path, VAULT) as ledger:
        join(ledger)
        assert charged(ledger) == {ANN_BOB: WHOLE}
        for number in (1, 2, 3):
            train(ledger, number)
        assert charged(ledger) == {ANN_BOB: WHOLE}


def test_each_patient_is_charged_all_studies_joined_and_no_other(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1, ANN_BOB)
        train(ledger, 2, ANN_BOB_EVE)
        train(ledger, 1, people("eve", "kim"), plan=plan("b", noise_multiplier=5.0))
        assert charged(ledger) == {
            ANN_BOB: WHOLE,
            people("eve"): epsilon([Mechanism(3, 1, 4), Mechanism(5, 1, 4)], DELTA),
            people("kim"): epsilon([Mechanism(5, 1, 4)], DELTA),
        }


def test_a_patient_who_joins_late_is_charged_all_of_it_and_nobody_else_anything(
    path: Path,
) -> None:
    with Ledger(path, VAULT) as ledger:
        for number, who in ((1, ANN_BOB), (2, ANN_BOB_EVE), (3, ANN_BOB_EVE)):
            train(ledger, number, who)
        report = spending_report(ledger, LIMITS)
    study, _ = report.accounts
    assert (study.patients, study.epsilon) == (3, WHOLE)


def test_the_report_says_what_is_charged_and_what_is_left(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        ledger.reserve([(plan(), 1)], run="run", round_number=2)
        ledger.opt_out(*people("bob"))
        report = spending_report(ledger, LIMITS)
    study, lifetime = report.accounts
    assert (study.epsilon, study.budget, study.used) == (WHOLE, 8.0, WHOLE / 8)
    assert (lifetime.epsilon, lifetime.budget) == (10.0, 10.0)
    # Whoever is replaced moves a sum of everybody by twice the clipping norm.
    assert study.replacement == pytest.approx(epsilon([Mechanism(1.5, 1.0, 4)], 1e-5), rel=0.01)
    assert lifetime.replacement is None
    # By hand: at order 3.5 four Gaussians of noise 3 cost 4 x 3.5 / (2 x 9), and epsilon 10 at
    # delta 1e-5 grants 10 - log(2.5 / 3.5) + (log 1e-5 + log 3.5) / 2.5 = 6.2324.
    assert lifetime.used == pytest.approx(0.77778 / 6.2324, rel=1e-3)
    (mechanism,) = report.plans
    assert (mechanism.used, mechanism.committed, mechanism.uses) == (2, 1, 4)
    assert (report.patients, report.opted_out) == (2, 1)


def test_who_cannot_afford_all_of_a_study_takes_no_part_and_the_others_do(path: Path) -> None:
    low = Limits(epsilon=6.0, delta=DELTA)
    costly = plan("b", noise_multiplier=2.0, uses=5)
    with Ledger(path, VAULT) as ledger:
        assert join(ledger, people("eve"), costly, low) == people("eve")
        assert join(ledger, ANN_BOB_EVE, costly_too := plan("c", noise_multiplier=2.0), low) == (
            ANN_BOB
        )
        assert charged(ledger)[people("eve")] == epsilon([Mechanism(2, 1, 5)], DELTA)
        # The site is told how many.
        told = {plan.study: plan for plan in spending_report(ledger, low).plans}
        assert (told["c" * 64].joined, told["c" * 64].left_out) == (2, 1)
        # Once and for all of the study, although closing the other has made room.
        ledger.close_study(costly.study)
        assert join(ledger, ANN_BOB_EVE, costly_too, low) == ANN_BOB
        assert join(ledger, ANN_BOB_EVE, plan("d", noise_multiplier=2.0, uses=1), low) >= (
            people("eve")
        )


def test_nobodys_part_depends_on_who_else_is_there(path: Path) -> None:
    low = Limits(epsilon=6.0, delta=DELTA)
    crowd, costly = people(*map(str, range(20))), plan("b", noise_multiplier=2.0, uses=5)
    alone, together = Ledger(path, VAULT), Ledger(path.with_name("other.sqlite"), VAULT)
    with alone, together:
        for ledger, others in ((alone, frozenset()), (together, crowd)):
            join(ledger, people("eve") | others, costly, low)
            kept = join(ledger, ANN_BOB_EVE | others, plan("c", noise_multiplier=2.0), low)
            assert kept & ANN_BOB_EVE == ANN_BOB


def test_a_closed_study_charges_what_was_used(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        train(ledger, 2)
        ledger.close_study(plan().study)
        assert charged(ledger) == {ANN_BOB: epsilon([Mechanism(3, 1, 2)], DELTA)}
        assert join(ledger, ANN_BOB_EVE) == ANN_BOB  # nobody joins what has ended


def test_a_patient_is_on_one_side_of_a_study(path: Path) -> None:
    training, scores = plan(epsilon=4.0), plan(purpose="evaluate", epsilon=4.0)
    with Ledger(path, VAULT) as ledger:
        found = ledger.join(
            [Wanted(training, ANN_BOB), Wanted(scores, people("bob", "kim"))], Limits(50.0, DELTA)
        )
        assert found == {"train": ANN_BOB, "evaluate": people("kim")}
        # The next round asks the other way round, as after a lost split key.
        assert join(ledger, people("kim", "eve"), training, Limits(50.0, DELTA)) == people("eve")


def test_what_a_side_joins_it_joins_together_or_not_at_all(path: Path) -> None:
    description = plan(purpose="describe", noise_multiplier=2.0)
    with Ledger(path, VAULT) as ledger:
        low = Limits(epsilon=5.7, delta=DELTA)
        both = [Wanted(description, ANN_BOB), Wanted(plan(), ANN_BOB)]
        assert ledger.join(both, low) == {"describe": frozenset(), "train": frozenset()}
        assert charged(ledger) == {}
        assert join(ledger, people("kim"), plan("b"), low) == people("kim")


def test_uses_never_exceed_what_the_noise_was_calibrated_for(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        for number in (1, 2, 3):
            train(ledger, number, run="one")
        train(ledger, 1, run="two")
        for run, number in (("two", 2), ("one", 4), ("three", 1)):
            with pytest.raises(PolicyRefusal) as refusal:
                train(ledger, number, run=run)
            assert refusal.value.code == "budget-exhausted"
        assert used(ledger) == 4
        assert join(ledger, people("kim")) == frozenset()  # to be charged for nothing


def test_repeats_of_a_round_take_the_spare_rounds_only(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        train(ledger, 1)
        with pytest.raises(PolicyRefusal, match="spare"):
            train(ledger, 1)
        train(ledger, 2)


def test_a_use_of_several_is_made_and_repeated_whole_or_not_at_all(path: Path) -> None:
    closing = plan(uses=5, spares=3)
    with Ledger(path, VAULT) as ledger:
        ledger.reserve([(closing, 2)], run="run", round_number=1)
        assert [e.steps for e in ledger.entries() if e.kind == "reserve"] == [2]
        ledger.reserve([(closing, 2)], run="run", round_number=1)
        for number in (1, 2):  # one use is left, which is too little for a repeat or a new round
            with pytest.raises(PolicyRefusal, match="4 of 5"):
                ledger.reserve([(closing, 2)], run="run", round_number=number)
        assert used(ledger) == 4


def test_the_first_rounds_plan_stays(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        train(ledger, 2, plan=plan(noise_multiplier=0.1, delta=1e-7))
        assert {e.noise_multiplier for e in ledger.entries() if e.kind == "reserve"} == {3.0}


def test_reserving_is_all_or_nothing(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        with pytest.raises(PolicyRefusal):
            ledger.reserve([(plan(), 1), (plan(purpose="evaluate"), 5)], run="run", round_number=1)
        assert [e.kind for e in ledger.entries()] == ["start"]


def test_a_transaction_that_fails_half_way_leaves_nothing_behind(path: Path) -> None:
    impossible = Wanted(plan(purpose="evaluate", spares=-1), people("kim"))
    with Ledger(path, VAULT) as ledger:
        with pytest.raises(LedgerError):
            ledger.join([Wanted(plan(), ANN_BOB), impossible], LIMITS)
        assert [e.kind for e in ledger.entries()] == ["start"]
        train(ledger, 1)  # the patients of the failed try are written anew


def test_who_opted_out_takes_no_part_stays_charged_and_is_not_charged_again(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        ledger.opt_out(*people("bob"))
        ledger.opt_out(*people("bob"))
        assert ledger.opted_out() == people("bob")
        assert join(ledger) == people("ann")
        assert join(ledger, ANN_BOB, plan("b")) == people("ann")
        assert charged(ledger)[people("bob")] == WHOLE


def test_nobody_at_all_is_recorded_like_anybody(path: Path) -> None:
    with Ledger(path, VAULT) as some, Ledger(path.with_name("none.sqlite"), VAULT) as none:
        for number in (1, 2):
            train(some, number, ANN_BOB)
            train(none, number, frozenset())
        assert [public(e) for e in some.entries() if not e.cohort] == [
            public(e) for e in none.entries()
        ]
        assert some.head().entries == none.head().entries


def public(entry: object) -> dict[str, object]:
    """All of an entry but what is random, and its place among the private ones."""
    hidden = {"seq", "hidden", "nonce", "time", "prev", "hash", "note"}
    return {name: value for name, value in vars(entry).items() if name not in hidden}


def test_noise_free_releases_rule_patients_out_unless_waived(path: Path) -> None:
    bare = plan(noise_multiplier=0.0)
    waived = Limits(10.0, DELTA, frozenset({"train"}))
    with Ledger(path, VAULT) as ledger:
        assert join(ledger, people("kim"), bare) == frozenset()
        assert join(ledger, ANN_BOB, bare, waived) == ANN_BOB
        assert join(ledger, ANN_BOB_EVE, plan("b"), LIMITS) == people("eve")
        assert join(ledger, ANN_BOB, plan("c"), waived) == ANN_BOB
        report = spending_report(ledger, LIMITS)
    assert [a.unprotected for a in report.accounts if a.study == ""] == [("train",), ()]


def test_what_everyone_was_charged_counts_for_patients_known_and_unknown(path: Path) -> None:
    everyone, small = frozenset({EVERYONE}), Limits(epsilon=3.5, delta=DELTA)
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1, people("ann"), plan("a"))
        ledger.close_study(plan("a").study)
        ledger.check_head(ledger.head())
        ledger.adopt([plan("b")])
        report = spending_report(ledger, LIMITS)
        assert charged(ledger) == {
            everyone: WHOLE,
            people("ann"): epsilon([Mechanism(3, 1, 5)], DELTA),
        }
        assert [a.who for a in report.accounts if not a.study] == ["1", "all others"]
        assert report.patients == 1
        assert study_epsilon(ledger.entries(), plan("b")) == WHOLE
        # A stranger has paid too: too little is left of a budget that one study fits.
        assert join(ledger, people("ann", "stranger"), plan("c"), small) == frozenset()
        with Ledger(path.with_name("fresh.sqlite"), VAULT) as fresh:
            assert join(fresh, people("stranger"), plan("c"), small) == people("stranger")
        # Nobody can be left out of the study itself, and it has no round left.
        assert join(ledger, people("kim"), plan("b"), small) == people("kim")
        with pytest.raises(PolicyRefusal, match="used 4 of 4"):
            train(ledger, 1, people("kim"), plan("b"))


def test_of_two_versions_of_a_lost_plan_what_costs_more_is_charged(path: Path) -> None:
    versions = [plan(noise_multiplier=2.0), plan(steps=2), plan(uses=3)]
    with Ledger(path, VAULT) as ledger:
        ledger.adopt(versions)
        assert set(charged(ledger).values()) == {epsilon([Mechanism(2, 1, 8)], DELTA)}
