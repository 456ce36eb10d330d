"""Runs a sweep that comes with the harness on real images and keeps its figures.

    python benchmarks/sweep.py privacy --data pneumoniamnist
    python benchmarks/sweep.py privacy --data breastmnist
    python benchmarks/sweep.py ladder --seed 0 --seed 1

It is `consilium simulate sweep`: cells that are finished in `--out` are not computed again. The
figures are means over the seeds with their 95 % interval; the noise of private runs is seeded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import data_folder, write_results

from simulations.aggregate import Aggregate
from simulations.records import MEAN, WORST
from simulations.report_data import ALONE, BASELINE, PERSONAL, POOLED, Book, Key, read_book
from simulations.report_stats import gap_closed


def row(book: Book, scenario: str, strategy: str) -> dict[str, Any]:
    """Return what is told of one strategy: on the test set, and over the sites' own patients."""
    key = Key(scenario, strategy)
    model = "local" if strategy == ALONE else "global"
    if book.has_model(scenario, strategy, PERSONAL):
        model = PERSONAL
    of_sites = replace(key, model=model)
    one_model = model == "global" or book.value(key) is not None
    own = replace(of_sites, where="own")
    cells = book.finished(scenario, strategy)
    gap = gap_closed(
        *(book.figures.get(Key(scenario, name), {}) for name in (strategy, BASELINE, POOLED))
    )
    return {
        "scenario": scenario,
        "strategy": strategy,
        "labels": cells[0].labels,
        "seeds": sorted({cell.seed for cell in cells}),
        "test_auc": told(book.figure(key if one_model else replace(of_sites, site=MEAN))),
        "models_of": model,
        "test_auc_site_models": None
        if model == "global"
        else {
            "mean": told(book.figure(replace(of_sites, site=MEAN))),
            "worst": told(book.figure(replace(of_sites, site=WORST))),
        },
        **{
            f"own_{metric}": {
                "mean": told(book.figure(replace(own, metric=metric, site=MEAN))),
                "worst": told(book.figure(replace(own, metric=metric, site=WORST))),
            }
            for metric in ("auc", "accuracy")
        },
        "against_own_local_model": against_local(book, of_sites),
        "gap_closed": {"value": gap.value, "low": gap.low, "high": gap.high, "why": gap.reason},
        "epsilon": max((c.epsilon for c in cells if c.epsilon is not None), default=None),
        "rounds": cells[0].rounds,
        "code": cells[0].code_version,
    }


def against_local(book: Book, models: Key) -> dict[str, Any]:
    """Compare the model each site would use with the one it trained alone, seed by seed.

    Args:
        book: The results.
        models: Strategy and kind of the models; a "global" one is every site's.

    Returns:
        For the common test set, and for the sites' own patients: how many site-and-seed pairs
        could be compared, how many are below the local model, and by how much at most.
    """
    found: dict[str, Any] = {}
    for where in ("test", "own"):
        gains = []
        for site in book.site_names(models.scenario):
            own = where == "own" or models.model != "global"
            mine = book.values(replace(models, where=where, site=site if own else ""))
            local = book.values(Key(models.scenario, ALONE, where=where, model="local", site=site))
            gains += [mine[seed] - local[seed] for seed in mine.keys() & local.keys()]
        found[where] = {
            "pairs": len(gains),
            "below": sum(gain < 0 for gain in gains),
            "mean_gain": round(sum(gains) / len(gains), 4) if gains else None,
            "least_gain": round(min(gains), 4) if gains else None,
        }
    return found


def told(figure: Aggregate | None) -> dict[str, Any] | None:
    """Return a figure with its interval and what it rests on."""
    if figure is None or figure.value is None:
        return None
    return {
        "mean": round(figure.value, 4),
        "low": None if figure.low is None else round(figure.low, 4),
        "high": None if figure.high is None else round(figure.high, 4),
        "interval_over": figure.source,
        "seeds": figure.defined,
        "over": figure.over,
        "of": figure.of,
    }


def main() -> None:
    """Run what is left of the sweep, and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--data", default="")
    parser.add_argument("--seed", action="append", default=[], help="default: the sweep's own")
    parser.add_argument("--strategy", action="append", default=[], help="only these")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--workers", default="0")
    arguments = parser.parse_args()
    parts = ("sweep", arguments.name, arguments.data, *arguments.strategy)
    title = "_".join(part for part in parts if part)
    out = arguments.out or Path("consilium-simulations") / title
    options = ["--out", str(out), "--workers", arguments.workers]
    if arguments.data:
        options += ["--data", str(data_folder() / f"{arguments.data}.npz")]
    chosen = [word for seed in arguments.seed for word in ("--seed", seed)]
    chosen += [word for strategy in arguments.strategy for word in ("--strategy", strategy)]
    command = [str(Path(sys.executable).with_name("consilium")), "simulate", "sweep"]
    ended = subprocess.run([*command, arguments.name, *options, *chosen], check=False).returncode
    book = read_book(out)
    rows = [
        row(book, scenario, strategy)
        for scenario in book.scenarios
        for strategy in book.strategies(scenario)
        if book.finished(scenario, strategy)
    ]
    results = {"unfinished_cells": len(book.unfinished()), "seeded_noise": True, "rows": rows}
    data = ["--data", arguments.data] if arguments.data else []
    said = " ".join(["python benchmarks/sweep.py", arguments.name, *data, *chosen])
    write_results(title, said, results)
    for each in rows:
        print(each["scenario"], each["strategy"], each["test_auc"], each["own_auc"])
    sys.exit(ended)


if __name__ == "__main__":
    main()
