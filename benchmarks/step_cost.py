"""What one step of private training costs, before and after the noise became exact.

    git worktree add ../before 71296cc
    python benchmarks/step_cost.py --before ../before

The same script runs in both trees in turns, on one thread, and writes results/step_cost.json. Times
are the processor's, so that other processes count little. Lots fill their batches; since batches
are always full, another lot costs as much as the next multiple of a batch.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve()
PATIENTS, STEPS = 64, 4
COLUMNS = [{"name": f"x{i}", "low": -1, "high": 1} for i in range(13)]
NOISE = "noise, a million numbers"
CASES: dict[str, dict[str, Any]] = {
    "cnn, 28 pixels": {"input": {"size": 28}},
    "cnn, 64 pixels": {"input": {"size": 64}},
    "attention, 28 pixels": {"input": {"size": 28}, "model": {"name": "attention"}},
    "linear, 28 pixels": {"input": {"size": 28}, "model": {"name": "linear"}},
    "table": {"table": {"columns": COLUMNS}, "model": {"name": "table"}},
}


def seconds_a_step(case: dict[str, Any]) -> float:
    """Time one round of a few steps on all patients, who fill one batch, one image a patient."""
    from client.data.patients import PatientSet
    from client.privacy.stream import OsStream
    from client.training import train_round
    from shared.models import build_model
    from shared.study import Study

    torch.manual_seed(0)
    study = Study.model_validate(
        {
            "name": "cost",
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": STEPS, "sampling_rate": 1.0},
        }
        | case
    )
    size = study.input.size
    shape = (PATIENTS, len(COLUMNS)) if study.table else (PATIENTS, 1, size, size)
    patients = PatientSet(
        torch.rand(shape) * 2 - 1,
        torch.arange(PATIENTS),
        torch.arange(PATIENTS) % 2,
        tuple(f"{i:064x}" for i in range(PATIENTS)),
    )
    model = build_model(study)
    known = inspect.signature(train_round).parameters
    declared = {"size": PATIENTS} if "size" in known else {}  # not in the tree of before
    begin = time.process_time()
    train_round(
        model,
        patients,
        study,
        noise_multiplier=1.0,
        round_number=1,
        stream=OsStream(),
        device=torch.device("cpu"),
        physical_batch=PATIENTS,
        **declared,
    )
    return (time.process_time() - begin) / STEPS


def seconds_a_number(n: int = 200_000) -> float:
    """Time the noise alone."""
    from client.privacy.stream import OsStream

    stream: Any = OsStream()
    begin = time.process_time()
    if hasattr(stream, "rounded_gaussian"):
        stream.rounded_gaussian((n,), 1.5 * 2**26)
    else:
        stream.gaussian((n,), 1.5)
    return (time.process_time() - begin) / n


def measure_here(rounds: int) -> dict[str, list[float]]:
    """Time each case a few times, after one round that warms up."""
    torch.set_num_threads(1)
    found = {
        name: [seconds_a_step(case) for _ in range(rounds + 1)][1:] for name, case in CASES.items()
    }
    return found | {NOISE: [seconds_a_number() for _ in range(rounds + 1)][1:]}


def times_in(name: str) -> int:
    """Return how many of the things timed a result stands for."""
    return 1_000_000 if name == NOISE else 1


def main() -> None:
    """Run both trees in turns and print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a worktree of the commit to compare with")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure_here(rounds=4)))
        return
    trees = {"before": args.before, "after": HERE.parents[1]}
    times: dict[str, dict[str, list[float]]] = {
        tree: {n: [] for n in (*CASES, NOISE)} for tree in trees
    }
    for _ in range(args.turns):
        for tree, folder in trees.items():
            out = subprocess.run(
                [sys.executable, str(HERE), "--worker"],
                env=os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"},
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for name, found in json.loads(out.splitlines()[-1]).items():
                times[tree][name] += found
    results = {
        name: {
            tree: round(1000 * times_in(name) * statistics.median(times[tree][name]), 2)
            for tree in trees
        }
        for name in (*CASES, NOISE)
    }
    for name, found in results.items():
        print(f"{name:25} {found['before']:8.2f} {found['after']:8.2f} ms")
    from common import write_results

    command = f"python benchmarks/step_cost.py --before (71296cc) --turns {args.turns}"
    write_results(
        "step_cost", command, {"unit": "ms of processor time, median; of a step", "cases": results}
    )


if __name__ == "__main__":
    main()
