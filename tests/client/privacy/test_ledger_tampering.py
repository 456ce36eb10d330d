"""The ledger notices what was done to it: edits, copies, a clock set back, a second process."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
from ledger_kit import (
    ANN_BOB,
    DELTA,
    VAULT,
    Clock,
    charged,
    plan,
    train,
    used,
)

from client.privacy.chain import Entry
from client.privacy.groups import EVERYONE
from client.privacy.ledger import Ledger
from client.privacy.ledger_store import hold
from client.vault import Vault
from shared.accounting import Mechanism, epsilon
from shared.errors import LedgerError, PolicyRefusal
from shared.protocol import LedgerHead

COLUMNS = [field.name for field in fields(Entry) if field.name != "seq"]


@pytest.mark.parametrize("column", COLUMNS)
def test_an_edit_of_any_column_is_noticed(path: Path, column: str) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        train(ledger, 2)
    value = {
        "kind": "'clock'",
        "sampling_rate": "0.5",
        "note": """'{"renyi": {"3.5": 1e-9}}'""",
    }.get(column, "7")
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
        "delete from cohort_member",
        "delete from cohort",
        "delete from cohort; delete from cohort_member",
    ],
)
def test_a_change_of_who_was_charged_is_noticed(path: Path, change: str) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
    first = "patient = (select min(patient) from cohort_member)"
    edit(path, change.replace("rowid_ = 1", first))
    with Ledger(path, VAULT) as ledger:
        with pytest.raises(LedgerError, match="patients of a cohort"):
            train(ledger, 2)
        with pytest.raises(LedgerError, match="ledger recover"):
            ledger.members()


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
        for part in statement.split("; "):
            assert database.execute(part).rowcount >= 1


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
        ledger.adopt([], ledger.lost_heads())
        ledger.check_head(unknown)
        assert ledger.head().entries > 40
        # Who joined in the lost entries cannot be known: everyone has.
        assert charged(ledger) == {
            ANN_BOB | {EVERYONE}: epsilon([Mechanism(3, 1, 4)], DELTA),
        }
        with pytest.raises(PolicyRefusal, match="used 4 of 4"):
            train(ledger, 2)
        train(ledger, 1, plan=plan("b"))
        ledger.check_head(ledger.head())
    with Ledger(path, VAULT) as ledger:  # the gap in the numbers is sound
        ledger.check_head(unknown)


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_study_closed_in_an_older_copy_may_have_gone_on_in_what_it_lacks(
    path: Path, confirmed: bool
) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
        ledger.close_study(plan().study)
        if confirmed:  # so that it was closed before the entries that were lost
            ledger.check_head(ledger.head())
        ledger.claim(LedgerHead(entries=40, hash="0" * 64), ())
        ledger.adopt([], ledger.lost_heads())
        assert used(ledger) == (1 if confirmed else 4)
        assert (EVERYONE in next(iter(charged(ledger)))) != confirmed


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


@pytest.mark.parametrize(
    "damage",
    [
        "create table entry (seq integer primary key, dish text)",
        "drop table cohort_member",
        "alter table entry rename column nonce to salt",
    ],
)
def test_a_foreign_database_is_to_be_restored_and_not_a_matter_of_disk_space(
    path: Path, damage: str
) -> None:
    with Ledger(path, VAULT) as ledger:
        train(ledger, 1)
    if damage.startswith("create"):
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    with sqlite3.connect(path) as database:
        database.execute(damage)
    with (
        pytest.raises(LedgerError, match="cannot be used: no such") as error,
        Ledger(path, VAULT) as ledger,
    ):
        ledger.members()
    assert "consilium site ledger recover" in error.value.todo
    assert "disk" not in error.value.todo


def test_a_command_that_holds_the_ledger_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    path, taken, release = tmp_path / "ledger.sqlite", threading.Event(), threading.Event()

    def command() -> None:
        with hold(path):
            taken.set()
            release.wait(30)

    thread = threading.Thread(target=command)
    thread.start()
    taken.wait(30)
    threading.Timer(0.3, release.set).start()
    with hold(path):
        assert release.is_set()
    thread.join()
