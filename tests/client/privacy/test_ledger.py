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
    people,
    plan,
    train,
    used,
)

from client.privacy.budget import Limits, Wanted
from client.privacy.groups import EVERYONE, charges_of, group_patients, spent
from client.privacy.ledger import Ledger
from client.privacy.ledger_schema import open_engine
from client.spending import spending_report, study_epsilon
from shared.accounting import Mechanism, epsilon
from shared.errors import LedgerError, PolicyRefusal


def test_a_reservation_is_on_disk_before_it_is_returned_and_counts_without_commit(
    path: Path,
) -> None:
    ledger = Ledger(path, VAULT)
    ledger.reserve([Wanted(plan(), ANN_BOB)], LIMITS, run="run", round_number=1)
    with Ledger(path, VAULT) as other:  # the first never closed, as after a crash
        entries, members = other.entries(), other.members()
        assert study_epsilon(entries, members, plan()) == epsilon([Mechanism(3, 1, 1)], DELTA)
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


def test_epsilon_of_each_patient_is_the_composition_of_all_they_took_part_in(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1, ANN_BOB)
        train(ledger, 2, ANN_BOB_EVE)
        train(ledger, 1, people("eve", "kim"), plan=plan("b", noise_multiplier=5.0))
        charges, members = charges_of(ledger.entries()), ledger.members()
        groups = group_patients([charge.cohort for charge in charges], members)
        found = {g.patients: spent(g, charges, DELTA).epsilon for g in groups}
    assert found == {
        ANN_BOB: epsilon([Mechanism(3, 1, 2)], DELTA),
        people("eve"): epsilon([Mechanism(3, 1, 1), Mechanism(5, 1, 1)], DELTA),
        people("kim"): epsilon([Mechanism(5, 1, 1)], DELTA),
    }


