"""The plan is validated whole, explained by key, and has one digest everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StudyError
from shared.study import load_study, parse_study, study_from_json

MINIMAL = {"name": "chest", "task": {"classes": ["normal", "opacity"]}}


def changed(**sections: object) -> dict[str, object]:
    return {**MINIMAL, **sections}


def test_digest_is_sha256_of_sorted_json_and_stays_what_it_is() -> None:
    study = parse_study(MINIMAL, "here")
    by_hand = json.dumps(json.loads(study.canonical()), sort_keys=True, separators=(",", ":"))
    assert study.digest == hashlib.sha256(by_hand.encode()).hexdigest()


def test_defaults_written_out_give_the_same_digest() -> None:
    study = parse_study(MINIMAL, "here")
    spelled_out = parse_study(json.loads(study.canonical()), "here")
    assert spelled_out.digest == study.digest


def test_any_change_changes_the_digest() -> None:
    digests = {
        parse_study(values, "here").digest
        for values in (
            MINIMAL,
            changed(name="chest-2"),
            changed(privacy={"epsilon": 7.0}),
            changed(privacy={"enabled": False}),
            changed(federation={"rounds": 11}),
            changed(model={"name": "attention", "patch": 8}),
        )
    }
    assert len(digests) == 6


TABLE = {
    "model": {"name": "table"},
    "table": {"columns": [{"name": "age", "low": 0, "high": 100}]},
}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (changed(privacy={"epsilon": -1}), "privacy.epsilon"),
        (changed(privacy={"epsilon": 0}), "privacy.epsilon"),
        (changed(privacy={"epsilon": float("nan")}), "privacy.epsilon"),
        (changed(privacy={"delta": 0.5}), "privacy.delta"),
        (changed(privacy={"images_per_patient": 0}), "privacy.images_per_patient"),
        (changed(federation={"rounds": 0}), "federation.rounds"),
        (changed(federation={"sites": 2, "min_sites": 3}), "min_sites"),
        (changed(input={"size": 27}), "input.size"),
        (changed(input={"size": 257}), "input.size"),
        (changed(input={"window": [40, 0]}), "window"),
        (changed(training={"sampling_rate": 1.5}), "training.sampling_rate"),
        (changed(model={"name": "resnet"}), "model"),
        (changed(model={"name": "attention", "patch": 5}), "patch"),
        (changed(task={"classes": ["one"]}), "task.classes"),
        (changed(task={"classes": ["a", "a"]}), "classes"),
        (changed(task={"classes": ["a", "b"], "positive": "c"}), "positive"),
        (changed(privacy={"subgroups": ["sex", "sex"]}), "subgroups must differ"),
        (changed(**TABLE, privacy={"subgroups": ["sex"]}), "privacy.subgroups"),
        (changed(**TABLE, training={"augment": {"shift": 0.1}}), "training.augment"),
        (changed(**TABLE, training={"local_norms": True}), "training.local_norms"),
        (changed(training={"control": True, "momentum": 0.5}), "training.control"),
        (changed(nonsense=1), "nonsense: unknown key"),
        (changed(training={"batch": 3}), "training.batch: unknown key"),
    ],
)
def test_a_wrong_plan_is_refused_naming_the_key(values: dict[str, object], key: str) -> None:
    with pytest.raises(StudyError, match="study is not valid") as error:
        parse_study(values, "study.toml")
    assert key in str(error.value)
    assert "study.toml" in str(error.value)


def test_allowed_range_is_named() -> None:
    with pytest.raises(StudyError, match="less than or equal to 256"):
        parse_study(changed(input={"size": 300}), "here")


def test_toml_file_gives_the_same_study(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "chest"\n[task]\nclasses = ["normal", "opacity"]\n')
    assert load_study(path).digest == parse_study(MINIMAL, "x").digest


IMAGES = 'name = "chest"\n[task]\nclasses = ["normal", "opacity"]\n'
ROWS = IMAGES + '[model]\nname = "table"\n[[table.columns]]\nname = "age"\nlow = 0\nhigh = 100\n'


@pytest.mark.parametrize(
    ("text", "key", "instead"),
    [
        (IMAGES + "[training]\nmixup = 0.2", "training.mixup", "training.augment"),
        (IMAGES + "[training.augment]\nCutMix = 1", "training.augment.CutMix", "training.augment"),
        (IMAGES + "[training]\nbalanced_lots = true", "training.balanced_lots", "class-balanced"),
        (IMAGES + '[training]\nsampler = "weighted"', "training.sampler", "class-balanced"),
        (IMAGES + "[training]\nclass_weights = [1, 3]", "training.class_weights", "noised counts"),
        (IMAGES + "[training.loss]\nweights = [1, 3]", "training.loss.weights", "noised counts"),
        (
            IMAGES + '[training.loss]\nname = "weighted-cross-entropy"',
            "training.loss.name",
            "noised counts",
        ),
        (IMAGES + '[model]\nname = "cnn"\nbatch_norm = true', "model.cnn.batch_norm", "group"),
        (IMAGES + '[model]\nname = "cnn"\nnorm = "batch"', "model.cnn.norm", "group"),
        (ROWS + '[table]\nmissing = "local-mean"', "table.missing", "'mean' or 'median'"),
        (ROWS + '[table]\nmissing = "site_median"', "table.missing", "'mean' or 'median'"),
        (IMAGES + '[training.loss]\nreduction = "batch"', "training.loss.reduction", "findings"),
        (IMAGES + 'mask = "batch"', "task.mask", "task.findings"),
    ],
)
def test_what_privacy_rules_out_is_refused_with_what_is_allowed(
    tmp_path: Path, text: str, key: str, instead: str
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(StudyError) as error:
        load_study(path)
    said = str(error.value)
    (why,) = re.findall(rf"{re.escape(key)}: refused, as (.*?) \(given", said)
    assert instead in why.partition("; ")[2]
    assert "\n" not in said


def test_a_misspelt_key_is_not_taken_for_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(IMAGES + "[privacy]\nnorm = 1\n[training]\nsampling_rat = 0.1")
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert "privacy.norm: unknown key" in str(error.value)
    assert "training.sampling_rat: unknown key" in str(error.value)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b""])
def test_bad_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="No such file"):
        load_study(tmp_path / "no.toml")


@given(st.text(max_size=300))
def test_foreign_json_never_raises_anything_else(text: str) -> None:
    try:
        study_from_json(text)
    except StudyError:
        return


def test_oversized_and_deep_json_are_refused() -> None:
    with pytest.raises(StudyError, match="64 KiB"):
        study_from_json(" " * 70_000)
    with pytest.raises(StudyError):
        study_from_json("[" * 60_000)


def test_steps_and_evaluations_count_spare_rounds() -> None:
    study = parse_study(
        changed(
            federation={"rounds": 10},
            training={"local_steps": 7},
            privacy={"spare_rounds": 2},
        ),
        "here",
    )
    assert study.total_steps == 84
    assert study.evaluations == 13


def test_a_study_may_evaluate_only_what_it_releases() -> None:
    plan = changed(
        federation={"rounds": 10}, privacy={"spare_rounds": 2}, evaluation={"when": "closing"}
    )
    assert parse_study(plan, "here").evaluations == 3
    personal = parse_study({**plan, "training": {"personal_rounds": 1}}, "here")
    assert personal.evaluations == 2 * 3


def test_each_spare_round_covers_the_closing_of_a_study_with_personal_models() -> None:
    plan = changed(
        federation={"rounds": 10},
        training={"personal_rounds": 3},
        privacy={"spare_rounds": 2},
    )
    assert parse_study(plan, "here").evaluations == 10 + 2 + 2 * 2
