"""Hospitals full of chest phantoms: the demo's images, which show no patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from simulations.chest import Subjects, draw_chests
from simulations.hospitals import (
    Defects,
    HospitalFolder,
    HospitalSpec,
    Patient,
    default_hospitals,
    split_counts,
    write_hospital,
)
from simulations.scanners import DIGITAL_X_RAY

CLASSES = ("normal", "opacity")
SIZE = 32  # enough for the opacities, and quick on two cores
TEST_PREVALENCE = 0.45
IMAGES_PER_PATIENT = (1, 2, 3, 1, 2, 4, 1, 3, 2)  # dealt in turn within each class
WITHOUT_AGE = 0.05
BATCH = 48  # patients drawn at once; more would leave the processor's cache


def make_phantoms(
    folder: Path,
    *,
    sites: int = 3,
    patients: int = 1200,
    test_patients: int = 400,
    seed: int = 0,
) -> list[HospitalFolder]:
    """Write hospitals of chest phantoms, and a test folder no hospital sees.

    The label belongs to the patient; number of images, age, sex, order and every tag are drawn
    without regard to it. The test folder has patients of every hospital's scanner, all at one
    prevalence, and nothing in it is spoiled.

    Args:
        folder: Where to make `hospital-1`, `hospital-2`, ... and `test`.
        sites: Number of hospitals.
        patients: Patients of all hospitals together.
        test_patients: Patients of the test folder.
        seed: The same seed gives the same bytes.

    Returns:
        The hospitals, largest first, then the test folder.

    Raises:
        DataError: A folder exists already or cannot be written.
        ValueError: There are too few patients for the sites.
    """
    specs = default_hospitals(sites, patients)
    folders = [
        _write(folder, spec.name, _patients(spec, f"H{index}", (seed, index)), spec.patients, seed)
        for index, spec in enumerate(specs, start=1)
    ]
    counts = split_counts(test_patients, [spec.patients for spec in specs])
    tests = (
        _patients(
            replace(spec, patients=count, prevalence=TEST_PREVALENCE), f"T{index}", (seed, 0, index)
        )
        for index, (spec, count) in enumerate(zip(specs, counts, strict=True), start=1)
    )
    return [*folders, _write(folder, "test", chain.from_iterable(tests), 0, seed)]


def _write(
    folder: Path, name: str, patients: Iterator[Patient], spoiled_of: int, seed: int
) -> HospitalFolder:
    some = -(-spoiled_of // 300)
    return write_hospital(
        folder / name,
        patients,
        classes=CLASSES,
        size=SIZE,
        channels=1,
        sop_class=DIGITAL_X_RAY,
        seed=seed,
        defects=Defects(truncated=some, unlabelled=some, missing=some),
    )


def _patients(spec: HospitalSpec, prefix: str, seed: tuple[int, ...]) -> Iterator[Patient]:
    """Make the patients of one hospital up, in an order that tells nothing."""
    rng = np.random.default_rng(seed)
    everyone = _deal(spec, rng)
    for start in range(0, spec.patients, BATCH):
        subjects = everyone[start : start + BATCH]
        count = len(subjects.opacity)
        ages = np.clip(rng.normal(56, 17, count), 18, 95).astype(int)
        known = rng.random(count) >= WITHOUT_AGE
        pixels = draw_chests(subjects, spec.shape, spec.scanner.blur, rng)
        pixels = spec.scanner.expose(pixels, rng)
        for index, own in enumerate(np.split(pixels, subjects.images.cumsum()[:-1])):
            yield Patient(
                id=f"{prefix}-{start + index + 1:05d}",
                label=CLASSES[int(subjects.opacity[index])],
                images=list(own),
                scanner=spec.scanner,
                sex="F" if subjects.female[index] else "M",
                age=int(ages[index]) if known[index] else None,
            )


def _deal(spec: HospitalSpec, rng: np.random.Generator) -> Subjects:
    """Deal findings, sex and number of images, evenly within each class, in random order."""
    ill = round(spec.prevalence * spec.patients)
    opacity = np.arange(spec.patients) < ill
    turn = np.where(opacity, np.arange(spec.patients), np.arange(spec.patients) - ill)
    order = rng.permutation(spec.patients)
    images = np.array(IMAGES_PER_PATIENT)[turn % len(IMAGES_PER_PATIENT)]
    return Subjects(opacity[order], (turn % 2 == 0)[order], images[order])
