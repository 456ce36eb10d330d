"""Records on the wire are exact: nothing missing, nothing extra, nothing that is not a number."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.protocol import (
    LedgerHead,
    Refusal,
    Reply,
    Request,
    ScoreHistogram,
    Statistics,
    parse,
)

DIGEST = "ab" * 32
HISTOGRAM = {"targets": 1, "bins": 4, "noise": 0, "counts": [0] * 8}
REPLY = {"study_digest": DIGEST, "run": "r1", "round": 1, "outcome": "update", "patients": 30}


def test_reply_round_trips() -> None:
    reply = Reply(
        study_digest=DIGEST,
        run="r1",
        round=2,
        outcome="refused",
        refusal=Refusal(code="study-not-approved"),
    )
    assert parse(Reply, reply.model_dump_json(), "here") == reply


def test_only_a_refusal_may_be_of_the_first_version() -> None:
    first = {"version": 1, "code": "message-invalid"}
    refused = {"study_digest": DIGEST, "run": "r1", "round": 2, "outcome": "refused"}
    reply = parse(Reply, json.dumps({**refused, "version": 1, "refusal": first}), "here")
    assert reply.refusal == Refusal(code="message-invalid")
    with pytest.raises(ProtocolError, match="protocol version 2"):
        parse(Reply, json.dumps({**REPLY, "version": 1}), "here")


def test_what_files_keep_has_no_version_and_is_read_with_the_first() -> None:
    for kind, values in (
        (LedgerHead, {"entries": 3, "hash": DIGEST}),
        (Statistics, {"classes": [1.0, 2.0], "columns": [], "noise": 3.0}),
        (ScoreHistogram, HISTOGRAM),
    ):
        record = kind.model_validate(values | {"version": 1})
        assert json.loads(record.model_dump_json()) == values
        with pytest.raises(ValueError, match="version"):
            kind.model_validate(values | {"version": 2})


def test_the_closing_evaluation_may_carry_more() -> None:
    more = {"outcome": "evaluated", "personal": HISTOGRAM, "subgroups": {"sex:F": HISTOGRAM}}
    reply = parse(Reply, json.dumps({**REPLY, **more}), "here")
    assert reply.personal == reply.subgroups["sex:F"] == ScoreHistogram(**HISTOGRAM)


@pytest.mark.parametrize(("task", "round_"), [("describe", 1), ("train", 0), ("evaluate", 0)])
def test_round_0_is_for_describing_and_only_it(task: str, round_: int) -> None:
    values = {"run": "r1", "study_digest": DIGEST, "study": "{}"}
    with pytest.raises(ProtocolError):
        parse(Request, json.dumps({**values, "task": task, "round": round_}), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"version": 1},
        {"version": 3},
        {"round": 0},
        {"outcome": "refused"},
        {"patients": 0},
        {"study_digest": "x"},
        {"refusal": {"code": "because"}},
        {"run": "../../etc"},
        {"personal": HISTOGRAM},
        {"subgroups": {"sex:F": HISTOGRAM}},
        {"statistics": {"classes": [1, 2], "noise": 3}},
        {"outcome": "described", "patients": 0},
        {"outcome": "evaluated", "subgroups": {"x" * 33: HISTOGRAM}},
        {"outcome": "evaluated", "subgroups": {f"age:{n}": HISTOGRAM for n in range(33)}},
    ],
)
def test_anything_else_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="wrong fields"):
        parse(Reply, json.dumps({**REPLY, **change}), "here")


def test_the_error_names_fields_but_no_values() -> None:
    with pytest.raises(ProtocolError) as error:
        parse(Reply, json.dumps({**REPLY, "round": "DOE^JANE"}), "here")
    assert "round" in str(error.value)
    assert "DOE" not in str(error.value)


def test_histogram_must_have_its_shape_and_be_finite() -> None:
    ScoreHistogram(targets=1, bins=4, noise=1.0, counts=(0.0,) * 8)
    with pytest.raises(ValueError, match="counts must hold"):
        ScoreHistogram(targets=1, bins=4, noise=1.0, counts=(0.0,) * 7)
    with pytest.raises(ValueError, match="finite"):
        ScoreHistogram(targets=1, bins=4, noise=1.0, counts=(float("nan"),) * 8)


@given(st.text(max_size=200))
def test_foreign_text_never_raises_anything_else(text: str) -> None:
    for kind in (Request, Reply):
        try:
            parse(kind, text, "here")
        except ProtocolError:
            continue
