"""The status says what the node does, what waits for a person, and what went wrong last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from client.admission import CONTACT, only_node
from client.approvals import Approvals
from client.audit import Event
from client.cli import app
from client.setup import create_site
from client.status import describe_status, status_of
from shared.invitation import Invitation

Ward = Any  # the class in conftest.py
LETTER = Invitation(server="127.0.0.1:1", ca="CA", signing_key="KEY")


def test_a_site_is_told_at_a_glance(ward: Ward) -> None:
    before = status_of(ward.hospital())
    assert (before.running, before.contact, before.studies) == (False, None, ())
    study = ward.study()
    assert ward.code(ward.ask(study, 1)) == "study-not-approved"
    refused = status_of(ward.hospital())
    assert "tiny" in refused.waiting[0]
    assert refused.trouble is not None
    assert refused.trouble.what == "tiny: study-not-approved"
    assert "approve or decline" in refused.trouble.remedy

    ward.approve(study)
    assert ward.ask(study, 1, attempt=1).outcome == "update"
    (ward.home / CONTACT).touch()
    with only_node(ward.home):
        now = status_of(ward.hospital())
        assert (now.running, now.trouble, now.waiting) == (True, None, ())
        assert now.doing == "waits for the server"
        assert now.contact is not None
        (it,) = now.studies
        assert (it.name, it.used, it.rounds, it.last_round) == ("tiny", 1, 4, 1)
        started = Event(event="round-started", study=study.digest, task="train", round=2)
        ward.hospital().log(started)
        busy = status_of(ward.hospital())
        assert busy.doing.startswith("computes round 2 of tiny since 20")
        assert any("1 of 4 rounds used" in line for line in describe_status(busy))


def test_a_declined_study_no_longer_waits_and_the_server_is_told(ward: Ward) -> None:
    study = ward.study()
    ward.ask(study, 1)
    approvals = ward.hospital().approvals
    approvals.decline(study.digest)
    assert approvals.offered() == []
    assert approvals.declined() == [study]
    assert ward.code(ward.ask(study, 1, attempt=1)) == "study-declined"
    assert status_of(ward.hospital()).waiting == ()
    ward.approve(study)
    assert approvals.declined() == []
    assert ward.ask(study, 1, attempt=2).outcome == "update"


def test_decline_and_status_as_typed(tmp_path: Path, make_ward: Callable[..., Any]) -> None:
    site = create_site(tmp_path / "h", "North", LETTER, table=tmp_path / "t.csv")
    study = make_ward().study()
    Approvals(site).offer(study.digest, study.canonical())
    words = ["decline", "--home", str(site.home), study.digest[:9], "--by", "Dr. A"]
    assert CliRunner().invoke(app, words).exit_code == 0
    listed = CliRunner().invoke(app, ["studies", "--home", str(site.home)]).output
    assert listed.startswith("declined")
    shown = CliRunner().invoke(app, ["status", "--home", str(site.home), "--json"])
    assert json.loads(shown.output)["doing"] == "the node does not run"
    assert "study-declined" in (site.home / "audit.jsonl").read_text()
