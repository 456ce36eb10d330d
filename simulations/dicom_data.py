"""A folder of DICOM images as a data set, read by the hospitals' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from client.site import Columns, DataSource, Policy, Server, Site, SiteConfig
from client.vault import Vault
from shared.errors import DataError, PolicyRefusal, SimulationError
from shared.study import Study, parse_study
from shared.study_parts import Plan
from shared.subgroups import CELLS
from simulations.data_files import find_data
from simulations.parts import Indices
from simulations.patients import Dataset, Facts, Patients, concatenate
from simulations.tables import Row, cell_indices, read_csv, with_test

if TYPE_CHECKING:
    from client.data.cohort import PatientSet

GROUPINGS = ("sex", "age")
"""Found in the images, where they say so; of scanners, a column can tell more than the maker."""


class DicomData(Plan):
    """A folder of DICOM images with a table of labels."""

    source: Literal["dicom"]
    path: str = Field(description="folder of images")
    labels: str = Field(description="CSV table of labels")
    names: Columns = Field(default=Columns(), description="its columns: file, patient, label")
    values: dict[str, str] = Field(default_factory=dict, description="label value -> class")
    classes: tuple[str, ...] = Field(default=(), description="default: all labels, sorted")
    findings: bool = Field(default=False, description="classes are findings, a column each")
    groups: tuple[str, ...] = Field(default=(), description="columns that group the patients")
    size: int = Field(default=64, ge=28, le=256, description="side in pixels")
    channels: Literal[1, 3] = 1
    window: Literal["file", "full"] | tuple[float, float] = "file"
    test_part: float = Field(default=0.25, gt=0, lt=1, description="patients for the common test")

    def facts(self) -> Facts:
        """Return what the table of labels says; no image is read.

        Raises:
            SimulationError: Folder or table are missing, or the table lacks a column.
        """
        find_data(self.path)
        rows = self._rows()
        labels = set() if self.findings else {row[self.names.label] for row in rows} - {""}
        columns = {name: {row[name] for row in rows} - {""} for name in self.groups}
        return Facts(
            name=Path(self.path).name,
            classes=self.classes
            or tuple(sorted({self.values.get(label, label) for label in labels})),
            findings=self.findings,
            size=self.size,
            channels=self.channels,
            group_names={name: CELLS[name][:-1] for name in GROUPINGS}
            | {name: tuple(sorted(cells)) for name, cells in columns.items()},
        )

    def load(self, seed: int) -> Dataset:
        """Decode the images and set patients aside for the test, evenly by class.

        Raises:
            SimulationError: Folder or table are missing, or no image can be used.
        """
        patients, note = _read(self.model_dump_json(exclude={"test_part"}))
        facts = replace(self.facts(), notes=(note,))
        return with_test(patients, facts, self.test_part, (), seed)

    def _rows(self) -> list[Row]:
        said = [self.names.findings.get(name, name) for name in self.classes]
        needed = [self.names.file, *(said if self.findings else [self.names.label])]
        if self.groups:  # a patient is found in the table by this column alone
            needed += [self.names.patient, *self.groups]
        return read_csv(Path(find_data(self.labels)), [*needed, self.names.patient], needed)

    def study(self, facts: Facts) -> Study:
        """Return the study in which the hospitals' pipeline reads this data."""
        return parse_study(
            {
                "name": "simulation",
                "task": {"classes": list(facts.classes), "findings": facts.findings},
                "input": {"size": self.size, "channels": self.channels, "window": self.window},
                "privacy": {"subgroups": list(GROUPINGS)},
            },
            "the scenario's data",
        )


@lru_cache(maxsize=2)  # decoding takes long, and a sweep asks for the same data again
def _read(plan_json: str) -> tuple[Patients, str]:
    """Return all patients with images that can be used, and a note on what cannot."""
    from client.data.cohort import load_cohort  # brings torch, which takes seconds to import

    plan = DicomData.model_validate_json(plan_json)
    facts = plan.facts()
    with TemporaryDirectory(prefix="consilium-") as folder:
        site = _stand_in(Path(folder), plan)
        try:
            cohort = load_cohort(site, plan.study(facts), use_cache=False)
        except (DataError, PolicyRefusal) as error:
            raise SimulationError(error.what, plan.path, "Check folder and table") from None
        vault = Vault.open(site.vault_key)
        columns = {
            vault.pseudonym(row[plan.names.patient]): row
            for row in reversed(plan._rows())
            if row.get(plan.names.patient)
        }
    sides = [_plain(side, columns, facts) for side in (cohort.train, cohort.held_out)]
    aside = len(cohort.report.set_aside)
    patients = concatenate([side for side in sides if len(side)])
    return patients, f"{len(patients.images)} images of {len(patients)} patients, {aside} set aside"


def _stand_in(home: Path, plan: DicomData) -> Site:
    """Return a hospital that has this data; its keys are fixed, and so is the order of patients."""
    config = SiteConfig(
        name="simulation",
        server=Server(address="localhost:1"),
        data=DataSource(
            images=Path(find_data(plan.path)),
            labels=Path(find_data(plan.labels)),
            columns=plan.names,
            values=plan.values,
            without_patient_id="image-is-patient",
        ),
        policy=Policy(min_patients=1, min_patients_per_class=0, max_set_aside=1),
    )
    site = Site(home, config)
    for key in (site.vault_key, site.split_key):
        key.write_bytes(bytes(32))
        key.chmod(0o600)
    return site


def _plain(side: PatientSet, columns: Mapping[str, Row], facts: Facts) -> Patients:
    """Return patients as arrays, with the groups that images and table tell."""
    groups = {name: _known(side.groups[name].numpy(), len(CELLS[name]) - 1) for name in GROUPINGS}
    for name, cells in facts.group_names.items():
        if name not in GROUPINGS:
            told = [columns.get(patient, {}).get(name, "") for patient in side.patients]
            groups[name] = cell_indices(told, cells)
    return Patients(side.images.numpy(), side.image_patient.numpy(), side.labels.numpy(), groups)


def _known(cells: Indices, unknown: int) -> Indices:
    return np.where(cells == unknown, -1, cells).astype(np.int64)
