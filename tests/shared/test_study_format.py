"""The format of a plan and its limits: what is outside is refused, with the way to go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StudyError
from shared.study import Study, load_study, parse_study, study_from_json
from shared.study_parts import HELD_OUT

HOMES = Path(__file__).parent.parent / "data" / "homes-of-format-1"
MINIMAL = {"name": "chest", "task": {"classes": ["normal", "opacity"]}}


def test_a_file_of_format_1_is_refused_with_the_way_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        'format = 1\nname = "chest"\n[task]\nclasses = ["a", "b"]\n[data]\nmin_patients = 5\n'
    )
    with pytest.raises(StudyError) as error:
        load_study(path)
    said = str(error.value)
    assert said.startswith("the study is of format 1, which releases before 0.2 wrote")
    assert "min_patients" not in said
    for words in (str(path), "write it anew in format 2", "docs/coordinator.md", "approves anew"):
        assert words in said
    assert "\n" not in said


def test_a_plan_of_format_1_from_a_server_is_refused_likewise() -> None:
    (path, *_) = sorted((HOMES / "open-round" / "studies" / "offered").iterdir())
    with pytest.raises(StudyError, match=r"format 1.*write it anew"):
        study_from_json(path.read_text())


@pytest.mark.parametrize("given", [3, 2.0, "2", None, True, 0, -1, [2]])
def test_a_plan_of_an_unknown_format_asks_for_another_release(given: object) -> None:
    with pytest.raises(StudyError, match=r"this release reads format 2.*a newer one"):
        parse_study({**MINIMAL, "format": given, "news": 1}, "here")


def test_a_plan_that_does_not_say_its_format_is_of_this_one() -> None:
    assert parse_study(MINIMAL, "here") == parse_study({**MINIMAL, "format": 2}, "here")


LIMITS = {
    ("privacy", "epsilon"): (0.01, 50.0),
    ("privacy", "clip"): (0.001, 1000.0),
    ("training", "sampling_rate"): (0.0001, 1.0),
}


@pytest.mark.parametrize(("section", "key"), LIMITS)
@given(data=st.data())
def test_a_number_is_taken_exactly_within_its_range(
    section: str, key: str, data: st.DataObject
) -> None:
    low, high = LIMITS[section, key]
    edges = st.sampled_from([low, high, 0.0, -low, 1e-45, 1e-320, 1e308])
    value = data.draw(edges | st.floats(allow_nan=False, allow_infinity=False))
    values = {**MINIMAL, section: {key: value}}
    if low <= value <= high:
        study = parse_study(values, "here")
        assert getattr(getattr(study, section), key) == value
        return
    bound = re.escape(f"{high if value > high else low:g}")
    with pytest.raises(StudyError, match=rf"{section}\.{key}: .*or equal to {bound} "):
        parse_study(values, "here")


@given(st.floats(allow_nan=False))
def test_few_parts_of_the_patients_can_be_held_out(part: float) -> None:
    if part in HELD_OUT:
        return
    with pytest.raises(StudyError, match=r"data.held_out: .*(0.05, 0.1, 0.15, 0.2, 0.3|finite)"):
        parse_study({**MINIMAL, "data": {"held_out": part}}, "here")


@pytest.mark.parametrize("part", HELD_OUT)
def test_each_of_these_parts_can(part: float) -> None:
    study = parse_study({**MINIMAL, "data": {"held_out": part}}, "here")
    assert study.training_size(1000) == 1000 - round(1000 * part)


@pytest.mark.parametrize(
    ("held_out", "size", "expected"),
    [(0.15, 1, 1), (0.3, 1, 1), (0.15, 10, 8), (0.3, 5, 4), (0.05, 390, 370), (0.2, 63, 50)],
)
def test_the_training_size_is_the_declared_one_less_what_is_held_out(
    held_out: float, size: int, expected: int
) -> None:
    study = parse_study({**MINIMAL, "data": {"held_out": held_out}}, "here")
    assert study.training_size(size) == expected


@pytest.mark.parametrize(
    ("part", "key", "instead"),
    [
        ({"data": {"min_patients": 20}}, "data.min_patients", "policy.min_patients in site.toml"),
        ({"data": {"max_set_aside": 0}}, "data.max_set_aside", "policy.max_set_aside in site.toml"),
        ({"input": {"kinds": ["image", "film"]}}, "input.kinds.1", "'whole-slide'"),
        ({"input": {"kinds": ["image", "image"]}}, "input", "differ"),
        ({"data": {"label_of": "series"}}, "data.label_of", "data.label_of = 'patient' only"),
        ({"data": {"label_rule": "worst"}}, "data.label_rule", "data.label_rule = 'agree' only"),
        ({"data": {"split_key": "secret"}}, "data.split_key", "pattern"),
        ({"data": {"split_key": "0123456789abcdef0"}}, "data.split_key", "pattern"),
        ({"evaluation": {"form": "scores"}}, "evaluation.form", "'histogram'"),
        ({"evaluation": {"often": 2}}, "evaluation.often", "unknown key"),
        ({"input": {"kinds": []}}, "input.kinds", "at least 1"),
    ],
)
def test_what_has_no_meaning_in_this_release_is_refused_by_name(
    part: dict[str, Any], key: str, instead: str
) -> None:
    with pytest.raises(StudyError) as error:
        parse_study({**MINIMAL, **part}, "here")
    said = str(error.value)
    assert f"{key}: " in said
    assert instead in said


def test_the_settings_a_later_release_will_read_have_their_place_and_their_default() -> None:
    written = json.loads(Study.model_validate(MINIMAL).canonical())
    assert written["input"]["kinds"] == ["image"]
    assert written["data"] | {"held_out": 0.15} == {
        "held_out": 0.15,
        "split_key": "",
        "label_of": "patient",
        "label_rule": "agree",
    }
    assert written["evaluation"] == {"when": "every-round", "form": "histogram"}
