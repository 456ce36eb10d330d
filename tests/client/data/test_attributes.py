"""Subgroups of patients, from the attributes of their images."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.dataset import Dataset

from client.data.attributes import image_cells, patient_cell
from client.data.cohort import load_cohort
from client.data.images import cache_key
from client.data.pixels import decode
from client.data.worker import DecodeWorker
from client.site import Site, SiteConfig
from client.vault import Vault
from shared.study import Study
from shared.subgroups import CELLS
from simulations.hospitals import HospitalFolder
from simulations.phantoms import make_phantoms

GROUPINGS = ("sex", "age", "scanner")
Build = Callable[..., bytes]


def cells(**tags: str) -> list[str]:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    found = image_cells(dataset, GROUPINGS)
    return [CELLS[name][cell] for name, cell in zip(GROUPINGS, found, strict=True)]


def test_what_an_image_states() -> None:
    stated = {"PatientSex": "F", "PatientAge": "064Y", "Manufacturer": "SIEMENS Healthineers"}
    assert cells(**stated) == ["F", "40-64", "Siemens"]
    assert cells() == ["other", "unknown", "other"]
    assert cells(PatientSex="O", PatientAge="011M", Manufacturer="Acme") == [
        "other",
        "0-17",
        "other",
    ]


@pytest.mark.parametrize(
    ("birth", "study", "band"),
    [
        ("19600301", "20250228", "40-64"),  # 64: the birthday is on the next day
        ("19600301", "20250301", "65-79"),
        ("19600301", "", "unknown"),
        ("19600230", "20250228", "unknown"),
        ("20250301", "20250228", "unknown"),  # not born yet
    ],
)
def test_the_age_follows_from_birth_where_it_is_not_stated(
    birth: str, study: str, band: str
) -> None:
    assert cells(PatientBirthDate=birth, StudyDate=study)[1] == band
    assert cells(PatientBirthDate=birth, StudyDate=study, PatientAge="018Y")[1] == "18-39"


def test_a_patients_images_must_not_contradict_each_other() -> None:
    female, male, other = (CELLS["sex"].index(cell) for cell in ("F", "M", "other"))
    assert patient_cell("sex", [female, female]) == female
    assert patient_cell("sex", [female, other]) == female
    assert patient_cell("sex", [female, male]) == other
    assert patient_cell("sex", [other, other]) == other


def test_nonsense_in_an_attribute_does_not_set_the_image_aside(
    dicom: Build, ramp: np.ndarray, study: Study
) -> None:
    good = dicom(ramp, PatientSex="M", PatientAge="030Y", Manufacturer="GE MEDICAL")
    for old, new in ((b"030Y", b"\xff\x00,x"), (b"GE MEDICAL", b"\\\xfe\\" * 3 + b" ")):
        broken = good.replace(old, new)
        assert broken != good
        image, _, found = decode(io.BytesIO(broken), study.input, groupings=GROUPINGS)
        assert np.array_equal(image, decode(io.BytesIO(good), study.input)[0])
        assert CELLS["sex"][found[0]] == "M"


def test_the_decoding_process_tells_the_cells_and_nothing_unasked(
    tmp_path: Path, dicom: Build, ramp: np.ndarray, study: Study
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(ramp, PatientSex="M", PatientAge="030Y", Manufacturer="GE"))
    with DecodeWorker(study.input, seconds=60, memory_mb=512, groupings=GROUPINGS) as worker:
        asked = worker.decode(str(path))
        (tmp_path / "b.dcm").write_bytes(b"no image")
        assert worker.decode(str(tmp_path / "b.dcm")).cells == ()
        assert worker.decode(str(path)).cells == asked.cells
    assert asked.cells == (CELLS["sex"].index("M"), CELLS["age"].index("18-39"), 0)
    with DecodeWorker(study.input, seconds=60, memory_mb=512) as worker:
        plain = worker.decode(str(path))
    assert plain.cells == ()
    assert np.array_equal(plain.image, asked.image)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> HospitalFolder:
    return make_phantoms(tmp_path_factory.mktemp("p"), sites=1, patients=80, test_patients=2)[0]


@pytest.fixture
def loaded(phantoms: HospitalFolder, tmp_path: Path) -> tuple[Site, Study]:
    """A site whose images are phantoms, and a study by sex and age."""
    values = {
        "name": "A",
        "server": {"address": "localhost:1"},
        "data": {"images": phantoms.images, "labels": phantoms.labels},
    }
    study = {
        "name": "s",
        "task": {"classes": phantoms.classes},
        "input": {"size": 28},
        "privacy": {"subgroups": ["age", "sex"]},
    }
    return Site(tmp_path, SiteConfig.model_validate(values)), Study.model_validate(study)


def band(age: str) -> str:
    limits = (("0-17", 18), ("18-39", 40), ("40-64", 65), ("65-79", 80), ("80+", 999))
    return next((name for name, end in limits if age and int(age[:3]) < end), "unknown")


def test_a_cohort_knows_its_subgroups_with_and_without_the_cache(
    loaded: tuple[Site, Study], phantoms: HospitalFolder
) -> None:
    cohorts = [load_cohort(*loaded), load_cohort(*loaded)]
    vault = Vault.open(loaded[0].vault_key)
    expected = {}
    with phantoms.labels.open() as table:
        for row in csv.DictReader(table):
            if (path := phantoms.images / row["file"]).exists():
                image = dcmread(path, specific_tags=["PatientSex", "PatientAge"], force=True)
                cells = (band(str(image.get("PatientAge") or "")), str(image.get("PatientSex")))
                expected[vault.pseudonym(row["patient"])] = cells
    for cohort in cohorts:
        for side in (cohort.train, cohort.held_out):
            assert tuple(side.groups) == ("age", "sex")
            found = zip(*(side.groups[name].tolist() for name in side.groups), strict=True)
            for pseudonym, (age, sex) in zip(side.patients, found, strict=True):
                assert (CELLS["age"][age], CELLS["sex"][sex]) == expected[pseudonym]
    assert len(set(expected.values())) > 6


def test_patients_that_stay_keep_their_own_cells(loaded: tuple[Site, Study]) -> None:
    everyone = load_cohort(*loaded).train
    stays = everyone.groups["sex"] == 0
    some = everyone.only(stays)
    assert len(some) == int(stays.sum())
    assert not some.groups["sex"].any()
    where = [everyone.patients.index(name) for name in some.patients]
    for name, own in some.groups.items():
        assert own.tolist() == everyone.groups[name][where].tolist()
    for mine, before in enumerate(where):
        theirs = everyone.images[everyone.image_patient == before]
        assert torch.equal(some.images[some.image_patient == mine], theirs)
    assert some.labels.tolist() == everyone.labels[where].tolist()


def test_the_cache_of_other_subgroups_does_not_serve(loaded: tuple[Site, Study]) -> None:
    site, study = loaded
    choices: list[tuple[str, ...]] = [(), ("sex",), ("age",), ("sex", "age"), ("age", "sex")]
    keys = {cache_key([], study.input, site.config, groupings) for groupings in choices}
    assert len(keys) == len(choices)
