"""Statistics before training: counted right, noised, charged, released once, and composed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client.data.patients import PatientSet
from client.describe import describe, own_statistics
from client.privacy.account import Limits
from client.privacy.counts import GRID
from client.privacy.groups import joined
from client.privacy.plans import training_plan
from client.privacy.stream import OsStream
from client.recovery import Told, recover
from client.rounds import handle
from client.spending import spending_report
from client.statement import make_statement, sign_statement
from shared import pki
from shared.accounting import Mechanism, epsilon
from shared.explain_noise import site_noise
from shared.protocol import Reply
from shared.study import Study

Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]

NAN = math.nan
WEIGHTED = {"loss": {"name": "class-balanced"}}
TABLE = {
    "columns": [
        {"name": "age", "low": 20, "high": 100},
        {"name": "sex", "categories": ["f", "m"]},
        {"name": "dose", "low": 0, "high": 1},
    ],
    "missing": "mean",
    "bins": 4,
}


def table_study(**changes: Any) -> Study:
    values = {"name": "t", "task": {"classes": ["a", "b", "c"]}, "table": TABLE}
    return Study.model_validate(values | {"model": {"name": "table"}} | changes)


def patients(rows: list[list[float]], labels: list[Any]) -> PatientSet:
    names = tuple(f"{i:064x}" for i in range(len(rows)))
    values = torch.tensor(rows, dtype=torch.float32)
    return PatientSet(values, torch.arange(len(rows)), torch.tensor(labels), names)


ROWS = [
    [-1.0, 0.0, -0.5],  # on an edge: the upper bin
    [1.0, 1.0, NAN],
    [0.0, NAN, 0.99],
    [NAN, 1.0, -0.51],
]


def test_every_patient_is_in_one_cell_of_the_classes_and_of_each_column() -> None:
    found = describe(
        patients(ROWS, [0, 2, 2, 2]), table_study(), noise_multiplier=0.0, stream=OsStream()
    )
    assert found.noise == 0
    assert found.classes == (1, 0, 3)
    assert found.columns == ((1, 0, 1, 1, 1), (1, 2, 1), (1, 1, 0, 1, 1))


def test_of_findings_the_known_are_counted_without_and_with() -> None:
    study = Study.model_validate(
        {
            "name": "f",
            "task": {"classes": ["x", "y", "z"], "findings": True},
            "training": WEIGHTED,
        }
    )
    labels = [[0, 1, -1], [0, -1, -1], [1, 1, -1], [-1, 0, -1]]
    found = describe(patients(ROWS, labels), study, noise_multiplier=0.0, stream=OsStream())
    assert found.classes == (2, 1, 1, 2, 0, 0)
    assert found.columns == ()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.floats(-1, 1, width=32) | st.just(NAN),
            st.sampled_from([0.0, 1.0, NAN]),
            st.floats(-1, 1, width=32) | st.just(NAN),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_a_patient_changes_the_counts_by_the_stated_length(people: list[tuple[Any, ...]]) -> None:
    def counts(of: list[tuple[Any, ...]]) -> np.ndarray:
        if not of:
            return np.zeros(3 + 5 + 3 + 5)
        found = describe(
            patients([list(p[1:]) for p in of], [p[0] for p in of]),
            table_study(),
            noise_multiplier=0.0,
            stream=OsStream(),
        )
        return np.concatenate([found.classes, *found.columns])

    change = counts(people) - counts(people[1:])
    assert np.linalg.norm(change) == math.sqrt(1 + 3)
    assert counts(people).sum() == 4 * len(people)


def test_every_count_carries_gaussian_noise_of_the_stated_size_on_a_grid() -> None:
    study = table_study(table=TABLE | {"bins": 256})
    people = patients(ROWS, [0, 2, 2, 2])
    exact = describe(people, study, noise_multiplier=0.0, stream=OsStream())
    noise, stated = [], 0.0
    for _ in range(8):
        found = describe(people, study, noise_multiplier=3.0, stream=OsStream())
        stated = found.noise
        for got, true in zip(
            (found.classes, *found.columns), (exact.classes, *exact.columns), strict=True
        ):
            noise += list(np.subtract(got, true))
    assert stated == pytest.approx(3.0 * math.sqrt(1 + 3))
    assert stats.kstest(np.array(noise) / stated, "norm").pvalue > 1e-4
    assert np.array_equal(np.array(noise) * GRID, np.round(np.array(noise) * GRID))


def code(reply: Reply) -> str:
    assert reply.refusal is not None, reply.outcome
    return reply.refusal.code


def ask(ward: Ward, study: Study, **fields: Any) -> Reply:
    """Ask for statistics; such a message needs no weights."""
    request = ward.request(study, 0, task="describe", **fields)
    reply, update = handle(ward.hospital(), request, {})
    assert update == {}
    return reply


@pytest.fixture
def weighted(ward: Ward) -> Study:
    """An approved study of images whose loss needs the class counts."""
    study: Study = ward.study(training={"local_steps": 2, "sampling_rate": 0.5} | WEIGHTED)
    ward.approve(study)
    return study


def test_statistics_are_charged_before_with_all_of_the_training(
    ward: Ward, weighted: Study
) -> None:
    reply = ask(ward, weighted)
    assert (reply.outcome, reply.patients, reply.resent) == ("described", 12, False)
    assert reply.statistics is not None
    assert (len(reply.statistics.classes), reply.statistics.columns) == (2, ())
    assert reply.statistics.noise == 10
    assert ward.kinds() == [
        ("start", ""),
        ("plan", "describe"),
        ("plan", "train"),
        ("join", "describe"),
        ("join", "train"),
        ("reserve", "describe"),
        ("commit", "describe"),
    ]
    assert reply.spending is not None
    once = epsilon([Mechanism(10.0, 1.0, 1)], 1e-5)
    assert reply.spending.epsilon == pytest.approx(once, rel=1e-9)
    assert reply.spending.steps == 0


def test_whoever_asks_again_gets_the_same_numbers_at_no_cost(ward: Ward, weighted: Study) -> None:
    first = ask(ward, weighted)
    again = ask(ward, weighted, attempt=1)
    assert again.resent
    other_run = ask(ward, weighted, run="run-2")
    assert first.statistics == again.statistics == other_run.statistics
    assert first.statistics == own_statistics(ward.hospital(), weighted)
    assert ward.kinds().count(("reserve", "describe")) == 1


def test_statistics_at_rest_are_encrypted_and_damage_costs_a_spare_use(
    ward: Ward, weighted: Study
) -> None:
    first = ask(ward, weighted)
    (kept,) = (ward.home / "local").iterdir()
    assert b"classes" not in kept.read_bytes()
    kept.write_bytes(b"damaged")
    assert own_statistics(ward.hospital(), weighted) is None
    assert ask(ward, weighted).statistics == first.statistics  # from the outbox
    second = ask(ward, weighted, run="run-2")
    assert second.statistics != first.statistics
    assert ward.kinds().count(("reserve", "describe")) == 2
    kept.unlink()
    assert code(ask(ward, weighted, run="run-3")) == "budget-exhausted"


def test_a_crash_after_the_charge_releases_nothing_and_a_spare_use_pays(
    ward: Ward, weighted: Study
) -> None:
    class Crash(OsStream):
        def read(self, size: int) -> bytes:
            raise MemoryError

    broken = replace(ward.hospital(), make_stream=lambda _: Crash())
    reply, _ = handle(broken, ward.request(weighted, 0, task="describe"), {})
    assert code(reply) == "site-attention"
    ward.look()
    assert own_statistics(ward.hospital(), weighted) is None
    assert ward.kinds().count(("reserve", "describe")) == 1
    assert ask(ward, weighted).outcome == "described"
    assert ward.kinds().count(("reserve", "describe")) == 2


def test_a_study_that_needs_no_statistics_gives_none(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    assert code(ask(ward, study)) == "message-invalid"
    assert ward.kinds() == [("start", "")]
    assert ward.loads == 0


def test_a_patient_who_cannot_afford_the_training_is_not_described_either(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(max_epsilon_per_patient=5, allow_without_privacy=True)
    ward.train = 400  # so many that no noise hides whether they are counted
    study = ward.study(training=WEIGHTED)
    ward.approve(study)
    statistics = ask(ward, study).statistics
    assert statistics is not None
    assert max(statistics.classes) < 100
    assert ("join", "describe") not in ward.kinds()


def test_patients_who_opted_out_are_not_counted(ward: Ward, weighted: Study) -> None:
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-3"))
    assert ask(ward, weighted).patients == 12, "the number that was declared"
    with ward.hospital().ledger() as ledger:
        taken = joined(ledger.entries(), ledger.members())
    assert len(taken[weighted.digest, "describe"]) == 11


def test_description_and_training_together_stay_within_the_studys_epsilon(ward: Ward) -> None:
    # As much noise goes to the counts as leaves hardly anything for training.
    study = ward.study(
        training={"local_steps": 2, "sampling_rate": 0.5} | WEIGHTED,
        privacy={"epsilon": 3.0, "statistics_noise": 2.5},
    )
    ward.approve(study)
    ask(ward, study)
    (ward.home / "local" / f"{study.digest}.statistics").unlink()
    ask(ward, study, run="run-2")  # the spare use
    for number in (1, 2, 3):
        reply = ward.ask(study, number, run="run-2")
        assert reply.outcome == "update", reply.refusal
    again = {name: array + 1 for name, array in ward.answer(study, 3, run="run-2")[1].items()}
    reply = ward.ask(study, 3, run="run-2", weights=again)  # the spare round
    assert reply.spending is not None
    training = Mechanism(reply.spending.noise_multiplier, 0.5, 8)
    both = [training, Mechanism(2.5, 1.0, 2)]
    assert reply.spending.epsilon == pytest.approx(epsilon(both, 1e-5), rel=1e-9)
    assert 2.9 < reply.spending.epsilon <= 3.0
    assert epsilon([training], 1e-5) < 2.5


def test_the_server_foretells_the_noise_the_site_adds(ward: Ward, weighted: Study) -> None:
    for study in (weighted, ward.study()):
        expected = training_plan(study, 12).noise_multiplier
        assert site_noise(study, 12).noise_multiplier == expected
    noisier = training_plan(weighted, 12).noise_multiplier
    assert noisier > 1.001 * training_plan(ward.study(), 12).noise_multiplier


@pytest.mark.parametrize(("task", "number"), [("describe", 0), ("train", 1), ("evaluate", 4)])
def test_a_study_whose_training_cannot_be_calibrated_is_answered_nothing(
    ward: Ward, task: str, number: int
) -> None:
    study = ward.study(training=WEIGHTED, privacy={"epsilon": 3.0, "statistics_noise": 1.0})
    ward.approve(study)
    asked = ask(ward, study) if task == "describe" else ward.ask(study, number, task=task)
    assert code(asked) == "study-invalid"
    assert ward.kinds() == [("start", "")]
    assert ward.loads == 0, "decided before a patient was looked at"


@pytest.mark.parametrize("allowed", [True, False])
def test_without_privacy_counts_are_exact_and_need_the_policys_waiver(
    make_ward: MakeWard, allowed: bool
) -> None:
    ward = make_ward(allow_without_privacy=allowed)
    study = ward.study(training=WEIGHTED, privacy={"enabled": False})
    ward.approve(study)
    reply = ask(ward, study)
    if not allowed:
        assert code(reply) == "policy-epsilon"
        return
    assert reply.statistics is not None
    assert (reply.statistics.classes, reply.statistics.noise) == ((6, 6), 0)
    assert reply.spending is None


def test_recovery_charges_the_description_too(ward: Ward, weighted: Study) -> None:
    ask(ward, weighted)
    for path in ward.home.glob("ledger.sqlite*"):
        path.unlink()
    recover(ward.hospital(), Told("IT", (), exact=False))
    with ward.hospital().ledger() as ledger:
        charged = {e.purpose: e.uses for e in ledger.entries() if e.kind == "reserve"}
    assert charged["describe"] == 2


def test_the_statement_names_the_purpose(ward: Ward, weighted: Study) -> None:
    ask(ward, weighted)
    with ward.hospital().ledger() as ledger:
        report = spending_report(ledger, Limits(10.0, 1e-5))
    plan = next(plan for plan in report.plans if plan.purpose == "describe")
    assert (plan.used, plan.committed, plan.uses, plan.spares) == (1, 1, 2, 1)
    own = next(account for account in report.accounts if account.study)
    assert 7.9 < own.epsilon <= own.budget == 8.0  # with the training to come
    pki.create_node_key(ward.home)
    statement = make_statement(ward.hospital().site, report, {}, ward.time)
    assert "<td>describe</td>" in sign_statement(statement, ward.home / "node.key")
