"""Writes a MedMNIST file out as hospitals' DICOM folders, losslessly."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError
from simulations.hospitals import HospitalFolder, Patient, shares, split_counts, write_hospital
from simulations.scanners import SECONDARY_CAPTURE, Scanner, scanner

MOST_CLASSES = 20


@dataclass(frozen=True)
class Pool:
    """Images of one part of the file.

    Attributes:
        images: uint8 [n, rows, columns] or [n, rows, columns, 3].
        labels: int64 [n], or [n, findings] where an image has several.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: NDArray[Any]) -> Pool:
        return Pool(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class MedMnist:
    """What a MedMNIST file holds once its doubles are removed.

    Attributes:
        hospitals: Images of the training and validation parts, for the hospitals.
        test: The test part, whole, so that results compare with published ones.
        duplicates: Further copies of an image that were removed from the hospitals' part.
        contradictory: Images removed there because copies carried different labels.
        in_test: Images removed there because the test part has them too.
    """

    hospitals: Pool
    test: Pool
    duplicates: int
    contradictory: int
    in_test: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, a clause each."""
        told = {
            "copies of an image removed from the hospitals": self.duplicates,
            "images with contradictory labels removed from the hospitals": self.contradictory,
            "images of the test part removed from the hospitals": self.in_test,
        }
        return (
            "one image stands in for one patient",
            *(f"{count} {what}" for what, count in told.items() if count),
        )


def write_medmnist(
    folder: Path, npz: Path, *, sites: int = 3, seed: int = 0, classes: Sequence[str] = ()
) -> list[HospitalFolder]:
    """Deal the images of a MedMNIST file to hospitals at random and write them as DICOM.

    The hospitals store in different ways (MONOCHROME1, 12 bits with a rescale slope, RLE), all
    lossless: the file's window maps grey 0 to 255 onto exactly 0 to 1. The file has no patient
    ids, so one image is one stand-in patient.

    Args:
        folder: Where to make `hospital-1`, `hospital-2`, ... and `test`.
        npz: The file, with train, val and test images and labels.
        sites: Number of hospitals.
        seed: The same seed gives the same bytes.
        classes: Names of the classes 0, 1, ...; default `class-0`, `class-1`, ...

    Returns:
        The hospitals, largest first, then the test folder.

    Raises:
        DataError: The file is not of this layout, has several labels an image, or fewer images
            than sites; or the folder cannot be written.
    """
    data = read_medmnist(npz)
    found = int(max(data.hospitals.labels.max(initial=0), data.test.labels.max(initial=0))) + 1
    names = tuple(classes) or tuple(f"class-{index}" for index in range(found))
    if len(names) < found:
        raise DataError(f"{found} classes but {len(names)} names", str(npz), "Name every class")
    counts = split_counts(len(data.hospitals), shares(sites))
    if min(counts) < 1:
        raise DataError(
            f"{len(data.hospitals)} images are too few for {sites} sites", str(npz), "Fewer sites"
        )
    rng = np.random.default_rng(seed)
    dealt = data.hospitals[rng.permutation(len(data.hospitals))]
    parts = np.split(np.arange(len(dealt)), np.cumsum(counts)[:-1])
    hospitals = [
        (f"hospital-{index + 1}", dealt[part], part, _lossless(scanner(index)))
        for index, part in enumerate(parts)
    ]
    numbers = np.arange(len(data.test)) + len(dealt)
    test = ("test", data.test[rng.permutation(len(data.test))], numbers, Scanner())
    side = max(data.test.images.shape[1:3])
    return [
        write_hospital(
            folder / name,
            _patients(pool, numbers, store, names),
            classes=names,
            size=min(max(side, 28), 256),
            channels=1 if pool.images.ndim == 3 else 3,
            sop_class=SECONDARY_CAPTURE,
            seed=seed,
            notes=data.notes,
        )
        for name, pool, numbers, store in (*hospitals, test)
    ]


def read_medmnist(npz: Path, *, several: bool = False) -> MedMnist:
    """Read and check a MedMNIST file, and remove what occurs twice.

    Args:
        npz: The file.
        several: Whether an image may have several labels, each 0 or 1.

    Raises:
        DataError: The file cannot be read or is not of this layout.
    """
    train, val, test = _read_pools(npz, several)
    pool = Pool(
        np.concatenate([train.images, val.images]), np.concatenate([train.labels, val.labels])
    )
    tested = {image.tobytes() for image in test.images}
    in_test = np.array([image.tobytes() in tested for image in pool.images], dtype=bool)
    left = pool[~in_test]
    labels_of: dict[bytes, set[bytes]] = {}
    first = np.zeros(len(left), dtype=bool)
    for index, (image, label) in enumerate(zip(left.images, left.labels, strict=True)):
        key = image.tobytes()
        first[index] = key not in labels_of
        labels_of.setdefault(key, set()).add(label.tobytes())
    agreed = np.array([len(labels_of[image.tobytes()]) == 1 for image in left.images], dtype=bool)
    return MedMnist(
        hospitals=left[first & agreed],
        test=test,
        duplicates=int((~first & agreed).sum()),
        contradictory=int((~agreed).sum()),
        in_test=int(in_test.sum()),
    )


def _read_pools(npz: Path, several: bool) -> tuple[Pool, Pool, Pool]:
    parts = ("train", "val", "test")
    keys = [f"{part}_{kind}" for part in parts for kind in ("images", "labels")]
    try:
        with np.load(npz, allow_pickle=False) as file:
            if missing := [key for key in keys if key not in file]:
                raise _refusal(npz, f"the file lacks {', '.join(missing)}")
            arrays = {key: file[key] for key in keys}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, BadZipFile, zlib.error):
        raise _refusal(npz, "the file cannot be read as .npz") from None
    train, val, test = (
        Pool(_images(npz, arrays, part), _labels(npz, arrays, part, several)) for part in parts
    )
    if not train.images.shape[1:] == val.images.shape[1:] == test.images.shape[1:]:
        raise _refusal(npz, "the images of the three parts differ in shape")
    return train, val, test


def _images(npz: Path, arrays: dict[str, NDArray[Any]], part: str) -> NDArray[np.uint8]:
    images = arrays[f"{part}_images"]
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not grey_or_colour or 0 in images.shape:
        raise _refusal(
            npz, f"{part}_images must be uint8 [n, rows, columns] or [n, rows, columns, 3]"
        )
    return images


def _labels(
    npz: Path, arrays: dict[str, NDArray[Any]], part: str, several: bool
) -> NDArray[np.int64]:
    labels, count = arrays[f"{part}_labels"], len(arrays[f"{part}_images"])
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _several_labels(npz, labels, count, part, several)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise _refusal(npz, f"{part}_labels must be one whole number an image")
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise _refusal(npz, f"{part}_labels must lie in 0 to {MOST_CLASSES - 1}")
    return labels.reshape(-1).astype(np.int64)


def _several_labels(
    npz: Path, labels: NDArray[Any], count: int, part: str, several: bool
) -> NDArray[np.int64]:
    if not several:
        raise _refusal(npz, f"{part}_labels has several labels an image")
    right = labels.dtype.kind in "iu" and len(labels) == count and labels.shape[1] <= MOST_CLASSES
    if not right or not np.isin(labels, (0, 1)).all():
        raise _refusal(
            npz, f"several labels an image must be 0 or 1, at most {MOST_CLASSES} of them"
        )
    return labels.astype(np.int64)


def _refusal(npz: Path, what: str) -> DataError:
    return DataError(what, str(npz), "Give a MedMNIST .npz of a task with one label an image")


def _lossless(hospital: Scanner) -> Scanner:
    return replace(hospital, gain=1.0, offset=0.0, blur=0.0, noise=0.0)


def _patients(
    pool: Pool, numbers: NDArray[Any], store: Scanner, names: Sequence[str]
) -> Iterator[Patient]:
    for image, label, number in zip(pool.images, pool.labels, numbers, strict=True):
        grey = image.astype(np.float32) / np.float32(255)
        yield Patient(f"P{number:06d}", names[label], [grey], store)
