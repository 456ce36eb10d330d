"""What each kind of data becomes, checked against the files and the hospitals' own pipeline."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.table import parse_table
from client.site import DataSource
from shared.errors import SimulationError
from shared.study import Column, parse_study
from simulations.datasets import (
    DicomData,
    HeartDiseaseData,
    MadeUpTable,
    NpzData,
    PhantomData,
    TableData,
    concatenate,
    data_at,
    describe_dataset,
    load_dataset,
)
from simulations.medmnist import write_medmnist
from simulations.patients import strata
from simulations.tables import read_csv, scaled_rows


def some_npz(folder: Path, labels: np.ndarray, shape: tuple[int, ...] = (28, 28)) -> Path:
    """Write a MedMNIST-like file: 3/5 of the images for training, 1/5 each for val and test."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    cuts = [len(labels) * 3 // 5, len(labels) * 4 // 5]
    parts = zip(
        ("train", "val", "test"), np.split(images, cuts), np.split(labels, cuts), strict=True
    )
    path = folder / "some.npz"
    arrays = {}
    for name, pixels, stated in parts:
        arrays |= {f"{name}_images": pixels, f"{name}_labels": stated}
    np.savez(path, **arrays)
    return path


def as_set(images: np.ndarray) -> Counter[bytes]:
    return Counter(image.tobytes() for image in images)


def test_phantoms_have_groups_several_images_and_the_stated_prevalence() -> None:
    data = PhantomData(patients=70, test_patients=30, prevalence=0.3, scanners=3, images=3)
    found = load_dataset(data, 1)
    assert (len(found.train), len(found.test)) == (70, 30)
    assert found.train.labels.sum() == 21
    assert found.train.images.shape[1:] == (1, 32, 32)
    assert found.train.images.dtype == np.float32
    assert found.train.images.min() >= -1
    assert found.train.images.max() <= 1
    assert set(found.train.image_counts) == {1, 2, 3}
    for name, cells in found.facts.group_names.items():
        assert set(found.train.groups[name]) <= set(range(-1, len(cells)))
    assert set(found.train.groups["scanner"]) == {0, 1, 2}
    assert found.facts == describe_dataset(data)


