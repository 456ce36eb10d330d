"""Two hospitals that differ by one patient: beside the noise, what leaves them is the same.

Each pair is one by which a coordinator could once tell whether a certain patient was there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from neighbours_kit import Update, assert_alike
from split_kit import KEY, fix_split

from client.data.split import is_held_out
from client.hospital import Hospital
from client.rounds import handle
from client.site import Site, SiteConfig
from client.vault import Vault
from shared.models import initial_weights
from shared.protocol import Reply, Request
from shared.study import Study

Row = tuple[str, str, str]
"""A patient: id, label, age."""


def plan(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "ages",
        "task": {"classes": ["healthy", "ill"]},
        "table": {"columns": [{"name": "age", "low": 0, "high": 100}]},
        "model": {"name": "table", "layers": []},
        "training": {"local_steps": 1, "sampling_rate": 0.5},
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "spare_rounds": 2},
        "data": {"held_out": 0.15},
        "federation": {"rounds": 2},
    }
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return Study.model_validate(values)


def people(count: int, first: int = 0) -> list[Row]:
    return [
        (f"P{n}", ("healthy", "ill")[n % 2], str(20 + n % 60)) for n in range(first, first + count)
    ]


def trained(count: int, study: Study) -> list[Row]:
    """Patients who are all on the side that trains."""
    fraction = study.data.held_out
    return [row for row in people(4 * count) if not is_held_out(KEY, row[0], fraction)][:count]


def hospital_of(
    home: Path, rows: list[Row], study: Study, size: int = 40, **policy: Any
) -> Hospital:
    """A hospital with these patients, whose person has approved the study."""
    fix_split(home)
    (home / "vault.key").write_bytes(KEY)
    (home / "vault.key").chmod(0o600)
    label = "fluid" if study.task.findings else "label"
    lines = [f"patient,{label},age", *map(",".join, rows)]
    (home / "patients.csv").write_text("\n".join(lines) + "\n")
    config = SiteConfig.model_validate(
        {
            "name": "ward",
            "server": {"address": "localhost:1"},
            "data": {"table": "patients.csv"},
            "policy": {"min_patients": 5, "min_patients_per_class": 2} | policy,
            "compute": {"device": "cpu"},
        }
    )
    hospital = Hospital(Site(home, config), Vault.open(home / "vault.key"))
    hospital.approvals.approve_study(study, "Dr. A", size)
    return hospital


def ask(hospital: Hospital, study: Study, number: int, **more: Any) -> tuple[Reply, Update]:
    tasks = {0: "describe", study.federation.rounds + 1: "evaluate"}
    asked = {
        "task": tasks.get(number, "train"),
        "run": "run-1",
        "study_digest": study.digest,
        "study": study.canonical(),
        "round": number,
    }
    request = Request.model_validate(asked | more)
    return handle(hospital, request, initial_weights(study) if number else {})


def assert_same_to_the_end(one: Hospital, other: Hospital, study: Study) -> None:
    """Ask all there is to ask, a repeat among them, and compare each pair of answers."""
    for number, more in ((1, {}), (1, {"run": "run-2"}), (2, {}), (3, {})):
        answers = [ask(hospital, study, number, **more) for hospital in (one, other)]
        assert answers[0][0].refusal is None
        assert_alike(answers[0], answers[1])


Pair = Callable[..., tuple[Hospital, Hospital]]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Make two hospitals of the same settings, from the rows of each."""

    def make(one: list[Row], other: list[Row], study: Study, **policy: Any):
        sides = zip(("one", "other"), (one, other), strict=True)
        return tuple(hospital_of(tmp_path / name, rows, study, **policy) for name, rows in sides)

    return make


def test_one_patient_more_does_not_change_the_number_that_is_told(pair: Pair) -> None:
    study = plan()
    rows = trained(341, study)
    one, other = pair(rows, rows[:340], study, size=400)
    assert_same_to_the_end(one, other, study)
    assert ask(one, study, 3, attempt=1)[0].patients == 340


@pytest.mark.parametrize("held_out", [0, 1])
def test_whether_anybody_is_held_out_does_not_show(pair: Pair, held_out: int) -> None:
    study = plan()
    rows = trained(40, study)
    kept = [row for row in people(200) if is_held_out(KEY, row[0], 0.15)]
    one, other = pair(rows + kept[: held_out + 1], rows + kept[:held_out], study)
    assert_same_to_the_end(one, other, study)


def test_a_site_that_lost_its_last_patient_sends_noise(pair: Pair) -> None:
    study = plan()
    assert_same_to_the_end(*pair(trained(1, study), [], study), study)


