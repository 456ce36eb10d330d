"""Chest phantoms made up in memory: a data set for simulations that needs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from client.data.resize import fit
from shared.study_parts import Plan
from shared.subgroups import CELLS
from simulations.chest import Subjects, draw_chests
from simulations.parts import Indices
from simulations.patients import Dataset, Facts, Patients, concatenate, without_pixels
from simulations.phantoms import BATCH, WITHOUT_AGE
from simulations.scanners import scanner

AGES = CELLS["age"][:-1]  # the last one is "unknown", which is -1 here
AGE_EDGES = (18, 40, 65, 80)
DRAWN = 1.5  # pixels drawn a pixel kept


class PhantomData(Plan):
    """Chest phantoms: patients of several scanners, with several images each."""

    source: Literal["phantoms"] = "phantoms"
    patients: int = Field(default=1200, ge=4, le=200_000, description="of all sites together")
    test_patients: int = Field(default=400, ge=4, le=200_000)
    prevalence: float = Field(default=0.4, gt=0, lt=1, description="patients with an opacity")
    scanners: int = Field(default=3, ge=1, le=20, description="scanners the patients came to")
    images: int = Field(default=3, ge=1, le=16, description="most images of a patient")
    size: int = Field(default=32, ge=28, le=256, description="side in pixels")
    findings: bool = Field(
        default=False, description="the opacity as a finding that may be unknown"
    )

    def facts(self) -> Facts:
        """Return what is known before any image is drawn."""
        return Facts(
            name="phantoms",
            classes=("opacity",) if self.findings else ("normal", "opacity"),
            findings=self.findings,
            size=self.size,
            channels=1,
            group_names={
                "scanner": tuple(f"scanner-{index + 1}" for index in range(self.scanners)),
                "sex": ("F", "M"),
                "age": AGES,
            },
            notes=("phantoms made by this program; they show no patient",),
        )

    def load(self, seed: int) -> Dataset:
        """Draw everyone; the same seed gives the same bits."""
        return self._dataset(_draw, seed)

    def outline(self, seed: int) -> Dataset:
        """Return the same patients with images of no pixels."""
        return self._dataset(_people, seed)

    def _dataset(
        self, make: Callable[[PhantomData, int, np.random.Generator], Patients], seed: int
    ) -> Dataset:
        train, test = (
            make(self, count, np.random.default_rng([seed, 7, number]))
            for number, count in enumerate((self.patients, self.test_patients))
        )
        return Dataset(self.facts(), train, test)


def _people(plan: PhantomData, count: int, rng: np.random.Generator) -> Patients:
    """Make patients up; label, scanner, sex, age and number of images are independent."""
    labels = rng.permutation((np.arange(count) < round(plan.prevalence * count)).astype(np.int64))
    female = rng.random(count) < 0.5
    owners = np.repeat(np.arange(count), rng.integers(1, plan.images + 1, count))
    scanners = rng.integers(0, plan.scanners, count)
    years = np.clip(rng.normal(56, 17, count), 5, 95)
    ages = np.where(rng.random(count) < WITHOUT_AGE, -1, np.searchsorted(AGE_EDGES, years, "right"))
    groups = {
        "scanner": scanners.astype(np.int64),
        "sex": np.where(female, 0, 1).astype(np.int64),
        "age": ages.astype(np.int64),
    }
    stated = labels[:, None] if plan.findings else labels
    return Patients(without_pixels(len(owners)), owners, stated, groups)


def _draw(plan: PhantomData, count: int, rng: np.random.Generator) -> Patients:
    """Make patients up, and draw their images."""
    people = _people(plan, count, rng)
    scanners = people.groups["scanner"]
    subjects = Subjects(
        opacity=people.labels.reshape(count).astype(bool),
        female=people.groups["sex"] == 0,
        images=people.image_counts,
    )
    batches = []
    order = np.argsort(scanners, kind="stable")
    for index in range(plan.scanners):
        own = order[scanners[order] == index]
        for start in range(0, len(own), BATCH):
            batches.append(_batch(plan, index, subjects, own[start : start + BATCH], rng))
    drawn = concatenate(batches)
    everyone = Patients(drawn.images, drawn.image_patient, people.labels[order])
    back = everyone.take(np.argsort(order, kind="stable"))
    return replace(people, images=back.images)


def _batch(
    plan: PhantomData, index: int, subjects: Subjects, own: Indices, rng: np.random.Generator
) -> Patients:
    """Draw some patients of one scanner, in this order."""
    drawn = Subjects(subjects.opacity[own], subjects.female[own], subjects.images[own])
    side, device = round(plan.size * DRAWN), scanner(index)
    pixels = device.expose(draw_chests(drawn, (side, side), device.blur, rng), rng)
    owners = np.repeat(np.arange(len(own), dtype=np.int64), drawn.images)
    return Patients(_fitted(pixels, plan.size), owners, np.zeros(len(own), dtype=np.int64))


def _fitted(pixels: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Bring images [n, rows, columns] in [0, 1] to [n, 1, size, size] in [-1, 1]."""
    fitted = np.stack([fit(image[None], size) for image in pixels])
    return np.clip(fitted * 2 - 1, np.float32(-1), np.float32(1))
