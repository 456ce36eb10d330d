"""A table of patients made up in memory: a tabular data set that needs nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import expit

from shared.study_parts import Column, Plan
from shared.subgroups import CELLS
from simulations.parts import Indices
from simulations.patients import Dataset, Facts, Patients
from simulations.phantom_data import AGE_EDGES

Floats = npt.NDArray[np.float64]

COLUMNS = (
    Column(name="age", low=20, high=90),
    Column(name="sex", categories=("F", "M")),
    Column(name="pressure", low=80, high=220),
    Column(name="glucose", low=60, high=300),
    Column(name="cholesterol", low=100, high=400),
    Column(name="pulse", low=40, high=140),
    Column(name="smoker", categories=("never", "former", "current")),
    Column(name="pain", categories=("none", "atypical", "typical")),
)

FACTS = Facts(
    name="made-up-table",
    classes=("healthy", "disease"),
    columns=COLUMNS,
    group_names={"sex": ("F", "M"), "age": CELLS["age"][:-1]},
    notes=("made up by this program; it describes no patient",),
)


class MadeUpTable(Plan):
    """Patients with eight values that go together, and a disease that follows from them."""

    source: Literal["made-up-table"]
    patients: int = Field(default=1600, ge=4, le=1_000_000, description="of all sites together")
    test_patients: int = Field(default=1000, ge=4, le=1_000_000)

    def facts(self) -> Facts:
        """Return what is known before any patient is made up."""
        return FACTS

    def load(self, seed: int) -> Dataset:
        """Make everyone up; the same seed gives the same bits."""
        train, test = (
            _patients(count, np.random.default_rng([seed, 17, number]))
            for number, count in enumerate((self.patients, self.test_patients))
        )
        return Dataset(FACTS, train, test)


def _patients(count: int, rng: np.random.Generator) -> Patients:
    """Draw patients: age and a hidden frailty drive the values, and all drive the disease."""
    age = rng.uniform(-1, 1, count)
    male = rng.random(count) < 0.5
    frail = 0.6 * age + 0.8 * rng.standard_normal(count)
    pressure, glucose, cholesterol, pulse = (
        np.clip(weight * frail + 0.35 * rng.standard_normal(count), -1, 1)
        for weight in (0.35, 0.3, 0.25, -0.2)
    )
    smoker = _ordered(0.5 * male + 0.8 * rng.standard_normal(count), (0.3, 1.0))
    risk = 1.6 * pressure + 1.4 * glucose + 1.0 * cholesterol - 0.8 * pulse + 0.7 * smoker
    ill = rng.random(count) < expit(2.2 * (risk + 0.8 * age + 0.5 * male - 1.1))
    pain = _ordered(1.3 * ill + rng.standard_normal(count), (0.6, 1.6))
    values = (age, male, pressure, glucose, cholesterol, pulse, smoker, pain)
    years = 55 + 35 * age
    return Patients(
        np.stack(values, axis=1).astype(np.float32),
        np.arange(count, dtype=np.int64),
        ill.astype(np.int64),
        {
            "sex": male.astype(np.int64),
            "age": np.searchsorted(AGE_EDGES, years, "right").astype(np.int64),
        },
    )


def _ordered(values: Floats, edges: tuple[float, float]) -> Indices:
    return np.searchsorted(edges, values).astype(np.int64)
