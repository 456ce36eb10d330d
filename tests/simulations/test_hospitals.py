"""What a reader finds in the DICOM files and tables of a made-up hospital."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import gdcm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID

from shared.errors import DataError
from simulations.hospitals import (
    Defects,
    HospitalFolder,
    Patient,
    default_hospitals,
    shares,
    split_counts,
    write_hospital,
)
from simulations.scanners import DIGITAL_X_RAY, SCANNERS, SECONDARY_CAPTURE, Scanner

EVERY_GREY = np.arange(256, dtype=np.float32).reshape(32, 8) / np.float32(255)


def write(path: Path, patients: list[Patient], defects: Defects | None = None) -> HospitalFolder:
    return write_hospital(
        path,
        patients,
        classes=("a", "b"),
        size=32,
        channels=1,
        sop_class=DIGITAL_X_RAY,
        seed=3,
        defects=defects,
    )


def rows_of(folder: HospitalFolder) -> list[dict[str, str]]:
    with folder.labels.open(newline="") as table:
        return list(csv.DictReader(table))


def displayed(file: Path) -> np.ndarray:
    """What a viewer shows, 0 black to 1 white, by pydicom's own modality and VOI transforms."""
    data = dcmread(file)
    values = apply_modality_lut(data.pixel_array, data)
    # The output range of pydicom's window follows from slope and intercept; ask it for the ends.
    top = (1 << data.BitsStored) - 1
    ends = apply_modality_lut(np.array([0, top], dtype=data.pixel_array.dtype), data)
    shown = (apply_voi_lut(values, data) - ends[0]) / (ends[1] - ends[0])
    return 1 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown


def patients(count: int, scanner: Scanner = SCANNERS[0]) -> list[Patient]:
    """Patients with 1 to 3 images; every second one has no age."""
    rng = np.random.default_rng(0)
    return [
        Patient(
            f"P{n}",
            "ab"[n % 2],
            list(rng.random((1 + n % 3, 20, 16), np.float32)),
            scanner,
            sex="F",
            age=None if n % 2 else 40 + n,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda s: f"{s.photometric}-{s.bits}")
def test_the_window_shows_every_grey_exactly(tmp_path: Path, scanner: Scanner) -> None:
    folder = write(tmp_path / "h", [Patient("P", "a", [EVERY_GREY], scanner)])
    [file] = folder.images.iterdir()
    np.testing.assert_allclose(displayed(file), EVERY_GREY, atol=1e-6)


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda s: f"{s.photometric}-{s.bits}")
def test_another_library_reads_the_same_pixels(tmp_path: Path, scanner: Scanner) -> None:
    folder = write(tmp_path / "h", patients(1, scanner))
    [file] = folder.images.iterdir()
    reader = gdcm.ImageReader()
    reader.SetFileName(str(file))
    assert reader.Read()
    ours = dcmread(file)
    raw = reader.GetImage().GetBuffer().encode("utf-8", errors="surrogateescape")
    theirs = np.frombuffer(raw, ours.pixel_array.dtype).reshape(ours.pixel_array.shape)
    np.testing.assert_array_equal(theirs, ours.pixel_array)
    assert ours.file_meta.TransferSyntaxUID == scanner.syntax
    assert ours.PhotometricInterpretation == scanner.photometric
    assert (ours.BitsStored, ours.HighBit) == (scanner.bits, scanner.bits - 1)
    assert ours.RescaleSlope == scanner.slope


def test_exposure_adds_gain_offset_and_noise_and_stays_in_range() -> None:
    scanner = Scanner(gain=0.5, offset=0.25, noise=0.02)
    images = np.full((4, 100, 100), 0.4, np.float32)
    shot = scanner.expose(images, np.random.default_rng(0))
    assert shot.mean() == pytest.approx(0.45, abs=1e-3)
    assert shot.std() == pytest.approx(0.02, rel=0.02)
    bright = replace(scanner, gain=3.0).expose(images, np.random.default_rng(0))
    assert bright.max() == 1.0
    assert shot.dtype == np.float32


