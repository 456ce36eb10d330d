"""A round at a hospital: what is trained, evaluated and charged, and what leaves the building."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from neighbours_kit import assert_alike

from client.privacy.groups import joined, left_out
from shared.accounting import Mechanism, epsilon
from shared.models import initial_weights
from shared.study import Study

Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]


def test_a_round_trains_evaluates_charges_and_tells_only_declared_fields(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    weights = initial_weights(study)
    reply, update = ward.answer(study, 1)
    assert (reply.outcome, reply.patients, reply.resent) == ("update", 12, False)
    assert {name: a.shape for name, a in update.items()} == {
        name: a.shape for name, a in weights.items()
    }
    assert any(np.abs(array).max() > 0 for array in update.values())
    assert reply.evaluation is not None
    assert (reply.evaluation.targets, reply.evaluation.bins) == (1, 16)
    assert reply.evaluation.noise > 0
    assert ward.kinds() == [
        ("start", ""),
        ("plan", "train"),
        ("plan", "evaluate"),
        ("join", "train"),
        ("join", "evaluate"),
        ("reserve", "evaluate"),
        ("reserve", "train"),
        ("commit", "evaluate"),
        ("commit", "train"),
    ]
    assert reply.head is not None
    assert reply.head.entries == 7


def test_what_a_reply_says_was_spent_is_what_the_accountant_says(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    for number in (1, 2, 3):
        reply = ward.ask(study, number)
    spending = reply.spending
    assert spending is not None
    assert spending.steps == 6
    assert reply.evaluation is not None
    training = Mechanism(spending.noise_multiplier, 0.5, 6)
    scores = Mechanism(reply.evaluation.noise, 1.0, 3)
    worst = max(epsilon([training], 1e-5), epsilon([scores], 1e-5))
    assert spending.epsilon == pytest.approx(worst, rel=1e-9)
    assert spending.epsilon <= spending.budget == 8.0
    # The noise covers the spare round and the closing evaluation too.
    assert epsilon([replace(training, steps=8)], 1e-5) <= 8
    assert epsilon([replace(scores, steps=5)], 1e-5) <= 8


def test_what_a_reply_says_was_spent_is_within_the_budget_it_says(make_ward: MakeWard) -> None:
    # Training costs less than the study's epsilon, as its noise was raised; the scores cost all.
    ward = make_ward(max_epsilon_per_study=20, max_epsilon_per_patient=100)
    study = ward.study(privacy={"epsilon": 20.0}, training={"sampling_rate": 0.1, "local_steps": 1})
    ward.approve(study)
    for number in (1, 2, 3):
        ward.ask(study, number)
    spending = ward.ask(study, 4, task="evaluate").spending
    training = Mechanism(spending.noise_multiplier, 0.1, 4)
    assert spending.noise_multiplier == 0.5
    assert epsilon([training], 1e-5) < spending.epsilon <= spending.budget == 20.0


def test_the_closing_evaluation_evaluates_only(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    reply, update = ward.answer(study, 4, task="evaluate")
    assert (reply.outcome, update) == ("evaluated", {})
    assert reply.evaluation is not None
    assert [k for k in ward.kinds() if k == ("reserve", "train")] == [("reserve", "train")]
    assert ward.answer(study, 4, task="evaluate")[0].resent


def test_a_study_evaluated_at_its_closing_tells_nothing_before_and_has_less_noise(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(max_epsilon_per_patient=30)
    study, usual = ward.study(evaluation={"when": "closing"}), ward.study()
    for plan in (study, usual):
        ward.approve(plan)
    for number in (1, 2, 3):
        reply = ward.ask(study, number)
        assert (reply.outcome, reply.evaluation) == ("update", None)
    assert ("reserve", "evaluate") not in ward.kinds()
    closing = ward.ask(study, 4, task="evaluate").evaluation
    assert ward.kinds().count(("reserve", "evaluate")) == 1
    # One evaluation and one spare, instead of five in all, share the budget.
    assert epsilon([Mechanism(closing.noise, 1.0, 2)], 1e-5) <= 8
    assert 0 < closing.noise < ward.ask(usual, 1).evaluation.noise


def test_an_answer_that_charged_nothing_shows_no_head(make_ward: MakeWard) -> None:
    # The server takes a head for a study that the ledger must know ever after.
    ward = make_ward(evaluation="none")
    study = ward.study(training={"local_norms": True})
    ward.approve(study)
    reply = ward.ask(study, 4, task="evaluate")
    assert (reply.outcome, reply.evaluation, reply.head) == ("evaluated", None, None)
    assert ward.ask(study, 1).head is not None


def test_evaluation_off_shares_nothing_and_charges_nobody_held_out(make_ward: MakeWard) -> None:
    ward = make_ward(evaluation="none")
    study = ward.study()
    ward.approve(study)
    reply = ward.ask(study, 1)
    assert reply.evaluation is None
    assert ("reserve", "evaluate") not in ward.kinds()
    before = ward.kinds()
    assert ward.code(ward.ask(study, 4, task="evaluate")) == "policy-evaluation"
    assert ward.kinds() == before


def test_exact_evaluation_gives_true_counts_and_is_on_record_as_unprotected(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(evaluation="exact")
    study = ward.study()
    ward.approve(study)
    for number in (1, 2):
        evaluation = ward.ask(study, number).evaluation
        assert evaluation is not None
        assert evaluation.noise == 0
        assert sum(evaluation.counts) == ward.held_out
    assert ("reserve", "exact-evaluation") in ward.kinds()
    # The hospital thinks better of it: the patients' exact scores have no finite epsilon.
    ward.policy["evaluation"] = "noised"
    assert ward.ask(study, 3).outcome == "update"
    with ward.hospital().ledger() as ledger:
        held_out = {ward.pseudonym(f"held-out-{i}") for i in range(ward.held_out)}
        assert left_out(ledger.entries(), ledger.members()) == {
            (study.digest, "evaluate"): held_out
        }


@pytest.mark.parametrize(
    ("held_out", "policy"),
    [
        (1, {}),
        (4, {}),
        (6, {"min_patients": 7}),
        (5, {"min_patients_per_class": 3}),
        (1, {"min_patients": 1}),
    ],
)
def test_exact_scores_of_few_held_out_patients_do_not_leave(
    make_ward: MakeWard, held_out: int, policy: dict[str, int]
) -> None:
    ward = make_ward(evaluation="exact", **policy)
    ward.held_out = held_out
    study = ward.study()
    ward.approve(study)
    reply = ward.ask(study, 1)
    assert (reply.outcome, reply.evaluation) == ("update", None)
    closing = ward.ask(study, 4, task="evaluate")
    assert (closing.outcome, closing.evaluation) == ("evaluated", None)
    assert "exact-evaluation" not in [purpose for _, purpose in ward.kinds()]
    ward.policy["evaluation"] = "noised"
    assert ward.ask(study, 2).evaluation is not None, "with noise a single patient may be counted"


def test_what_exact_scores_may_leave_is_settled_when_the_study_is_approved(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(evaluation="exact", min_patients=6)
    study = ward.study()
    ward.approve(study)
    assert ward.ask(study, 1).evaluation is not None
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("held-out-2"))
    # To end with this patient's opt-out would tell that the patient was among them.
    assert ward.ask(study, 2).evaluation is not None


@pytest.mark.parametrize(("train", "held_out"), [(12, 0), (12, 1), (0, 6), (0, 0)])
def test_an_empty_side_answers_with_noise_in_the_same_form(
    make_ward: MakeWard, train: int, held_out: int
) -> None:
    whole, less = make_ward("whole"), make_ward("less")
    less.train, less.held_out = train, held_out
    study = whole.study(training={"personal_rounds": 1}, privacy={"subgroups": ["sex"]})
    for ward in (whole, less):
        ward.approve(study)
    for number, task in ((1, "train"), (2, "train"), (4, "evaluate")):
        assert_alike(
            *(ward.answer(study, number, task=task) for ward in (whole, less)),
        )
    charged = [
        [kind for kind in ward.kinds() if kind[0] in ("plan", "reserve", "commit")]
        for ward in (whole, less)
    ]
    assert charged[0] == charged[1]


def test_a_study_without_privacy_trains_where_allowed_and_claims_nothing(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(allow_without_privacy=True)
    study = ward.study(privacy={"enabled": False})
    ward.approve(study)
    reply = ward.ask(study, 1)
    assert reply.outcome == "update"
    assert reply.spending is None
    # The patients' unprotected past rules them out once the policy changes its mind.
    ward.policy["allow_without_privacy"] = False
    private, before = ward.study(), ward.train
    ward.approve(private)
    ward.train += 2
    assert ward.ask(private, 1).outcome == "update"
    newcomers = {ward.pseudonym(f"train-{i}") for i in range(before, ward.train)}
    with ward.hospital().ledger() as ledger:
        taken = joined(ledger.entries(), ledger.members())
    assert taken[private.digest, "train"] == newcomers


@pytest.mark.parametrize("evaluation", ["none", "exact"])
def test_the_limit_on_epsilon_has_nothing_to_limit_where_none_is_spent(
    make_ward: MakeWard, evaluation: str
) -> None:
    ward = make_ward(allow_without_privacy=True, max_epsilon_per_study=1, evaluation=evaluation)
    study = ward.study(privacy={"enabled": False})
    ward.approve(study)
    assert ward.ask(study, 1).outcome == "update"


def test_a_patient_who_opts_out_is_in_no_later_round_and_stays_charged(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    assert ward.ask(study, 1).patients == 12
    gone = ward.pseudonym("train-3")
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(gone)
    assert ward.ask(study, 2).patients == 12, "the number that was declared"
    ward.approve(other := ward.study(privacy={"epsilon": 1.0}))
    ward.ask(other, 1)
    with ward.hospital().ledger() as ledger:
        taken = joined(ledger.entries(), ledger.members())
    assert {digest for (digest, _), who in taken.items() if gone in who} == {study.digest}


@pytest.mark.parametrize("gone", ["train-3", "held-out-2"])
def test_an_opt_out_shows_in_nothing_that_is_not_noised(make_ward: MakeWard, gone: str) -> None:
    plain, less = make_ward("plain", min_patients=6), make_ward("less", min_patients=6)
    study = plain.study()
    for ward in (plain, less):
        ward.approve(study)
        ward.ask(study, 1)
    with less.hospital().ledger() as ledger:
        ledger.opt_out(less.pseudonym(gone))
    for number, task in ((2, "train"), (3, "train"), (4, "evaluate")):
        assert_alike(*(ward.answer(study, number, task=task) for ward in (plain, less)))


def test_opting_out_below_the_least_number_of_patients_changes_nothing(make_ward: MakeWard) -> None:
    ward = make_ward(min_patients=12)
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-3"))
    assert ward.ask(study, 2).outcome == "update"


def test_a_patient_who_comes_later_joins_at_the_same_noise(ward: Ward) -> None:
    study = ward.study(privacy={"delta": None})
    ward.approve(study)
    first = ward.ask(study, 1).spending
    ward.train = 14
    second = ward.ask(study, 2)
    assert first is not None
    assert second.spending is not None
    assert second.patients == 12, "the number that was declared"
    assert second.spending.noise_multiplier == first.noise_multiplier
    assert second.spending.delta == first.delta


def test_two_studies_share_the_patients_lifetime(make_ward: MakeWard) -> None:
    ward = make_ward(max_epsilon_per_patient=10)
    one, two = ward.study(), ward.study(privacy={"epsilon": 6.0})
    three = ward.study(privacy={"epsilon": 7.0})
    for study in (one, two, three):
        ward.approve(study)
    assert ward.ask(one, 1).outcome == "update"
    first = taking_part(ward, one)
    ward.train, ward.held_out = 2 * ward.train, 2 * ward.held_out
    # One round of the first study costs far less than 4, but its other rounds are promised: who
    # takes part in it is left out of the second, for good, and the server is told nothing of it.
    for number in (1, 2):
        assert ward.ask(two, number).outcome == "update"
        assert len(taking_part(ward, two)) == 18
        assert taking_part(ward, two).isdisjoint(first)
        with ward.hospital().ledger() as ledger:
            ledger.close_study(one.digest)
    assert ward.ask(three, 1).outcome == "update"
    assert taking_part(ward, three) == first
    assert ward.code(ward.ask(one, 2)) == "budget-exhausted"


def taking_part(ward: Ward, study: Study) -> set[str]:
    with ward.hospital().ledger() as ledger:
        taken = joined(ledger.entries(), ledger.members())
    return {patient for (of, _), who in taken.items() if of == study.digest for patient in who}


def test_the_audit_log_says_what_left_and_names_no_patient(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    _, update = ward.answer(study, 1)
    line = ward.audit()[-1]
    assert line.left is not None
    assert line.left.parameters == sum(array.size for array in update.values())
    assert line.left.bytes == 4 * line.left.parameters
    assert "evaluation" in line.left.fields
    assert "update" in line.left.fields
    text = (ward.home / "audit.jsonl").read_text()
    for name in (f"train-{i}" for i in range(12)):
        assert name not in text
        assert ward.pseudonym(name) not in text


def test_the_audit_log_is_json_a_line(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    lines = (ward.home / "audit.jsonl").read_text().splitlines()
    assert all(json.loads(line)["study"] == study.digest for line in lines)
