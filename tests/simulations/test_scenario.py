"""Scenarios and sweeps as files: what they mean, and what is refused before computing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import SimulationError
from shared.study import load_study
from simulations.datasets import with_data_at
from simulations.scenario import (
    SCENARIOS,
    Scenario,
    list_scenarios,
    load_scenario,
    merged,
    parse_scenario,
    study_of,
)
from simulations.strategies import BUILT_IN
from simulations.sweep import is_sweep, load_sweep

SMALL: dict[str, Any] = {
    "name": "small",
    "sites": {"number": 4},
    "data": {"source": "made-up-table", "patients": 100},
}


def parsed(**changes: Any) -> Scenario:
    return parse_scenario(merged(SMALL, changes), "test", Path())


@pytest.mark.parametrize(
    ("name", "description", "kind"), list_scenarios(), ids=[each[0] for each in list_scenarios()]
)
def test_what_comes_along_is_valid_and_says_what_it_is(
    name: str, description: str, kind: str, request: pytest.FixtureRequest
) -> None:
    assert 20 < len(description) <= 110
    if kind == "sweep" or name == "heart-disease":
        request.getfixturevalue("real_data")
    if kind == "sweep":
        assert is_sweep(name)
        assert len(load_sweep(name).scenarios) >= 2
    else:
        assert not is_sweep(name)
        assert load_scenario(name).name == name
        assert load_scenario(SCENARIOS / f"{name}.toml") == load_scenario(name)


def test_the_issues_scenarios_come_along() -> None:
    assert {name for name, _, _ in list_scenarios()} >= {
        *("iid", "size-skew", "dirichlet-0.5", "dirichlet-0.3", "dirichlet-0.1", "prevalence"),
        *("scanners", "dropout", "nonsense", "missing-labels", "missing-values"),
        *("heart-disease", "real-life", "many-sites", "ladder", "ladder-breast", "half-labels"),
    }


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"partitions": []}, "partitions: unknown key"),
    ({"partition": [{"kind": "dirichlet", "alpha": 1, "beta": 2}]}, "beta: unknown key"),
    ({"partition": [{"kind": "dirichlet", "alpha": 0}]}, "alpha: .*greater than 0"),
    ({"partition": [{"kind": "dirichlet", "alpha": -0.5}]}, "alpha: .*greater than 0"),
    ({"partition": [{"kind": "zipf"}]}, "'zipf'.*does not match any of the expected"),
    ({"partition": [{"kind": "shares", "shares": [0.5, 0.4]}]}, "sum to 1, and sum to 0.9"),
    ({"partition": [{"kind": "shares", "shares": [0.5, 0.5]}]}, "sites.number is 4.*makes 2"),
    (
        {"partition": [{"kind": "power-law"}, {"kind": "equal"}]},
        "two parts decide on sizes: power-law and equal",
    ),
    (
        {
            "partition": [
                {"kind": "dirichlet", "alpha": 1},
                {"kind": "prevalence", "prevalence": [0.1]},
            ]
        },
        "two parts decide on the mix of classes",
    ),
    ({"partition": [{"kind": "by-group", "group": "scanner"}]}, "no group 'scanner'"),
    (
        {
            "sites": {"number": 2},
            "partition": [{"kind": "by-group", "group": "sex"}, {"kind": "equal"}],
        },
        "by-group deals everyone",
    ),
    ({"partition": [{"kind": "leave-out", "group": "sex", "cell": "X"}]}, "no cell 'X'"),
    ({"partition": [{"kind": "prevalence", "prevalence": [0.1] * 5}]}, "5 prevalences for 4 sites"),
    ({"partition": [{"kind": "classes-per-site", "classes": 3}]}, "3 classes per site, but"),
    ({"partition": [{"kind": "many-images", "sites": [1]}]}, "a table has no images"),
    ({"sites": {"number": 60}}, "60 sites need at least 120 patients; there are 100"),
    ({"sites": {"number": None}}, "nothing says how many sites"),
    ({"degrade": [{"kind": "missing-labels", "sites": [5]}]}, "there is no site 5, only 4"),
    ({"degrade": [{"kind": "missing-labels", "sites": 2}]}, "must be 'all', a part between"),
    ({"degrade": [{"kind": "missing-labels", "sites": [0]}]}, "must be 'all', a part between"),
    ({"degrade": [{"kind": "missing-labels", "sites": []}]}, "must be 'all', a part between"),
    ({"behaviour": {"stays": [{"sites": [], "joins": 2}]}}, "must be 'all', a part between"),
    ({"degrade": [{"kind": "missing-labels", "classes": ["ill"]}]}, "there is no class 'ill'"),
    ({"degrade": [{"kind": "missing-labels", "only": "absent"}]}, "is about findings"),
    ({"degrade": [{"kind": "absent-class", "name": "ill"}]}, "There are: healthy, disease"),
    ({"degrade": [{"kind": "absent-column", "name": "weight"}]}, "no column or group 'weight'"),
    ({"degrade": [{"kind": "broken-files", "part": 0.1}]}, "a table has no images"),
    (
        {"degrade": [{"kind": "missing-values", "part": 0.1, "mechanism": "mar"}]},
        "by is needed with mechanism = 'mar'",
    ),
    ({"shifts": [{"kind": "blur"}]}, "a table has no images to change by 'blur'"),
    ({"compare": ["fedbest"]}, "no strategy is named 'fedbest'.*Known: alone, "),
    ({"study": {"training": {"speed": 1}}}, "training.speed: unknown key"),
    ({"study": {"federation": {"rounds": 0}}}, "federation.rounds: .*greater than or equal to 1"),
    (
        {"strategies": {"own": {"study": {"task": {"classes": ["a", "b"]}}}}},
        "a strategy may not change 'task'",
    ),
    ({"behaviour": {"dropouts": [{"sites": "all"}]}}, "give one of probability, every and rounds"),
    ({"behaviour": {"dropouts": [{"every": 3}]}}, "round 3"),
    ({"behaviour": {"stays": [{"sites": [1], "joins": 3, "leaves": 2}]}}, "leaves must be after"),
    ({"behaviour": {"nonsense": [{"sites": [1], "kind": "rude"}]}}, "'nan', 'scaled' or"),
    ({"data": {"source": "npz", "path": "gone.npz", "patients": 0}}, "there is no data 'gone.npz'"),
    ({"seeds": []}, "seeds: .*at least 1 item"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_told_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SimulationError, match=words) as caught:
        parsed(**changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_files_that_cannot_be_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"no scenario 'nowhere'.*iid"):
        load_scenario("nowhere")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("name = ")
    with pytest.raises(SimulationError, match="not valid TOML"):
        load_scenario(wrong)


def test_data_is_found_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("x,sick\n" + "1,no\n2,yes\n" * 20)
    file = tmp_path / "own.toml"
    file.write_text(
        'name = "own"\nsites.number = 2\n[data]\nsource = "table"\npath = "some.csv"\n'
        'label = "sick"\ncolumns = [{ name = "x", low = 0, high = 3 }]\n'
    )
    scenario = load_scenario(file)
    assert scenario.data.path == str((tmp_path / "some.csv").resolve())
    study = study_of(scenario, "fedavg", 2)
    assert study.task.classes == ("no", "yes")
    assert study.table is not None
    assert [column.name for column in study.table.columns] == ["x"]
    assert study.model.name == "table"


def test_values_may_be_changed_by_dotted_key() -> None:
    scenario = load_scenario(
        "dirichlet-0.3",
        {"sites.number": 3, "partition.0.alpha": 7.0, "study.federation.rounds": 2, "seeds": [4]},
    )
    assert scenario.sites.number == 3
    assert scenario.partition[0].alpha == 7.0
    assert study_of(scenario, "fedavg", 3).federation.rounds == 2
    assert scenario.seeds == (4,)
    whole = load_scenario("dirichlet-0.3", {"data": {"source": "made-up-table"}})
    assert whole.data.source == "made-up-table"
    for key in ("partition.9.alpha", "partition.x", "name.first"):
        with pytest.raises(SimulationError, match=f"no '{key}' to change"):
            load_scenario("dirichlet-0.3", {key: 1})


def test_the_strategy_has_the_last_word_on_the_study_and_data_the_first() -> None:
    scenario = parsed(
        study={"training": {"proximal": 0.5, "local_steps": 3}, "federation": {"min_sites": 2}},
        strategies={
            "own": {"study": {"training": {"proximal": 0.7}, "table": {"missing": "mean"}}}
        },
    )
    plain, own = study_of(scenario, "fedavg", 4), study_of(scenario, "own", 4)
    assert (plain.training.proximal, own.training.proximal) == (0.5, 0.7)
    assert own.training.local_steps == 3
    assert own.table is not None
    assert (own.table.missing, len(own.table.columns)) == ("mean", 8)
    assert (own.federation.sites, own.federation.min_sites) == (4, 2)
    assert own.name == "small-own"
    alone = study_of(scenario, "alone", 4)
    assert (alone.federation.sites, alone.federation.min_sites) == (1, 1)
    assert alone.training.proximal == 0.5


def test_studies_of_images_and_findings_follow_the_data() -> None:
    scenario = load_scenario("missing-labels", {"data.size": 40})
    study = study_of(scenario, "fedavg", 6)
    assert study.task.findings
    assert study.task.classes == ("opacity",)
    assert (study.input.size, study.input.channels) == (40, 1)


def test_studies_of_dicom_images_have_their_window(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("file,patient,label\na,1,no\nb,2,yes\n")
    data = {"source": "dicom", "path": "images", "labels": "labels.csv", "window": [40.0, 400.0]}
    values = {"name": "ct", "sites": {"number": 2}, "data": data}
    study = study_of(parse_scenario(values, "test", tmp_path), "fedavg", 2)
    assert study.input.window == (40.0, 400.0)
    assert study.task.classes == ("no", "yes")


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_strategies_make_valid_studies_that_differ(name: str) -> None:
    scenario = load_scenario("dirichlet-0.1")
    study = study_of(scenario, name, 8)
    federated = BUILT_IN[name].setting == "federated"
    assert study.federation.sites == (8 if federated else 1)
    plain = study_of(scenario, "fedavg", 8)
    same = {"name", "description"}
    changed = study.model_dump(exclude=same) != plain.model_dump(exclude=same)
    assert changed == (name != "fedavg")


def test_averaging_more_often_takes_as_many_steps_in_all() -> None:
    scenario = load_scenario(
        "iid", {"study.federation.rounds": 5, "strategies.every-step": {"often": 6}}
    )
    plans = [study_of(scenario, name, 8) for name in ("fedavg", "often", "every-step")]
    assert [(s.federation.rounds, s.training.local_steps) for s in plans] == [
        (5, 6), (10, 3), (30, 1),
    ]  # fmt: skip
    with pytest.raises(SimulationError, match="6 local steps cannot be parted into 4 rounds"):
        load_scenario(
            "iid", {"strategies.four-times": {"often": 4}, "compare": ["fedavg", "four-times"]}
        )


def test_a_study_may_be_written_down_and_read_by_the_coordinator(tmp_path: Path) -> None:
    study = study_of(load_scenario("iid"), "fedprox", 8)
    lines = [
        f'name = "{study.name}"',
        f"task.classes = {list(study.task.classes)}",
        f"input.size = {study.input.size}",
        f"training.proximal = {study.training.proximal}",
    ]
    (tmp_path / "study.toml").write_text("\n".join(lines))
    assert load_study(tmp_path / "study.toml").training == study.training


def test_the_digest_is_of_what_decides_a_result() -> None:
    scenario = parsed()
    same = parsed(description="other words", seeds=[5, 6], compare=["fedavg"], labels={"a": "b"})
    assert same.digest == scenario.digest
    for changes in (
        {"sites": {"number": 5}},
        {"data": {"patients": 101}},
        {"partition": [{"kind": "power-law"}]},
        {"behaviour": {"dropouts": [{"probability": 0.1}]}},
        {"study": {"training": {"local_steps": 7}}},
    ):
        assert parsed(**changes).digest != scenario.digest


def test_other_data_keep_the_settings_of_the_same_kind() -> None:
    npz = {"source": "npz", "path": "a.npz", "patients": 9}
    assert with_data_at(npz, "b.npz") == {"source": "npz", "path": "b.npz", "patients": 9}
    assert with_data_at({"patients": 9}, "b.npz") == {"source": "npz", "path": "b.npz"}
    assert with_data_at({"patients": 9}, "phantoms") == {"source": "phantoms", "patients": 9}
    assert with_data_at(npz, "b.csv") == {"source": "table", "path": "b.csv"}


SWEEP = """
name = "some"
axis = "skew"
seeds = [1, 2]
compare = ["fedavg"]
set = { "sites.number" = 3, "study.federation.rounds" = 4 }

