"""Kill a hospital's round with SIGKILL at random moments: no spend may be missing in the ledger.

    python benchmarks/ledger_kills.py [KILLS] [--out FILE]

Each child process answers requests the way a node does, on a tiny model and random images. It
notes each draw of randomness for a round, which is the moment private data begins to be used,
in a file of its own; the parent kills it at a random moment, and compares: the ledger must hold
at least as many reservations of training as rounds were begun, its chain must be whole, and
the next start must answer the same request without hand work.
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
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from common import write_results

from client.data.cohort import Cohort, PatientSet
from client.data.report import DataReport
from client.hospital import Hospital
from client.privacy.stream import OsStream
from client.rounds import handle
from client.site import Site, SiteConfig
from client.vault import Vault
from shared.models import initial_weights
from shared.protocol import Request
from shared.study import Study

STUDY = Study.model_validate(
    {
        "name": "kills",
        "task": {"classes": ["healthy", "ill"]},
        "input": {"size": 28},
        "model": {"name": "cnn", "widths": [4, 4], "hidden": 0},
        "training": {"local_steps": 2, "sampling_rate": 0.5},
        "privacy": {"spare_rounds": 1000, "delta": 1e-5},
        "data": {"min_patients": 1},
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
    hospital.approvals.approve_study(STUDY, "the benchmark")
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
        for n in (24, 6)
    ]
    return Cohort(sets[0], sets[1], report)


def request(number: int) -> Request:
    """The server's request for a round."""
    return Request(
        task="train", run="kills", study_digest=STUDY.digest, study=STUDY.canonical(), round=number
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
    """Notes that patients' data is about to be used: when the first lot is drawn.

    Args:
        file: Where to note it.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file: Path | None = file

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, after noting the first time."""
        if self._file:
            note(self._file, "round")
            self._file = None
        return super().read(size)


def answer_rounds(hospital: Hospital, folder: Path, rounds: int) -> None:
    """Answer requests from where the server stands; what it got is noted as delivered."""

    watched = replace(hospital, make_stream=lambda _: NotedStream(folder / "begun"))
    for number in range(len(lines(folder / "delivered")) + 1, rounds + 1):
        reply, _ = handle(watched, request(number), initial_weights(STUDY))
        if reply.outcome != "update":
            note(folder / "refused", reply.model_dump_json())
            return
        note(folder / "delivered", "resent" if reply.resent else "computed")


def in_child(hospital: Hospital, folder: Path, rounds: int, seconds: float | None) -> float:
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


def recorded(hospital: Hospital) -> int:
    """Open the ledger, which verifies it, and count the rounds of training it holds."""
    with hospital.ledger() as ledger:
        ledger.members()
        return sum(e.kind == "reserve" and e.purpose == "train" for e in ledger.entries())


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
    duration = max(in_child(hospital, folder, n, None) for n in (2, 3))
    held = started = 0
    for _ in range(options.kills):
        done = len(lines(folder / "delivered"))
        in_child(hospital, folder, done + 3, random.uniform(0, 1.5 * duration))
        held += recorded(hospital) >= len(lines(folder / "begun"))
        done = len(lines(folder / "delivered"))
        in_child(hospital, folder, done + 1, None)
        started += len(lines(folder / "delivered")) == done + 1
    delivered = lines(folder / "delivered")
    result = {
        "kills": options.kills,
        "recorded_at_least_spent": held,
        "next_start_worked": started,
        "rounds_delivered": len(delivered),
        "rounds_begun": len(lines(folder / "begun")),
        "rounds_recorded": recorded(hospital),
        "updates_sent_again_instead_of_retrained": delivered.count("resent"),
        "seconds_of_a_round": round(duration, 3),
    }
    shutil.rmtree(folder)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result))
    else:
        write_results("ledger_kills", f"python benchmarks/ledger_kills.py {options.kills}", result)
    return 0 if held == started == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
