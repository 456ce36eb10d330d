"""Before a study is approved, a person reads what it takes and who has room for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.approvals import Approvals
from client.cli import app
from client.data.cohort import load_cohort
from client.hospital import open_hospital
from client.policy import limits
from client.privacy.budget import Wanted
from client.privacy.plans import Plan
from client.site import load_site
from shared.errors import DataError
from shared.study import Study

SITE = """name = "ward"
[server]
address = "localhost:1"
[data]
table = "patients.csv"
[policy]
max_epsilon_per_patient = {budget}
"""


def study(epsilon: float) -> Study:
    return Study.model_validate(
        {
            "name": "ages",
            "task": {"classes": ("healthy", "ill")},
            "table": {"columns": [{"name": "age", "low": 0, "high": 100}]},
            "model": {"name": "table", "layers": []},
            "privacy": {"epsilon": epsilon},
        }
    )


def home_with(path: Path, offered: Study, budget: float = 10) -> Path:
    rows = [f"P-{i},{('healthy', 'ill')[i % 2]},{i}" for i in range(60)]
    (path / "patients.csv").write_text("\n".join(["patient,label,age", *rows]) + "\n")
    (path / "site.toml").write_text(SITE.format(budget=budget))
    Approvals(load_site(path)).offer(offered.digest, offered.canonical())
    return path


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def commands(home: Path, offered: Study) -> dict[str, list[str]]:
    plan: dict[str, Any] = {"home": ["--home", str(home)]}
    (home / "study.toml").write_text(
        f'name = "ages"\n[task]\nclasses = ["healthy", "ill"]\n[table]\ncolumns = '
        '[{name = "age", low = 0, high = 100}]\n[model]\nname = "table"\nlayers = []\n'
        f"[privacy]\nepsilon = {offered.privacy.epsilon}\n"
    )
    return {
        "show": ["show", offered.digest[:8], *plan["home"]],
        "data": ["data", str(home / "study.toml"), *plan["home"]],
        "approve": [
            *("approve", offered.digest[:8], "--by", "Dr. A", "--patients", "60"),
            *plan["home"],
        ],
    }


@pytest.mark.parametrize("command", ["show", "data", "approve"])
def test_what_a_study_takes_is_said_before_it_is_approved_and_charges_nothing(
    tmp_path: Path, command: str
) -> None:
    offered = study(4.0)
    home = home_with(tmp_path, offered)
    output = run(*commands(home, offered)[command])
    assert "lifetime budget (epsilon 10) it takes 22% where it trains and 24% where" in output
    with open_hospital(home).ledger() as ledger:
        assert [e.kind for e in ledger.entries()] == ["start"]


def test_who_has_no_room_left_is_counted_and_so_is_who_opted_out(tmp_path: Path) -> None:
    offered = study(6.0)
    home = home_with(tmp_path, offered)
    hospital = open_hospital(home)
    patients = load_cohort(hospital.site, offered).train.patients
    spent = Plan("e" * 64, "train", 0.8, 1.0, 1, 2, 0, 8.0, 1e-5)
    with hospital.ledger() as ledger:
        joined = ledger.join(
            [Wanted(spent, frozenset(patients[:20]))], limits(hospital.site.config.policy)
        )
        assert len(joined["train"]) == 20
        ledger.opt_out(patients[0])
        ledger.opt_out(patients[-1])
    words = commands(home, offered)
    room = f"Of {len(patients)} to train on, {len(patients) - 21} have room for it, 19 have not; 2"
    assert room in run(*words["data"])
    shown = run(*words["show"])
    assert "Of 21 patients in the ledger, 0 have room for it, 19 have not; 2 have opted" in shown
    assert "For somebody new there is room." in shown


def test_what_is_shared_without_noise_is_given_no_percentage(tmp_path: Path) -> None:
    offered = study(4.0)
    home = home_with(tmp_path, offered)
    with (home / "site.toml").open("a") as file:
        file.write('evaluation = "exact"\n')
    shown = run(*commands(home, offered)["show"])
    assert "22% where it trains and no noise, so no guarantee, where it evaluates" in shown


def test_a_budget_that_nobody_has_is_told(tmp_path: Path) -> None:
    offered = study(8.0)
    home = home_with(tmp_path, offered, budget=5)
    assert "For somebody new there is no room." in run(*commands(home, offered)["show"])


def test_a_study_that_hardly_anybody_has_room_for_is_not_approved_by_mistake(
    tmp_path: Path,
) -> None:
    offered = study(3)
    home = home_with(tmp_path, offered, budget=3)  # what a study of 3 takes is above 3 for life
    approve = ["approve", "--home", str(home), offered.digest, "--by", "A", "--patients", "60"]
    refused = CliRunner().invoke(app, approve)
    assert isinstance(refused.exception, DataError)
    assert re.search(r"^0 of \d+ patients to train on have room", str(refused.exception))
    assert "--accept room" in str(refused.exception)
    assert not Approvals(load_site(home)).is_approved(offered.digest)
    assert "Approved ages" in run(*approve, "--accept", "room")