def test_phantoms_follow_from_the_seed() -> None:
    data = PhantomData(patients=20, test_patients=10)
    first, again, other = (load_dataset(data, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.train.groups["age"], again.train.groups["age"])
    assert not as_set(first.train.images) & as_set(other.train.images)
    assert not as_set(first.train.images) & as_set(first.test.images)


def test_scanners_of_phantoms_differ_in_contrast_and_classes_do_not() -> None:
    found = load_dataset(PhantomData(patients=240, test_patients=4, scanners=2), 0).train
    contrast = found.images.std(axis=(1, 2, 3))
    scanner = found.groups["scanner"][found.image_patient]
    ill = found.labels[found.image_patient]
    error = contrast[scanner == 0].std() / np.sqrt((scanner == 0).sum() / 2)
    assert abs(contrast[scanner == 0].mean() - contrast[scanner == 1].mean()) > 8 * error
    for one in (0, 1):
        sick, well = (contrast[(scanner == one) & (ill == label)] for label in (1, 0))
        assert abs(sick.mean() - well.mean()) < 5 * error


def test_npz_images_are_what_the_hospitals_pipeline_makes_of_them(tmp_path: Path) -> None:
    path = some_npz(tmp_path, np.arange(40).reshape(-1, 1) % 2, (28, 20))
    found = load_dataset(NpzData(source="npz", path=str(path), size=40), 0)
    folders = write_medmnist(tmp_path / "dicom", path, sites=1)
    for folder, side in zip(folders, (found.train, found.test), strict=True):
        data = DicomData(
            source="dicom", path=str(folder.images), labels=str(folder.labels), size=40
        )
        decoded = load_dataset(data, 0)
        every = concatenate([decoded.train, decoded.test])
        apart = np.abs(every.images[:, None] - side.images[None]).max(axis=(2, 3, 4))
        nearest = apart.argmin(axis=1)
        assert sorted(nearest) == list(range(len(side)))
        assert apart.min(axis=1).max() < 1e-6
        np.testing.assert_array_equal(every.labels, side.labels[nearest])


def test_npz_counts_of_real_x_rays(real_data: Path) -> None:
    path = real_data / "pneumoniamnist.npz"
    found = load_dataset(NpzData(source="npz", path=str(path)), 0)
    with np.load(path) as file:
        pool = np.concatenate([file["train_images"], file["val_images"]])
        test = file["test_images"], file["test_labels"].ravel()
    assert len(found.train) == len({image.tobytes() for image in pool})
    np.testing.assert_array_equal(found.test.labels, test[1])
    np.testing.assert_allclose((found.test.images[:, 0] + 1) / 2 * 255, test[0], atol=1e-4)
    assert "one image stands in for one patient" in found.facts.notes
    assert found.facts.size == 28


def test_npz_with_several_labels_is_a_data_set_of_findings(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (50, 3))
    path = some_npz(tmp_path, labels, (28, 28, 3))
    found = load_dataset(NpzData(source="npz", path=str(path), classes=("a", "b", "c")), 0)
    assert found.facts.findings
    assert found.facts.channels == 3
    np.testing.assert_array_equal(found.train.labels, labels[:40])
    with np.load(path) as file:
        red = file["test_images"][..., 0]
    np.testing.assert_allclose((found.test.images[:, 0] + 1) / 2 * 255, red, atol=1e-4)


def test_npz_classes_may_be_taken_as_findings(tmp_path: Path) -> None:
    labels = np.arange(50) % 3
    found = load_dataset(
        NpzData(
            source="npz", path=str(some_npz(tmp_path, labels)), classes=("a", "b"), findings=True
        ),
        0,
    )
    np.testing.assert_array_equal(found.train.labels.sum(axis=1), labels[:40] > 0)
    np.testing.assert_array_equal(strata(found.train.labels), labels[:40])


def test_npz_of_fewer_patients(tmp_path: Path) -> None:
    path = str(some_npz(tmp_path, np.arange(50) % 2))
    few = [load_dataset(NpzData(source="npz", path=path, patients=9), seed) for seed in (0, 0, 1)]
    assert [len(each.train) for each in few] == [9, 9, 9]
    assert as_set(few[0].train.images) == as_set(few[1].train.images) != as_set(few[2].train.images)


@pytest.mark.parametrize(
    ("labels", "changes", "words"),
    [
        (np.arange(20) % 2, {"classes": ("only",)}, "2 classes, but 1 names"),
        (np.arange(20) % 2 * 2, {}, "no patient anywhere has the class 'class-1'"),
        (np.arange(20) % 2, {"path": "not-there.npz"}, "there is no data 'not-there.npz'"),
    ],
)
def test_npz_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, labels: np.ndarray, changes: dict[str, object], words: str
) -> None:
    values = {"source": "npz", "path": str(some_npz(tmp_path, labels))} | changes
    with pytest.raises(SimulationError, match=words) as caught:
        describe_dataset(NpzData.model_validate(values))
    assert "\n" not in str(caught.value)


def test_ct_slices_of_real_patients(real_data: Path) -> None:
    table = real_data / "ct_contrast" / "labels.csv"
    data = DicomData(
        source="dicom",
        path=str(real_data / "ct_contrast" / "dicom"),
        labels=str(table),
        names={"label": "contrast", "patient": "patient_id"},
        values={"0": "without", "1": "with"},
        groups=("age",),
        size=32,
    )
    found = load_dataset(data, 0)
    said = defaultdict(set)
    slices = Counter()
    with table.open() as file:
        for row in csv.DictReader(file):
            said[row["patient_id"]].add(row["contrast"])
            slices[row["patient_id"]] += 1
    sure = [name for name, labels in said.items() if len(labels) == 1]
    every = concatenate([found.train, found.test])
    assert len(every) == len(sure)
    assert sorted(every.image_counts) == sorted(slices[name] for name in sure)
    assert found.facts.classes == ("with", "without")
    assert int((every.labels == 0).sum()) == sum(said[name] == {"1"} for name in sure)
    again = load_dataset(data, 0)
    np.testing.assert_array_equal(again.train.images, found.train.images)
    assert 0 < len(found.test) < len(every)


