"""Each guard refuses its own kind of bad answer and lets a good one pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from server.guards import EVALUATION_RULES, UPDATE_RULES, NormBelow, Submission, first_objection
from shared.metrics import to_record
from shared.protocol import Reply, Request
from shared.study import Study, Task

STUDY = Study(name="guards", task=Task(classes=("no", "yes")))
REQUEST = Request(
    task="train", run="run-1", study_digest=STUDY.digest, study=STUDY.canonical(), round=3
)
REPLY = Reply(study_digest=STUDY.digest, run="run-1", round=3, outcome="update", patients=40)
REFERENCE = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
UPDATE = {"w": np.full((2, 2), 0.1, np.float32), "b": np.zeros(2, np.float32)}
GOOD = Submission(STUDY, REQUEST, REPLY, UPDATE, REFERENCE)


def with_update(**arrays: np.ndarray) -> Submission:
    return replace(GOOD, update=UPDATE | arrays)


def with_reply(**fields: object) -> Submission:
    return replace(GOOD, reply=REPLY.model_copy(update=fields))


def test_a_good_update_passes() -> None:
    assert first_objection(UPDATE_RULES, GOOD) == ""
    histogram = to_record(np.zeros((1, 2, STUDY.privacy.score_bins)), 3.0)
    assert first_objection(UPDATE_RULES, with_reply(evaluation=histogram)) == ""


@pytest.mark.parametrize(
    ("submission", "reason"),
    [
        (with_reply(study_digest="0" * 64), "study digest"),
        (with_reply(run="run-2"), "its run"),
        (with_reply(round=2), "its round"),
        (with_reply(outcome="evaluated"), "did not train"),
        (with_reply(patients=0), "number of patients"),
        (with_reply(patients=10**9), "number of patients"),
        (replace(GOOD, update={"w": UPDATE["w"]}), "missing or not the model's"),
        (with_update(extra=np.zeros(1, np.float32)), "missing or not the model's"),
        (replace(GOOD, update={}), "missing or not the model's"),
        (with_update(w=np.zeros((4,), np.float32)), "w has shape (4,) instead of (2, 2)"),
        (with_update(b=np.zeros(2, np.float64)), "b is float64 instead of float32"),
        (with_update(b=np.array([0, np.nan], np.float32)), "b has values that are not finite"),
        (with_update(b=np.array([0, -np.inf], np.float32)), "b has values that are not finite"),
        (with_update(b=np.array([0, -33], np.float32)), "b has a value beyond 32"),
        (with_reply(evaluation=to_record(np.zeros((2, 2, 16)), 0.0)), "study's classes"),
        (with_reply(evaluation=to_record(np.zeros((1, 2, 8)), 0.0)), "study's bins"),
        (with_reply(evaluation=to_record(np.full((1, 2, 16), -1e10), 0.0)), "more patients"),
        (with_reply(evaluation=to_record(np.zeros((1, 2, 16)), 1e300)), "more patients"),
    ],
)
def test_a_bad_update_is_refused_for_its_own_reason(submission: Submission, reason: str) -> None:
    assert reason in first_objection(UPDATE_RULES, submission)


def test_the_norm_is_judged_against_the_model() -> None:
    rule = NormBelow(factor=10.0)
    # The reference has norm 2, so the limit is 20.
    near = with_update(w=np.array([[19.9, 0], [0, 0]], np.float32))
    far = with_update(w=np.array([[20.1, 0], [0, 0]], np.float32))
    assert rule(near) == ""
    assert "20.1 exceeds 20" in rule(far)
    fresh = replace(near, reference={n: np.zeros_like(a) for n, a in REFERENCE.items()})
    assert "exceeds 10" in rule(fresh)


def test_an_evaluation_needs_no_update_and_no_patients() -> None:
    submission = replace(
        GOOD,
        request=REQUEST.model_copy(update={"task": "evaluate"}),
        reply=Reply(study_digest=STUDY.digest, run="run-1", round=3, outcome="evaluated"),
        update={},
    )
    assert first_objection(EVALUATION_RULES, submission) == ""
    assert "did not evaluate" in first_objection(EVALUATION_RULES, replace(submission, reply=REPLY))
