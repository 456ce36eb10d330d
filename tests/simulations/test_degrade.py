"""What each kind of gap takes away, from whom, and that it is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from shared.study import Column
from simulations.degrade import (
    AbsentClass,
    AbsentColumn,
    LabelNoise,
    MissingImages,
    MissingLabels,
    MissingValues,
)
from simulations.patients import Facts, Patients

IMAGES = Facts("some", ("a", "b", "c"), size=2, channels=1, group_names={"age": ("y", "m", "o")})
FINDINGS = Facts("some", ("a", "b"), findings=True, size=2, channels=1)
TABLE = Facts(
    "some",
    ("a", "b"),
    columns=(
        Column(name="x", low=0, high=1),
        Column(name="y", low=0, high=1),
        Column(name="kind", categories=("p", "q", "r")),
    ),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def image_patients(count: int = 3000) -> Patients:
    counts = 1 + np.arange(count) % 3
    owners = np.repeat(np.arange(count), counts)
    pixels = np.arange(len(owners), dtype=np.float32)[:, None, None, None]
    return Patients(pixels, owners, np.arange(count) % 3, {"age": rng(1).integers(-1, 3, count)})


def finding_patients(count: int = 3000) -> Patients:
    labels = rng(2).integers(0, 2, (count, 2))
    labels[:100, 0] = -1
    return Patients(np.zeros((count, 1, 1, 1), np.float32), np.arange(count), labels)


def table_patients(count: int = 4000) -> Patients:
    x = rng(3).uniform(-1, 1, count)
    y = 0.5 * x + 0.5 * rng(4).uniform(-1, 1, count)
    kind = rng(5).integers(0, 3, count)
    rows = np.stack([x, y, kind], axis=1).astype(np.float32)
    rows[:40, 1] = np.nan
    return Patients(rows, np.arange(count), np.arange(count) % 2)


def near(share: float, expected: float, of: int) -> bool:
    """Whether a share of so many is within five standard errors."""
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / of) + 1e-9


def test_labels_are_missing_at_random_or_of_stated_classes() -> None:
    patients = image_patients()
    part = MissingLabels(kind="missing-labels", part=0.3)
    changed, removed = part(patients, IMAGES, rng())
    for label, each in enumerate(removed):
        own = patients.labels == label
        gone = changed.labels[own] == -1
        assert (each.what, each.name, each.count) == ("label", IMAGES.classes[label], gone.sum())
        assert near(gone.mean(), 0.3, own.sum())
    kept = changed.labels >= 0
    np.testing.assert_array_equal(changed.labels[kept], patients.labels[kept])
    only = MissingLabels(kind="missing-labels", classes=("b",))
    changed, removed = only(patients, IMAGES, rng())
    assert [each.count for each in removed] == [0, 1000, 0]
    np.testing.assert_array_equal(changed.labels == -1, patients.labels == 1)


def test_positives_only_of_findings() -> None:
    patients = finding_patients()
    part = MissingLabels(kind="missing-labels", only="absent")
    changed, removed = part(patients, FINDINGS, rng())
    assert set(np.unique(changed.labels)) == {-1, 1}
    np.testing.assert_array_equal(changed.labels == 1, patients.labels == 1)
    assert [each.count for each in removed] == (patients.labels == 0).sum(axis=0).tolist()
    one = MissingLabels(kind="missing-labels", part=0.5, classes=("b",), only="present")
    changed, _ = one(patients, FINDINGS, rng())
    np.testing.assert_array_equal(changed.labels[:, 0], patients.labels[:, 0])
    had = patients.labels[:, 1] == 1
    assert near((changed.labels[had, 1] == -1).mean(), 0.5, had.sum())
    assert (changed.labels[~had, 1] == 0).all()


def test_wrong_labels_are_other_labels_each_as_likely() -> None:
    patients = image_patients()
    changed, removed = LabelNoise(kind="label-noise", part=0.4)(patients, IMAGES, rng())
    wrong = changed.labels != patients.labels
    assert near(wrong.mean(), 0.4, len(patients))
    assert sum(each.count for each in removed) == wrong.sum()
    assert {each.what for each in removed} == {"wrong label"}
    steps = (changed.labels - patients.labels)[wrong] % 3
    assert chisquare(np.bincount(steps, minlength=3)[1:]).pvalue > 0.001
    assert set(np.unique(changed.labels)) == {0, 1, 2}


def test_a_wrong_finding_is_the_opposite_and_unknown_stays_so() -> None:
    patients = finding_patients()
    part = LabelNoise(kind="label-noise", part=1.0, classes=("a",))
    changed, _ = part(patients, FINDINGS, rng())
    known = patients.labels[:, 0] >= 0
    np.testing.assert_array_equal(changed.labels[known, 0], 1 - patients.labels[known, 0])
    assert (changed.labels[~known, 0] == -1).all()
    np.testing.assert_array_equal(changed.labels[:, 1], patients.labels[:, 1])


@pytest.mark.parametrize("kind", ["missing-images", "broken-files"])
def test_a_patient_without_images_is_not_there(kind: str) -> None:
    patients = image_patients()
    part = MissingImages.model_validate({"kind": kind, "part": 0.5})
    changed, removed = part(patients, IMAGES, rng())
    images, gone = removed
    assert (images.what, images.count) == ("image", len(patients.images) - len(changed.images))
    assert (gone.what, gone.count) == ("patient", len(patients) - len(changed))
    assert near(len(changed.images) / len(patients.images), 0.5, len(patients.images))
    # A patient with n images is without any with a chance of 1/2^n.
    assert near(gone.count / 3000, (1 / 2 + 1 / 4 + 1 / 8) / 3, 3000)
    assert changed.image_counts.min() >= 1
    first = np.cumsum(patients.image_counts) - patients.image_counts
    owner = np.searchsorted(first, changed.images[:, 0, 0, 0], "right") - 1
    np.testing.assert_array_equal(changed.labels[changed.image_patient], patients.labels[owner])


def test_values_missing_completely_at_random() -> None:
    patients = table_patients()
    part = MissingValues(kind="missing-values", part=0.4)
    changed, removed = part(patients, TABLE, rng())
    before, after = np.isnan(patients.images), np.isnan(changed.images)
    assert (after | ~before).all()
    for place, each in enumerate(removed):
        assert (each.what, each.name) == ("value", TABLE.columns[place].name)
        assert each.count == (after & ~before)[:, place].sum()
        assert near(each.count / (~before)[:, place].sum(), 0.4, len(patients))
    kept = ~after
    np.testing.assert_array_equal(changed.images[kept], patients.images[kept])
    x = patients.images[:, 0]
    assert abs(x[after[:, 0]].mean() - x[~after[:, 0]].mean()) < 0.08
    assert not np.isnan(patients.images[40:]).any()


def test_values_missing_by_another_column() -> None:
    patients = table_patients()
    part = MissingValues(
        kind="missing-values", part=0.5, mechanism="mar", by="x", columns=("kind",), strength=3
    )
    changed, _ = part(patients, TABLE, rng())
    gone = np.isnan(changed.images[:, 2])
    x, kind = patients.images[:, 0], patients.images[:, 2]
    assert near(gone.mean(), 0.5, len(patients))
    assert gone[x > 0.5].mean() > 0.9
    assert gone[x < -0.5].mean() < 0.1
    assert abs(kind[gone].mean() - kind[~gone].mean()) < 0.15
    assert not np.isnan(changed.images[:, 0]).any()


def test_values_missing_by_themselves() -> None:
    patients = table_patients()
    part = MissingValues(
        kind="missing-values", part=0.3, mechanism="mnar", columns=("y",), strength=-3
    )
    changed, _ = part(patients, TABLE, rng())
    there = ~np.isnan(patients.images[:, 1])
    gone = np.isnan(changed.images[:, 1]) & there
    y = patients.images[:, 1]
    assert near(gone[there].mean(), 0.3, there.sum())
    assert y[gone].mean() < y[there & ~gone].mean() - 0.4


@settings(max_examples=40, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(-8, 8), st.integers(0, 99))
def test_the_chance_is_the_stated_part_on_average(part: float, strength: float, seed: int) -> None:
    values = rng(seed).standard_normal(300) ** 3
    mechanism = MissingValues(kind="missing-values", part=part, mechanism="mnar", strength=strength)
    chance = mechanism._chance(values)
    assert chance.mean() == pytest.approx(part, abs=1e-9)
    inner = (chance > 1e-6) & (chance < 1 - 1e-6)
    odds = np.log(chance[inner] / (1 - chance[inner]))
    z = ((values - values.mean()) / values.std())[inner]
    np.testing.assert_allclose(odds - odds[0], strength * (z - z[0]), atol=1e-5)


def test_half_of_the_ages_are_missing() -> None:
    patients = image_patients()
    part = MissingValues(kind="missing-values", part=0.5, columns=("age",))
    changed, removed = part(patients, IMAGES, rng())
    known = patients.groups["age"] >= 0
    gone = changed.groups["age"] == -1
    assert near(gone[known].mean(), 0.5, known.sum())
    assert removed[0].count == gone[known].sum()
    np.testing.assert_array_equal(changed.groups["age"][~gone], patients.groups["age"][~gone])


def test_an_absent_class_has_no_patient_and_an_absent_finding_no_label() -> None:
    patients = image_patients()
    changed, removed = AbsentClass(kind="absent-class", name="b")(patients, IMAGES, rng())
    assert set(changed.labels) == {0, 2}
    assert (removed[0].what, removed[0].name, removed[0].count) == ("patient", "b", 1000)
    found = finding_patients()
    changed, removed = AbsentClass(kind="absent-class", name="a")(found, FINDINGS, rng())
    assert len(changed) == len(found)
    assert (changed.labels[:, 0] == -1).all()
    np.testing.assert_array_equal(changed.labels[:, 1], found.labels[:, 1])
    assert (removed[0].what, removed[0].count) == ("label", 2900)


def test_an_absent_column_is_missing_everywhere() -> None:
    patients = table_patients()
    changed, removed = AbsentColumn(kind="absent-column", name="y")(patients, TABLE, rng())
    assert np.isnan(changed.images[:, 1]).all()
    assert removed[0].count == 3960
    assert not np.isnan(patients.images[40:]).any()
    ages, _ = AbsentColumn(kind="absent-column", name="age")(image_patients(), IMAGES, rng())
    assert (ages.groups["age"] == -1).all()
