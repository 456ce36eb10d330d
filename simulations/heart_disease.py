"""UCI heart disease: four real hospitals, their gaps as they are (Janosi et al. 1988)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from shared.errors import SimulationError
from shared.study_parts import Column, Plan
from shared.subgroups import CELLS, subgroup_key
from simulations.data_files import find_data
from simulations.patients import Dataset, Facts, Patients
from simulations.tables import Row, cell_indices, scaled_rows, with_test

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")

COLUMNS = (
    Column(name="age", low=20, high=90),
    Column(name="sex", categories=("0", "1")),  # 1 is male
    Column(name="cp", categories=("1", "2", "3", "4")),
    Column(name="trestbps", low=80, high=200),
    Column(name="chol", low=100, high=500),
    Column(name="fbs", categories=("0", "1")),
    Column(name="restecg", categories=("0", "1", "2")),
    Column(name="thalach", low=60, high=210),
    Column(name="exang", categories=("0", "1")),
    Column(name="oldpeak", low=-2, high=6),
    Column(name="slope", categories=("1", "2", "3")),
    Column(name="ca", low=0, high=3),
    Column(name="thal", categories=("3", "6", "7")),
)
"""The 13 columns that are used everywhere, with ranges anyone would give without the data."""

ZERO_MISSING = ("trestbps", "chol")
"""No living patient has a blood pressure or cholesterol of 0: the value was not taken."""

FACTS = Facts(
    name="heart-disease",
    classes=("healthy", "disease"),
    columns=COLUMNS,
    group_names={"hospital": HOSPITALS, "sex": ("F", "M"), "age": CELLS["age"][:-1]},
    notes=("a diagnosis above 0 is disease", "cholesterol and blood pressure of 0 are missing"),
)


class HeartDiseaseData(Plan):
    """The four processed files of the UCI archive."""

    source: Literal["heart-disease"]
    path: str = "heart_disease"
    test_part: float = Field(default=0.25, gt=0, lt=1, description="of each hospital's patients")

    def facts(self) -> Facts:
        """Return what is known of the set; the files are only looked for.

        Raises:
            SimulationError: A file is missing.
        """
        for hospital in HOSPITALS:
            self._path(hospital)
        return FACTS

    def load(self, seed: int) -> Dataset:
        """Read the files and set patients aside for the test, evenly by hospital and class.

        Raises:
            SimulationError: A file is missing or not of the known layout.
        """
        rows = [row for hospital in HOSPITALS for row in self._rows(hospital)]
        ages = [subgroup_key("age", f"{float(row['age']):.0f}Y") for row in rows]
        patients = Patients(
            scaled_rows(rows, COLUMNS, ("?",), ZERO_MISSING),
            np.arange(len(rows), dtype=np.int64),
            np.array([row["num"] != "0" for row in rows], dtype=np.int64),
            {
                "hospital": cell_indices([row["hospital"] for row in rows], HOSPITALS),
                "sex": np.array([row["sex"] in ("1", "1.0") for row in rows], dtype=np.int64),
                "age": cell_indices(ages, [f"age:{cell}" for cell in CELLS["age"][:-1]]),
            },
        )
        return with_test(patients, FACTS, self.test_part, ("hospital",), seed)

    def _path(self, hospital: str) -> Path:
        return Path(find_data(self.path)) / f"processed.{hospital}.data"

    def _rows(self, hospital: str) -> list[Row]:
        path = self._path(hospital)
        names = [*(column.name for column in COLUMNS), "num"]
        try:
            lines = [line for line in csv.reader(path.read_text("utf-8").splitlines()) if line]
        except (OSError, UnicodeDecodeError, csv.Error):
            raise SimulationError("the file cannot be read", str(path)) from None
        if any(len(line) != len(names) for line in lines):
            raise SimulationError(f"not every row has {len(names)} values", str(path))
        return [dict(zip(names, line, strict=True)) | {"hospital": hospital} for line in lines]
