"""What cannot be built is found out without an image, with the words that building would have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import SimulationError
from simulations.build import build_federation
from simulations.datasets import Data, NpzData, PhantomData, load_dataset, outline_dataset
from simulations.feasible import find_obstacle
from simulations.scenario import Scenario

PHANTOMS: dict[str, Any] = {
    "name": "some",
    "sites": {"number": 4},
    "data": {"source": "phantoms", "patients": 60, "test_patients": 20, "size": 28},
}
TABLE = PHANTOMS | {"data": {"source": "made-up-table", "patients": 60, "test_patients": 20}}


def some_npz(folder: Path) -> str:
    rng = np.random.default_rng(1)
    parts = {}
    for part, count in {"train": 40, "val": 10, "test": 20}.items():
        parts[f"{part}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[f"{part}_labels"] = rng.integers(0, 3, (count, 1))
    np.savez(folder / "some.npz", **parts)
    return str(folder / "some.npz")


def what_building_says(scenario: Scenario, seed: int) -> str:
    try:
        build_federation(scenario, seed)
    except SimulationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"partition": [{"kind": "dirichlet", "alpha": 0.5, "minimum": 8}]},
            "a class of 24 patients cannot have 8 at each of 4 sites",
        ),
        (
            {"degrade": [{"kind": "missing-labels", "sites": [3]}]},
            "site-3 is left with fewer than two patients",
        ),
        (
            {"degrade": [{"kind": "missing-images", "sites": [2], "part": 1.0}]},
            "site-2 is left with fewer than two patients",
        ),
        (
            {"data": PHANTOMS["data"] | {"prevalence": 0.001}},
            "no patient anywhere has the class 'opacity'",
        ),
        ({"data": {"source": "npz"}, "sites": {"number": 5000}}, "5000 sites need at least 10000"),
        (
            TABLE
            | {
                "degrade": [
                    {"kind": "absent-class", "name": name, "sites": [1]}
                    for name in ("healthy", "disease")
                ]
            },
            "is left with fewer than two patients",
        ),
    ],
    ids=["minimum", "labels", "images", "prevalence", "sites", "classes"],
)
def test_what_building_would_say_is_said_without_it(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    if changes.get("data") == {"source": "npz"}:
        changes = changes | {"data": {"source": "npz", "path": some_npz(tmp_path)}}
    scenario = Scenario.model_validate(PHANTOMS | changes)
    assert words in what_building_says(scenario, 0)
    assert str(find_obstacle(scenario, 0)) == what_building_says(scenario, 0)


def test_with_some_seeds_it_works_and_with_others_not() -> None:
    """Which, dealing tells as building does, with shifts and gaps of all kinds on the way."""
    changes = {
        "data": PHANTOMS["data"] | {"patients": 20, "findings": True},
        "partition": [{"kind": "power-law", "ratio": 4}],
        "shifts": [{"kind": "noise"}],
        "degrade": [
            {"kind": "missing-values", "part": 0.5, "columns": ["age"], "mechanism": "mnar"},
            {"kind": "missing-images", "part": 0.3, "sites": 0.5},
            {"kind": "missing-labels", "part": 0.3},
        ],
    }
    scenario = Scenario.model_validate(PHANTOMS | changes)
    said = [str(find_obstacle(scenario, seed) or "") for seed in range(6)]
    assert said == [what_building_says(scenario, seed) for seed in range(6)]
    assert "" in said
    assert any("fewer than two patients" in each for each in said)


def test_an_outline_has_the_same_patients(tmp_path: Path) -> None:
    kinds: list[Data] = [
        PhantomData(patients=30, test_patients=10, size=28),
        PhantomData(patients=30, test_patients=10, size=28, findings=True),
        NpzData(source="npz", path=some_npz(tmp_path), patients=25),
        NpzData(source="npz", path=some_npz(tmp_path), findings=True),
    ]
    for data in kinds:
        whole, outline = load_dataset(data, 3), outline_dataset(data, 3)
        assert outline.facts == whole.facts
        pairs = ((whole.train, outline.train), (whole.test, outline.test))
        for one, other in pairs:
            assert other.images.nbytes == 0
            assert np.array_equal(one.labels, other.labels)
            assert np.array_equal(one.image_patient, other.image_patient)
            assert one.groups.keys() == other.groups.keys()
            assert all(np.array_equal(one.groups[name], other.groups[name]) for name in one.groups)


def test_images_that_no_memory_could_hold_are_no_hindrance() -> None:
    data = {"source": "phantoms", "patients": 200_000, "images": 16, "size": 256}
    scenario = Scenario.model_validate(PHANTOMS | {"data": data, "shifts": [{"kind": "blur"}]})
    assert find_obstacle(scenario, 0) is None


def test_npz_is_read_again_only_once_it_has_changed(tmp_path: Path) -> None:
    path = Path(some_npz(tmp_path))
    data = NpzData(source="npz", path=str(path))
    facts, known = data.facts(), path.stat()
    path.write_bytes(bytes(known.st_size))
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert data.facts() == facts
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
    with pytest.raises(SimulationError, match=r"cannot be read as \.npz"):
        data.facts()