def test_a_patient_who_comes_later_does_not_open_a_new_account_for_the_others(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        for number, who in ((1, ANN_BOB), (2, ANN_BOB_EVE), (3, ANN_BOB_EVE)):
            train(ledger, number, who)
        report = spending_report(ledger, budget=10.0, delta=DELTA)
    by_size = {a.patients: a.spent for a in report.accounts if a.study}
    assert by_size == {
        2: epsilon([Mechanism(3, 1, 3)], DELTA),
        1: epsilon([Mechanism(3, 1, 2)], DELTA),
    }


def test_the_report_says_what_is_spent_reserved_and_left(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        ledger.reserve([Wanted(plan(), ANN_BOB)], LIMITS, run="run", round_number=2)
        ledger.opt_out(*people("bob"))
        report = spending_report(ledger, budget=10.0, delta=DELTA)
    now, whole = (epsilon([Mechanism(3, 1, n)], DELTA) for n in (2, 4))
    study, lifetime = report.accounts
    assert (study.spent, study.reserved, study.left) == (now, whole - now, 8.0 - whole)
    assert (lifetime.spent, lifetime.reserved, lifetime.left) == (now, whole - now, 10.0 - whole)
    (mechanism,) = report.plans
    assert (mechanism.used, mechanism.committed, mechanism.uses) == (2, 1, 4)
    assert (report.patients, report.opted_out) == (2, 1)


def test_a_study_beyond_the_budget_at_its_last_round_is_refused_before_its_first(
    path: Path,
) -> None:
    whole = epsilon([Mechanism(3, 1, 4)], DELTA)
    with Ledger(path, VAULT) as ledger:
        low = Limits(epsilon=whole - 1e-3, delta=DELTA)
        with pytest.raises(PolicyRefusal) as refusal:
            ledger.reserve([Wanted(plan(), ANN_BOB)], low, run="run", round_number=1)
        assert refusal.value.code == "budget-exhausted"
        assert used(ledger) == 0
        assert ledger.plan("a" * 64, "train") is None
        enough = Limits(epsilon=whole, delta=DELTA)
        for number in (1, 2, 3):
            ledger.reserve([Wanted(plan(), ANN_BOB)], enough, run="run", round_number=number)


def test_what_open_studies_still_need_is_not_given_away(path: Path) -> None:
    one, two = plan("a"), plan("b")
    both = epsilon([Mechanism(3, 1, 8)], DELTA)
    limits = Limits(epsilon=both - 1e-3, delta=DELTA)
    with Ledger(path, VAULT) as ledger:
        ledger.reserve([Wanted(one, ANN_BOB)], limits, run="run", round_number=1)
        with pytest.raises(PolicyRefusal):
            ledger.reserve([Wanted(two, ANN_BOB)], limits, run="run", round_number=1)
        # Other patients, or the first study's end, make room.
        ledger.reserve([Wanted(two, people("kim"))], limits, run="run", round_number=1)
        ledger.close_study(one.study)
        ledger.reserve([Wanted(two, ANN_BOB)], limits, run="run", round_number=2)


def test_a_patient_in_both_parts_of_a_study_keeps_its_budget(path: Path) -> None:
    training, scores = plan(epsilon=4.0), plan(purpose="evaluate", epsilon=4.0)
    uses = [Wanted(training, ANN_BOB), Wanted(scores, people("bob"))]
    with Ledger(path, VAULT) as ledger, pytest.raises(PolicyRefusal):
        ledger.reserve(uses, Limits(50.0, DELTA), run="run", round_number=1)


def test_newcomers_who_spent_too_much_elsewhere_are_left_out_and_the_study_goes_on(
    path: Path,
) -> None:
    limits = Limits(epsilon=epsilon([Mechanism(3, 1, 6)], DELTA), delta=DELTA)
    with Ledger(path, VAULT) as ledger:
        ledger.reserve([Wanted(plan("b"), people("eve"))], limits, run="run", round_number=1)
        ledger.reserve([Wanted(plan("a"), ANN_BOB)], limits, run="run", round_number=1)
        wanted = Wanted(plan("a"), ANN_BOB_EVE)
        assert ledger.eligible(wanted, limits) == ANN_BOB
        assert ledger.eligible(Wanted(plan("a"), people("kim")), limits) == people("kim")


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


def test_repeats_of_a_round_take_the_spare_rounds_only(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        train(ledger, 1)
        with pytest.raises(PolicyRefusal, match="spare"):
            train(ledger, 1)
        train(ledger, 2)


def test_a_use_of_several_is_charged_and_repeated_whole_or_not_at_all(path: Path) -> None:
    both = Wanted(plan(uses=5, spares=3), ANN_BOB, uses=2)
    with Ledger(path, VAULT) as ledger:
        ledger.reserve([both], LIMITS, run="run", round_number=1)
        assert [e.steps for e in ledger.entries() if e.kind == "reserve"] == [2]
        ledger.reserve([both], LIMITS, run="run", round_number=1)
        for number in (1, 2):  # one use is left, which is too little for a repeat or a new round
            with pytest.raises(PolicyRefusal, match="4 of 5"):
                ledger.reserve([both], LIMITS, run="run", round_number=number)
        assert used(ledger) == 4


def test_the_first_rounds_plan_stays(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        train(ledger, 2, plan=plan(noise_multiplier=0.1, delta=1e-7))
        assert {e.noise_multiplier for e in ledger.entries() if e.kind == "reserve"} == {3.0}


def test_reserving_is_all_or_nothing(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        poor = Wanted(plan(purpose="evaluate", noise_multiplier=0.1), people("kim"))
        with pytest.raises(PolicyRefusal):
            ledger.reserve([Wanted(plan(), ANN_BOB), poor], LIMITS, run="run", round_number=1)
        assert [e.kind for e in ledger.entries()] == ["start"]


def test_a_transaction_that_fails_half_way_leaves_nothing_behind(path: Path) -> None:
    impossible = Wanted(plan(purpose="evaluate", spares=-1), people("kim"))
    with Ledger(path, VAULT) as ledger:
        with pytest.raises(LedgerError):
            ledger.reserve([Wanted(plan(), ANN_BOB), impossible], LIMITS, run="r", round_number=1)
        assert [e.kind for e in ledger.entries()] == ["start"]
        train(ledger, 1)  # the patients of the failed try are written anew


def test_who_opted_out_is_not_charged_again(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        ledger.opt_out(*people("bob"))
        ledger.opt_out(*people("bob"))
        assert ledger.opted_out() == people("bob")
        assert ledger.eligible(Wanted(plan(), ANN_BOB), LIMITS) == people("ann")
        with pytest.raises(LedgerError, match="changed just now"):
            train(ledger, 2)
        assert used(ledger) == 1


def test_noise_free_releases_rule_patients_out_unless_waived(path: Path) -> None:
    bare = plan(noise_multiplier=0.0)
    waived = Limits(10.0, DELTA, frozenset({"train"}))
    with Ledger(path, VAULT) as ledger:
        with pytest.raises(PolicyRefusal):
            ledger.reserve([Wanted(bare, ANN_BOB)], LIMITS, run="run", round_number=1)
        ledger.reserve([Wanted(bare, ANN_BOB)], waived, run="run", round_number=1)
        with pytest.raises(PolicyRefusal):
            ledger.reserve([Wanted(plan("b"), ANN_BOB)], LIMITS, run="run", round_number=1)
        ledger.reserve([Wanted(plan("b"), ANN_BOB)], waived, run="run", round_number=1)
        report = spending_report(ledger, budget=10.0, delta=DELTA)
    assert report.accounts[-1].unprotected == ("train",)


def test_what_everyone_was_charged_counts_for_patients_known_and_unknown(path: Path) -> None:
    everyone, three = frozenset({EVERYONE}), Limits(epsilon=3.0, delta=DELTA)
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1, people("ann"), plan("a"))
        ledger.adopt([Wanted(plan("b"), everyone)])
        report = spending_report(ledger, budget=10.0, delta=DELTA)
        lifetime = {a.who: a.spent for a in report.accounts if not a.study}
        both, one = [Mechanism(3, 1, 4), Mechanism(3, 1, 4)], [Mechanism(3, 1, 4)]
        assert lifetime == {"1": epsilon(both, DELTA), "all others": epsilon(one, DELTA)}
        assert report.patients == 1
        assert study_epsilon(ledger.entries(), ledger.members(), plan("b")) == epsilon(one, DELTA)
        # A stranger has paid too: too little is left of a budget that one study fits.
        assert epsilon(one, DELTA) < three.epsilon < epsilon(both, DELTA)
        for who in (people("ann"), people("stranger")):
            with pytest.raises(PolicyRefusal, match="1 patients would exceed"):
                ledger.reserve([Wanted(plan("c"), who)], three, run="run", round_number=1)
        # Nobody can be left out of the study itself, and it has no round left.
        assert ledger.eligible(Wanted(plan("b"), people("kim")), three) == people("kim")
        with pytest.raises(PolicyRefusal, match="used 4 of 4"):
            train(ledger, 1, people("kim"), plan("b"))


def test_of_two_versions_of_a_lost_plan_what_costs_more_is_charged(path: Path) -> None:
    versions = [plan(noise_multiplier=2.0), plan(steps=2), plan(uses=3)]
    with Ledger(path, VAULT) as ledger:
        ledger.adopt([Wanted(version, ANN_BOB) for version in versions])
        (charge,) = charges_of(ledger.entries())
    assert (charge.noise_multiplier, charge.steps) == (2.0, 8)


def test_patients_of_a_bare_release_are_refused_for_it_and_not_for_their_budget(path: Path) -> None:
    bare, noised = (plan(purpose=p, noise_multiplier=n) for p, n in
                    (("exact-evaluation", 0.0), ("evaluate", 3.0)))  # fmt: skip
    then, now = Limits(10.0, DELTA, frozenset({"exact-evaluation"})), Limits(99.0, DELTA)
    with Ledger(path, VAULT) as ledger:
        ledger.reserve([Wanted(bare, ANN_BOB)], then, run="run", round_number=1)
        with pytest.raises(PolicyRefusal, match=r"2 patients .*no budget.*: exact-eval") as it:
            ledger.reserve([Wanted(noised, ANN_BOB_EVE)], now, run="run", round_number=2)
        assert it.value.code == "budget-exhausted"
        assert "policy.evaluation" in it.value.where
        assert "raise the budget" not in it.value.todo
        ledger.reserve([Wanted(noised, ANN_BOB_EVE)], then, run="run", round_number=2)
        poor = Limits(0.1, DELTA, frozenset({"exact-evaluation"}))
        with pytest.raises(PolicyRefusal, match="1 patients would exceed their budget"):
            ledger.reserve([Wanted(plan("b"), people("kim"))], poor, run="run", round_number=1)
