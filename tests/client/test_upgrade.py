"""A ledger of the first release is taken over whole, charged and noted, or left as it was."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from sqlalchemy import Connection
from typer.testing import CliRunner

from client.audit import AuditLog
from client.cli import app
from client.hospital import Hospital, open_hospital
from client.privacy import ledger_store
from client.privacy.account import Limits
from client.privacy.budget import Wanted
from client.privacy.groups import EVERYONE, Key, charges_of, joined
from client.privacy.plans import Plan
from client.recovery import Told, recover
from client.vault import Vault
from shared.errors import LedgerError, PolicyRefusal

HOMES = Path(__file__).parent.parent / "data" / "homes-of-format-1"
FINISHED, OPEN = "b05aa1", "ec07bf"
"""How the digests of the study that was closed, and of the one with a round open, begin."""

NEW = Plan("e" * 64, "train", 3.0, 1.0, 1, 4, 1, 8.0, 1e-5)


@pytest.fixture(params=["open-round", "recovered"])
def any_home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return copy(request.param, tmp_path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return copy("open-round", tmp_path)


def copy(name: str, folder: Path) -> Path:
    shutil.copytree(HOMES / name, folder / "home")
    (folder / "home" / "vault.key").chmod(0o600)
    return folder / "home"


def read(home: Path, query: str) -> list[tuple[object, ...]]:
    """Ask the file, past all of our code."""
    with sqlite3.connect(home / "ledger.sqlite") as database:
        return database.execute(query).fetchall()


def taken(hospital: Hospital) -> tuple[dict[Key, int], dict[Key, frozenset[str]]]:
    """Uses each plan charges, and whom."""
    with hospital.ledger() as ledger:
        entries, members = ledger.entries(), ledger.members()
    uses = {key: charge.uses for key, charge in charges_of(entries).items()}
    return uses, joined(entries, members)


def test_an_open_study_is_charged_whole_and_a_closed_one_what_it_used(home: Path) -> None:
    uses, _ = taken(open_hospital(home))
    found = {(digest[:6], purpose): count for (digest, purpose), count in uses.items()}
    assert found == {
        (FINISHED, "describe"): 1,
        (FINISHED, "train"): 2,
        (FINISHED, "evaluate"): 3,
        (OPEN, "train"): 3,
        (OPEN, "exact-evaluation"): 4,
    }


def test_everybody_who_was_ever_named_with_a_plan_is_charged_by_it(any_home: Path) -> None:
    named: dict[tuple[object, ...], set[object]] = defaultdict(set)
    for *key, patient in read(
        any_home,
        "select study, purpose, patient from entry join cohort_member using (cohort) "
        "where kind in ('plan', 'reserve')",
    ):
        named[tuple(key)].add(patient)
    _, who = taken(open_hospital(any_home))
    assert {key: set(patients) for key, patients in who.items()} == named


def test_the_chain_the_anchor_the_heads_and_the_audit_log_hold(any_home: Path) -> None:
    before = read(any_home, "select seq, hash from entry order by seq")
    hospital = open_hospital(any_home)
    sent = hospital.newest_sent()
    assert sent is not None
    with hospital.ledger() as ledger:
        assert [(e.seq, e.hash) for e in ledger.entries()] == before
        assert ledger.opted_out() == {hospital.vault.pseudonym("P-03")}
        ledger.check_head(sent, sent=sent)
        assert (ledger.head().entries, ledger.head().hash) == before[-1]
        ledger.reserve([(NEW, 1)], run="run", round_number=1)
        assert ledger.head().entries == before[-1][0] + 2
    lines = AuditLog(any_home / "audit.jsonl", hospital.vault).lines()
    assert [line.event for line in lines].count("ledger-upgraded") == 1
    result = CliRunner().invoke(app, ["ledger", "verify", "--home", str(any_home)])
    assert "the chain is whole" in result.output


def test_answers_that_were_not_sent_are_dropped_and_each_is_noted(home: Path) -> None:
    hospital = open_hospital(home)
    kept = len(list((home / "outbox").iterdir()))
    hospital.drop_answers()
    assert not list((home / "outbox").iterdir())
    lines = AuditLog(home / "audit.jsonl", hospital.vault).lines()
    assert [line.event for line in lines].count("answer-dropped") == kept == 2


def test_the_open_study_can_be_closed_which_frees_what_it_did_not_use(home: Path) -> None:
    digest = next(str(row[0]) for row in read(home, "select study from entry where seq = 22"))
    assert digest.startswith(OPEN)
    command = ["ledger", "close-study", digest, "--home", str(home), "--by", "Dr. A"]
    assert CliRunner().invoke(app, command).exit_code == 0
    uses, _ = taken(open_hospital(home))
    assert (uses[digest, "train"], uses[digest, "exact-evaluation"]) == (2, 2)


def test_who_is_over_the_bound_takes_no_part_in_new_studies_and_newcomers_do(home: Path) -> None:
    hospital = open_hospital(home)
    _, who = taken(hospital)
    old = next(patients for (_, purpose), patients in who.items() if purpose == "train")
    newcomer, gone = (hospital.vault.pseudonym(name) for name in ("P-77", "P-03"))
    wanted = [Wanted(NEW, old | {newcomer, gone})]
    with hospital.ledger() as ledger:
        assert ledger.join(wanted, Limits(5.5, 1e-5)) == {"train": {newcomer}}
    with hospital.ledger() as ledger:
        again = [Wanted(Plan("f" * 64, *list(vars(NEW).values())[1:]), old | {gone})]
        assert ledger.join(again, Limits(30.0, 1e-5))["train"] == old - {gone}


def test_a_ledger_of_a_newer_release_is_refused_in_a_line(home: Path) -> None:
    read(home, "pragma user_version = 3")
    with pytest.raises(LedgerError, match="written by a newer release") as refusal:
        open_hospital(home).ledger()
    assert "\n" not in str(refusal.value)
    assert read(home, "pragma user_version") == [(3,)]


FULL = """
import resource, signal, sys
from pathlib import Path
from client.hospital import open_hospital
from shared.errors import LedgerError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hospital = open_hospital(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    hospital.ledger()
    print("taken over")
except LedgerError as error:
    print(error)
"""


def test_a_disk_that_is_full_in_the_middle_leaves_the_old_ledger_whole(home: Path) -> None:
    before = read(home, "select * from entry")
    result = subprocess.run(
        [sys.executable, "-c", FULL, str(home)], capture_output=True, text=True, check=True
    )
    assert "disk space" in result.stdout
    assert is_of_the_first_release(home)
    assert read(home, "select * from entry") == before
    assert open_hospital(home).ledger().entries()


def test_a_process_killed_in_the_middle_leaves_the_old_ledger_whole(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, upgrade = read(home, "select * from entry"), ledger_store.upgrade_tables
    child = os.fork()
    if child == 0:

        def upgrade_and_die(connection: Connection) -> None:
            upgrade(connection)
            os._exit(9)

        monkeypatch.setattr(ledger_store, "upgrade_tables", upgrade_and_die)
        try:
            open_hospital(home).ledger()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert is_of_the_first_release(home)
    assert read(home, "select * from entry") == before
    uses, _ = taken(open_hospital(home))
    assert max(uses.values()) == 4


def is_of_the_first_release(home: Path) -> bool:
    columns = [row[1] for row in read(home, "pragma table_info(entry)")]
    return read(home, "pragma user_version") == [(0,)] and "hidden" not in columns


def test_a_home_of_then_that_lost_its_ledger_charges_its_studies_of_then(home: Path) -> None:
    hospital = open_hospital(home)
    for path in home.glob("ledger.sqlite"):
        path.unlink()
    assert recover(hospital, Told("IT", ["P-03"], exact=True)).outcome == "replaced"
    uses, who = taken(hospital)
    digests = {study.digest for study in hospital.approvals.outdated() if study.state != "offered"}
    assert {digest for digest, _ in uses} == digests
    assert len(digests) == 4
    assert all(EVERYONE in patients for patients in who.values())


def test_a_backup_from_before_the_upgrade_is_noticed(home: Path) -> None:
    hospital = open_hospital(home)
    for name in ("ledger.sqlite", "ledger.anchor"):
        shutil.copy(home / name, home / f"{name}.backup")
    with hospital.ledger() as ledger:
        ledger.join([Wanted(NEW, frozenset({"ab" * 32}))], Limits(10.0, 1e-5))
        ledger.reserve([(NEW, 1)], run="run", round_number=1)
        sent = ledger.head()
    for name in ("ledger.sqlite", "ledger.anchor"):
        shutil.copy(home / f"{name}.backup", home / name)
    with hospital.ledger() as ledger, pytest.raises(PolicyRefusal, match="older copy"):
        ledger.check_head(sent)


def test_the_vault_of_then_still_names_the_same_patients(home: Path) -> None:
    vault = Vault.open(home / "vault.key")
    out = read(home, "select patient from cohort_member join entry using (cohort) "
                     "where kind = 'opt-out'")  # fmt: skip
    assert out == [(vault.pseudonym("P-03"),)]
