"""Four real hospitals with gaps: ways to meet missing values, with and without privacy.

python benchmarks/heart_disease.py choose     # settings, by cross-validation in training parts
python benchmarks/heart_disease.py measure    # FLamby's test patients, through the product
python benchmarks/heart_disease.py splits     # the same on 20 other splits
python benchmarks/heart_disease.py gaps       # half of the values removed at random
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_results
from heart_data import (
    DROPPED,
    Split,
    federation,
    folds,
    only_flamby,
    pooled,
    read_hospitals,
    split,
    with_gaps,
)
from heart_quick import probabilities, train_many
from safetensors.numpy import load_file
from torch import nn

from shared.metrics import roc_auc
from shared.models import build_model, get_weights, initial_weights, set_weights
from shared.protocol import Statistics
from shared.study import Study
from simulations.build import Federation
from simulations.engine import Resources, simulate
from simulations.heart_disease import COLUMNS

WAYS = ("drop", "mean", "median", "indicator", "embedding")
MODELS: dict[str, tuple[int, ...]] = {"logistic": (), "perceptron": (16,)}
EPSILON = 8.0
SPLITS = range(100, 120)
PUBLISHED = {"FedAvg": 0.748, "FedAdam": 0.779, "pooled": 0.795}

GRID: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"learning_rate": rate, "weight_decay": decay}
        for rate, decay in itertools.product((0.05, 0.1, 0.2, 0.5, 1.0), (0.0, 0.01, 0.03))
    ],
    "private": [
        {"learning_rate": rate, "sampling_rate": q, "clip": clip}
        for rate, q, clip in itertools.product(
            (0.02, 0.05, 0.1, 0.2, 0.5), (0.15, 0.5), (0.25, 0.5, 1.0)
        )
    ],
}
GRID |= {"half": GRID["plain"], "flamby": GRID["plain"]}
"""What is tried under each condition: no privacy, epsilon 8, half of the values removed, and only
the patients and columns that FLamby keeps; the last two without privacy."""


def make_study(
    way: str, model: str, settings: dict[str, Any], *, private: bool, short: bool = False
) -> Study:
    """Return the plan; `short` leaves out the columns FLamby leaves out."""
    settings = dict(settings)
    privacy = {"enabled": private, "epsilon": EPSILON, "clip": settings.pop("clip", 1.0)}
    columns = [c.model_dump() for c in COLUMNS if not (short and c.name in DROPPED)]
    return Study.model_validate(
        {
            "name": "heart-disease",
            "task": {"classes": ["healthy", "disease"]},
            "table": {"columns": columns, "missing": way},
            "model": {"name": "table", "layers": MODELS[model]},
            "training": {"local_steps": 10, **settings},
            "privacy": privacy,
            "federation": {"rounds": 10, "sites": 4, "min_sites": 1},
        }
    )


def check(parts: Sequence[Split]) -> float:
    """Return how far the quick trainer is from the product where nothing is random."""
    settings = {"learning_rate": 0.5, "sampling_rate": 1.0, "weight_decay": 0.01, "clip": 0.5}
    largest = 0.0
    for way, model in (("mean", "perceptron"), ("embedding", "perceptron"), ("drop", "logistic")):
        study = make_study(way, model, settings, private=False)
        # A simulation's first weights follow from the seed and the model alone.
        bare = Study(name="seed-0", task=study.task, table=study.table, model=study.model)
        quick = get_weights(train_many([parts], study, 0, initial_weights(bare))[0])
        product = get_weights(through_the_product(federation(parts), study, 0))
        largest = max(largest, *(float(np.abs(a - product[n]).max()) for n, a in quick.items()))
    return largest


def choose() -> None:
    """Cross-validate every setting in the training parts of FLamby's split; test nobody."""
    parts = split(read_hospitals())
    if (difference := check(parts)) > 1e-5:
        sys.exit(f"the quick trainer is not the product's: weights differ by {difference}")
    print("largest difference of a weight from the product, nothing random:", difference)
    chosen: dict[str, dict[str, Any]] = {}
    for condition, way, model in itertools.product(GRID, WAYS, MODELS):
        if (condition, way) == ("half", "drop"):
            continue  # no patient is complete
        tried = []
        short = condition == "flamby"
        seen = [short_of(part) for part in only_flamby(parts)] if short else parts
        for settings in GRID[condition]:
            private = condition == "private"
            study = make_study(way, model, settings, private=private, short=short)
            tried.append(settings | cross_validate(seen, study, gaps=condition == "half"))
        # Of accuracies a difference of one patient decides; the likelihood is smoother.
        best = min(tried, key=lambda entry: entry["log_loss"])
        chosen[f"{condition}/{way}/{model}"] = best
        print(condition, way, model, best, flush=True)
    write_results("heart_disease_settings", _command(), chosen)


