"""Phantoms: complete as promised, the same from the same seed, and no shorter way to the label."""

from __future__ import annotations

import csv
import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shared.errors import DataError
from simulations.chest import Subjects, draw_chests
from simulations.hospitals import HospitalFolder
from simulations.phantoms import make_phantoms

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shot:
    """One file as a reader finds it."""

    data: Dataset
    grey: Array  # 0 to 1, as a viewer shows it
    patient: str
    opacity: bool
    place: float  # in the folder's order, 0 to 1
    bytes: int


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[HospitalFolder]:
    folder = tmp_path_factory.mktemp("phantoms")
    return make_phantoms(folder, patients=600, test_patients=120, seed=11)


@pytest.fixture(scope="module")
def shots(folders: list[HospitalFolder]) -> dict[str, list[Shot]]:
    return {folder.name: list(read(folder)) for folder in folders}


def table(folder: HospitalFolder) -> list[dict[str, str]]:
    with folder.labels.open(newline="") as file:
        return list(csv.DictReader(file))


def read(folder: HospitalFolder) -> list[Shot]:
    rows, found = table(folder), []
    for place, row in enumerate(rows):
        file = folder.images / row["file"]
        if not file.exists():
            continue
        with warnings.catch_warnings():  # of the files that are cut short
            warnings.simplefilter("ignore", UserWarning)
            data = dcmread(file)
        try:
            values = apply_modality_lut(data.pixel_array, data)
        except (ValueError, AttributeError):  # cut short: no or too few pixels
            continue
        low = data.WindowCenter - 0.5 - (data.WindowWidth - 1) / 2
        grey = (values - float(low)) / float(data.WindowWidth - 1)
        grey = 1 - grey if data.PhotometricInterpretation == "MONOCHROME1" else grey
        found.append(
            Shot(
                data,
                grey.astype(np.float32),
                row["patient"],
                row["label"] == "opacity",
                place / len(rows),
                file.stat().st_size,
            )
        )
    return found


def auc(features: Array, shots: list[Shot], model: Any) -> float:
    """Cross-validated AUC; all images of a patient are in one fold."""
    truth = np.array([shot.opacity for shot in shots])
    groups = np.array([shot.patient for shot in shots])
    scores = cross_val_predict(
        model, features, truth, groups=groups, cv=GroupKFold(5), method="predict_proba"
    )
    return float(roc_auc_score(truth, scores[:, 1]))


def linear(strength: float = 1.0) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def counts(shots: list[Shot]) -> Array:
    names, where, count = np.unique(
        [shot.patient for shot in shots], return_inverse=True, return_counts=True
    )
    assert len(names)
    return np.asarray(count[where])


def statistics(shots: list[Shot], greys: list[Array]) -> Array:
    rows = [
        [g.mean(), g.var(), *np.histogram(g, 32, (0, 1))[0] / g.size, count]
        for g, count in zip(greys, counts(shots), strict=True)
    ]
    return np.array(rows)


def small(shots: list[Shot], side: int) -> list[Array]:
    box = Image.Resampling.BOX
    return [np.asarray(Image.fromarray(s.grey).resize((side, side), box)) for s in shots]


def test_folders_are_as_promised(
    folders: list[HospitalFolder], shots: dict[str, list[Shot]]
) -> None:
    assert [folder.name for folder in folders] == ["hospital-1", "hospital-2", "hospital-3", "test"]
    assert [folder.patients for folder in folders] == [360, 180, 60, 120]
    prevalence = []
    for folder in folders:
        rows = table(folder)
        assert {row["label"] for row in rows} == {"normal", "opacity"} == set(folder.classes)
        labels: dict[str, set[str]] = {}
        for row in rows:
            labels.setdefault(row["patient"], set()).add(row["label"])
        assert all(len(found) == 1 for found in labels.values())
        prevalence.append(np.mean([found == {"opacity"} for found in labels.values()]))
        images = np.bincount(np.unique([r["patient"] for r in rows], return_counts=True)[1])
        assert len(images) == 5
        assert images[0] == 0
        assert images[1:].min() > 0
    np.testing.assert_allclose(prevalence, [0.45, 0.35, 0.55, 0.45], atol=0.03)
    shapes = {name: {shot.grey.shape for shot in own} for name, own in shots.items()}
    assert [len(shapes[f"hospital-{n}"]) for n in (1, 2, 3)] == [1, 1, 1]
    assert len(shapes["test"]) == 3


