"""The ledger charges before use, keeps every promise it made, and notices what was done to it."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.privacy.budget import Limits, Wanted
from client.privacy.chain import Entry
from client.privacy.groups import charges_of, group_patients, spent
from client.privacy.ledger import Ledger
from client.privacy.ledger_schema import open_engine
from client.privacy.plans import Plan
from client.spending import spending_report, study_epsilon
from client.vault import Vault
from shared.accounting import Mechanism, epsilon
from shared.errors import LedgerError, PolicyRefusal
from shared.protocol import LedgerHead

VAULT = Vault(bytes(range(32)))
START = datetime(2026, 3, 1, 23, 50, tzinfo=UTC)
DELTA = 1e-5
LIMITS = Limits(epsilon=10.0, delta=DELTA)


class Clock:
    """A clock a test sets."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time


# Three rounds and a spare one of plain Gaussians.
TRAINING = Plan(
    study="a" * 64,
    purpose="train",
    noise_multiplier=3.0,
    sampling_rate=1.0,
    steps=1,
    uses=4,
    spares=1,
    epsilon=8.0,
    delta=DELTA,
)


def plan(study: str = "a", **changes: Any) -> Plan:
    return replace(TRAINING, study=study * 64, **changes)


def people(*names: str) -> frozenset[str]:
    return frozenset(VAULT.pseudonym(name) for name in names)


ANN_BOB, ANN_BOB_EVE = people("ann", "bob"), people("ann", "bob", "eve")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def train(
    ledger: Ledger,
    number: int,
    who: frozenset[str] = ANN_BOB,
    plan: Plan = TRAINING,
    run: str = "run",
) -> None:
    done = ledger.reserve([Wanted(plan, who)], LIMITS, run=run, round_number=number)
    ledger.commit([reservation.seq for reservation in done])


def used(ledger: Ledger) -> int:
    return sum(e.uses for e in ledger.entries() if e.kind == "reserve")


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


COLUMNS = [field.name for field in fields(Entry) if field.name != "seq"]


@pytest.mark.parametrize("column", COLUMNS)
def test_an_edit_of_any_column_is_noticed(path: Path, column: str) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        train(ledger, 2)
    value = {"kind": "'clock'", "sampling_rate": "0.5"}.get(column, "7")
    edit(path, f"update entry set {column} = {value} where seq = 3")
    with pytest.raises(LedgerError, match="edited"):
        Ledger(path, VAULT)


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_an_entry_taken_out_is_noticed(path: Path, seq: int) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
    edit(path, f"delete from entry where seq = {seq}")
    with pytest.raises(LedgerError, match="edited"):
        Ledger(path, VAULT)


@pytest.mark.parametrize(
    "change",
    [
        "delete from cohort_member where rowid_ = 1",
        "insert into cohort_member select cohort, 'f00' from cohort_member limit 1",
    ],
)
def test_a_change_of_who_was_charged_is_noticed(path: Path, change: str) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
    first = "patient = (select min(patient) from cohort_member)"
    edit(path, change.replace("rowid_ = 1", first))
    with Ledger(path, VAULT) as ledger, pytest.raises(LedgerError, match="patients of a cohort"):
        train(ledger, 2)


