"""The hospital's commands tell a person what the node will do."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client.approvals import Approvals
from client.audit import AuditLog
from client.cli import app
from client.hospital import open_hospital
from client.site import load_site
from shared.errors import ConsiliumError, PolicyRefusal, SiteError
from shared.study import Study

TABLE: dict[str, Any] = {
    "name": "ages",
    "task": {"classes": ("healthy", "ill")},
    "table": {"columns": [{"name": "age", "low": 0, "high": 100}]},
    "model": {"name": "table", "layers": []},
}
STUDY = Study.model_validate(TABLE)
FOUND = 60
"""Patients in the table."""


def home_with(path: Path, policy: str, data: str = "", study: Study = STUDY) -> Path:
    """A home whose server has offered a study of epsilon 8."""
    rows = [f"P-{i},{('healthy', 'ill')[i % 2]},{i}" for i in range(FOUND)]
    (path / "patients.csv").write_text("\n".join(["patient,label,age", *rows]) + "\n")
    (path / "site.toml").write_text(
        f'name = "ward"\n[server]\naddress = "localhost:1"\n[data]\ntable = "patients.csv"\n'
        f"{data}\n[policy]\n{policy}\n"
    )
    Approvals(load_site(path)).offer(study.digest, study.canonical())
    return path


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", [("show",), ("approve", "--by", "Dr. A", "--patients", "60")])
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
    assert "refuse" not in approve(home, 60).output
    assert Approvals(load_site(home)).is_approved(STUDY.digest)


def approve(home: Path, patients: int | None, study: Study = STUDY) -> Result:
    declared = [] if patients is None else ["--patients", str(patients)]
    words = ["approve", study.digest, "--home", str(home), "--by", "Dr. A", *declared]
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize(
    ("given", "set_to", "declared"),
    [
        *((60, "", 60), (64, "", 64), (119, "", 120), (341, "", 340), (10, "", 10), (600, "", 600)),
        *((None, "patients = 57", 57), (70, "patients = 57", 70)),
    ],
)
def test_the_size_that_is_declared_is_rounded_and_told(
    tmp_path: Path, given: int | None, set_to: str, declared: int
) -> None:
    home = home_with(tmp_path, "", set_to)
    said = approve(home, given).output
    assert f"declaring {declared} patients" in said
    (approval,) = Approvals(load_site(home)).approved()
    assert approval.patients == declared
    assert approval.training_size == round(declared * 0.85)
    hospital = open_hospital(home)
    (line,) = AuditLog(hospital.site.audit_log, hospital.vault).lines()
    assert line.patients == declared


@pytest.mark.parametrize(("typed", "declared"), [("\n", 60), ("53\n", 53)])
def test_at_a_terminal_the_size_is_asked_for_and_the_number_found_is_proposed(
    tmp_path: Path, typed: str, declared: int
) -> None:
    home = home_with(tmp_path, "")
    consilium = str(Path(sys.executable).with_name("consilium"))
    words = ["site", "approve", STUDY.digest, "--home", str(home), "--by", "Dr. A"]
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "rb") as terminal:
        done = subprocess.run(
            [consilium, *words], stdin=terminal, capture_output=True, text=True, check=True
        )
    assert "[60]" in done.stdout + done.stderr
    assert f"declaring {declared} patients" in done.stdout


@pytest.mark.parametrize(
    ("given", "privacy", "training", "said"),
    [
        (None, {}, {}, "About 60 patients are here"),
        (5, {}, {}, "5 patients are declared, and 60 are here"),
        (610, {}, {}, "610 patients are declared, and 60 are here"),
        (60, {"delta": 1e-3}, {"sampling_rate": 0.01}, "a lot has 0.51 patients on average"),
        (600, {"delta": 1e-3}, {}, "more than a tenth of one patient in 510"),
    ],
)
def test_a_size_the_data_or_the_study_contradicts_is_not_approved(
    tmp_path: Path,
    given: int | None,
    privacy: dict[str, float],
    training: dict[str, float],
    said: str,
) -> None:
    study = Study.model_validate(TABLE | {"privacy": privacy, "training": training})
    home = home_with(tmp_path, "", study=study)
    error = approve(home, given, study).exception
    assert isinstance(error, ConsiliumError)
    assert said in str(error)
    assert not Approvals(load_site(home)).is_approved(study.digest)
    assert not (home / "audit.jsonl").exists()


CONDITIONS = {
    "min-patients": "min_patients = 70",
    "min-patients-per-class": "min_patients_per_class = 40",
    "set-aside": "max_set_aside = 0.1",
    "values": "max_set_aside = 0.1",
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_the_cohort_lacks_is_decided_by_a_person_and_noted(
    tmp_path: Path, condition: str
) -> None:
    home = home_with(tmp_path, CONDITIONS[condition])
    if condition == "set-aside":
        with (tmp_path / "patients.csv").open("a") as table:
            table.writelines(f"Q-{i},unknown,50\n" for i in range(10))
    if condition == "values":
        path = tmp_path / "patients.csv"
        path.write_text(path.read_text().replace(",5", ",500"))
    error = approve(home, 60).exception
    assert isinstance(error, ConsiliumError)
    assert f"approve with --accept {condition} all the same" in str(error)
    assert not Approvals(load_site(home)).is_approved(STUDY.digest)
    assert not (home / "audit.jsonl").exists()
    words = ("approve", STUDY.digest, "--home", str(home), "--by", "Dr. A", "--patients", "60")
    assert "Approved" in run(*words, "--accept", condition)
    hospital = open_hospital(home)
    (line,) = AuditLog(hospital.site.audit_log, hospital.vault).lines()
    assert line.accepted == (condition,)


def test_the_data_report_proposes_a_rounded_size(tmp_path: Path) -> None:
    home = home_with(tmp_path, "")
    with (tmp_path / "patients.csv").open("a") as table:
        table.writelines(f"Q-{i},ill,{i % 90}\n" for i in range(97))
    (tmp_path / "study.toml").write_text(
        'format = 2\nname = "ages"\n[task]\nclasses = ["healthy", "ill"]\n'
        '[table]\ncolumns = [{name = "age", low = 0, high = 100}]\n[model]\nname = "table"\n'
    )
    said = run("data", str(tmp_path / "study.toml"), "--home", str(home))
    assert "declare about 200 patients" in said


def test_the_size_proposed_for_a_study_does_not_follow_its_own_count(tmp_path: Path) -> None:
    home = home_with(tmp_path, "")
    fewer = Study.model_validate(
        TABLE | {"name": "healthy-only", "task": {"classes": ("healthy", "x")}}
    )
    with (tmp_path / "patients.csv").open("a") as table:
        table.write("Q-1,ill,50\n")
    Approvals(load_site(home)).offer(fewer.digest, fewer.canonical())
    assert "About 60 patients are here" in str(approve(home, None).exception)
    approve(home, 55)
    assert "About 55 patients are here" in str(approve(home, None, fewer).exception)


def test_a_finding_spelled_otherwise_is_for_a_person_to_judge(tmp_path: Path) -> None:
    task = {"classes": ("fluid", "mass"), "findings": True}
    study = Study.model_validate(TABLE | {"task": task})
    home = home_with(tmp_path, "", study=study)
    rows = [f"P-{i},{i % 2},{('no', 'yes')[i % 2]},{i}" for i in range(FOUND)]
    (tmp_path / "patients.csv").write_text("\n".join(["patient,fluid,mass,age", *rows]) + "\n")
    error = str(approve(home, 60, study).exception)
    assert "60 of 60 rows of column mass are not understood" in error
    assert "--accept values" in error
    assert not Approvals(load_site(home)).is_approved(study.digest)


@pytest.mark.parametrize("setting", ["refuse", "image-is-patient"])
def test_the_privacy_report_says_where_images_count_as_patients(
    tmp_path: Path, setting: str
) -> None:
    home = home_with(tmp_path, "", f'without_patient_id = "{setting}"')
    said = "two images of one person count as two patients" in run("privacy", "--home", str(home))
    assert said == (setting == "image-is-patient")


def confirmed(home: Path) -> Path:
    """The same home, of which the server has confirmed a head."""
    with open_hospital(home).ledger() as ledger:
        ledger.check_head(ledger.head())
    return home


def kinds(home: Path) -> list[str]:
    """What a person decided in the ledger, and which studies are approved."""
    with open_hospital(home).ledger() as ledger:
        acts: list[str] = [entry.kind for entry in ledger.entries()[1:]]
        try:
            ledger.check_head(None)
        except PolicyRefusal:
            acts.append("the server must say what it knows")
    return acts + [f"approved {it.study.name}" for it in Approvals(load_site(home)).approved()]


ACTS = {
    "study-approved": ("approve", STUDY.digest[:8], "--patients", "60"),
    "study-revoked": ("revoke", STUDY.digest[:8]),
    "patient-opted-out": ("opt-out", "4711"),
    "clock-accepted": ("ledger", "accept-clock"),
    "server-accepted": ("ledger", "accept-server"),
    "study-closed": ("ledger", "close-study", STUDY.digest),
}


def decide(home: Path, event: str, by: str) -> Result:
    """Run the command of an act; the study is approved before it is revoked."""
    if event == "study-revoked":
        Approvals(load_site(home)).approve_study(STUDY, "Dr. A", 40)
    return CliRunner().invoke(app, [*ACTS[event], "--home", str(home), "--by", by])


@pytest.mark.parametrize("event", ACTS)
def test_what_a_person_decides_holds_and_is_noted_with_the_name(tmp_path: Path, event: str) -> None:
    home = confirmed(home_with(tmp_path, ""))
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
    home = confirmed(home_with(tmp_path, ""))
    (home / "audit.jsonl").mkdir()
    before = kinds(home)
    error = decide(home, event, "Dr. A").exception
    assert isinstance(error, SiteError)
    assert "cannot write the audit log" in str(error)
    assert kinds(home) == before + (["approved ages"] if event == "study-revoked" else [])


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
    assert kinds(home) == before + (["approved ages"] if event == "study-revoked" else [])
    assert not (home / "audit.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ledger", "close-study", STUDY.digest[:-1] + "x"), "no such study"),
        (("ledger", "close-study", ""), "no such study"),
        (("approve", "", "--patients", "60"), "no such study"),
        (("opt-out", ""), "a patient's id must be"),
        (("opt-out", "P-\udcff"), "a patient's id must be"),
    ],
)
def test_what_names_nothing_is_not_noted_as_done(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    home = home_with(tmp_path, "")
    result = CliRunner().invoke(app, [*words, "--home", str(home), "--by", "Dr. A"])
    assert isinstance(result.exception, SiteError)
    assert said in str(result.exception)
    assert not (home / "audit.jsonl").exists()


def test_a_study_is_closed_by_its_first_digits(tmp_path: Path) -> None:
    home = home_with(tmp_path, "")
    said = run("ledger", "close-study", STUDY.digest[:12], "--home", str(home), "--by", "Dr. A")
    assert f"Closed {STUDY.digest}" in said
    with open_hospital(home).ledger() as ledger:
        assert [e.study for e in ledger.entries() if e.kind == "close"] == [STUDY.digest]
