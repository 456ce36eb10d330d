"""From folder and table to patients: what is used, on which side, and in what order."""

from __future__ import annotations

import csv
import io
from collections import Counter

import numpy as np
import pytest
import torch
from pydicom import dcmread
from split_kit import KEY, fix_split

from client.data.cohort import Cohort, PatientSet, load_cohort
from client.data.pixels import decode
from client.data.reasons import Reason
from client.data.report import DataReport, describe_report
from client.data.split import is_held_out
from client.site import Columns, DataSource, Policy, Server, Site, SiteConfig
from client.vault import Vault
from shared.study import Data, Input, Study, Task


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4096, (28, 28)).astype(np.uint16)


@pytest.fixture
def ward(dicom):
    """Thirty patients with one to three images each, and their table."""
    images, rows = {}, ["file,patient,label"]
    for patient in range(30):
        for number in range(1 + patient % 3):
            name = f"{patient:02}/{number}.dcm"
            images[name] = dicom(picture(100 * patient + number), PatientID="somebody")
            rows.append(f"{name},P{patient},{patient % 2}")
    return images, "\n".join(rows) + "\n"


VALUES = {"0": "healthy", "1": "ill"}


def reasons(cohort: Cohort) -> dict[Reason, int]:
    return cohort.report.counts


def by_patient(cohort: Cohort) -> dict[str, tuple[str, int, set[bytes]]]:
    """Each pseudonym's side, label and images."""
    found = {}
    for side in ("train", "held_out"):
        patients = getattr(cohort, side)
        for index, name in enumerate(patients.patients):
            images = patients.images[patients.image_patient == index]
            found[name] = (
                side,
                int(patients.labels[index]),
                {image.numpy().tobytes() for image in images},
            )
    return found


def test_every_image_lands_with_its_patient_and_label(make_site, study, ward):
    images, labels = ward
    site = make_site(images, labels, values=VALUES)
    cohort = load_cohort(site, study)
    check_form(cohort.train)
    check_form(cohort.held_out)
    found = by_patient(cohort)
    vault = Vault.open(site.vault_key)
    assert len(found) == 30
    for patient in range(30):
        side, label, tensors = found[vault.pseudonym(f"P{patient}")]
        assert side == ("held_out" if is_held_out(KEY, f"P{patient}", 0.15) else "train")
        assert label == patient % 2
        assert tensors == {
            decode(io.BytesIO(content), study.input)[0].tobytes()
            for name, content in images.items()
            if name.startswith(f"{patient:02}/")
        }


def check_form(patients: PatientSet) -> None:
    """Assert what every set of patients promises."""
    assert patients.images.dtype == torch.float32
    assert patients.images.shape[1:] == (1, 28, 28)
    assert patients.image_patient.dtype == patients.labels.dtype == torch.int64
    assert len(patients) == len(patients.labels) == len(patients.patients)
    assert list(patients.patients) == sorted(patients.patients)
    owners = patients.image_patient.tolist()
    assert owners == sorted(owners)
    assert set(owners) == set(range(len(patients)))
    assert all(len(name) == 64 for name in patients.patients)


def test_neither_row_order_nor_file_names_nor_tags_matter(make_site, study, ward, dicom):
    images, labels = ward
    header, *rows = labels.splitlines()
    before = by_patient(load_cohort(make_site(images, labels, values=VALUES), study))
    renamed = {f"x{hash(name)}.dcm": dicom(picture_of(content)) for name, content in images.items()}
    rows = [row.replace(row.split(",")[0], f"x{hash(row.split(',')[0])}.dcm") for row in rows]
    table = "\n".join([header, *reversed(rows)])
    assert by_patient(load_cohort(make_site(renamed, table, values=VALUES), study)) == before


def picture_of(content: bytes) -> np.ndarray:
    return dcmread(io.BytesIO(content)).pixel_array


def test_a_new_patient_moves_nobody(make_site, study, ward, dicom):
    images, labels = ward
    before = by_patient(load_cohort(make_site(images, labels, values=VALUES), study))
    more = {**images, "new.dcm": dicom(picture(9))}
    after = by_patient(
        load_cohort(make_site(more, labels + "new.dcm,P99,1\n", values=VALUES), study)
    )
    assert len(after) == 31
    assert {name: after[name] for name in before} == before


def test_a_cohort_with_a_patient_on_both_sides_cannot_be_made():
    numbers = torch.zeros(1, dtype=torch.int64)
    someone = PatientSet(torch.zeros(1, 1, 28, 28), numbers, numbers, ("ab" * 32,))
    report = DataReport(
        study="s",
        digest="0" * 64,
        images_folder="",
        labels_table="",
        used_images=2,
        train={},
        held_out={},
        set_aside=(),
        other_files=0,
    )
    with pytest.raises(ValueError, match="both trained on and held out"):
        Cohort(someone, someone, report)


