"""The hospital's commands tell a person what the node will do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.approvals import Approvals
from client.audit import AuditLog
from client.cli import app
from client.hospital import open_hospital
from client.site import load_site
from shared.errors import SiteError
from shared.study import Study

STUDY = Study.model_validate({"name": "chest", "task": {"classes": ("healthy", "ill")}})


def home_with(path: Path, policy: str, data: str = "") -> Path:
    """A home whose server has offered a study of epsilon 8."""
    (path / "site.toml").write_text(
        f'name = "ward"\n[server]\naddress = "localhost:1"\n[data]\nimages = "images"\n'
        f'labels = "labels.csv"\n{data}\n[policy]\n{policy}\n'
    )
    Approvals(load_site(path)).offer(STUDY.digest, STUDY.canonical())
    return path


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", [("show",), ("approve", "--by", "Dr. A")])
def test_a_study_the_policy_will_refuse_is_called_so_before_it_runs(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    home = home_with(tmp_path, "max_epsilon_per_study = 3")
    name, *options = command
    output = run(name, STUDY.digest[:8], "--home", str(home), *options)
    assert "the node will refuse this study" in output
    assert "asks for epsilon 8, the policy grants 3" in output


def test_a_study_within_the_policy_gets_no_warning(tmp_path: Path) -> None:
    home = home_with(tmp_path, "max_epsilon_per_study = 8")
    assert "refuse" not in run("approve", STUDY.digest[:8], "--home", str(home), "--by", "Dr. A")
    assert Approvals(load_site(home)).is_approved(STUDY.digest)


@pytest.mark.parametrize("setting", ["refuse", "image-is-patient"])
def test_the_privacy_report_says_where_images_count_as_patients(
    tmp_path: Path, setting: str
) -> None:
    home = home_with(tmp_path, "", f'without_patient_id = "{setting}"')
    said = "two images of one person count as two patients" in run("privacy", "--home", str(home))
    assert said == (setting == "image-is-patient")


def kinds(home: Path) -> list[str]:
    """What a person decided in the ledger, and which studies are approved."""
    with open_hospital(home).ledger() as ledger:
        acts = [entry.kind for entry in ledger.entries()[1:]]
    return acts + [f"approved {it.study.name}" for it in Approvals(load_site(home)).approved()]


ACTS = {
    "study-approved": ("approve", STUDY.digest[:8]),
    "study-revoked": ("revoke", STUDY.digest[:8]),
    "patient-opted-out": ("opt-out", "4711"),
    "clock-accepted": ("ledger", "accept-clock"),
    "study-closed": ("ledger", "close-study", STUDY.digest),
}


def decide(home: Path, event: str, by: str) -> Result:
    """Run the command of an act; the study is approved before it is revoked."""
    if event == "study-revoked":
        Approvals(load_site(home)).approve_study(STUDY, "Dr. A")
    return CliRunner().invoke(app, [*ACTS[event], "--home", str(home), "--by", by])


@pytest.mark.parametrize("event", ACTS)
def test_what_a_person_decides_holds_and_is_noted_with_the_name(tmp_path: Path, event: str) -> None:
    home = home_with(tmp_path, "")
    before = kinds(home)
    name = "Jörg 'Ø' Ward, data protection".ljust(200, ".")
    assert decide(home, event, name).exit_code == 0
    assert (kinds(home) != before) == (event != "study-revoked")
    hospital = open_hospital(home)
    (line,) = AuditLog(hospital.site.audit_log, hospital.vault).lines()
    assert (line.event, line.by) == (event, name)


@pytest.mark.parametrize("event", ACTS)
def test_nothing_a_person_decides_holds_without_a_line_in_the_audit_log(
    tmp_path: Path, event: str
) -> None:
    home = home_with(tmp_path, "")
    (home / "audit.jsonl").mkdir()
    before = kinds(home)
    error = decide(home, event, "Dr. A").exception
    assert isinstance(error, SiteError)
    assert "cannot write the audit log" in str(error)
    assert kinds(home) == before + (["approved chest"] if event == "study-revoked" else [])


@pytest.mark.parametrize(
    ("event", "by"),
    [
        *((event, "A" * 201) for event in ACTS),
        *(("study-approved", by) for by in ("", "  ", "Dr. A\nDr. B", "\udcff")),
    ],
)
def test_who_decides_must_have_a_name_that_can_be_noted(
    tmp_path: Path, event: str, by: str
) -> None:
    home = home_with(tmp_path, "")
    before = kinds(home)
    error = decide(home, event, by).exception
    assert isinstance(error, SiteError)
    assert str(error).startswith("who decides must be named in 1 to 200 printable characters")
    assert kinds(home) == before + (["approved chest"] if event == "study-revoked" else [])
    assert not (home / "audit.jsonl").exists()
