"""What a hospital refuses in a round: by code, without text, before anything is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from client.outbox import SPARE_BYTES
from client.rounds import handle
from client.site import Site
from shared.errors import SiteError
from shared.models import initial_weights

START = datetime(2026, 3, 1, 8, tzinfo=UTC)
Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]


def test_an_unknown_study_is_kept_for_a_person_and_refused(ward: Ward) -> None:
    study = ward.study()
    assert ward.code(ward.ask(study, 1)) == "study-not-approved"
    assert ward.loads == 0
    assert not (ward.home / "ledger.sqlite").exists()
    assert [s.digest for s in ward.hospital().approvals.offered()] == [study.digest]
    ward.hospital().approvals.approve(study.digest, "Dr. A", 14)
    assert ward.ask(study, 1).outcome == "update"
    assert [line.event for line in ward.audit()] == [
        "study-offered",
        "round-refused",
        "round-started",
        "reply-sent",
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name":"tiny"}', "{" * 30_000])
def test_an_offer_that_is_no_study_is_not_kept(ward: Ward, text: str) -> None:
    study = ward.study()
    assert ward.code(ward.ask(study, 1, study=text)) == "study-invalid"
    assert ward.hospital().approvals.offered() == []


def test_the_study_of_another_digest_is_not_kept(ward: Ward) -> None:
    study, other = ward.study(), ward.study(privacy={"epsilon": 9.0})
    assert ward.code(ward.ask(study, 1, study=other.canonical())) == "study-invalid"


def test_the_site_trains_by_its_own_copy_of_the_plan(ward: Ward) -> None:
    study, other = ward.study(), ward.study(privacy={"epsilon": 9.0})
    ward.approve(study)
    reply = ward.ask(study, 1, study=other.canonical())
    assert reply.spending is not None
    assert reply.spending.budget == 8.0


@pytest.mark.parametrize(
    ("policy", "study", "expected"),
    [
        ({"max_epsilon_per_study": 7.9}, {}, "policy-epsilon"),
        ({"max_epsilon_per_study": 0}, {}, "policy-epsilon"),
        ({"max_delta": 1e-6}, {}, "policy-delta"),
        ({"max_delta": 1e-9}, {"privacy": {"delta": None}}, "policy-delta"),
        ({"max_rounds_per_day": 0}, {}, "policy-rounds"),
        ({"approvals_expire": date(2026, 2, 28)}, {}, "study-not-approved"),
        ({}, {"privacy": {"enabled": False}}, "policy-epsilon"),
        (
            {"max_epsilon_per_study": 7.9, "allow_without_privacy": True},
            {"privacy": {"enabled": False}},
            "policy-epsilon",
        ),
    ],
)
def test_the_policy_refuses_with_a_code_without_numbers_and_without_cost(
    make_ward: MakeWard, policy: dict[str, Any], study: dict[str, Any], expected: str
) -> None:
    ward = make_ward(**policy)
    plan = ward.study(**study)
    ward.approve(plan)
    reply = ward.ask(plan, 1)
    assert ward.code(reply) == expected
    told = reply.model_dump(exclude_defaults=True, exclude_none=True)
    assert told.keys() == {"study_digest", "run", "round", "outcome", "refusal"}
    assert ward.kinds() == [("start", "")]
    last = ward.audit()[-1]
    assert (last.event, last.code) == ("round-refused", expected)


@pytest.mark.parametrize(
    ("number", "told"),
    [(1, "every hospital approves anew"), (3, "this release reads format 2")],
)
def test_an_offered_plan_of_another_format_is_refused_and_the_log_says_how_to_go_on(
    ward: Ward, caplog: pytest.LogCaptureFixture, number: int, told: str
) -> None:
    study = ward.study()
    text = study.canonical().replace('"format":2', f'"format":{number},"news":1')
    assert ward.code(ward.ask(study, 1, study=text)) == "study-invalid"
    assert told in caplog.text
    assert "news" not in caplog.text
    last = ward.audit()[-1]
    assert (last.event, last.code) == ("round-refused", "study-invalid")


def test_a_device_that_is_not_there_is_refused_before_data_is_read(ward: Ward) -> None:
    if torch.cuda.is_available():
        ward.approve(ward.study())
        assert ward.ask(ward.study(), 1).outcome == "update"
        return
    study = ward.study()
    ward.approve(study)
    hospital = ward.hospital()
    compute = hospital.site.config.compute.model_copy(update={"device": "cuda"})
    config = hospital.site.config.model_copy(update={"compute": compute})
    wants_cuda = replace(hospital, site=Site(ward.home, config))
    reply, _ = handle(wants_cuda, ward.request(study, 1), initial_weights(study))
    assert ward.code(reply) == "policy-device"
    assert ward.loads == 0


def test_the_days_limit_opens_again_the_next_day_and_not_by_setting_the_clock_back(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(max_rounds_per_day=1)
    study = ward.study()
    ward.approve(study)
    assert ward.ask(study, 1).outcome == "update"
    assert ward.code(ward.ask(study, 2)) == "policy-rounds"
    ward.time -= timedelta(days=1)
    assert ward.code(ward.ask(study, 2)) == "policy-rounds"
    with ward.hospital().ledger() as ledger:
        ledger.accept_clock()
    assert ward.code(ward.ask(study, 2)) == "policy-rounds"
    ward.time = START + timedelta(days=1)
    assert ward.ask(study, 2).outcome == "update"


@pytest.mark.parametrize(("task", "number"), [("train", 4), ("evaluate", 5)])
def test_rounds_beyond_the_study_are_refused(ward: Ward, task: str, number: int) -> None:
    study = ward.study()
    ward.approve(study)
    assert ward.code(ward.ask(study, number, task=task)) == "out-of-order"


@pytest.mark.parametrize("fault", ["name", "shape", "dtype", "nan"])
def test_unfit_global_weights_are_refused_before_anything_is_spent(ward: Ward, fault: str) -> None:
    study = ward.study()
    ward.approve(study)
    weights = initial_weights(study)
    name = next(iter(weights))
    change: dict[str, Callable[[], object]] = {
        "name": lambda: weights.update(other=weights.pop(name)),
        "shape": lambda: weights.update({name: weights[name][..., :1]}),
        "dtype": lambda: weights.update({name: weights[name].astype(np.float64)}),
        "nan": lambda: weights[name].fill(np.nan),
    }
    change[fault]()
    assert ward.code(ward.ask(study, 1, weights=weights)) == "message-invalid"
    assert ward.kinds() == [("start", "")]


def test_nothing_leaves_without_an_audit_line(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    (ward.home / "audit.jsonl").mkdir()
    reply, update = ward.answer(study, 1)
    assert (ward.code(reply), update) == ("site-unready", {})
    assert ("reserve", "train") not in ward.kinds()


def test_a_clock_set_back_is_refused_before_data_is_read_until_a_person_accepts_it(
    ward: Ward,
) -> None:
    study = ward.study()
    ward.approve(study)
    assert ward.ask(study, 1).outcome == "update"
    ward.time -= timedelta(hours=1)
    assert ward.code(ward.ask(study, 2)) == "ledger-invalid"
    assert ward.loads == 1
    with ward.hospital().ledger() as ledger:
        ledger.accept_clock()
    assert ward.ask(study, 2).outcome == "update"


def test_whether_a_patient_opted_out_before_the_clock_was_corrected_does_not_show(
    make_ward: MakeWard,
) -> None:
    codes = []
    for name in ("one", "other"):
        ward = make_ward(name, max_rounds_per_day=1)
        study = ward.study()
        ward.approve(study)
        ward.time = datetime(2026, 3, 1, 23, 58, tzinfo=UTC)
        assert ward.ask(study, 1).outcome == "update"
        if name == "other":
            ward.time += timedelta(minutes=4)  # past midnight, by a clock that is fast
            with ward.hospital().ledger() as ledger:
                ledger.opt_out(ward.pseudonym("train-0"))
            ward.time -= timedelta(minutes=3)
        else:
            ward.time += timedelta(minutes=1)
        codes.append(ward.code(ward.ask(study, 2)))
    assert codes == ["policy-rounds"] * 2


def test_a_full_disk_is_noticed_before_anything_is_spent(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    name = "no update of this size could ever be kept"
    # Half of all the disk has, without taking memory: every number is the same one.
    size = shutil.disk_usage(ward.home).free // 8 + 1
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (size,), (0,))
    with pytest.raises(SiteError, match="disk space"):
        ward.hospital().outbox.check_room({name: huge})
    ward.hospital().outbox.check_room(initial_weights(study))


def test_what_comes_along_with_a_question_for_statistics_does_not_measure_the_disk(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ward.study(training={"loss": {"name": "class-balanced"}})
    ward.approve(study)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * SPARE_BYTES))
    along = {"x": np.zeros(SPARE_BYTES, np.float32)}
    with pytest.raises(SiteError, match="disk space"):
        ward.hospital().outbox.check_room(along)
    assert ward.ask(study, 0, task="describe", weights=along).outcome == "described"