def cross_validate(parts: Sequence[Split], study: Study, *, gaps: bool) -> dict[str, float]:
    """Return log loss and accuracy of 5-fold cross-validation, done twice."""
    worlds = [world for seed in (0, 1) for world in folds(parts, 5, seed)]
    if gaps:
        worlds = [halved(world, [at, 1]) for at, world in enumerate(worlds)]
    losses, right = [], []
    for world, model in zip(worlds, train_many(worlds, study, 0), strict=True):
        for part in world:
            ill = part.test.labels == 1
            p = np.clip(probabilities(model, part.test.images), 1e-6, 1 - 1e-6)
            losses.append(-np.log(np.where(ill, p, 1 - p)))
            right.append((p > 0.5) == ill)
    figures = {"log_loss": losses, "accuracy": right}
    return {name: round(float(np.mean(np.concatenate(v))), 4) for name, v in figures.items()}


def halved(parts: Sequence[Split], seed: Sequence[int], *, test: bool = True) -> list[Split]:
    """Remove half of the values of all patients, or of those trained on only."""
    found = []
    for at, part in enumerate(parts):
        train = with_gaps(part.train, 0.5, [*seed, at, 0])
        tested = with_gaps(part.test, 0.5, [*seed, at, 1]) if test else part.test
        found.append(replace(part, train=train, test=tested))
    return found


def measure(seeds: int) -> None:
    """Run the chosen settings through the simulation engine and score FLamby's test patients."""
    settings = _settings()
    parts = split(read_hospitals())
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name, study, world in _cells(settings, parts):
            model = through_the_product(world, study, seed)
            runs.append({"cell": name, "seed": seed} | score(model, parts_of(name, parts)))
            print(runs[-1], flush=True)
        _store("heart_disease", {"published": PUBLISHED, "cells": _mean(runs), "runs": runs})


def _cells(
    settings: dict[str, Any], parts: Sequence[Split]
) -> Iterator[tuple[str, Study, Federation]]:
    """Yield what is measured: its name, the plan, and who takes part."""
    for condition, way, model in itertools.product(("plain", "private"), WAYS, MODELS):
        if model == "perceptron" and way != "indicator":
            continue  # the command `splits` has them all
        own = _own(settings, condition, way, model)
        study = make_study(way, model, own, private=condition == "private")
        yield f"{condition}/{way}/{model}", study, federation(parts)
    for condition in ("plain", "private"):
        way, model = best(settings, condition)
        own = _own(settings, condition, way, model)
        study = make_study(way, model, own, private=condition == "private")
        yield f"{condition}/pooled", study, pooled(parts)
        for part in parts:
            yield f"{condition}/alone/{part.name}", study, pooled([part])
    # FLamby's own patients and columns: what its figures were made from.
    short = [short_of(part) for part in only_flamby(parts)]
    way, model = best(settings, "flamby")
    own = _own(settings, "flamby", way, model)
    study = make_study(way, model, own, private=False, short=True)
    yield "flamby/federated", study, federation(short)
    yield "flamby/pooled", study, pooled(short)


