"""Kill a hospital's round with SIGKILL at random moments: no spend may be missing in the ledger.

    python benchmarks/ledger_kills.py [KILLS] [--out FILE]

Each child process answers requests the way a node does, on a tiny model and random images. It
notes, in a file of its own, the round and attempt it draws the first random number for, which is
the moment private data begins to be used. The parent kills it at a random moment, and compares:
for each round and attempt that was begun, the ledger must hold a reservation of that very round
and attempt, for training and for evaluation, and charge every patient of both; its chain must be
whole; and the next start must answer the same request without hand work.

Every other kill is aimed at the moments after the answer was kept for the server: before the
ledger's commit, or after it and before the server has the answer. Then the next start must send
the kept answer again, and not train again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from common import write_results

from client.data.cohort import Cohort, PatientSet
from client.data.report import DataReport
from client.hospital import Hospital, utc_now
from client.privacy.groups import joined
from client.privacy.stream import OsStream
from client.rounds import handle
from client.site import Site, SiteConfig
from client.vault import Vault
from shared.models import initial_weights
from shared.protocol import Request
from shared.study import Study

RUN = "kills"
READS = 3
"""Readings of the clock between keeping an answer and giving it to the server."""

CHARGED = {"train": 24, "evaluate": 6}
"""Patients of both sides, whom the first round charges for the whole study."""

STUDY = Study.model_validate(
    {
        "name": "kills",
        "task": {"classes": ["healthy", "ill"]},
        "input": {"size": 28},
        "model": {"name": "cnn", "widths": [4, 4], "hidden": 0},
        "training": {"local_steps": 2, "sampling_rate": 0.5},
        "privacy": {"spare_rounds": 1000, "delta": 1e-5},
        "federation": {"rounds": 2000},
    }
)


def make_hospital(home: Path) -> Hospital:
    """A hospital of 24 patients with random images."""
    config = SiteConfig.model_validate(
        {
            "name": "kills",
            "server": {"address": "localhost:1"},
            "data": {"images": "images", "labels": "labels.csv"},
            "policy": {"max_rounds_per_day": 1_000_000},
            "compute": {"device": "cpu"},
        }
    )
    home.mkdir()
    vault = Vault.open(home / "vault.key")
    hospital = Hospital(Site(home, config), vault, load_cohort=lambda site, study: cohort(vault))
    hospital.approvals.approve_study(STUDY, "the benchmark", 30)
    return hospital


def cohort(vault: Vault) -> Cohort:
    """Random images of 24 training and 6 held-out patients."""
    report = DataReport(
        study="",
        digest="",
        images_folder="",
        labels_table="",
        used_images=0,
        train={},
        held_out={},
        set_aside=(),
        other_files=0,
    )
    sets = [
        PatientSet(
            torch.rand(n, 1, 28, 28),
            torch.arange(n),
            torch.arange(n) % 2,
            tuple(sorted(vault.pseudonym(f"{n}-{i}") for i in range(n))),
        )
        for n in CHARGED.values()
    ]
    return Cohort(sets[0], sets[1], report)


def request(number: int, attempt: int) -> Request:
    """The server's request for a round."""
    return Request(
        task="train",
        run=RUN,
        study_digest=STUDY.digest,
        study=STUDY.canonical(),
        round=number,
        attempt=attempt,
    )


def note(file: Path, text: str) -> None:
    """Append a line that survives SIGKILL of this process."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, text.encode() + b"\n")
    os.close(descriptor)


def lines(file: Path) -> list[str]:
    """Read what was noted."""
    return file.read_text().splitlines() if file.exists() else []


class NotedStream(OsStream):
    """Notes that patients' data is about to be used: when the first number is drawn.

    Args:
        file: Where to note it.
        text: What to note: the round and the attempt.
    """

    def __init__(self, file: Path, text: str) -> None:
        super().__init__()
        self._file: Path | None = file
        self._text = text

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, after noting the first time."""
        if self._file:
            note(self._file, self._text)
            self._file = None
        return super().read(size)


def answer_rounds(hospital: Hospital, folder: Path, rounds: int) -> None:
    """Answer requests from where the server stands; what it got is noted as delivered.

    Each request for a round is another attempt, so that what is begun for one attempt cannot be
    excused by what was reserved for another.
    """
    watched = replace(
        hospital,
        make_stream=lambda asked: NotedStream(folder / "begun", f"{asked.round} {asked.attempt}"),
    )
    for number in range(len(lines(folder / "delivered")) + 1, rounds + 1):
        attempt = lines(folder / "asked").count(str(number))
        note(folder / "asked", str(number))
        reply, _ = handle(watched, request(number, attempt), initial_weights(STUDY))
        if reply.outcome != "update":
            note(folder / "refused", reply.model_dump_json())
            return
        note(folder / "delivered", "resent" if reply.resent else "computed")


