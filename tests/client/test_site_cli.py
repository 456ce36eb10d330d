"""The hospital's commands tell a person what the node will do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.approvals import Approvals
from client.cli import app
from client.site import load_site
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
