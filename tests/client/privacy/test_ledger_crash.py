"""Killed, out of disk, or on a read-only disk: what was reserved stays, nothing is half done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.privacy.account import Limits
from client.privacy.budget import Wanted
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.vault import Vault
from shared.errors import LedgerError

ROOT = Path(__file__).parents[3]
VAULT = Vault(bytes(range(32)))
LIMITS = Limits(epsilon=1000.0, delta=1e-5)


def plan(study: int) -> Plan:
    return Plan(f"{study:064x}", "train", 1000.0, 1.0, 1, 1000, 0, 8.0, 1e-5)


def reserve(ledger: Ledger, number: int, patients: int = 1) -> int:
    who = frozenset(VAULT.pseudonym(f"{number}-{i}") for i in range(patients))
    ledger.join([Wanted(plan(number), who)], LIMITS)
    (reservation,) = ledger.reserve([(plan(number), 1)], run="run", round_number=1)
    return reservation


def test_killed_in_mid_round_every_spend_is_on_record_and_the_next_start_works(
    tmp_path: Path,
) -> None:
    """Ten of the kills that `make proof` makes two hundred of."""
    out = tmp_path / "kills.json"
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ledger_kills.py"), "10", "--out", str(out)],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    result = json.loads(out.read_text())
    assert result["kills"] == 10
    assert result["every_spend_was_reserved"] == 10
    assert result["every_patient_was_charged"] == 10
    assert result["next_start_worked"] == 10
    assert result["kept_answer_was_sent_again"] == 10
    assert result["updates_sent_again_instead_of_retrained"] >= 5, "half of the kills are aimed"


FULL = """
import resource, signal, sys
from pathlib import Path
from client.privacy.account import Limits
from client.privacy.budget import Wanted
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.vault import Vault
from shared.errors import LedgerError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
vault = Vault(bytes(range(32)))
plan = Plan("f" * 64, "train", 1000.0, 1.0, 1, 1000, 0, 8.0, 1e-5)
who = frozenset(vault.pseudonym(f"new-{i}") for i in range(4000))
with Ledger(Path(sys.argv[1]), vault) as ledger:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        ledger.join([Wanted(plan, who)], Limits(1000.0, 1e-5))
        print("joined")
    except LedgerError as error:
        print(error)
"""


def test_a_file_that_cannot_grow_charges_nothing_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, VAULT) as ledger:
        reserve(ledger, 1)
        before = ledger.head()
    result = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True
    )
    assert "cannot be used" in result.stdout
    assert "disk space" in result.stdout
    with Ledger(path, VAULT) as ledger:
        assert ledger.head() == before
        reserve(ledger, 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB; where mounting is not allowed, an error names what is missing."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs; the file-size limit is tested without")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_in_mid_commit_loses_nothing(small_disk: Path) -> None:
    path = small_disk / "ledger.sqlite"
    done = []
    with Ledger(path, VAULT) as ledger:
        done.append(reserve(ledger, 0))
        (small_disk / "filler").write_bytes(bytes(200_000))
        with pytest.raises(LedgerError, match="disk"):
            done.extend(reserve(ledger, number, patients=60) for number in range(1, 1000))
    (small_disk / "filler").unlink()
    with Ledger(path, VAULT) as ledger:
        assert [e.number for e in ledger.entries() if e.kind == "reserve"] == done
        ledger.commit(done)
        assert sum(e.kind == "commit" for e in ledger.entries()) == len(done)


def test_a_read_only_disk_is_a_clear_refusal(small_disk: Path) -> None:
    path = small_disk / "ledger.sqlite"
    with Ledger(path, VAULT) as ledger:
        reserve(ledger, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(LedgerError, match=r"read-only|Read-only"):
        Ledger(path, VAULT)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with Ledger(path, VAULT) as ledger:
        assert sum(e.kind == "reserve" for e in ledger.entries()) == 1


def test_a_ledger_restored_without_its_write_ahead_log_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, VAULT)
    reserve(ledger, 1)
    ledger.check_head(ledger.head())
    shutil.copytree(tmp_path, tmp_path / "crashed", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    ledger.close()
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "crashed" / "ledger.sqlite", VAULT)