REQUIRED = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "SeriesNumber",
    "Laterality",
    "PresentationIntentType",
    "Manufacturer",
    "InstanceNumber",
    "PatientOrientation",
    "ImageType",
    "ImageLaterality",
    "AnatomicRegionSequence",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PresentationLUTShape",
    "LossyImageCompression",
    "BurnedInAnnotation",
    "WindowCenter",
    "WindowWidth",
    "DetectorType",
    "ImagerPixelSpacing",
    "AcquisitionContextSequence",
]


def test_files_carry_what_a_dx_file_must_and_one_patient_does_not_lend_another(
    tmp_path: Path,
) -> None:
    given_patients = patients(6)
    folder = write(tmp_path / "h", given_patients)
    seen: dict[str, list[Dataset]] = {}
    for row in rows_of(folder):
        data = dcmread(folder.images / row["file"])
        assert row["patient"] == data.PatientID
        assert not [keyword for keyword in REQUIRED if keyword not in data]
        assert data.SOPClassUID == data.file_meta.MediaStorageSOPClassUID == DIGITAL_X_RAY
        assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID
        seen.setdefault(row["patient"], []).append(data)
    for patient in given_patients:
        own = seen[patient.id]
        assert len(own) == len(patient.images)
        assert len({data.StudyInstanceUID for data in own}) == 1
        ages = {data.get("PatientAge") for data in own}
        assert ages == {None if patient.age is None else f"{patient.age:03d}Y"}
    every = [data for own in seen.values() for data in own]
    uids = [str(data.SOPInstanceUID) for data in every]
    assert len(set(uids)) == len(uids)
    assert len({str(data.StudyInstanceUID) for data in every}) == len(given_patients)
    assert all(UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)


def test_defects_are_there_and_everything_else_is_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "h", patients(12), Defects(truncated=2, unlabelled=3, missing=4))
    total = sum(1 + n % 3 for n in range(12))
    files = {file.name for file in folder.images.iterdir()}
    rows = {row["file"] for row in rows_of(folder)}
    assert len(rows - files) == 4
    assert len(files - rows) == 3
    assert len(files | rows) == total
    broken = []
    for name in files:
        try:
            assert dcmread(folder.images / name).pixel_array.shape == (20, 16)
        except ValueError:
            broken.append(name)
    assert len(broken) == 2
    assert set(broken) <= rows
    assert folder.notes == (
        f"{total} images",
        "2 truncated files",
        "3 images without a label",
        "4 labels without an image",
    )


def test_colour_is_stored_as_rgb_without_loss(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    image = colours.astype(np.float32) / np.float32(255)
    for number, scanner in enumerate(SCANNERS):
        folder = write_hospital(
            tmp_path / str(number),
            [Patient("P", "a", [image], scanner)],
            classes=("a",),
            size=28,
            channels=3,
            sop_class=SECONDARY_CAPTURE,
            seed=0,
        )
        [file] = folder.images.iterdir()
        data = dcmread(file)
        assert data.PhotometricInterpretation == "RGB"
        assert data.Modality == "OT"
        np.testing.assert_array_equal(data.pixel_array, colours)


def test_a_folder_that_exists_is_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "h", patients(1))
    with pytest.raises(DataError, match="cannot write the images: File exists") as caught:
        write(tmp_path / "h", patients(1))
    assert "\n" not in str(caught.value)


def test_three_sites_share_60_30_10() -> None:
    assert [spec.patients for spec in default_hospitals(3, 1200)] == [720, 360, 120]
    assert shares(1) == [1.0]


@given(sites=st.integers(1, 50), extra=st.integers(0, 5000))
def test_any_number_of_sites_gets_every_patient_once(sites: int, extra: int) -> None:
    specs = default_hospitals(sites, 20 * sites + extra)
    assert sum(spec.patients for spec in specs) == 20 * sites + extra
    parts = shares(sites)
    assert sum(parts) == pytest.approx(1)
    assert parts == sorted(parts, reverse=True)
    assert parts[0] <= 6.001 * parts[-1]
    assert len({spec.name for spec in specs}) == sites


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 1), min_size=1, max_size=50))
def test_split_counts_sum_and_follow_the_proportions(total: int, parts: list[float]) -> None:
    counts = split_counts(total, parts)
    assert sum(counts) == total
    for count, part in zip(counts, parts, strict=True):
        assert abs(count - total * part / sum(parts)) <= 1 + 1e-6


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        default_hospitals(10, 12)
    with pytest.raises(ValueError, match="at least one site"):
        shares(0)