def test_hospitals_are_incomplete_and_the_test_folder_is_not(
    folders: list[HospitalFolder], shots: dict[str, list[Shot]]
) -> None:
    for folder in folders:
        rows = {row["file"] for row in table(folder)}
        files = {file.name for file in folder.images.iterdir()}
        unread = len(rows & files) - len(shots[folder.name])
        spoiled = 0 if folder.name == "test" else -(-folder.patients // 300)
        assert len(rows - files) == len(files - rows) == unread == spoiled
        ageless = {shot.patient for shot in shots[folder.name] if "PatientAge" not in shot.data}
        assert 0 < len(ageless) < 0.15 * folder.patients


def test_scanners_differ_in_how_they_store(shots: dict[str, list[Shot]]) -> None:
    first, second, third = (shots[f"hospital-{n}"][0].data for n in (1, 2, 3))
    assert first.PhotometricInterpretation == "MONOCHROME1"
    assert (second.BitsStored, second.RescaleSlope, second.RescaleIntercept) == (12, 0.25, -100)
    assert third.file_meta.TransferSyntaxUID.name == "RLE Lossless"


def test_hospitals_and_test_folder_share_nobody(shots: dict[str, list[Shot]]) -> None:
    seen: set[str] = set()
    for own in shots.values():
        marks = {str(s.data.PatientID) for s in own} | {str(s.data.SOPInstanceUID) for s in own}
        marks |= {str(s.data.StudyInstanceUID) for s in own}
        marks |= {sha256(s.grey.tobytes()).hexdigest() for s in own}
        assert not seen & marks
        seen |= marks


@pytest.mark.parametrize("side", [None, 32], ids=["as-written", "as-trained"])
def test_brightness_statistics_do_not_tell_the_label(
    shots: dict[str, list[Shot]], side: int | None
) -> None:
    def greys(own: list[Shot]) -> list[Array]:
        return [shot.grey for shot in own] if side is None else small(own, side)

    hospitals = [shots[f"hospital-{n}"] for n in (1, 2, 3)]
    pooled = [shot for own in hospitals for shot in own]
    for own in (pooled, *hospitals, shots["test"]):
        assert auc(statistics(own, greys(own)), own, linear()) < 0.65


def test_looking_at_the_image_does_tell_the_label(shots: dict[str, list[Shot]]) -> None:
    own = shots["hospital-1"]
    assert auc(np.stack(small(own, 12)).reshape(len(own), -1), own, linear(0.003)) > 0.85


def tags(shot: Shot) -> list[float]:
    """Everything in a file but the pixels, and its place and size, as numbers."""
    values = [shot.place, float(shot.bytes)]
    for element in (*shot.data.file_meta, *shot.data):
        if element.keyword in ("PixelData", "PatientAge"):
            continue
        if element.VR in ("UI", "LO", "PN", "CS", "SH"):
            values += str(element.value).encode()[:48].ljust(48)
        elif element.VR in ("US", "SS", "IS", "DS", "UL") and element.VM == 1:
            values.append(float(element.value))
    age = shot.data.get("PatientAge")
    return [*values, float(age[:3]) if age else -1.0]


def test_no_tag_size_or_order_tells_the_label(shots: dict[str, list[Shot]]) -> None:
    trees = RandomForestClassifier(60, min_samples_leaf=10, random_state=0)
    for name in ("hospital-1", "hospital-2"):
        own = shots[name]
        lines = [tags(shot) for shot in own]
        assert len({len(line) for line in lines}) == 1
        every = np.column_stack([np.array(lines), counts(own)])
        features = every[:, every.std(0) > 0]
        assert auc(features, own, linear()) < 0.6
        assert auc(features, own, trees) < 0.6


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def files(name: str, seed: int) -> dict[str, bytes]:
        make_phantoms(tmp_path / name, sites=4, patients=40, test_patients=10, seed=seed)
        found = sorted((tmp_path / name).rglob("*.*"))
        return {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in found}

    first = files("a", 1)
    assert first == files("b", 1)
    other = files("c", 2)
    images = [name for name in first if name.endswith(".dcm")]
    assert not any(first[name] == other.get(name) for name in images)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    make_phantoms(tmp_path, sites=1, patients=10, test_patients=4)
    with pytest.raises(DataError, match="File exists"):
        make_phantoms(tmp_path, sites=1, patients=10, test_patients=4)


def test_an_opacity_brightens_the_lungs_where_it_lies() -> None:
    """Of many phantoms, the lower lungs are brighter with an opacity; the belly is the same."""
    half = np.arange(400) % 2 == 0
    one = np.ones(400, dtype=np.int64)
    images = draw_chests(Subjects(half, ~half, one), (60, 50), 0.5, np.random.default_rng(0))
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    difference = images[half].mean(0) - images[~half].mean(0)
    lungs = difference[34:40, [11, 12, 13, 14, 36, 37, 38]]
    assert lungs.min() > 0.01
    assert abs(difference[54:, 10:40].mean()) < 0.02