def test_what_the_table_gets_wrong_is_counted_and_listed(make_site, study, ward, tmp_path):
    images, labels = ward
    (tmp_path / "secret.dcm").write_bytes(images["00/0.dcm"])
    bad = {
        **images,
        "unlabelled.dcm": images["00/0.dcm"],
        "notes.txt": b"hello",
        "broken.dcm": images["01/0.dcm"][:600],
        "text.dcm": b"not DICOM at all",
        "twice.dcm": images["02/0.dcm"],
        "strange.dcm": images["03/0.dcm"],
    }
    table = labels + "\n".join(
        [
            "absent.dcm,Q1,1",
            "../secret.dcm,Q2,1",
            "broken.dcm,Q3,1",
            "text.dcm,Q4,0",
            "twice.dcm,P2,0",
            "twice.dcm,P2,0",
            "04/0.dcm,P4,1",  # the table says both 0 and 1
            "strange.dcm,P3,martian",
            ",Q5,1",
            "05/0.dcm",
        ]
    )
    cohort = load_cohort(make_site(bad, table, values=VALUES), study)
    assert reasons(cohort) == {
        Reason.MISSING_FILE: 1,
        Reason.OUTSIDE_FOLDER: 1,
        Reason.DAMAGED: 1,
        Reason.NOT_DICOM: 1,
        Reason.DUPLICATE_ROW: 1,
        Reason.CONFLICTING_ROWS: 2,
        Reason.CONTRADICTORY_LABELS: 1,
        Reason.CLASS_NOT_IN_STUDY: 1,
        Reason.INCOMPLETE_ROW: 2,
        Reason.NO_LABEL: 1,
    }
    said = "\n".join(describe_report(cohort.report))
    classes = ", ".join(map(repr, study.task.classes))
    assert f"labels found: 'martian' (1 x); the study has {classes}" in said
    line = {item.file: item.line for item in cohort.report.set_aside}
    assert line["absent.dcm"] == labels.count("\n") + 1
    assert line["unlabelled.dcm"] is None
    assert cohort.report.other_files == 1
    used = len(cohort.train.image_patient) + len(cohort.held_out.image_patient)
    assert cohort.report.used_images == used == len(images) + 1 - 2


def test_a_patient_with_contradictory_labels_loses_all_images(make_site, study, ward):
    images, labels = ward
    table = labels.replace("29/0.dcm,P29,1", "29/0.dcm,P29,0")
    cohort = load_cohort(make_site(images, table, values=VALUES), study)
    assert reasons(cohort) == {Reason.CONTRADICTORY_LABELS: 3}
    assert len(cohort.train) + len(cohort.held_out) == 29


def test_a_contradiction_in_a_row_whose_file_is_broken_counts_too(make_site, study, ward):
    images, labels = ward
    table = labels + "absent.dcm,P29,0\n"
    cohort = load_cohort(make_site(images, table, values=VALUES), study)
    assert reasons(cohort) == {Reason.CONTRADICTORY_LABELS: 3, Reason.MISSING_FILE: 1}


def test_a_table_without_patients_takes_them_from_the_images(make_site, study, dicom):
    images = {f"{n}.dcm": dicom(picture(n), PatientID=f"P{n // 2}") for n in range(40)}
    table = "file,label\n" + "".join(f"{n}.dcm,{n // 2 % 2}\n" for n in range(40))
    site = make_site(images, table, values=VALUES)
    found = by_patient(load_cohort(site, study))
    vault = Vault.open(site.vault_key)
    assert set(found) == {vault.pseudonym(f"P{n}") for n in range(20)}
    assert Counter(len(images) for _, _, images in found.values()) == {2: 20}


def test_images_of_nobody_are_set_aside_or_stand_for_a_patient_each(make_site, study, dicom):
    images = {f"{n}.dcm": dicom(picture(n), PatientID=" ") for n in range(20)}
    images |= {"known.dcm": dicom(picture(99), PatientID="P")}
    table = "file,label\nknown.dcm,0\n" + "".join(f"{n}.dcm,{n % 2}\n" for n in range(20))
    cohort = load_cohort(make_site(images, table, values=VALUES), study.model_copy())
    assert reasons(cohort) == {Reason.NO_PATIENT_ID: 20}
    settings = {"values": VALUES, "without_patient_id": "image-is-patient"}
    found = by_patient(load_cohort(make_site(images, table, **settings), study))
    assert len(found) == 21
    renamed = {f"new-{name}": content for name, content in images.items()}
    table = table.replace("known", "new-known").replace("\n", "\nnew-").replace("new-new-", "new-")
    again = by_patient(
        load_cohort(make_site(renamed, table.removesuffix("new-"), **settings), study)
    )
    assert again == found


@pytest.fixture
def ct_site(real_data, tmp_path):
    folder = real_data / "ct_contrast"
    columns = Columns(file="file", patient="patient_id", label="contrast")
    source = DataSource(
        images=folder / "dicom",
        labels=folder / "labels.csv",
        columns=columns,
        values={"0": "plain", "1": "contrast"},
    )
    policy = Policy(min_patients=5, min_patients_per_class=2)
    config = SiteConfig(name="CT", server=Server(address="x:1"), data=source, policy=policy)
    return Site(fix_split(tmp_path / "home"), config)


def test_the_real_ct_folder_loads_by_patient_and_without_a_leak(ct_site, real_data):
    study = Study(
        name="ct",
        task=Task(classes=("plain", "contrast")),
        input=Input(size=64, window=(40.0, 400.0), modalities=("CT",)),
        data=Data(held_out=0.3),
    )
    with (real_data / "ct_contrast" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    said: dict[str, set[str]] = {}
    for row in rows:
        said.setdefault(row["patient_id"], set()).add(row["contrast"])
    clear = {patient for patient, labels in said.items() if len(labels) == 1}

    cohort = load_cohort(ct_site, study)
    vault = Vault.open(ct_site.vault_key)
    for side, held in ((cohort.train, False), (cohort.held_out, True)):
        expected = [patient for patient in clear if is_held_out(KEY, patient, 0.3) == held]
        assert set(side.patients) == {vault.pseudonym(patient) for patient in expected}
        assert len(side.images) == sum(row["patient_id"] in expected for row in rows)
        spread = side.images.flatten(1).std(1)
        assert spread.min() > 0.2  # no slice lost its contrast to padding or an odd slope
    assert reasons(cohort) == {
        Reason.CONTRADICTORY_LABELS: sum(row["patient_id"] not in clear for row in rows)
    }