def in_child(hospital: Hospital, folder: Path, rounds: int, seconds: float | None = None) -> float:
    """Answer rounds in a forked process, killed after that many seconds; return its duration."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answer_rounds(hospital, folder, rounds)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.monotonic() - started


def kept(hospital: Hospital) -> int:
    """Count the answers in the outbox; none is ever dropped, as nothing is countersigned here."""
    return len(list(hospital.site.outbox.glob("*.sealed")))


class FatalClock:
    """A clock that kills its process soon after an answer was kept.

    The ledger reads the clock while it commits, and the audit log before the answer leaves: the
    moments that a kill after so many seconds hardly ever meets.

    Args:
        hospital: Whose outbox to watch.
        reads: How often it may be read after that.
    """

    def __init__(self, hospital: Hospital, reads: int) -> None:
        self._hospital, self._before, self._left = hospital, kept(hospital), reads

    def __call__(self) -> datetime:
        """Return the time, or do not return."""
        if kept(self._hospital) > self._before:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return utc_now()


@dataclass(frozen=True)
class Record:
    """What the ledger holds of the run.

    Attributes:
        reserved: Rounds and attempts, each with its purpose, and how often each was charged.
        committed: Rounds of which something was committed.
        charged: How many patients are charged, by purpose.
    """

    reserved: Counter[tuple[str, str]]
    committed: frozenset[int]
    charged: dict[str, int]


def recorded(hospital: Hospital) -> Record:
    """Open the ledger, which verifies it, and read what it holds."""
    with hospital.ledger() as ledger:
        taken = joined(ledger.entries(), ledger.members())
        entries = [e for e in ledger.entries() if e.run == RUN]
    return Record(
        Counter((f"{e.round} {e.attempt}", e.purpose) for e in entries if e.kind == "reserve"),
        frozenset(e.round for e in entries if e.kind == "commit"),
        {purpose: len(patients) for (_, purpose), patients in taken.items()},
    )


def unpaid(begun: list[str], reserved: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what was begun without a reservation of that very round, attempt and purpose."""
    needed = Counter((text, purpose) for text in begun for purpose in ("train", "evaluate"))
    return sorted((needed - reserved).elements())


def kill_once(hospital: Hospital, folder: Path, seconds: float | None) -> Counter[str]:
    """Kill a child, compare, and start the next; return which of the things counted happened.

    Args:
        hospital: The hospital.
        folder: Of the notes.
        seconds: When to kill; None: soon after an answer was kept.
    """
    rounds = len(lines(folder / "delivered")) + 3
    if seconds is None:
        doomed = replace(hospital, now=FatalClock(hospital, random.randrange(READS)))
        in_child(doomed, folder, rounds)
    else:
        in_child(hospital, folder, rounds, seconds)
    record, begun = recorded(hospital), lines(folder / "begun")
    done = len(lines(folder / "delivered"))
    was_kept = kept(hospital) > done  # an answer that the server does not have
    was_committed = done + 1 in record.committed
    in_child(hospital, folder, done + 1)
    after = lines(folder / "delivered")
    found = {
        "every_spend_was_reserved": not unpaid(begun, record.reserved),
        "every_patient_was_charged": record.charged == CHARGED,
        "next_start_worked": len(after) == done + 1,
        "kept_answer_was_sent_again": (after[done:] == ["resent"]) == was_kept,
        "killed_between_keeping_and_commit": was_kept and not was_committed,
        "killed_between_commit_and_delivery": was_kept and was_committed,
    }
    return Counter({name: int(happened) for name, happened in found.items()})


def main() -> int:
    """Kill and compare; return 1 unless every comparison held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--out", type=Path, help="write here instead of to results/")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ledger-kills-"))
    torch.set_num_threads(1)
    hospital = make_hospital(folder / "home")
    # The first round calibrates the noise, here, so that children find it done.
    answer_rounds(hospital, folder, 1)
    duration = max(in_child(hospital, folder, n) for n in (2, 3))
    total: Counter[str] = Counter()
    for number in range(options.kills):
        seconds = None if number % 2 else random.uniform(0, 1.5 * duration)
        total.update(kill_once(hospital, folder, seconds))
    delivered, record = lines(folder / "delivered"), recorded(hospital)
    result = {
        "kills": options.kills,
        **total,
        "rounds_delivered": len(delivered),
        "rounds_begun": len(lines(folder / "begun")),
        "rounds_reserved": sum(n for (_, use), n in record.reserved.items() if use == "train"),
        "updates_sent_again_instead_of_retrained": delivered.count("resent"),
        "seconds_of_a_round": round(duration, 3),
    }
    shutil.rmtree(folder)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result))
    else:
        write_results("ledger_kills", f"python benchmarks/ledger_kills.py {options.kills}", result)
    must_hold = (
        "every_spend_was_reserved",
        "every_patient_was_charged",
        "next_start_worked",
        "kept_answer_was_sent_again",
    )
    return 0 if all(total[name] == options.kills for name in must_hold) else 1


if __name__ == "__main__":
    sys.exit(main())
