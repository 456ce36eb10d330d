"""A round at a hospital: what is refused, charged, resent, and what leaves the building."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import torch

from client.data.cohort import Cohort
from client.rounds import handle
from client.site import Site
from shared.accounting import Mechanism, epsilon
from shared.errors import DataError, SiteError
from shared.models import initial_weights
from shared.protocol import LedgerHead, Reply
from shared.study import Study

START = datetime(2026, 3, 1, 8, tzinfo=UTC)
Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]


def code(reply: Reply) -> str:
    assert reply.refusal is not None, reply.outcome
    return reply.refusal.code


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
        ("plan", "evaluate"),
        ("reserve", "evaluate"),
        ("plan", "train"),
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


def test_an_unknown_study_is_kept_for_a_person_and_refused(ward: Ward) -> None:
    study = ward.study()
    assert code(ward.ask(study, 1)) == "study-not-approved"
    assert ward.loads == 0
    assert not (ward.home / "ledger.sqlite").exists()
    assert [s.digest for s in ward.hospital().approvals.offered()] == [study.digest]
    ward.hospital().approvals.approve(study.digest, "Dr. A")
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
    assert code(ward.ask(study, 1, study=text)) == "study-invalid"
    assert ward.hospital().approvals.offered() == []


def test_the_study_of_another_digest_is_not_kept(ward: Ward) -> None:
    study, other = ward.study(), ward.study(privacy={"epsilon": 9.0})
    assert code(ward.ask(study, 1, study=other.canonical())) == "study-invalid"


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
        ({"max_epsilon_per_patient": 7.5}, {}, "budget-exhausted"),
        ({"max_epsilon_per_patient": 0}, {}, "budget-exhausted"),
        ({"max_delta": 1e-6}, {}, "policy-delta"),
        ({"max_delta": 1e-9}, {"privacy": {"delta": None}}, "policy-delta"),
        ({"min_patients": 13}, {}, "policy-cohort"),
        ({}, {"data": {"min_patients": 13}}, "policy-cohort"),
        ({"min_patients_per_class": 7}, {}, "policy-cohort"),
        ({"max_rounds_per_day": 0}, {}, "policy-rounds"),
        ({"approvals_expire": date(2026, 2, 28)}, {}, "study-not-approved"),
        ({}, {"privacy": {"enabled": False}}, "policy-epsilon"),
    ],
)
def test_the_policy_refuses_with_a_code_without_numbers_and_without_cost(
    make_ward: MakeWard, policy: dict[str, Any], study: dict[str, Any], expected: str
) -> None:
    ward = make_ward(**policy)
    plan = ward.study(**study)
    ward.approve(plan)
    reply = ward.ask(plan, 1)
    assert code(reply) == expected
    told = reply.model_dump(exclude_defaults=True, exclude_none=True)
    assert told.keys() == {"study_digest", "run", "round", "outcome", "refusal"}
    assert ward.kinds() == [("start", "")]
    last = ward.audit()[-1]
    assert (last.event, last.code) == ("round-refused", expected)


def test_a_cohort_of_three_is_refused_by_the_default_policy(make_ward: MakeWard) -> None:
    ward = make_ward(min_patients=20)
    ward.train = 3
    study = ward.study(data={"min_patients": 1})
    ward.approve(study)
    assert code(ward.ask(study, 1)) == "policy-cohort"


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
    assert code(reply) == "policy-device"
    assert ward.loads == 0


def test_the_days_limit_opens_again_the_next_day_and_not_by_setting_the_clock_back(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(max_rounds_per_day=1)
    study = ward.study()
    ward.approve(study)
    assert ward.ask(study, 1).outcome == "update"
    assert code(ward.ask(study, 2)) == "policy-rounds"
    ward.time -= timedelta(days=1)
    assert code(ward.ask(study, 2)) == "policy-rounds"
    with ward.hospital().ledger() as ledger:
        ledger.accept_clock()
    assert code(ward.ask(study, 2)) == "policy-rounds"
    ward.time = START + timedelta(days=1)
    assert ward.ask(study, 2).outcome == "update"


def test_the_same_request_again_is_resent_at_no_cost(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    first, update = ward.answer(study, 1)
    again, same = ward.answer(study, 1, attempt=1)
    assert again.resent
    assert again.head == first.head
    assert again.evaluation == first.evaluation
    for name, array in update.items():
        np.testing.assert_array_equal(array, same[name])
    assert ward.loads == 1


def test_an_answer_from_other_global_weights_is_not_sent_again(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    others = {name: array + 1 for name, array in initial_weights(study).items()}
    assert not ward.ask(study, 1, weights=others).resent
    assert ward.kinds().count(("reserve", "train")) == 2


def test_an_update_kept_but_not_committed_is_sent_and_committed(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)

    def clock() -> datetime:
        """Jump back once the update is kept, which makes the commit fail."""
        return START - timedelta(days=1) * (ward.home / "outbox").exists()

    broken = replace(ward.hospital(), now=clock)
    reply, update = handle(broken, ward.request(study, 1), initial_weights(study))
    assert (code(reply), update) == ("ledger-invalid", {})
    assert ("commit", "train") not in ward.kinds()
    reply, update = ward.answer(study, 1)
    assert reply.resent
    assert update
    assert ward.kinds().count(("reserve", "train")) == 1
    assert ward.kinds().count(("commit", "train")) == 1


def test_kept_answers_are_encrypted(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    (sealed,) = (ward.home / "outbox").iterdir()
    content = sealed.read_bytes()
    assert not any(x in content for x in (b"update", b"run-1", study.digest.encode()))


def test_a_lost_update_takes_the_spare_round_and_then_the_site_sits_out(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    first = ward.ask(study, 1)
    for file in (ward.home / "outbox").iterdir():
        file.unlink()
    second = ward.ask(study, 1, attempt=1)
    assert second.outcome == "update"
    assert not second.resent
    assert first.spending is not None
    assert second.spending is not None
    assert second.spending.steps == 2 * first.spending.steps
    for file in (ward.home / "outbox").iterdir():
        file.unlink()
    assert code(ward.ask(study, 1, attempt=2)) == "budget-exhausted"
    assert ward.ask(study, 2).outcome == "update"
    assert ward.ask(study, 3).outcome == "update"


def test_a_damaged_outbox_counts_as_lost(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    for file in (ward.home / "outbox").iterdir():
        file.write_bytes(b"x" + file.read_bytes()[1:])
    assert not ward.ask(study, 1).resent


def test_another_run_of_the_study_goes_on_with_what_is_left(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    for number in (1, 2, 3):
        assert ward.ask(study, number).outcome == "update"
    assert ward.ask(study, 1, run="run-2").outcome == "update"  # the spare round
    assert code(ward.ask(study, 2, run="run-2")) == "budget-exhausted"
    with ward.hospital().ledger() as ledger:
        steps = sum(e.steps for e in ledger.entries() if e.purpose == "train" and e.run)
    assert steps == study.total_steps


def test_the_closing_evaluation_evaluates_only(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    reply, update = ward.answer(study, 4, task="evaluate")
    assert (reply.outcome, update) == ("evaluated", {})
    assert reply.evaluation is not None
    assert [k for k in ward.kinds() if k == ("reserve", "train")] == [("reserve", "train")]
    assert ward.answer(study, 4, task="evaluate")[0].resent


@pytest.mark.parametrize(("task", "number"), [("train", 4), ("evaluate", 5)])
def test_rounds_beyond_the_study_are_refused(ward: Ward, task: str, number: int) -> None:
    study = ward.study()
    ward.approve(study)
    assert code(ward.ask(study, number, task=task)) == "out-of-order"


def test_evaluation_off_shares_nothing_and_charges_nobody_held_out(make_ward: MakeWard) -> None:
    ward = make_ward(evaluation="none")
    study = ward.study()
    ward.approve(study)
    reply = ward.ask(study, 1)
    assert reply.evaluation is None
    assert ("reserve", "evaluate") not in ward.kinds()
    assert ward.ask(study, 4, task="evaluate").evaluation is None


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
    assert code(ward.ask(study, 3)) == "budget-exhausted"


def test_without_held_out_patients_there_is_no_evaluation(ward: Ward) -> None:
    ward.held_out = 0
    study = ward.study()
    ward.approve(study)
    assert ward.ask(study, 1).evaluation is None


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
    private = ward.study()
    ward.approve(private)
    assert code(ward.ask(private, 1)) == "budget-exhausted"


def test_a_patient_who_opts_out_is_in_no_later_round_and_stays_charged(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    gone = ward.pseudonym("train-3")
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(gone)
    assert ward.ask(study, 2).patients == 11
    with ward.hospital().ledger() as ledger:
        members = ledger.members()
        rounds = [
            e.round
            for e in ledger.entries()
            if e.kind == "reserve" and e.cohort and gone in members[e.cohort]
        ]
    assert rounds == [1]


def test_opting_out_below_the_least_number_of_patients_stops_the_site(make_ward: MakeWard) -> None:
    ward = make_ward(min_patients=12)
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-3"))
    assert code(ward.ask(study, 2)) == "policy-cohort"


def test_a_patient_who_comes_later_joins_at_the_same_noise(ward: Ward) -> None:
    study = ward.study(privacy={"delta": None})
    ward.approve(study)
    first = ward.ask(study, 1).spending
    ward.train = 14
    second = ward.ask(study, 2)
    assert first is not None
    assert second.spending is not None
    assert second.patients == 14
    assert second.spending.noise_multiplier == first.noise_multiplier
    assert second.spending.delta == first.delta


def test_two_studies_share_the_patients_lifetime(make_ward: MakeWard) -> None:
    ward = make_ward(max_epsilon_per_patient=10)
    one, two = ward.study(), ward.study(privacy={"epsilon": 6.0})
    ward.approve(one)
    ward.approve(two)
    assert ward.ask(one, 1).outcome == "update"
    # One round of the first study costs far less than 4, but its other rounds are promised.
    assert code(ward.ask(two, 1)) == "budget-exhausted"
    with ward.hospital().ledger() as ledger:
        ledger.close_study(one.digest)
    assert ward.ask(two, 1).outcome == "update"
    assert code(ward.ask(one, 2)) == "budget-exhausted"


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
    assert code(ward.ask(study, 1, weights=weights)) == "message-invalid"
    assert ward.kinds() == [("start", "")]


def test_data_that_cannot_be_used_is_a_code_without_its_text(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)

    def unusable(site: Site, study: Study) -> Cohort:
        raise DataError("patient 4711 has no image", "/data/4711.dcm")

    hospital = replace(ward.hospital(), load_cohort=unusable)
    reply, update = handle(hospital, ward.request(study, 1), initial_weights(study))
    assert (code(reply), update) == ("data-unusable", {})
    everything = reply.model_dump_json() + (ward.home / "audit.jsonl").read_text()
    assert "4711" not in everything


def test_an_unforeseen_error_is_a_code_without_its_text(
    ward: Ward, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ward.study()
    ward.approve(study)

    def crash(site: Site, study: Study) -> Cohort:
        raise RuntimeError("patient 4711")

    hospital = replace(ward.hospital(), load_cohort=crash)
    reply, _ = handle(hospital, ward.request(study, 1), initial_weights(study))
    assert code(reply) == "internal-error"
    assert "4711" not in reply.model_dump_json() + (ward.home / "audit.jsonl").read_text()
    assert "RuntimeError" in capsys.readouterr().err


def test_nothing_leaves_without_an_audit_line(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    (ward.home / "audit.jsonl").mkdir()
    reply, update = ward.answer(study, 1)
    assert (code(reply), update) == ("internal-error", {})
    assert ("reserve", "train") not in ward.kinds()


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


def test_the_servers_confirmation_empties_the_outbox(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    first = ward.ask(study, 1)
    ward.ask(study, 2)  # the server has not shown that it has the first answer
    assert len(list((ward.home / "outbox").iterdir())) == 2
    head = ward.ask(study, 2, **server.seen(first.head)).head
    assert len(list((ward.home / "outbox").iterdir())) == 1
    ward.ask(study, 3, **server.seen(head))
    assert len(list((ward.home / "outbox").iterdir())) == 1


def test_an_unsigned_head_is_refused_and_changes_nothing(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    foreign = LedgerHead(entries=99, hash="ab" * 32)
    assert code(ward.ask(study, 1, known_head=foreign)) == "message-invalid"
    signed = server.seen(foreign)["countersignature"]
    other = LedgerHead(entries=98, hash="ab" * 32)
    reply = ward.ask(study, 1, known_head=other, countersignature=signed)
    assert code(reply) == "message-invalid"
    assert ward.ask(study, 1).outcome == "update"


def test_a_restored_home_is_noticed_and_stays_refused(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    ward.ask(study, 1)
    old = ward.copy("backup")
    head = ward.ask(study, 2).head
    assert code(old.ask(study, 3, **server.seen(head))) == "ledger-rollback"
    # Even if the server then keeps silent about what it knows.
    assert code(old.ask(study, 3)) == "ledger-rollback"
    last = old.audit()[-1]
    assert last.code == "ledger-rollback"


def test_two_nodes_on_copies_of_one_ledger_are_noticed(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    head = ward.ask(study, 1).head
    twin = ward.copy("copy")
    known = server.seen(head)
    after = server.seen(ward.ask(study, 2, **known).head)
    assert twin.ask(study, 2, **known).outcome == "update"
    assert code(twin.ask(study, 3, **after)) == "ledger-rollback"


def test_two_processes_on_one_home_are_noticed(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    with ward.hospital().ledger() as ledger, ledger.locked():
        assert code(ward.ask(study, 1)) == "ledger-invalid"
    assert ward.ask(study, 1).outcome == "update"


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    (ward.home / "ledger.sqlite").write_bytes(b"these are my notes " * 100)
    assert code(ward.ask(study, 1)) == "ledger-invalid"
    assert (ward.home / "ledger.sqlite").read_bytes().startswith(b"these are my notes")
    assert ward.loads == 0


def test_the_audit_log_is_json_a_line(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    lines = (ward.home / "audit.jsonl").read_text().splitlines()
    assert all(json.loads(line)["study"] == study.digest for line in lines)