@pytest.mark.parametrize("left", [0, 1])
def test_statistics_of_few_or_nobody_are_of_the_same_form(pair: Pair, left: int) -> None:
    study = plan(training={"loss": {"name": "class-balanced"}})
    rows = trained(left + 1, study)
    one, other = pair(rows, rows[:left], study)
    assert_alike(ask(one, study, 0), ask(other, study, 0))
    assert_same_to_the_end(one, other, study)


def test_a_row_that_cannot_be_used_does_not_show_where_none_may_be_set_aside(pair: Pair) -> None:
    study = plan()
    rows = people(40)
    one, other = pair(rows, [*rows, ("Z", "unclear", "50")], study, max_set_aside=0)
    assert_same_to_the_end(one, other, study)


@pytest.mark.parametrize("least", ["min_patients", "min_patients_per_class"])
def test_one_patient_too_few_does_not_show(pair: Pair, least: str) -> None:
    study = plan()
    rows = trained(40, study)
    ill = [row for row in rows if row[1] == "ill"]
    few = [row for row in rows if row[1] == "healthy"] + ill[:5]
    limit = {"min_patients": len(few), "min_patients_per_class": 5}
    one, other = pair(few, few[:-1], study, **{least: limit[least]})
    assert_same_to_the_end(one, other, study)


@pytest.mark.parametrize("known", [1, 5])
def test_how_many_are_known_for_a_finding_does_not_show(pair: Pair, known: int) -> None:
    study = plan(task={"classes": ["fluid"], "findings": True})
    blank = [(name, "", age) for name, _, age in trained(40, study)]

    def stated(count: int) -> list[Row]:
        some = [(name, str(n % 2), age) for n, (name, _, age) in enumerate(blank[:count])]
        return some + blank[count:]

    one, other = pair(stated(known), stated(known - 1), study, min_patients_per_class=5)
    assert_same_to_the_end(one, other, study)


def test_a_patient_without_budget_does_not_show(pair: Pair) -> None:
    study = plan()
    rows = trained(40, study)
    shared = replace_name(study, "before")
    one, other = pair(rows, rows, study, max_epsilon_per_patient=10)
    for hospital, own in ((one, rows[:1]), (other, rows[1:2])):
        spend(hospital, own, shared)
    # One of them spent it on a patient who is not in the study.
    remove(other, rows[1])
    remove(one, rows[1])
    assert_same_to_the_end(one, other, study)


def replace_name(study: Study, name: str) -> Study:
    return study.model_copy(update={"name": name})


def spend(hospital: Hospital, rows: list[Row], study: Study) -> None:
    """Let these patients alone take part in another study."""
    table = hospital.site.home / "patients.csv"
    whole = table.read_text()
    table.write_text("\n".join(["patient,label,age", *map(",".join, rows)]) + "\n")
    hospital.approvals.approve_study(study, "Dr. A", 40)
    assert ask(hospital, study, 1)[0].refusal is None
    table.write_text(whole)


def remove(hospital: Hospital, row: Row) -> None:
    table = hospital.site.home / "patients.csv"
    table.write_text(table.read_text().replace(",".join(row) + "\n", ""))


@pytest.mark.parametrize("when", [1, 2, 3])
def test_an_opt_out_does_not_show(pair: Pair, when: int) -> None:
    study = plan()
    rows = trained(40, study)
    one, other = pair(rows, rows, study)
    for number in (1, 2, 3):
        if number == when:
            with other.ledger() as ledger:
                ledger.opt_out(other.vault.pseudonym(rows[0][0]))
        assert_alike(ask(one, study, number), ask(other, study, number))


def test_what_is_sent_again_is_the_same_again(pair: Pair) -> None:
    study = plan()
    rows = trained(40, study)
    one, other = pair(rows, rows[:-1], study)
    for hospital in (one, other):
        ask(hospital, study, 1)
    assert_alike(ask(one, study, 1, attempt=1), ask(other, study, 1, attempt=1))
    for hospital in (one, other):
        shutil.rmtree(hospital.site.outbox)
    assert_alike(ask(one, study, 1, attempt=2), ask(other, study, 1, attempt=2))


def test_a_refusal_of_the_plan_is_the_same_for_all(pair: Pair) -> None:
    study = plan(privacy={"epsilon": 9.0})
    rows = trained(40, study)
    one, other = pair(rows, [], study)
    assert_alike(ask(one, study, 1), ask(other, study, 1))
    config = one.site.config.model_copy(
        update={"policy": one.site.config.policy.model_copy(update={"max_epsilon_per_study": 20})}
    )
    assert ask(replace(one, site=Site(one.site.home, config)), study, 1)[0].refusal is None