def test_groups_of_dicom_images_need_the_column_of_the_patient(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label,hospital\na,no,north\nb,yes,south\n")
    data = {"source": "dicom", "path": str(tmp_path), "labels": str(table)}
    assert describe_dataset(DicomData.model_validate(data)).classes == ("no", "yes")
    grouped = DicomData.model_validate({**data, "groups": ("hospital",)})
    with pytest.raises(SimulationError, match="the table has no columns 'patient'"):
        describe_dataset(grouped)


def test_heart_disease_is_as_incomplete_as_its_files(real_data: Path) -> None:
    folder = real_data / "heart_disease"
    found = load_dataset(HeartDiseaseData(source="heart-disease", path=str(folder)), 0)
    every = concatenate([found.train, found.test])
    names = [column.name for column in found.facts.columns]
    for place, hospital in enumerate(found.facts.group_names["hospital"]):
        rows = [
            line.split(",") for line in (folder / f"processed.{hospital}.data").read_text().split()
        ]
        own = every.groups["hospital"] == place
        assert own.sum() == len(rows)
        assert every.labels[own].sum() == sum(row[13] != "0" for row in rows)
        values = every.images[own]
        for index, name in enumerate(names):
            gone = sum(
                row[index] == "?" or (name in ("trestbps", "chol") and float(row[index]) == 0)
                for row in rows
            )
            assert np.isnan(values[:, index]).sum() == gone, name
        men = sum(float(row[1]) == 1 for row in rows)
        assert (values[:, 1] == 1).sum() == men == every.groups["sex"][own].sum()
        tested = (found.test.groups["hospital"] == place).sum()
        assert abs(tested - len(rows) / 4) <= 1


def test_heart_disease_values_are_scaled_from_their_ranges(real_data: Path) -> None:
    path = real_data / "heart_disease"
    found = load_dataset(HeartDiseaseData(source="heart-disease", path=str(path)), 0)
    every = concatenate([found.train, found.test])
    years = 20 + (every.images[every.groups["hospital"] == 0, 0] + 1) / 2 * 70
    lines = (path / "processed.cleveland.data").read_text().split()
    np.testing.assert_allclose(
        np.sort(years), sorted(float(line.split(",")[0]) for line in lines), atol=1e-4
    )


TABLE = """id;years;kind;pressure;sick;where
1;40;a;120;no;north
2;?;b;0;yes;south
3;95;c;;yes;north
4;20;a;80;no;south
5;30;b;100;no;north
6;50;a;300;yes;south
7;60;;140;;south
"""
COLUMNS = (
    Column(name="years", low=20, high=90),
    Column(name="kind", categories=("a", "b", "c")),
    Column(name="pressure", low=80, high=220),
)


def test_table_is_scaled_as_the_hospitals_pipeline_does(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text(TABLE)
    names = [column.name for column in COLUMNS]
    mine = scaled_rows(read_csv(path, names, names), COLUMNS, ("", "?"))
    study = parse_study(
        {
            "name": "x",
            "task": {"classes": ["no", "yes"]},
            "table": {"columns": [column.model_dump() for column in COLUMNS]},
            "model": {"name": "table"},
        },
        "test",
    )
    source = DataSource(table=path, columns={"patient": "id", "label": "sick"})
    theirs = parse_table(TABLE.encode(), source, study, "test")
    np.testing.assert_allclose(mine, [row.values for row in theirs.rows], rtol=1e-6)


def simulated(path: Path, **settings: Any) -> TableData:
    """The table's two columns of numbers and its label, as a simulation has them."""
    return TableData(
        source="table",
        path=str(path),
        columns=(COLUMNS[0], COLUMNS[2]),
        label="sick",
        test_part=0.5,
        **settings,
    )


def numbers(decimal: str, extra: str = "") -> str:
    """A table of 40 patients with a fraction in each number."""
    lines = [f"years;pressure;sick{extra}"]
    for n in range(40):
        row = f"{20 + n}.5;{80 + 3 * n}.25;{'yes' if n % 2 else 'no'}"
        lines.append(row.replace(".", decimal) + (";x;y" if extra else ""))
    return "\n".join(lines) + "\n"


def test_a_decimal_comma_is_read_where_the_scenario_says_so_and_refused_where_not(
    tmp_path: Path,
) -> None:
    point, comma = tmp_path / "point.csv", tmp_path / "comma.csv"
    point.write_text(numbers("."))
    comma.write_text(numbers(","))
    expected = load_dataset(simulated(point), 0)
    found = load_dataset(simulated(comma, decimal=","), 0)
    np.testing.assert_array_equal(found.train.images, expected.train.images)
    with pytest.raises(SimulationError, match="no cell of column 'years' is understood"):
        load_dataset(simulated(comma), 0)


def test_a_column_twice_or_a_stray_quote_is_refused_as_a_hospital_refuses_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "twice.csv"
    path.write_text(numbers(".", ";pressure;note"))
    with pytest.raises(SimulationError, match="two columns 'pressure'"):
        load_dataset(simulated(path), 0)
    path.write_text(numbers(".").replace("30.5", '"30.5').replace("40.5", '40.5"'))
    with pytest.raises(SimulationError, match="quotation mark in line 12"):
        load_dataset(simulated(path), 0)


def test_cells_that_are_not_understood_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text(numbers(".").replace("30.5", "1_0").replace("31.5", "inf"))
    found = load_dataset(simulated(path), 0)
    every = concatenate([found.train, found.test])
    assert np.isnan(every.images).sum(axis=0).tolist() == [2, 0]
    assert found.facts.notes == ("column years: 2 cells not understood, missing",)


def test_table_leaves_out_who_has_no_label_and_knows_groups(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text(TABLE)
    data = TableData(
        source="table",
        path=str(path),
        columns=COLUMNS,
        label="sick",
        values={"yes": "ill", "no": "well"},
        groups=("where",),
        zero_missing=("pressure",),
        test_part=0.34,
    )
    found = load_dataset(data, 0)
    every = concatenate([found.train, found.test])
    assert found.facts.classes == ("ill", "well")
    assert found.facts.group_names == {"where": ("north", "south")}
    assert (len(found.train), len(found.test)) == (4, 2)
    assert (every.labels == 0).sum() == 3
    assert found.facts.notes == ("rows left out, as they have no label: 1",)
    assert np.isnan(every.images).sum(axis=0).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": "ill"}, "no columns 'ill'"),
        ({"classes": ("no", "perhaps")}, "'yes' is none of the classes"),
        ({"path": "nowhere.csv"}, "there is no data 'nowhere.csv'"),
    ],
)
def test_table_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = tmp_path / "some.csv"
    path.write_text(TABLE)
    values = {"source": "table", "path": str(path), "columns": COLUMNS, "label": "sick"}
    with pytest.raises(SimulationError, match=words):
        describe_dataset(TableData.model_validate(values | changes))


def test_made_up_table_has_a_disease_that_can_be_told() -> None:
    found = load_dataset(MadeUpTable(source="made-up-table"), 0)
    values, ill = found.train.images, found.train.labels
    assert 0.3 < ill.mean() < 0.5
    risk = values[:, [0, 2, 3, 4]].sum(axis=1)
    wins = (risk[ill == 1][:, None] > risk[ill == 0][None]).mean()
    assert 0.7 < wins < 0.95


def test_data_is_looked_for_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_npz(tmp_path, np.arange(20) % 2)
    data = NpzData(source="npz", path="some.npz")
    with pytest.raises(SimulationError, match="looked in"):
        describe_dataset(data)
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    assert describe_dataset(data).classes == ("class-0", "class-1")


def test_data_section_for_a_path(tmp_path: Path) -> None:
    assert data_at("phantoms") == {"source": "phantoms"}
    assert data_at("a/b.npz") == {"source": "npz", "path": "a/b.npz"}
    assert data_at("heart_disease")["source"] == "heart-disease"
    (tmp_path / "labels.csv").write_text("file,patient,label\n")
    assert data_at(str(tmp_path / "images"))["labels"] == str(tmp_path / "labels.csv")
