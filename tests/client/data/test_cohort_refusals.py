"""When there is not enough to go on with: numbers for the site, a report, no half results."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from client.data.cohort import load_cohort
from client.data.folder import list_folder
from client.data.reasons import Reason
from client.data.report import describe_report
from client.data.worker import DecodeWorker
from client.judge import check_size, doubts
from client.site import Policy
from shared.errors import DataError
from shared.study import Input


def ward(dicom, patients: int, ill: int) -> tuple[dict[str, bytes], str]:
    rng = np.random.default_rng(0)
    images = {
        f"{n}.dcm": dicom(rng.integers(0, 4096, (28, 28)).astype(np.uint16))
        for n in range(patients)
    }
    rows = [f"{n}.dcm,P{n},{'ill' if n < ill else 'healthy'}" for n in range(patients)]
    return images, "\n".join(["file,patient,label", *rows])


def said(site, study):
    """What speaks against approving the study here; the cohort is read whatever it is."""
    found = doubts(load_cohort(site, study), study, site.config.policy)
    return [(doubt.condition, doubt.what) for doubt in found]


def test_too_few_patients_for_the_policy_are_told_to_a_person(make_site, study, dicom):
    policy = Policy(min_patients=12, min_patients_per_class=0)
    site = make_site(*ward(dicom, 10, 5), policy=policy)
    train = len(load_cohort(site, study).train)
    expected = f"{train} patients to train on; policy.min_patients is 12"
    assert said(site, study) == [("min-patients", expected)]
    assert len(list(site.reports.iterdir())) == 2


def test_too_few_patients_of_a_class_are_told_to_a_person(make_site, study, dicom):
    policy = Policy(min_patients=1, min_patients_per_class=4)
    ((condition, what),) = said(make_site(*ward(dicom, 20, 1), policy=policy), study)
    assert condition == "min-patients-per-class"
    assert "patients of class 'ill' to train on; policy.min_patients_per_class is 4" in what


@pytest.mark.parametrize("most", [0.24, 0.25])
def test_too_large_a_part_set_aside_is_told_with_the_numbers(make_site, study, dicom, most):
    images, labels = ward(dicom, 20, 10)
    broken = {f"{n}.dcm": b"broken" for n in range(5)}
    policy = Policy(min_patients=1, min_patients_per_class=0, max_set_aside=most)
    what = f"5 of 20 labelled images are set aside; policy.max_set_aside is {most:.0%}"
    expected = [("set-aside", what)] if most < 0.25 else []
    assert said(make_site(images | broken, labels, policy=policy), study) == expected


def test_repeated_rows_and_unlabelled_images_are_no_loss(make_site, study, dicom):
    images, labels = ward(dicom, 20, 10)
    images["9.dcm"] = b"broken"
    labels = "\n".join([*labels.splitlines()[:11], labels.splitlines()[1]])
    policy = Policy(min_patients=1, min_patients_per_class=0, max_set_aside=0.1)
    report = load_cohort(make_site(images, labels, policy=policy), study).report
    assert (report.labelled, report.lost, len(report.set_aside)) == (10, 1, 12)


def test_no_readable_image_is_one_line_that_names_the_main_reason(make_site, study):
    table = "file,patient,label\na.dcm,P,ill\nb.dcm,Q,ill\nc.dcm,R,ill\n"
    for files, rows, why in (
        ({"a.dcm": b"no DICOM"}, table, "; most often: missing-file"),
        ({}, "file,patient,label\n", ""),
    ):
        cohort = load_cohort(make_site(files, rows), study)
        assert cohort.patients == 0
        with pytest.raises(DataError, match=f"no image can be used{why}") as error:
            check_size(study, 20, cohort)
        assert "\n" not in str(error.value)


@contextmanager
def without_privileges():
    """Lay down root's right to read everything, if the tests have it."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def public_folder():
    """A folder that everyone can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        ("images", "cannot read the images folder: Permission denied"),
        ("labels.csv", "cannot read the labels table: Permission denied"),
    ],
)
def test_no_right_to_read_folder_or_table_is_one_clear_line(
    public_folder, make_site, study, closed, said
):
    (public_folder / "images").mkdir()
    (public_folder / "labels.csv").write_text("file,label\n")
    (public_folder / closed).chmod(0)
    source = {"images": public_folder / "images", "labels": public_folder / "labels.csv"}
    site = make_site({}, "", **source)
    with without_privileges(), pytest.raises(DataError, match=said) as error:
        load_cohort(site, study)
    assert "access rights" in str(error.value)


def test_no_right_to_read_one_file_or_subfolder_is_told(public_folder, dicom):
    content = next(iter(ward(dicom, 1, 0)[0].values()))
    for name in ("good.dcm", "closed.dcm"):
        (public_folder / name).write_bytes(content)
    (public_folder / "closed.dcm").chmod(0)
    (public_folder / "closed").mkdir(mode=0)
    with DecodeWorker(Input(size=28), seconds=60, memory_mb=256) as worker:
        assert worker.decode(str(public_folder / "good.dcm")).reason is None
        with without_privileges():
            folder = list_folder(public_folder)
            closed = worker.decode(str(public_folder / "closed.dcm"))
    assert closed.reason == Reason.UNREADABLE_FILE
    assert [folder.relative(path) for path in folder.unreadable] == ["closed"]
    assert len(folder.files) == 2


def test_missing_columns_are_one_clear_line(make_site, study, dicom):
    images, labels = ward(dicom, 3, 1)
    with pytest.raises(DataError, match="no columns 'label'"):
        load_cohort(make_site(images, labels.replace("label", "diagnosis")), study)


def test_the_report_is_for_local_eyes_and_says_what_to_do(make_site, study, dicom):
    images, labels = ward(dicom, 20, 10)
    images["0.dcm"] = b"broken"
    site = make_site(images, labels + "\nbad\x1b[31m\nname.dcm,P99,ill")
    report = load_cohort(site, study).report
    paths = sorted(site.reports.iterdir())
    assert [path.suffix for path in paths] == [".json", ".txt"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    facts = json.loads(paths[0].read_text())
    assert facts["used_images"] == 19
    said = {"file": "0.dcm", "line": 2, "reason": "not-dicom", "label": ""}
    assert said in facts["set_aside"]
    text = paths[1].read_text()
    assert text.splitlines() == describe_report(report)
    assert "19 images of 19 patients can be used; 3 of 22 labelled images are set aside" in text
    assert "1 x not-dicom: not a DICOM file, or an empty one; export it again" in text
    assert "\x1b" not in text
    assert "P99" not in text + paths[0].read_text()