def parts_of(name: str, parts: Sequence[Split]) -> list[Split]:
    """Return the parts whose test patients a cell is scored on."""
    if name.startswith("flamby"):
        return [short_of(part) for part in parts]
    return [p for p in parts if f"alone/{p.name}" in name] if "alone" in name else list(parts)


def short_of(part: Split) -> Split:
    """Leave out the columns FLamby leaves out."""
    keep = [at for at, column in enumerate(COLUMNS) if column.name not in DROPPED]
    train = replace(part.train, images=part.train.images[:, keep])
    return replace(part, train=train, test=replace(part.test, images=part.test.images[:, keep]))


def through_the_product(world: Federation, study: Study, seed: int) -> nn.Module:
    """Run the study on simulated hospitals with real ledgers; return the released model."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        simulate(world, study, run, seed=seed, resources=Resources(engine="local"))
        told = run / "statistics.json"
        statistics = Statistics.model_validate_json(told.read_text()) if told.exists() else None
        model = build_model(study, statistics)
        set_weights(model, load_file(run / "model.safetensors"))
    return model.eval()


def score(model: nn.Module, parts: Sequence[Split]) -> dict[str, Any]:
    """Return accuracy over all test patients, its mean over hospitals, and the AUC."""
    found = [(probabilities(model, part.test.images), part.test.labels == 1) for part in parts]
    right = [(p > 0.5) == ill for p, ill in found]
    scores, ill = (np.concatenate(column) for column in zip(*found, strict=True))
    return {
        "accuracy": float(np.mean(np.concatenate(right))),
        "mean_of_hospitals": float(np.mean([r.mean() for r in right])),
        "auc": roc_auc(scores, ill),
        "hospitals": {p.name: float(r.mean()) for p, r in zip(parts, right, strict=True)},
    }


def splits() -> None:
    """Repeat the federated cells on other splits, with the settings as they were chosen."""
    settings, hospitals = _settings(), read_hospitals()
    worlds = [split(hospitals, seed) for seed in SPLITS]
    found = {}
    for condition, way, model in itertools.product(("plain", "private"), WAYS, MODELS):
        own = _own(settings, condition, way, model)
        study = make_study(way, model, own, private=condition == "private")
        models = train_many(worlds, study, 1)
        found[f"{condition}/{way}/{model}"] = _spread(models, worlds)
        print(condition, way, model, found[f"{condition}/{way}/{model}"], flush=True)
    for condition in ("plain", "private"):
        way, model = best(settings, condition)
        own = _own(settings, condition, way, model)
        study = make_study(way, model, own, private=condition == "private")
        found[f"{condition}/pooled"] = _spread(
            train_many([_together(world) for world in worlds], study, 1), worlds
        )
    pairs = [(f"{c}/indicator/logistic", f"{c}/pooled") for c in ("plain", "private")]
    pairs += [(f"plain/indicator/{m}", f"plain/{way}/{m}") for way in WAYS[:3] for m in MODELS]
    pairs.append(("private/indicator/logistic", "plain/indicator/logistic"))
    write_results(
        "heart_disease_splits", _command(), found | {"differences": _differ(found, pairs)}
    )


def _together(world: Sequence[Split]) -> list[Split]:
    whole = pooled(world)
    in_flamby = np.concatenate([part.in_flamby for part in world])
    return [Split("pooled", whole.sites[0].train, whole.test, in_flamby)]


def gaps() -> None:
    """Remove half of the values of the training patients, or of all, and train as chosen then."""
    settings, hospitals = _settings(), read_hospitals()
    worlds = [split(hospitals, seed) for seed in SPLITS]
    in_training = [halved(w, [s, 2], test=False) for w, s in zip(worlds, SPLITS, strict=True)]
    everywhere = [halved(w, [s, 2]) for w, s in zip(worlds, SPLITS, strict=True)]
    found: dict[str, Any] = {}
    for way, model in itertools.product(WAYS[1:], MODELS):  # to drop would leave nobody
        name = f"{way}/{model}"
        as_found = make_study(way, model, _own(settings, "plain", way, model), private=False)
        study = make_study(way, model, _own(settings, "half", way, model), private=False)
        found[f"as found/{name}"] = _spread(train_many(worlds, as_found, 1), worlds)
        models = train_many(in_training, study, 1)
        found[f"half removed in training/{name}"] = _spread(models, worlds)
        found[f"half removed everywhere/{name}"] = _spread(models, everywhere)
        for key in ("as found", "half removed in training", "half removed everywhere"):
            print(
                key,
                name,
                {k: v for k, v in found[f"{key}/{name}"].items() if k != "all"},
                flush=True,
            )
    pairs = []
    for where, model in itertools.product(("in training", "everywhere"), MODELS):
        half = f"half removed {where}"
        pairs += [(f"{half}/indicator/{model}", f"{half}/mean/{model}")]
        pairs += [(f"{half}/{w}/{model}", f"as found/{w}/{model}") for w in ("indicator", "mean")]
    write_results("heart_disease_gaps", _command(), found | {"differences": _differ(found, pairs)})


def best(settings: dict[str, Any], condition: str) -> tuple[str, str]:
    """Return way and model of the lowest cross-validated log loss."""
    own = {key: entry for key, entry in settings.items() if key.startswith(f"{condition}/")}
    _, way, model = min(own, key=lambda key: own[key]["log_loss"]).split("/")
    return way, model


def _own(settings: dict[str, Any], condition: str, way: str, model: str) -> dict[str, Any]:
    entry = settings[f"{condition}/{way}/{model}"]
    return {k: v for k, v in entry.items() if k not in ("log_loss", "accuracy")}


def _settings() -> dict[str, Any]:
    path = RESULTS / "heart_disease_settings.json"
    if not path.exists():
        sys.exit("Run `python benchmarks/heart_disease.py choose` first.")
    settings: dict[str, Any] = json.loads(path.read_text())["results"]
    return settings


def _spread(models: Sequence[nn.Module], worlds: Sequence[Sequence[Split]]) -> dict[str, Any]:
    """Return mean and standard error over the splits, and each split's accuracy for pairing."""
    scores = [score(model, world) for model, world in zip(models, worlds, strict=True)]
    found: dict[str, Any] = {}
    for name in ("accuracy", "mean_of_hospitals", "auc"):
        values = np.array([entry[name] for entry in scores])
        found[name] = round(float(values.mean()), 4)
        found[f"{name}_error"] = round(float(values.std(ddof=1) / len(values) ** 0.5), 4)
    return found | {"all": [round(entry["accuracy"], 4) for entry in scores]}


def _differ(found: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return mean differences in accuracy on the same splits, and their standard error.

    The splits share patients; the error allows for it (Nadeau and Bengio 2003, with the test
    patients over the training patients).
    """
    rows = {}
    for first, second in pairs:
        change = np.subtract(found[first]["all"], found[second]["all"])
        error = change.std(ddof=1) * (1 / len(change) + 254 / 666) ** 0.5
        rows[f"{first} - {second}"] = [round(float(change.mean()), 4), round(float(error), 4)]
    return rows


def _mean(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name in dict.fromkeys(run["cell"] for run in runs):
        own = [run for run in runs if run["cell"] == name]
        cells[name] = {
            figure: [round(float(f([run[figure] for run in own])), 4) for f in (np.mean, np.std)]
            for figure in ("accuracy", "mean_of_hospitals", "auc")
        } | {"seeds": len(own)}
    return cells


def _store(name: str, results: dict[str, Any]) -> None:
    write_results(name, _command(), results)


def _command() -> str:
    return "python benchmarks/heart_disease.py " + " ".join(sys.argv[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("choose", "measure", "splits", "gaps"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "measure":
        measure(options.seeds)
    else:
        {"choose": choose, "splits": splits, "gaps": gaps}[options.what]()
