"""The four hospitals of the UCI heart disease data, split as FLamby splits them, or at random."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from common import data_folder
from sklearn.model_selection import StratifiedKFold, train_test_split

from simulations.build import Federation, SiteData
from simulations.heart_disease import COLUMNS, FACTS, HOSPITALS, ZERO_MISSING
from simulations.patients import Patients, concatenate
from simulations.tables import scaled_rows

FLAMBY_SEED = 43
"""Of FLamby's split (owkin/FLamby, flamby/datasets/fed_heart_disease/dataset.py)."""

DROPPED = ("slope", "ca", "thal")
"""Columns FLamby leaves out, and with them every patient who has a gap in one of the others."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Hospital:
    """One hospital as it is: all patients and all 13 columns.

    Attributes:
        name: Its name.
        patients: Rows as the model takes them.
        in_flamby: Which patients FLamby keeps: no `?` outside of the columns it drops.
    """

    name: str
    patients: Patients
    in_flamby: Mask


@dataclass(frozen=True)
class Split:
    """One hospital's patients to train on and to test on; tested are only FLamby's."""

    name: str
    train: Patients
    test: Patients
    in_flamby: Mask  # of the training patients


def read_hospitals() -> list[Hospital]:
    """Read the four files."""
    names = [*(column.name for column in COLUMNS), "num"]
    found = []
    for hospital in HOSPITALS:
        path = data_folder() / "heart_disease" / f"processed.{hospital}.data"
        with path.open(encoding="utf-8") as file:
            rows = [dict(zip(names, line, strict=True)) for line in csv.reader(file) if line]
        kept = [all(row[name] != "?" for name in names if name not in DROPPED) for row in rows]
        labels = np.array([row["num"] != "0" for row in rows], dtype=np.int64)
        values = scaled_rows(rows, COLUMNS, ("?",), ZERO_MISSING)
        patients = Patients(values, np.arange(len(rows), dtype=np.int64), labels)
        found.append(Hospital(hospital, patients, np.array(kept)))
    return found


def split(hospitals: Sequence[Hospital], seed: int = FLAMBY_SEED) -> list[Split]:
    """Split each hospital as FLamby does; its own seed gives its own test patients.

    Of the patients FLamby keeps, 34 % are tested on, evenly by class where a class has more than
    two. All others are trained on: the other 66 %, and those FLamby leaves out.
    """
    found = []
    for hospital in hospitals:
        kept = np.flatnonzero(hospital.in_flamby)
        labels = hospital.patients.labels[kept]
        rare = min(np.bincount(labels, minlength=2)) <= 2
        _, chosen = train_test_split(
            np.arange(len(kept)),
            train_size=0.66,
            test_size=1 - 0.66,
            random_state=seed,
            stratify=None if rare else labels,
        )
        test = kept[chosen]
        train = np.setdiff1d(np.arange(len(hospital.patients)), test)
        take = hospital.patients.take
        found.append(Split(hospital.name, take(train), take(test), hospital.in_flamby[train]))
    return found


def folds(parts: Sequence[Split], count: int, seed: int) -> Iterator[list[Split]]:
    """Yield the training parts cut anew into training and validation, `count` times.

    Validated are only patients whom FLamby would keep, as in the test.
    """
    cuts = []
    for part in parts:
        strata = 2 * part.train.labels + part.in_flamby
        folder = StratifiedKFold(count, shuffle=True, random_state=seed)
        cuts.append(list(folder.split(strata, strata)))
    for number in range(count):
        found = []
        for part, cut in zip(parts, cuts, strict=True):
            train, validate = cut[number]
            validate = validate[part.in_flamby[validate]]
            own = part.in_flamby[train]
            found.append(Split(part.name, part.train.take(train), part.train.take(validate), own))
        yield found


def only_flamby(parts: Sequence[Split]) -> list[Split]:
    """Leave out of training whom FLamby leaves out."""
    return [
        replace(
            p, train=p.train.take(np.flatnonzero(p.in_flamby)), in_flamby=p.in_flamby[p.in_flamby]
        )
        for p in parts
    ]


def with_gaps(patients: Patients, part: float, seed: Sequence[int]) -> Patients:
    """Remove a part of the values that are there, completely at random."""
    rng = np.random.default_rng(seed)
    gone = rng.random(patients.images.shape) < part
    return replace(patients, images=np.where(gone, np.float32(np.nan), patients.images))


def federation(parts: Sequence[Split]) -> Federation:
    """Return the hospitals as the simulation takes them: test patients are those held out."""
    sites = tuple(SiteData(part.name, part.train, part.test) for part in parts)
    return Federation(sites, concatenate([part.test for part in parts]), FACTS)


def pooled(parts: Sequence[Split]) -> Federation:
    """Return all patients at one place."""
    train = concatenate([part.train for part in parts])
    test = concatenate([part.test for part in parts])
    return Federation((SiteData("pooled", train, test),), test, FACTS)
