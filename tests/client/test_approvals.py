"""Only what a person approved counts, and a server cannot fill the disk with offers."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from client.approvals import MAX_OFFERS, Approvals
from client.site import Site, SiteConfig
from shared.errors import PolicyRefusal, SiteError, StudyError
from shared.study import Study

TODAY = date(2026, 3, 1)


def study(number: int = 0) -> Study:
    return Study.model_validate({"name": f"study-{number}", "task": {"classes": ("a", "b")}})


def approvals(home: Path, **policy: Any) -> Approvals:
    config = {
        "name": "ward",
        "server": {"address": "localhost:1"},
        "data": {"images": "images", "labels": "labels.csv"},
        "policy": policy,
    }
    return Approvals(Site(home, SiteConfig.model_validate(config)))


def test_an_offer_waits_for_a_person_and_then_holds(tmp_path: Path) -> None:
    ours, plan = approvals(tmp_path), study()
    assert ours.offer(plan.digest, plan.canonical())
    assert not ours.offer(plan.digest, plan.canonical())
    with pytest.raises(PolicyRefusal) as refusal:
        ours.require(plan.digest, TODAY)
    assert refusal.value.code == "study-not-approved"
    ours.approve(plan.digest, "Dr. A", 200, datetime(2026, 2, 1, tzinfo=UTC))
    assert ours.require(plan.digest, TODAY).study == plan
    assert ours.offered() == []
    (approval,) = ours.approved()
    assert (approval.by, approval.time) == ("Dr. A", "2026-02-01T00:00:00+00:00")


def test_an_approval_taken_back_no_longer_holds(tmp_path: Path) -> None:
    ours, plan = approvals(tmp_path), study()
    ours.approve_study(plan, "Dr. A", 200)
    ours.revoke(plan.digest)
    with pytest.raises(PolicyRefusal):
        ours.require(plan.digest, TODAY)
    with pytest.raises(SiteError, match="not approved"):
        ours.revoke(plan.digest)


def test_a_plan_that_was_ever_approved_is_kept_and_can_be_approved_again(tmp_path: Path) -> None:
    ours, plan = approvals(tmp_path), study()
    assert ours.plans() == {}
    ours.approve_study(plan, "Dr. A", 200)
    ours.revoke(plan.digest)
    assert (ours.approved(), [a.study for a in ours.revoked()]) == ([], [plan])
    assert ours.offer(plan.digest, plan.canonical())
    ours.approve(plan.digest, "Dr. B", 200)
    assert ours.require(plan.digest, TODAY).study == plan
    assert (ours.revoked(), ours.plans()) == ([], {plan.digest: plan})


def test_the_declared_size_stays_when_a_study_is_approved_again(tmp_path: Path) -> None:
    ours, plan = approvals(tmp_path), study()
    ours.approve_study(plan, "Dr. A", 204)
    ours.revoke(plan.digest)
    for size in (2000, 210):
        with pytest.raises(SiteError, match="approved with 200 patients, which stays"):
            ours.approve_study(plan, "Dr. B", size)
    assert ours.approve_study(plan, "Dr. B", 204).patients == 200


@pytest.mark.parametrize(("day", "holds"), [(28, True), (1, True), (2, False)])
def test_approvals_hold_through_their_last_day(tmp_path: Path, day: int, holds: bool) -> None:
    ours = approvals(tmp_path, approvals_expire=TODAY)
    ours.approve_study(study(), "Dr. A", 200)
    today = date(2026, 2 if day == 28 else 3, day)
    if holds:
        ours.require(study().digest, today)
    else:
        with pytest.raises(PolicyRefusal, match="held until"):
            ours.require(study().digest, today)


def test_offers_beyond_the_limit_are_not_kept(tmp_path: Path) -> None:
    ours = approvals(tmp_path)
    plans = [study(number) for number in range(MAX_OFFERS + 1)]
    kept = [ours.offer(plan.digest, plan.canonical()) for plan in plans]
    assert kept == [True] * MAX_OFFERS + [False]
    ours.discard(plans[0].digest)
    assert ours.offer(plans[-1].digest, plans[-1].canonical())


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "x" * 70_000])
def test_an_offer_must_be_the_study_of_its_digest(tmp_path: Path, text: str) -> None:
    with pytest.raises(StudyError):
        approvals(tmp_path).offer(study().digest, text)
    with pytest.raises(StudyError, match="digest"):
        approvals(tmp_path).offer(study(1).digest, study(2).canonical())
    assert not (tmp_path / "studies").exists()


def test_what_was_never_offered_cannot_be_approved_by_digest(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no such study"):
        approvals(tmp_path).approve(study().digest, "Dr. A", 200)


def test_an_edited_approval_does_not_hold(tmp_path: Path) -> None:
    ours, plan = approvals(tmp_path), study()
    ours.approve_study(plan, "Dr. A", 200)
    (file,) = (tmp_path / "studies" / "approved").iterdir()
    file.write_text(file.read_text().replace('"epsilon":8.0', '"epsilon":50.0'))
    with pytest.raises(SiteError, match="edited"):
        ours.require(plan.digest, TODAY)
