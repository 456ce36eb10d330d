"""Test AUC on real images through the whole real path: DICOM, TLS, three hospitals, privacy.

    python benchmarks/chest_xray.py --seeds 3            # PneumoniaMNIST
    python benchmarks/chest_xray.py --data breastmnist   # BreastMNIST

Each row is `consilium demo --images ...` run as a user runs it; the test split is read only by
the demo's last step. Finished rows are kept in the results file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, data_folder, write_results

ROWS: dict[str, list[tuple[str, float | None]]] = {
    "pneumoniamnist": [
        ("cnn", None),
        ("cnn", 8.0),
        ("cnn", 3.0),
        ("cnn", 1.0),
        ("attention", 8.0),
    ],
    "breastmnist": [
        ("cnn", None),
        ("linear", None),
        ("linear", 8.0),
        ("linear", 3.0),
        ("linear", 1.0),
    ],
}
"""Models and epsilons by data; for so few patients with noise, the model for few patients."""


def run_once(npz: Path, model: str, epsilon: float | None, seed: int) -> dict[str, Any]:
    """Run the demo once and return what its model card says."""
    privacy = ["--no-dp"] if epsilon is None else ["--epsilon", str(epsilon)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            *(str(Path(sys.executable).with_name("consilium")), "demo", "--images", str(npz)),
            *("--model", model, "--seed", str(seed), "--out", str(out), *privacy),
        ]
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        card = json.loads((out / "model-card.json").read_text())
    spent = [site["epsilon"] for site in card["sites"].values()]
    return {
        "model": model,
        "epsilon": epsilon,
        "seed": seed,
        "test_auc": card["test_auc"],
        "epsilon_spent": max(spent) if epsilon else None,
        "rounds": card["rounds"],
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run all rows that are not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=ROWS, default="pneumoniamnist")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    name = f"real_path_{arguments.data}"
    command = f"python benchmarks/chest_xray.py --data {arguments.data} --seeds {arguments.seeds}"
    path = RESULTS / f"{name}.json"
    runs = json.loads(path.read_text())["results"]["runs"] if path.exists() else []
    done = {(r["model"], r["epsilon"], r["seed"]) for r in runs}
    for seed in range(arguments.seeds):
        for model, epsilon in ROWS[arguments.data]:
            if (model, epsilon, seed) not in done:
                npz = data_folder() / f"{arguments.data}.npz"
                runs.append(run_once(npz, model, epsilon, seed))
                print(runs[-1], flush=True)
                write_results(name, command, {"table": table(runs), "runs": runs})
    for row in table(runs):
        print(row)


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and spread of the test AUC for each row."""
    rows = []
    for model, epsilon in dict.fromkeys((r["model"], r["epsilon"]) for r in runs):
        values = [r["test_auc"] for r in runs if (r["model"], r["epsilon"]) == (model, epsilon)]
        spread = statistics.stdev(values) if len(values) > 1 else None
        rows.append(
            {
                "model": model,
                "epsilon": epsilon,
                "seeds": len(values),
                "test_auc_mean": round(statistics.mean(values), 4),
                "test_auc_stdev": None if spread is None else round(spread, 4),
            }
        )
    return rows


if __name__ == "__main__":
    main()
