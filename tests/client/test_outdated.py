"""What a home holds of studies of format 1: they run no more, and a person is told how to go on."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.approvals import Approvals
from client.cli import app
from client.hospital import open_hospital
from client.rounds import handle
from client.site import load_site
from shared.errors import SiteError, StudyError
from shared.protocol import Refusal, Request
from shared.study import FORMAT

HOMES = Path(__file__).parent.parent / "data" / "homes-of-format-1"
STATES = {"finished": "approved", "open": "approved", "ready": "approved"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of the release before format 2."""
    shutil.copytree(HOMES / "open-round", tmp_path / "home")
    (tmp_path / "home" / "vault.key").chmod(0o600)
    return tmp_path / "home"


def run(home: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--home", str(home)])


def digest_of(home: Path, name: str) -> str:
    return next(
        study.digest for study in Approvals(load_site(home)).outdated() if study.name == name
    )


def test_the_studies_of_then_are_listed_as_what_they_are(home: Path) -> None:
    ours = Approvals(load_site(home))
    assert (ours.offered(), ours.approved(), ours.revoked(), ours.plans()) == ([], [], [], {})
    states = {study.name: study.state for study in ours.outdated()}
    assert states == STATES | {"revoked": "revoked", "offered": "offered"}
    result = run(home, "studies")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == 5
    assert all(line.endswith("of format 1, which no longer runs") for line in lines)


@pytest.mark.parametrize("name", ["finished", "ready", "revoked", "offered"])
@pytest.mark.parametrize("command", [("show",), ("approve", "--by", "Dr. A")])
def test_nobody_can_approve_one_and_is_told_how_to_go_on(
    home: Path, name: str, command: tuple[str, ...]
) -> None:
    before = (home / "audit.jsonl").read_bytes()
    result = run(home, command[0], digest_of(home, name)[:12], *command[1:])
    assert isinstance(result.exception, StudyError)
    assert "format 1" in str(result.exception)
    assert "anew" in str(result.exception)
    assert (home / "audit.jsonl").read_bytes() == before


def test_an_approval_of_then_does_not_hold(home: Path) -> None:
    ours = Approvals(load_site(home))
    with pytest.raises(StudyError, match=r"format 1.*every hospital approves anew"):
        ours.require(digest_of(home, "ready"), date(2026, 3, 1))


def test_a_server_that_asks_for_one_is_refused_without_cost(home: Path) -> None:
    digest = digest_of(home, "open")
    before = (home / "ledger.sqlite").read_bytes()
    request = Request(task="train", run="run-9", study_digest=digest, study="{}", round=1)
    reply, update = handle(open_hospital(home), request, {})
    assert reply.refusal == Refusal(code="study-invalid")
    assert update == {}
    assert (home / "ledger.sqlite").read_bytes() == before
    last = json.loads((home / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["code"], last["study"]) == (
        "round-refused",
        "study-invalid",
        digest,
    )


def test_an_approval_of_then_can_be_taken_back(home: Path) -> None:
    digest = digest_of(home, "ready")
    assert run(home, "revoke", digest[:12], "--by", "Dr. A").exit_code == 0
    states = {study.name: study.state for study in Approvals(load_site(home)).outdated()}
    assert states["ready"] == "revoked"


def test_an_edited_one_is_not_taken_for_what_was_approved(home: Path) -> None:
    path = home / "studies" / "approved" / f"{digest_of(home, 'ready')}.json"
    path.write_text(path.read_text().replace('"epsilon":2.0', '"epsilon":0.2'))
    with pytest.raises(SiteError, match="damaged or was edited"):
        Approvals(load_site(home)).approved()


def test_what_it_costs_can_be_said_in_this_format(home: Path) -> None:
    for old in Approvals(load_site(home)).outdated():
        study = old.of_same_cost()
        assert study.format == FORMAT
        for section in ("privacy", "training", "federation", "task"):
            written = json.loads(study.canonical())[section]
            assert written == json.loads(json.dumps(old.values[section]))


def test_the_report_of_spending_still_names_them(home: Path) -> None:
    assert "finished" in run(home, "privacy").output
