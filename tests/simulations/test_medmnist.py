"""A MedMNIST file as hospitals' folders: nothing lost, nothing twice, nothing odd accepted."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut

from shared.errors import DataError
from simulations.hospitals import HospitalFolder
from simulations.medmnist import read_medmnist, write_medmnist

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(shape: tuple[int, ...] = (9, 9), seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for part, count in (("train", 60), ("val", 20), ("test", 15)):
        made[f"{part}_images"] = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
        made[f"{part}_labels"] = rng.integers(0, 2, (count, 1)).astype(np.uint8)
    return made


def save(folder: Path, content: Arrays) -> Path:
    np.savez(folder / "set.npz", **content)
    return folder / "set.npz"


def read_back(folder: HospitalFolder) -> list[tuple[bytes, str, str]]:
    """Original 8-bit pixels, patient and label of every file, by the window formula of PS3.3."""
    found = []
    with folder.labels.open(newline="") as table:
        for row in csv.DictReader(table):
            data = dcmread(folder.images / row["file"])
            pixels = data.pixel_array
            if data.SamplesPerPixel == 1:
                values = apply_modality_lut(pixels, data)
                centre, width = float(data.WindowCenter), float(data.WindowWidth)
                shown = ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255
                shown = 255 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown
                pixels = np.rint(shown).astype(np.uint8)
                np.testing.assert_allclose(shown, pixels, atol=1e-4)
            assert data.PatientID == row["patient"]
            found.append((pixels.tobytes(), row["patient"], row["label"]))
    return found


def expected(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> list[tuple[bytes, str]]:
    pairs = zip(images, labels.ravel(), strict=True)
    return sorted((image.tobytes(), f"class-{label}") for image, label in pairs)


@pytest.mark.parametrize("shape", [(9, 9), (10, 9, 3)], ids=["grey", "colour"])
def test_every_image_arrives_once_with_its_label(tmp_path: Path, shape: tuple[int, ...]) -> None:
    content = arrays(shape)
    *hospitals, test = write_medmnist(tmp_path / "out", save(tmp_path, content))
    assert [folder.patients for folder in hospitals] == [48, 24, 8]
    assert [folder.name for folder in (*hospitals, test)][2:] == ["hospital-3", "test"]
    found = [entry for folder in hospitals for entry in read_back(folder)]
    pool = [np.concatenate([content[f"{p}_{k}"] for p in ("train", "val")]) for k in KINDS]
    assert sorted((pixels, label) for pixels, _, label in found) == expected(*pool)
    tested = read_back(test)
    assert sorted((pixels, label) for pixels, _, label in tested) == expected(
        content["test_images"], content["test_labels"]
    )
    ids = [patient for _, patient, _ in (*found, *tested)]
    assert len(set(ids)) == len(ids) == 95
    assert test.channels == (3 if len(shape) == 3 else 1)
    assert test.size == 28
    assert test.classes == ("class-0", "class-1")


KINDS = ("images", "labels")


def test_hospitals_store_in_different_lossless_ways(tmp_path: Path) -> None:
    folders = write_medmnist(tmp_path / "out", save(tmp_path, arrays()))
    ways = []
    for folder in folders[:3]:
        data = dcmread(next(folder.images.iterdir()))
        ways.append((data.PhotometricInterpretation, data.BitsStored, data.RescaleSlope == 1))
        if folder.name == "hospital-3":
            assert data.file_meta.TransferSyntaxUID.name == "RLE Lossless"
    assert ways == [("MONOCHROME1", 10, True), ("MONOCHROME2", 12, False), ("MONOCHROME2", 8, True)]


def test_doubles_are_removed_and_counted(tmp_path: Path) -> None:
    content = arrays()
    train, labels = content["train_images"], content["train_labels"]
    train[1] = train[0]  # a plain copy
    labels[1] = labels[0]
    content["val_images"][3] = train[0]  # and one more in the other part
    content["val_labels"][3] = labels[0]
    train[5] = train[4]  # a copy that disagrees
    labels[5] = 1 - labels[4]
    train[7] = content["test_images"][2]
    train[8] = content["test_images"][2]
    data = read_medmnist(save(tmp_path, content))
    assert (data.duplicates, data.contradictory, data.in_test) == (2, 2, 2)
    assert len(data.hospitals) == 80 - 6
    assert len(data.test) == 15
    kept = {image.tobytes() for image in data.hospitals.images}
    assert len(kept) == 74
    assert train[4].tobytes() not in kept
    assert not kept & {image.tobytes() for image in data.test.images}


def test_same_seed_same_bytes_other_seed_other_deal(tmp_path: Path) -> None:
    npz = save(tmp_path, arrays())

    def files(name: str, seed: int) -> dict[str, bytes]:
        write_medmnist(tmp_path / name, npz, seed=seed)
        found = sorted((tmp_path / name).rglob("*.*"))
        return {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in found}

    assert files("a", 1) == files("b", 1)
    assert files("c", 2) != files("a2", 1)


def test_class_names_are_used_in_the_table(tmp_path: Path) -> None:
    npz = save(tmp_path, arrays())
    folders = write_medmnist(tmp_path / "out", npz, classes=("normal", "pneumonia"))
    assert {label for _, _, label in read_back(folders[0])} == {"normal", "pneumonia"}
    with pytest.raises(DataError, match="2 classes but 1 names"):
        write_medmnist(tmp_path / "other", npz, classes=("normal",))


def without(key: str) -> Arrays:
    return {name: values for name, values in arrays().items() if name != key}


BAD = {
    "missing key": (without("val_labels"), "lacks val_labels"),
    "float images": (
        {**arrays(), "train_images": np.zeros((60, 9, 9), np.float32)},
        "train_images must be uint8",
    ),
    "four channels": (
        {**arrays(), "test_images": np.zeros((15, 9, 9, 4), np.uint8)},
        "test_images must be uint8",
    ),
    "no images": ({**arrays(), "val_images": np.zeros((0, 9, 9), np.uint8)}, "val_images"),
    "multi-label": (
        {**arrays(), "train_labels": np.zeros((60, 14), np.uint8)},
        "several labels an image",
    ),
    "label count": (
        {**arrays(), "val_labels": np.zeros((19, 1), np.uint8)},
        "one whole number an image",
    ),
    "float labels": (
        {**arrays(), "val_labels": np.zeros((20, 1))},
        "one whole number an image",
    ),
    "negative label": (
        {**arrays(), "val_labels": np.full((20, 1), -1)},
        "must lie in 0 to 19",
    ),
    "many classes": (
        {**arrays(), "val_labels": np.full((20, 1), 20)},
        "must lie in 0 to 19",
    ),
    "shapes differ": (
        {**arrays(), "test_images": np.zeros((15, 8, 9), np.uint8)},
        "differ in shape",
    ),
    "pickled": (
        {**arrays(), "train_images": np.array([{"a": 1}] * 60, dtype=object)},
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_of_another_layout_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        write_medmnist(tmp_path / "out", save(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "set.npz"
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_medmnist(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_medmnist(tmp_path / "absent.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        read_medmnist(tmp_path / "array.npy")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "packed.npz"
    np.savez_compressed(file, **arrays())
    content = bytearray(file.read_bytes())
    content[200:1200] = bytes(1000)
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_medmnist(file)


def test_more_sites_than_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="80 images are too few for 300 sites"):
        write_medmnist(tmp_path / "out", save(tmp_path, arrays()), sites=300)


def test_known_traps_of_the_real_files(real_data: Path) -> None:
    pneumonia = read_medmnist(real_data / "pneumoniamnist.npz")
    with np.load(real_data / "pneumoniamnist.npz") as file:
        pool = np.concatenate([file["train_images"], file["val_images"]]).reshape(-1, 784)
    assert len(pneumonia.hospitals) == len(np.unique(pool, axis=0))
    assert pneumonia.duplicates == len(pool) - len(pneumonia.hospitals) > 0
    assert len(pneumonia.test) == 624
    breast = read_medmnist(real_data / "breastmnist.npz")
    assert (breast.in_test, breast.duplicates, len(breast.hospitals)) == (1, 0, 623)


def test_real_images_come_back_unchanged(tmp_path: Path, real_data: Path) -> None:
    folders = write_medmnist(tmp_path / "out", real_data / "breastmnist.npz")
    with np.load(real_data / "breastmnist.npz") as file:
        test = expected(file["test_images"], file["test_labels"])
    assert sorted((pixels, label) for pixels, _, label in read_back(folders[-1])) == test