def test_an_edit_while_the_ledger_is_open_is_noticed_with_the_next_use(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        edit(path, "insert into entry select seq + 1, " + ", ".join(COLUMNS[:-2]) + ", hash, 'x' "
             "from entry order by seq desc limit 1")  # fmt: skip
        with pytest.raises(LedgerError, match="edited"):
            train(ledger, 2)


def edit(path: Path, statement: str) -> None:
    """Change the file as somebody with full rights would."""
    with sqlite3.connect(path) as database:
        for table in ("cohort", "cohort_member", "entry"):
            for verb in ("update", "delete"):
                database.execute(f"drop trigger if exists {table}_no_{verb}")
        assert database.execute(statement).rowcount >= 1


def test_another_vault_key_cannot_go_on_with_the_ledger(path: Path) -> None:
    Ledger(path, VAULT).close()
    with pytest.raises(LedgerError, match="another vault key"):
        Ledger(path, Vault(bytes(32)))


@pytest.mark.parametrize("content", [b"not a database at all " * 300, b"x", bytes(4096)])
def test_a_file_that_is_no_database_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(path, VAULT)
    assert path.read_bytes() == content


def test_a_ledger_that_vanished_is_not_begun_anew(path: Path) -> None:
    Ledger(path, VAULT).close()
    path.unlink()
    with pytest.raises(LedgerError, match="gone"):
        Ledger(path, VAULT)
    path.touch()
    with pytest.raises(LedgerError, match="gone"):
        Ledger(path, VAULT)


def test_a_ledger_without_its_anchor_or_with_anothers_is_refused(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
    anchor = path.with_suffix(".anchor")
    kept = anchor.read_bytes()
    anchor.unlink()
    with pytest.raises(LedgerError, match="not the one"):
        Ledger(path, VAULT)
    other = path.with_name("other.sqlite")
    Ledger(other, VAULT).close()
    shutil.copy(other.with_suffix(".anchor"), anchor)
    with pytest.raises(LedgerError, match="not the one"):
        Ledger(path, VAULT)
    anchor.write_bytes(kept)
    Ledger(path, VAULT).close()


def test_a_process_killed_between_ledger_and_anchor_leaves_a_usable_pair(path: Path) -> None:
    Ledger(path, VAULT).close()
    path.with_suffix(".anchor").unlink()
    Ledger(path, VAULT).close()
    assert path.with_suffix(".anchor").exists()


def test_an_older_copy_is_noticed_by_the_head_the_server_saw(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        old = ledger.head()
    shutil.copy(path, path.with_name("old"))
    with Ledger(path, VAULT) as ledger:
        train(ledger, 2)
        ledger.check_head(old)
        ledger.check_head(ledger.head())
    # Restored alone, the ledger contradicts its anchor, and the server need say nothing.
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    shutil.copy(path.with_name("old"), path)
    with Ledger(path, VAULT) as ledger, pytest.raises(PolicyRefusal) as refusal:
        ledger.check_head(None)
    assert refusal.value.code == "ledger-rollback"


def test_a_head_of_the_right_length_and_another_hash_is_a_rollback(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        fork = LedgerHead(entries=ledger.head().entries, hash="0" * 64)
        with pytest.raises(PolicyRefusal):
            ledger.check_head(fork)
        with pytest.raises(PolicyRefusal):  # remembered
            ledger.check_head(None)


def test_adopting_charges_everything_the_plans_had_left_and_lets_others_go_on(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        unknown = LedgerHead(entries=40, hash="0" * 64)
        with pytest.raises(PolicyRefusal):
            ledger.check_head(unknown)
        ledger.adopt([Wanted(plan(), people("kim"))])
        ledger.check_head(unknown)
        assert ledger.head().entries > 40
        charges, members = charges_of(ledger.entries()), ledger.members()
        groups = group_patients([charge.cohort for charge in charges], members)
        found = {g.patients: spent(g, charges, DELTA).epsilon for g in groups}
        assert found == {
            ANN_BOB: epsilon([Mechanism(3, 1, 4)], DELTA),
            people("kim"): epsilon([Mechanism(3, 1, 3)], DELTA),
        }
        with pytest.raises(PolicyRefusal, match="used 4 of 4"):
            train(ledger, 2)
        train(ledger, 1, plan=plan("b"))
        ledger.check_head(ledger.head())
    with Ledger(path, VAULT) as ledger:  # the gap in the numbers is sound
        ledger.check_head(unknown)


def test_a_clock_set_back_is_refused_until_a_person_accepts_it(path: Path) -> None:
    clock = Clock()
    with Ledger(path, VAULT, clock) as ledger:
        train(ledger, 1)
        clock.time -= timedelta(minutes=4)  # corrected over the network
        train(ledger, 2)
        times = [e.when for e in ledger.entries()]
        assert times == sorted(times)
        clock.time -= timedelta(days=3)
        with pytest.raises(LedgerError, match="clock was set back"):
            train(ledger, 3)
        assert used(ledger) == 2
        ledger.accept_clock()
        train(ledger, 3)
    Ledger(path, VAULT, clock).close()


def test_rounds_are_counted_by_day_and_setting_the_clock_back_makes_no_room(path: Path) -> None:
    clock = Clock()
    with Ledger(path, VAULT, clock) as ledger:
        train(ledger, 1)
        assert ledger.rounds_today() == 1
        clock.time += timedelta(minutes=20)
        assert ledger.rounds_today() == 0  # past midnight
        train(ledger, 2)
        clock.time += timedelta(days=400)  # a wrong year
        train(ledger, 3)
        clock.time -= timedelta(days=399)
        ledger.accept_clock()
        assert ledger.rounds_today() == 1  # the round of the wrong year is today's
        clock.time += timedelta(days=1)
        assert ledger.rounds_today() == 0


def test_a_round_locks_out_other_processes_and_the_lock_ends_with_its_process(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from client.privacy.ledger_store import hold\n"
        "with hold(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with Ledger(path, VAULT) as ledger:
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LedgerError, match="another process"), ledger.locked():
            pytest.fail("two rounds at once")
        other.kill()
        other.wait()
        with ledger.locked():
            train(ledger, 1)


def test_two_open_ledgers_see_each_others_entries(path: Path) -> None:
    with Ledger(path, VAULT) as one, Ledger(path, VAULT) as two:
        train(one, 1)
        train(two, 2)
        train(one, 3)
        assert used(two) == 3
        assert one.head() == two.head()
