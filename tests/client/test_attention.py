"""What may depend on a patient is one code, which stays until a person at the site has looked."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client.audit import AuditLog
from client.cli import app
from client.data.patients import Cohort
from client.hospital import Hospital
from client.rounds import handle
from client.site import Site
from client.vault import write_atomic
from shared.errors import ConsiliumError, DataError, LedgerError, SiteError
from shared.models import initial_weights
from shared.protocol import Reply
from shared.study import Study

Ward = Any  # the class in conftest.py

SITE = '[server]\naddress = "localhost:1"\n[data]\nimages = "images"\nlabels = "labels.csv"\n'


def fail(ward: Ward, error: BaseException, study: Study, number: int = 1, **fields: Any) -> Reply:
    """Ask while the cohort cannot be opened for this reason."""

    def broken(site: Site, study: Study) -> Cohort:
        raise error

    hospital = replace(ward.hospital(), load_cohort=broken)
    reply, update = handle(hospital, ward.request(study, number, **fields), initial_weights(study))
    assert update == {}
    return reply


def command(ward: Ward, name: str, *words: str) -> Result:
    (ward.home / "site.toml").write_text(f'name = "ward"\n{SITE}')
    by = [] if name == "list" else ["--by", "Dr. A"]
    return CliRunner().invoke(app, ["attention", name, "--home", str(ward.home), *words, *by])


@pytest.mark.parametrize(
    "error",
    [
        DataError("patient Miller has no image", "/data/Miller.dcm"),
        SiteError("cannot decode", "/data/Miller.dcm"),
        LedgerError("no room", "/data/Miller.dcm"),
        ConsiliumError("not fit to leave", "Miller"),
        RuntimeError("patient Miller"),
        MemoryError(),
        TimeoutError("Miller"),
    ],
)
def test_whatever_goes_wrong_with_the_cohort_is_one_code_that_stays(
    ward: Ward, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ward.study()
    ward.approve(study)
    refused = fail(ward, error, study)
    assert ward.code(refused) == "site-attention"
    told = refused.model_dump(exclude_defaults=True, exclude_none=True)
    assert told.keys() == {"study_digest", "run", "round", "outcome", "refusal"}
    # It no longer depends on what is wrong, nor on the run, and a restart changes nothing.
    loads = ward.loads
    for number, fields in ((1, {}), (1, {"run": "run-2"}), (4, {"task": "evaluate"})):
        assert ward.code(ward.ask(study, number, **fields)) == "site-attention"
    assert ward.loads == loads
    assert "Miller" not in refused.model_dump_json() + (ward.home / "audit.jsonl").read_text()
    assert type(error).__name__ in capsys.readouterr().err


def test_other_studies_go_on(ward: Ward) -> None:
    study, other = ward.study(), ward.study(privacy={"epsilon": 1.0})
    ward.approve(study)
    ward.approve(other)
    fail(ward, RuntimeError(), study)
    assert ward.ask(other, 1).outcome == "update"


def test_a_person_reads_the_reason_and_lets_the_study_go_on(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    fail(ward, DataError("cannot read the table", "/data/patients.csv"), study)
    listed = command(ward, "list").output
    assert study.digest[:12] in listed
    assert "cannot read the table (/data/patients.csv)" in listed
    assert command(ward, "clear", study.digest[:8]).exit_code == 0
    assert command(ward, "list").output == ""
    assert ward.ask(study, 1).outcome == "update"
    assert ("attention-cleared", "Dr. A") in [(line.event, line.by) for line in ward.audit()]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "cannot read the table (patients.csv)."),
        (("--text", "our archive is down until Monday"), "our archive is down until Monday"),
        (("--text", "a\nb" + "c" * 600), "a\\nb" + "c" * 496),
    ],
)
def test_the_coordinator_is_told_only_what_a_person_decides(
    ward: Ward, words: tuple[str, ...], told: str
) -> None:
    study = ward.study()
    ward.approve(study)
    fail(ward, DataError("cannot read the table", "patients.csv"), study)
    assert ward.ask(study, 1).refusal.text == ""
    assert told in command(ward, "tell", study.digest, *words).output
    for number in (1, 2):
        assert ward.ask(study, number).refusal.text == told
    assert ("attention-told", "Dr. A") in [(line.event, line.by) for line in ward.audit()]
    command(ward, "clear", study.digest)
    fail(ward, RuntimeError(), study)
    assert ward.ask(study, 1).refusal.text == "", "it was about another error"


@pytest.mark.parametrize("name", ["clear", "tell"])
def test_nothing_is_cleared_or_told_without_a_line_in_the_audit_log(ward: Ward, name: str) -> None:
    study = ward.study()
    ward.approve(study)
    fail(ward, RuntimeError(), study)
    os.rename(ward.home / "audit.jsonl", ward.home / "kept.jsonl")
    (ward.home / "audit.jsonl").mkdir()
    assert isinstance(command(ward, name, study.digest).exception, SiteError)
    assert ward.code(ward.ask(study, 1)) == "site-attention"
    assert ward.ask(study, 1).refusal.text == ""
    assert isinstance(command(ward, name, "ffff").exception, SiteError)


def test_it_stays_where_the_reason_cannot_be_written(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ward.study()
    ward.approve(study)

    def full(site: Site, study: Study) -> Cohort:
        def no_room(path: Any, content: bytes) -> None:
            raise SiteError("cannot write a file: No space left on device", str(path))

        monkeypatch.setattr("client.vault.write_atomic", no_room)
        raise RuntimeError("patient Miller")

    hospital = replace(ward.hospital(), load_cohort=full)
    reply, _ = handle(hospital, ward.request(study, 1), initial_weights(study))
    assert ward.code(reply) == "site-attention"
    monkeypatch.setattr("client.vault.write_atomic", write_atomic)
    assert ward.code(ward.ask(study, 1)) == "site-attention"
    assert "node's own log" in command(ward, "list").output


def test_a_damaged_note_still_holds(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    fail(ward, RuntimeError(), study)
    (note,) = (ward.home / "attention").glob("*.sealed")
    note.write_bytes(b"nonsense")
    assert ward.code(ward.ask(study, 1)) == "site-attention"
    assert "damaged" in command(ward, "list").output
    command(ward, "clear", study.digest)
    assert ward.ask(study, 1).outcome == "update"


def test_a_node_that_is_killed_in_a_round_goes_on_by_itself(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    with pytest.raises(KeyboardInterrupt):
        fail(ward, KeyboardInterrupt(), study)
    assert ward.ask(study, 1).outcome == "update"


def test_what_is_refused_before_the_cohort_is_opened_does_not_stay(ward: Ward) -> None:
    study = ward.study()
    assert ward.code(ward.ask(study, 1)) == "study-not-approved"
    ward.approve(study)
    ward.policy["max_rounds_per_day"] = 0
    assert ward.code(ward.ask(study, 1)) == "policy-rounds"
    assert ward.loads == 0
    ward.policy["max_rounds_per_day"] = 9
    assert ward.ask(study, 1).outcome == "update"
    hospital: Hospital = ward.hospital()
    assert hospital.attention.waiting() == []
    log = AuditLog(hospital.site.audit_log, hospital.vault)
    assert [line.code for line in log.lines() if line.code] == [
        "study-not-approved",
        "policy-rounds",
    ]
