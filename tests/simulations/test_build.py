"""Federations built from scenarios: the same seed the same bits, nobody twice, gaps counted."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import SimulationError
from simulations.build import Federation, build_federation
from simulations.medmnist import write_medmnist
from simulations.patients import Patients, concatenate
from simulations.scenario import Scenario, load_scenario, merged, parse_scenario

PHANTOMS: dict[str, Any] = {
    "name": "some",
    "sites": {"number": 3},
    "data": {"source": "phantoms", "patients": 60, "test_patients": 20},
}
TABLE: dict[str, Any] = {
    "name": "some",
    "sites": {"number": 4},
    "data": {"source": "made-up-table", "patients": 400, "test_patients": 50},
}


def scenario_of(base: dict[str, Any], **changes: Any) -> Scenario:
    return parse_scenario(merged(base, changes), "test", Path())


def built(base: dict[str, Any], seed: int = 0, **changes: Any) -> Federation:
    return build_federation(scenario_of(base, **changes), seed)


def sides(federation: Federation) -> list[Patients]:
    every = [side for site in federation.sites for side in (site.train, site.held_out)]
    return [*every, federation.test]


def same(one: Patients, other: Patients) -> bool:
    return (
        np.array_equal(one.images, other.images, equal_nan=True)
        and np.array_equal(one.image_patient, other.image_patient)
        and np.array_equal(one.labels, other.labels)
        and all(np.array_equal(cells, other.groups[name]) for name, cells in one.groups.items())
    )


FINDINGS: dict[str, Any] = {**PHANTOMS, "data": {**PHANTOMS["data"], "findings": True}}


EVERYTHING: dict[str, Any] = {
    "partition": [{"kind": "dirichlet", "alpha": 0.5}, {"kind": "power-law", "ratio": 3}],
    "shifts": [{"kind": "noise", "sites": [1]}, {"kind": "bias-field", "sites": 0.5}],
    "degrade": [
        {"kind": "missing-labels", "part": 0.2},
        {"kind": "missing-images", "part": 0.2, "sites": 0.4},
        {"kind": "missing-values", "part": 0.5, "columns": ["age"]},
    ],
}


def test_the_same_seed_gives_the_same_bits() -> None:
    first, again, other = (built(PHANTOMS, seed, **EVERYTHING) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(sides(first), sides(again), strict=True))
    assert first.missing == again.missing
    assert not any(same(a, b) for a, b in zip(sides(first), sides(other), strict=True))


def test_nobody_is_at_two_places() -> None:
    federation = built(PHANTOMS)
    images = np.concatenate([side.images for side in sides(federation)])
    assert len({image.tobytes() for image in images}) == len(images)
    assert sum(len(side) for side in sides(federation)) == 80
    assert [site.name for site in federation.sites] == ["site-1", "site-2", "site-3"]


def test_a_part_of_each_site_is_held_out_evenly_by_class() -> None:
    federation = built(TABLE, study={"data": {"held_out": 0.2}})
    for site in federation.sites:
        total = len(site.train) + len(site.held_out)
        assert total == 100
        assert len(site.held_out) == 20
        ill = (site.train.labels.sum() + site.held_out.labels.sum()) / 5
        assert abs(site.held_out.labels.sum() - ill) < 1


def test_a_shift_or_a_gap_more_leaves_the_partition_as_it_was() -> None:
    plain = built(PHANTOMS)
    noisy = built(PHANTOMS, shifts=[{"kind": "noise", "sites": [2]}])
    for place, (one, other) in enumerate(zip(plain.sites, noisy.sites, strict=True)):
        assert np.array_equal(one.train.labels, other.train.labels)
        assert np.array_equal(one.train.groups["sex"], other.train.groups["sex"])
        assert np.array_equal(one.train.images, other.train.images) == (place != 1)
        assert np.array_equal(one.held_out.images, other.held_out.images) == (place != 1)
    assert same(plain.test, noisy.test)


def test_a_part_of_the_sites_is_chosen_once_by_the_seed() -> None:
    def lacking(seed: int) -> set[str]:
        gap = {"kind": "absent-column", "name": "pain", "sites": 0.5}
        return {each.site for each in built(TABLE, seed, degrade=[gap]).missing}

    chosen = [lacking(seed) for seed in range(8)]
    assert {len(sites) for sites in chosen} == {2}
    assert len(set.union(*chosen)) == 4


def test_patients_without_a_label_are_not_there() -> None:
    federation = built(TABLE, degrade=[{"kind": "missing-labels", "part": 0.5, "sites": [1, 2]}])
    lost = {site.name: 0 for site in federation.sites}
    for each in federation.missing:
        assert (each.what, each.cause) == ("label", "missing-labels")
        assert 0 < each.count <= each.total
        lost[each.site] += each.count
    for site in federation.sites:
        assert len(site.train) + len(site.held_out) == 100 - lost[site.name]
        assert site.train.labels.min() == 0
    assert lost["site-3"] == lost["site-4"] == 0 < lost["site-1"]
    totals = [each.total for each in federation.missing if each.site == "site-1"]
    assert sum(totals) == 100


def test_an_unknown_finding_stays_and_a_patient_known_for_nothing_goes() -> None:
    base = merged(PHANTOMS, {"data": {"findings": True}})
    federation = built(base, degrade=[{"kind": "missing-labels", "part": 0.5, "sites": [3]}])
    lost = {each.site: each.count for each in federation.missing if each.what == "label"}
    assert set(lost) == {"site-3"}
    third = federation.sites[2]
    assert len(third.train) + len(third.held_out) == 20 - lost["site-3"]
    assert third.train.labels.shape[1] == 1


def test_what_is_missing_where_adds_up() -> None:
    federation = built(
        TABLE,
        degrade=[
            {"kind": "missing-values", "part": 0.5, "columns": ["glucose", "pain"]},
            {"kind": "absent-column", "sites": [4], "name": "glucose"},
        ],
    )
    names = [column.name for column in federation.dataset.columns]
    for site in federation.sites:
        values = concatenate([site.train, site.held_out]).images
        for place, name in enumerate(names):
            told = [
                each
                for each in federation.missing
                if (each.site, each.what, each.name) == (site.name, "value", name)
            ]
            assert sum(each.count for each in told) == np.isnan(values[:, place]).sum()
            assert all(each.total == 100 for each in told)
    assert np.isnan(federation.sites[3].train.images[:, names.index("glucose")]).all()
    assert not np.isnan(federation.test.images).any()


def test_labels_are_lost_out_of_those_there_were_just_before() -> None:
    """Noise makes other labels of a class; losing them is a part of the noisy ones."""
    noise = {"kind": "label-noise", "part": 0.4}
    loss = {"kind": "missing-labels", "part": 0.8, "classes": ["opacity"]}
    clean = built(PHANTOMS, seed=3)
    noisy = built(PHANTOMS, seed=3, degrade=[noise])
    both = built(PHANTOMS, seed=3, degrade=[noise, loss])
    told = {(each.site, each.what, each.name): each for each in both.missing}
    for true, wrong, left in zip(clean.sites, noisy.sites, both.sites, strict=True):
        ill = [
            sum(int(side.labels.sum()) for side in (site.train, site.held_out))
            for site in (true, wrong, left)
        ]
        assert told[true.name, "wrong label", "opacity"].total == ill[0]
        lost = told[true.name, "label", "opacity"]
        assert (lost.count, lost.total) == (ill[1] - ill[2], ill[1])


def test_parts_of_one_kind_are_told_together() -> None:
    part = {"kind": "missing-labels", "part": 0.5}
    once, twice = (built(TABLE, degrade=[part] * times) for times in (1, 2))
    assert [(m.site, m.name, m.total) for m in twice.missing] == [
        (m.site, m.name, m.total) for m in once.missing
    ]
    for site in twice.sites:
        lost = sum(m.count for m in twice.missing if m.site == site.name)
        assert lost == 100 - len(site.train) - len(site.held_out)


def test_gaps_of_real_hospitals_are_told_as_found(real_data: Path) -> None:
    base = {
        "name": "heart",
        "data": {"source": "heart-disease", "path": str(real_data / "heart_disease")},
        "partition": [{"kind": "by-group"}],
    }
    federation = built(base)
    assert [site.name for site in federation.sites] == [
        *("cleveland", "hungarian", "switzerland", "va")
    ]
    told = {(each.site, each.name): each for each in federation.missing}
    cholesterol = told["switzerland", "chol"]
    assert cholesterol.count == cholesterol.total == 92
    assert {each.cause for each in federation.missing} == {"as found"}


def test_a_hospital_that_is_left_out_is_the_test_set(real_data: Path) -> None:
    base = {
        "name": "heart",
        "data": {"source": "heart-disease", "path": str(real_data / "heart_disease")},
        "partition": [{"kind": "by-group"}, {"kind": "leave-out", "cell": "hungarian"}],
    }
    federation = built(base)
    assert [site.name for site in federation.sites] == ["cleveland", "switzerland", "va"]
    assert len(federation.test) == 294
    assert set(federation.test.groups["hospital"]) == {1}
    assert sum(len(side) for side in sides(federation)) == 920
    assert any("no site has seen" in note for note in federation.notes)


def test_patients_at_no_site_are_told() -> None:
    parts = [{"kind": "prevalence", "prevalence": [0.1, 0.2]}]
    federation = built(TABLE, partition=parts)
    there = sum(len(site.train) + len(site.held_out) for site in federation.sites)
    assert f"{400 - there} patients are at no site" in federation.notes
    assert there < 300


def test_a_class_without_a_patient_is_refused() -> None:
    with pytest.raises(SimulationError, match="no patient anywhere has the class 'opacity'"):
        built(PHANTOMS, data={"prevalence": 0.001})


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (PHANTOMS, {"degrade": [{"kind": "absent-class", "name": "opacity"}]}),
        (PHANTOMS, {"partition": [{"kind": "prevalence", "prevalence": [0.0]}]}),
        (FINDINGS, {"degrade": [{"kind": "missing-labels", "only": "present"}]}),
    ],
)
def test_a_class_that_no_site_can_train_on_is_refused(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    words = "no training patient of any site has the (class|finding) 'opacity'"
    with pytest.raises(SimulationError, match=words) as caught:
        built(base, **changes)
    assert "\n" not in str(caught.value)
    there = {"degrade": [{"kind": "absent-class", "name": "opacity", "sites": [1, 2]}]}
    assert built(PHANTOMS, **there).sites[2].train.labels.max() == 1


def clinics(folder: Path, cells: list[str], **changes: Any) -> Federation:
    """Return what is built of a table with a patient for each of these names of a clinic."""
    rows = [f"{row % 7},{('yes', 'no')[row // 2 % 2]},{cell}" for row, cell in enumerate(cells)]
    (folder / "some.csv").write_text("\n".join(["x,ill,clinic", *rows]))
    base = {
        "name": "clinics",
        "data": {
            "source": "table",
            "path": str(folder / "some.csv"),
            "label": "ill",
            "groups": ["clinic"],
            "columns": [{"name": "x", "low": 0, "high": 7}],
        },
    }
    return built(base, **changes)


def test_who_may_be_of_the_hospital_that_is_left_out_is_nowhere(tmp_path: Path) -> None:
    federation = clinics(
        tmp_path,
        ["north", "south", "west", ""] * 30,
        sites={"number": 2},
        partition=[{"kind": "leave-out", "group": "clinic", "cell": "north"}],
    )
    assert federation.dataset.group_names["clinic"] == ("north", "south", "west")
    assert federation.test.groups["clinic"].tolist() == [0] * 30
    at_sites = concatenate(
        [each for site in federation.sites for each in (site.train, site.held_out)]
    )
    assert np.bincount(at_sites.groups["clinic"]).tolist() == [0, 30, 30]
    assert "patients left out, as their clinic is not known: 30" in federation.notes


def some_images(folder: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (28, 28, 28), dtype=np.uint8)
    labels = (np.arange(28) % 2).astype(np.uint8)[:, None]
    cuts = {"train": slice(20), "val": slice(20, 24), "test": slice(24, 28)}
    arrays = {f"{part}_images": images[cut] for part, cut in cuts.items()}
    np.savez(folder / "some.npz", **arrays, **{f"{p}_labels": labels[c] for p, c in cuts.items()})
    return folder / "some.npz"


def test_a_hospital_without_patients_cannot_be_the_test_set(tmp_path: Path) -> None:
    images = write_medmnist(tmp_path, some_images(tmp_path), sites=1)[0]
    lines = images.labels.read_text().splitlines()
    rows = [f"{line},north" for line in lines[1:]] + ["gone.dcm,nobody,class-0,south"]
    images.labels.write_text("\n".join([f"{lines[0]},hospital", *rows]))
    base = {
        "name": "left",
        "sites": {"number": 2},
        "data": {
            "source": "dicom",
            "path": str(images.images),
            "labels": str(images.labels),
            "groups": ["hospital"],
            "size": 28,
        },
        "partition": [{"kind": "leave-out", "cell": "south"}],
    }
    with pytest.raises(SimulationError, match="no patient is of hospital south"):
        built(base)


def test_a_gap_in_what_no_model_sees_is_called_one_that_changes_nothing() -> None:
    def notes(base: dict[str, Any], **gap: Any) -> list[str]:
        found = built(base, degrade=[{"kind": "missing-values", "part": 0.5, **gap}])
        return [note for note in found.notes if "no model sees" in note]

    said = "no model sees age, so what is missing of it changes no figure"
    assert notes(PHANTOMS, columns=["age"]) == [said]
    assert notes(TABLE, columns=["age"]) == []
    assert notes(TABLE) == []


def test_all_that_goes_wrong_in_real_life_goes_wrong() -> None:
    scenario = load_scenario("real-life")
    federation = build_federation(scenario, 0)
    sizes = [len(site.train) + len(site.held_out) for site in federation.sites]
    assert sizes[0] > 8 * sum(sizes[1:])
    ill = [bool(site.train.labels.any()) for site in federation.sites]
    assert ill == [True] * 4 + [False] * 2
    lost: Counter[str] = Counter()
    for each in federation.missing:
        lost[each.what] += each.count
    assert lost["label"] / scenario.data.patients == pytest.approx(0.2, abs=0.03)
    (age,) = (n for n, c in enumerate(federation.dataset.columns) if c.name == "age")
    ages = np.concatenate([site.train.images[:, age] for site in federation.sites])
    assert np.isnan(ages).mean() == pytest.approx(0.5, abs=0.03)
    assert not any("changes no figure" in note for note in federation.notes)


def test_a_site_that_loses_everyone_is_refused() -> None:
    with pytest.raises(SimulationError, match="site-2 is left with fewer than two patients"):
        built(TABLE, degrade=[{"kind": "missing-labels", "sites": [2]}])


def test_two_hundred_sites_take_no_more_memory_than_their_images() -> None:
    size = {"patients": 20_000, "test_patients": 100}
    tracemalloc.start()
    federation = built(TABLE, data=size, sites={"number": 200})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = 20_000 * 8 * 4
    assert len(federation.sites) == 200
    assert {len(site.train) for site in federation.sites} == {85}
    assert peak < 20 * rows
