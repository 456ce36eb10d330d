"""What is said of each remedy: there if it is on, with numbers recomputed another way."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared.explain import explain_study, study_topics
from shared.explain_remedies import remedies
from shared.study import Study, parse_study

TABLE = {
    "columns": [{"name": "age", "low": 0, "high": 9}, {"name": "sex", "categories": ["f", "m"]}],
    "bins": 5,
}


def make_study(**changes: Any) -> Study:
    values = {"name": "lungs", "task": {"classes": ["clear", "opaque"]}, "input": {"size": 28}}
    return parse_study(values | changes, "test")


def of_table(**changes: Any) -> Study:
    return make_study(model={"name": "table"}, **changes)


def server(**changes: Any) -> Study:
    return make_study(federation={"sites": 9, "min_sites": 5} | changes)


ONE_EACH = [
    (make_study(training={"loss": {"name": "focal"}}), "focal loss", "gamma 2"),
    (make_study(training={"loss": {"name": "class-balanced"}}), "class-balanced loss", "noised"),
    (make_study(training={"loss": {"name": "logit-adjustment"}}), "logit adjustment", "noised"),
    (make_study(training={"proximal": 0.25}), "FedProx", "strength 0.25"),
    (make_study(training={"control": True}), "SCAFFOLD", "twice as much"),
    (make_study(training={"local_norms": True}), "local normalisation", "of its own"),
    # 16 rounds, one spare and 3 of these: 3 of 20.
    (make_study(training={"personal_rounds": 3}), "personal models", "15 % of the training"),
    (make_study(task={"classes": ["a"], "findings": True}), "labels may be missing", "known"),
    (of_table(table=TABLE | {"missing": "drop"}), "missing values: drop", "left out"),
    (of_table(table=TABLE | {"missing": "mean"}), "missing values: mean", "the mean of all"),
    (of_table(table=TABLE | {"missing": "median"}), "missing values: median", "the median of"),
    (of_table(table=TABLE), "missing values: indicator", "is told"),
    (of_table(table=TABLE | {"missing": "embedding"}), "missing values: embedding", "learns"),
    (server(aggregator="median"), "median of the updates", "2 of the 5"),
    (
        server(aggregator="trimmed-mean", trim=0.25),
        "trimmed mean of the updates",
        "2 at each end of 9 hospitals, 1 of the 5",
    ),
    (server(optimiser={"name": "momentum"}), "server momentum", "decay 0.9"),
    (server(optimiser={"name": "adam", "learning_rate": 0.02}), "server adam", "about 0.02"),
    (server(optimiser={"name": "yogi", "learning_rate": 0.02}), "server yogi", "about 0.02"),
    (server(optimiser={"learning_rate": 0.5}), "server learning rate", "0.5 times"),
    (server(average=0.5), "mean of the rounds' models", "decay 0.5"),
]


@pytest.mark.parametrize(("study", "name", "said"), ONE_EACH)
def test_each_remedy_is_named_explained_judged_and_priced(study, name: str, said: str) -> None:
    (remedy,) = remedies(study)
    assert remedy.name == name
    assert said in remedy.text
    assert remedy.sound.startswith("Sound under privacy:")
    assert remedy.costs
    assert (f"Remedy ({name})", remedy.text) in study_topics(study)


@pytest.mark.parametrize(("study", "name", "said"), ONE_EACH)
def test_without_privacy_nothing_is_called_sound_or_noised(study, name: str, said: str) -> None:
    open_study = study.model_copy(
        update={"privacy": study.privacy.model_copy(update={"enabled": False})}
    )
    (remedy,) = remedies(open_study)
    assert remedy.name == name
    assert "Sound" not in remedy.text
    said_of_training = [x for x in explain_study(open_study) if not x.startswith("Evaluation: ")]
    assert "epsilon" not in " ".join(said_of_training)


def test_personal_models_are_warned_of_where_a_small_hospitals_noise_would_spoil_them() -> None:
    for enabled in (True, False):
        study = make_study(training={"personal_rounds": 2}, privacy={"enabled": enabled})
        (remedy,) = remedies(study)
        assert ("simulate such hospitals first" in remedy.text) == enabled


def test_plain_averaging_has_none() -> None:
    assert remedies(make_study()) == ()
    assert not [line for line in explain_study(make_study()) if line.startswith("Remedy")]


def leaves(study: Study) -> str:
    return dict(study_topics(study))["What leaves a hospital"]


def test_what_leaves_before_and_after_the_rounds_is_counted() -> None:
    plain = leaves(make_study())
    assert "Before the first round" not in plain
    assert "Then" not in plain
    balanced = make_study(training={"loss": {"name": "class-balanced"}})
    assert "once: 2 counts of training patients by class." in leaves(balanced)
    # Five bins and two categories, each with a cell for missing values.
    table = of_table(table=TABLE | {"missing": "mean"})
    assert "2 counts of training patients by class and 9 counts of who" in leaves(table)
    grouped = leaves(make_study(privacy={"subgroups": ["sex", "age"]}))
    assert "by sex and by age, 9 groups of 32" in grouped
    assert f"{math.sqrt(3):.2g} times as large" in grouped
    personal = leaves(make_study(training={"personal_rounds": 1}))
    assert "fine-tuned model" in personal


def test_tables_and_findings_are_called_what_they_are() -> None:
    topics = dict(study_topics(of_table(table=TABLE)))
    assert topics["Table"].startswith("1 number (age) and 1 category (sex) a patient")
    assert "Images" not in topics
    assert "rows of a table" in topics["What is learned"]
    findings = make_study(task={"classes": ["a", "b", "c"], "findings": True})
    assert "any number of these" in dict(study_topics(findings))["What is learned"]
    assert "as 96 counts" in leaves(findings)
