"""Rounds per second and memory of the simulation engine, beside a plain Flower app.

Both simulate the same federation of 100 sites on the images of PneumoniaMNIST for 10 rounds, on
Ray with the same two workers of one thread: the same model, local steps, expected lots, clipping
and noise. Each run has a process of its own; the two alternate. Rounds per second are taken from
the end of the first round to the end of the last, when the workers have loaded everything.

    python benchmarks/simulation_throughput.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import data_folder, write_results

from client.privacy.plans import training_plan
from shared.study import Study
from simulations.memory import MemoryWatch
from simulations.processes import descendants

SITES, ROUNDS, REPEATS, WORKERS = 100, 10, 3, 2
KINDS = ("ours", "plain", "plain-epsilon", "ours-open", "plain-open")


def study_of(sites: int, rounds: int, private: bool) -> Study:
    """Return the study all kinds follow."""
    return Study.model_validate(
        {
            "name": "throughput",
            "task": {"classes": ["normal", "pneumonia"]},
            "input": {"size": 28},
            "privacy": {"enabled": private},
            "federation": {"rounds": rounds, "sites": sites, "min_sites": 1},
        }
    )


def ours(npz: Path, study: Study, mark: Callable[[], None]) -> None:
    """Run the simulation engine on the partitions of the plain app."""
    import numpy as np
    from plain_flower_app import partition

    from simulations.build import Federation, SiteData
    from simulations.datasets import Facts
    from simulations.engine import Resources, simulate
    from simulations.patients import Patients

    def patients(part: Any) -> Patients:
        images, labels = part.tensors
        return Patients(images.numpy(), np.arange(len(labels)), labels.numpy())

    sites = study.federation.sites
    parts = [partition(npz, number, sites) for number in range(sites)]
    federation = Federation(
        tuple(
            SiteData(f"site-{number + 1}", *map(patients, part))
            for number, part in enumerate(parts)
        ),
        patients(parts[0][1]),
        Facts("PneumoniaMNIST", study.task.classes, size=28, channels=1),
    )
    del parts
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            federation,
            study,
            Path(folder, "run"),
            seed=0,
            resources=Resources(workers=WORKERS),
            on_round=lambda done: mark() if done else None,
        )


def plain(npz: Path, study: Study, noise: float, epsilon: bool, mark: Callable[[], None]) -> None:
    """Run the plain app in Flower's own simulation."""
    from flwr.simulation import run_simulation
    from plain_flower_app import make_client, make_server

    sites = study.federation.sites
    run_simulation(
        server_app=make_server(study, mark),
        client_app=make_client(npz, study, noise, sites, epsilon),
        num_supernodes=sites,
        backend_config={
            "init_args": {"num_cpus": WORKERS, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def run_once(kind: str, sites: int, rounds: int) -> dict[str, Any]:
    """Run one kind in this process, and say what it took."""
    npz = data_folder() / "pneumoniamnist.npz"
    study = study_of(sites, rounds, private=not kind.endswith("open"))
    noise = training_plan(study, 1).noise_multiplier
    marks: list[Mark] = []

    def mark() -> None:
        marks.append(Mark(time.monotonic(), cpu_seconds()))

    began = time.monotonic()
    with MemoryWatch() as memory:
        if kind.startswith("ours"):
            ours(npz, study, mark)
        else:
            plain(npz, study, noise, kind == "plain-epsilon", mark)
    first, last = marks[0], marks[-1]
    return {
        "rounds_per_second": round((len(marks) - 1) / (last.time - first.time), 4),
        "cpu_seconds_a_round": round((last.cpu - first.cpu) / (len(marks) - 1), 2),
        "first_round_seconds": round(first.time - began, 1),
        "seconds_in_all": round(time.monotonic() - began, 1),
        "peak_memory_mb": round(memory.peak / 2**20),
    }


@dataclass(frozen=True)
class Mark:
    """The end of a round: the time, and the CPU time of all processes so far."""

    time: float
    cpu: float


def cpu_seconds() -> float:
    """Return the CPU time of this process and all its descendants."""
    own = os.getpid()
    ticks = 0
    for process in (own, *descendants(own)):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def in_a_process(kind: str, sites: int, rounds: int) -> dict[str, Any]:
    """Run one kind in a process of its own."""
    command = [sys.executable, __file__, "--kind", kind, "--sites", str(sites)]
    done = subprocess.run(
        [*command, "--rounds", str(rounds)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure all kinds in turn, and the memory of a simulation of 200 sites."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, help="run only this, once, and print it")
    parser.add_argument("--sites", type=int, default=SITES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    if asked.kind:
        print(json.dumps(run_once(asked.kind, asked.sites, asked.rounds)))
        return
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(asked.repeats):
        for kind, found in runs.items():
            found.append(in_a_process(kind, asked.sites, asked.rounds))
            print(kind, found[-1], flush=True)
    speed = {k: median(run["rounds_per_second"] for run in found) for k, found in runs.items()}
    large = in_a_process("ours", 2 * asked.sites, 2)
    print("twice the sites", large)
    results = {
        "sites": asked.sites,
        "rounds": asked.rounds,
        "workers": WORKERS,
        "runs": runs,
        "median_rounds_per_second": speed,
        "times_as_fast_as_plain": round(speed["ours"] / speed["plain"], 2),
        "times_as_fast_as_plain_with_epsilon": round(speed["ours"] / speed["plain-epsilon"], 2),
        "times_as_fast_without_privacy": round(speed["ours-open"] / speed["plain-open"], 2),
        "twice_the_sites": {"sites": 2 * asked.sites, "rounds": 2, **large},
    }
    write_results("simulation_throughput", "python benchmarks/simulation_throughput.py", results)


if __name__ == "__main__":
    main()