[[scenarios]]
scenario = "iid"

[[scenarios]]
name = "skewed"
scenario = "own.toml"
set = { "partition.0.alpha" = 0.2, "study.federation.rounds" = 5 }
compare = ["gentle", "fedavg"]

[grid.privacy.none]
"study.privacy.enabled" = false

[grid.privacy.epsilon-3]
"study.privacy.epsilon" = 3

[grid.size.small]
"data.patients" = 60

[grid.size.large]
"data.patients" = 90

[strategies.gentle]
study.training.learning_rate = 0.1
"""
OWN = 'name = "own"\n[data]\nsource = "phantoms"\n[[partition]]\nkind = "dirichlet"\nalpha = 1\n'


def test_a_sweep_is_multiplied_out(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    (tmp_path / "some.toml").write_text(SWEEP)
    sweep = load_sweep(tmp_path / "some.toml", {"seeds": [9]})
    assert [scenario.name for scenario in sweep.scenarios] == [
        f"some-{rung}-{privacy}-{size}"
        for rung in ("iid", "skewed")
        for privacy in ("none", "epsilon-3")
        for size in ("small", "large")
    ]
    last = sweep.scenarios[-1]
    assert last.labels == {"skew": "skewed", "privacy": "epsilon-3", "size": "large"}
    assert last.seeds == (9,)
    assert last.compare == ("fedavg", "gentle")
    assert last.partition[0].alpha == 0.2
    assert last.data.patients == 90
    study = study_of(last, "gentle", 3)
    assert (study.privacy.enabled, study.privacy.epsilon) == (True, 3)
    assert study.training.learning_rate == 0.1
    assert study.federation.rounds == 5
    assert study_of(sweep.scenarios[0], "fedavg", 3).federation.rounds == 4


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('scenario = "own.toml"', 'scenario = "gone.toml"', "no scenario 'gone.toml'"),
        ('name = "skewed"', 'name = "iid"', "two scenarios are named 'some-iid-none-small'"),
        ("axis =", "axes =", "axes: unknown key"),
        ('"data.patients" = 60', '"data.patient" = 60', "data.phantoms.patient: unknown key"),
        ('compare = ["gentle"', 'compare = ["rough"', "no strategy is named 'rough'"),
    ],
)
def test_a_wrong_sweep_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    (tmp_path / "some.toml").write_text(SWEEP.replace(old, new, 1))
    with pytest.raises(SimulationError, match=words) as caught:
        load_sweep(tmp_path / "some.toml")
    assert "\n" not in str(caught.value)


def test_the_ladder_has_every_rung_with_and_without_privacy(real_data: Path) -> None:
    sweep = load_sweep("ladder")
    assert len(sweep.scenarios) == 8
    for scenario in sweep.scenarios:
        assert len(scenario.seeds) == 5
        assert {"alone", "pooled", "fedavg"} <= set(scenario.compare)
        assert any(part.kind == "power-law" and part.ratio == 20 for part in scenario.partition)
        private = scenario.labels["privacy"] == "epsilon-8"
        study = study_of(scenario, "fedavg", 8)
        assert study.privacy.enabled == private
        if scenario.labels["label skew"] == "dirichlet-0.1":
            assert set(scenario.compare) == set(BUILT_IN)
