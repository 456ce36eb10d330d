"""The coordinator's planning commands, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from server.cli import app
from shared.errors import ConsiliumError, CoordinatorError, StudyError
from shared.explain import explain_study
from shared.explain_noise import site_noise
from shared.study import Study, load_study

DATA = Path(__file__).parent.parent / "data"
STUDY = """
name = "lungs"
[task]
classes = ["clear", "opaque"]
[input]
size = 28
[training]
sampling_rate = 1.0
"""

ANSWERS = ["--classes", "clear, opaque", "--kind", "ct", "--patients", "90", "--sites", "4"]
MORE = ["--name", "My Lungs", "--hardware", "gpu", "--privacy", "none", "--size", "40"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def call(*arguments: object, typed: str = "") -> Result:
    return CliRunner().invoke(
        app, [str(a) for a in arguments], input=typed, env={"COLUMNS": "300"}, color=False
    )


def refused(*arguments: object, typed: str = "") -> ConsiliumError:
    error = call(*arguments, typed=typed).exception
    assert isinstance(error, ConsiliumError), error
    return error


def test_check_explains_the_study_and_its_noise(study: Path) -> None:
    result = call("check", study, "--patients", 70, "--patients", 2500)
    assert result.exit_code == 0
    plan = load_study(study)
    assert plan.digest in result.output
    for line in explain_study(plan):
        assert line in " ".join(result.output.split())
    rows = [line for line in result.output.splitlines() if "│" in line]
    for patients, row in zip((70, 2500), rows, strict=True):
        noise = site_noise(plan, patients)
        cells = [cell.strip() for cell in row.split("│")[1:-1]]
        assert cells[0] == f"{patients:,}"
        assert float(cells[2]) == pytest.approx(noise.noise_multiplier, abs=5e-4)
        assert cells[-1] == noise.verdict


def test_check_states_the_smaller_epsilon_where_the_noise_was_raised(study: Path) -> None:
    study.write_text(
        STUDY + "[privacy]\nepsilon = 50.0\nspare_rounds = 0\n[federation]\nrounds = 1\n"
    )
    (row,) = [
        line for line in call("check", study, "--patients", 300).output.splitlines() if "│" in line
    ]
    noise = site_noise(load_study(study), 300)
    stated = float(row.split("│")[5])
    assert max(noise.epsilon, noise.held_out_epsilon) <= stated < 50
    record = json.loads(call("check", study, "--json", "--patients", 300).output)
    assert record["noise"][0]["epsilon"] == noise.epsilon


def test_check_refuses_a_study_whose_noise_cannot_be_calibrated(study: Path) -> None:
    study.write_text(
        STUDY
        + 'loss = {name = "class-balanced"}\n'
        + "[privacy]\nepsilon = 3.0\nstatistics_noise = 1.0\n"
    )
    error = refused("check", study)
    assert isinstance(error, StudyError)
    assert "privacy.statistics_noise" in str(error)


def test_what_the_first_release_left_is_refused_with_the_way_to_go_on(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text("format = 1" + STUDY + "[data]\nmin_patients = 5\n")
    (of_then, *_) = sorted((DATA / "homes-of-format-1/open-round/studies/offered").iterdir())
    home, run = tmp_path / "home", tmp_path / "home" / "runs" / "of-then"
    run.mkdir(parents=True)
    (run / "study.json").write_text(of_then.read_text())
    (run / "model-card.json").write_text(f'{{"format": 1, "study": {of_then.read_text()}}}')
    for words in (("check", file), ("watch", "--home", home, "of-then"), ("report", run)):
        error = refused(*words)
        assert isinstance(error, StudyError)
        assert "format 1" in str(error)
        assert "anew" in str(error)


def test_check_shows_four_sizes_of_site_unless_told_otherwise(study: Path) -> None:
    record = json.loads(call("check", study, "--json").output)
    assert [site["patients"] for site in record["noise"]] == [100, 300, 1000, 3000]


def test_check_as_json_holds_what_the_text_says(study: Path) -> None:
    record = json.loads(call("check", study, "--json", "--patients", 70).output)
    plan = load_study(study)
    assert record["digest"] == plan.digest
    assert record["explanation"] == explain_study(plan)
    (noise,) = record["noise"]
    assert noise["noise_multiplier"] == site_noise(plan, 70).noise_multiplier
    assert noise["lot"] == 70.0


def test_check_without_privacy_warns_and_has_no_noise(study: Path) -> None:
    study.write_text(STUDY + "[privacy]\nenabled = false\n")
    assert "Privacy: NONE" in call("check", study).output
    assert json.loads(call("check", study, "--json").output)["noise"] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 3\n" + STUDY, "colour: unknown key"),
        (STUDY + "[privacy]\nepsilon = -1\n", "privacy.epsilon"),
        (STUDY + "[federation]\nrounds = 0\n", "federation.rounds"),
        ("not toml", "TOML"),
    ],
)
def test_check_names_what_is_wrong(study: Path, text: str, named: str) -> None:
    study.write_text(text)
    assert named in str(refused("check", study))


def test_the_command_line_turns_an_error_into_one_line(study: Path) -> None:
    study.write_text(STUDY + "[privacy]\nepsilon = -1\n")
    consilium = Path(sys.executable).with_name("consilium")
    result = subprocess.run(
        [consilium, "server", "check", study], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "privacy.epsilon" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def written(path: Path) -> Study:
    plan = load_study(path)
    assert plan.name == "my-lungs"
    assert plan.task.classes == ("clear", "opaque")
    assert plan.input.modalities == ("CT",)
    assert plan.input.size == 40
    assert (plan.federation.sites, plan.federation.min_sites) == (4, 3)
    assert not plan.privacy.enabled
    return plan


def test_new_study_takes_its_answers_from_options(tmp_path: Path) -> None:
    out = tmp_path / "new.toml"
    result = call("new-study", out, *ANSWERS, *MORE)
    assert result.exit_code == 0
    written(out)
    assert out.read_text() in result.output


def test_new_study_asks_for_what_is_left_out(tmp_path: Path) -> None:
    by_options, asked = tmp_path / "options.toml", tmp_path / "asked.toml"
    call("new-study", by_options, *ANSWERS, *MORE)
    typed = "My Lungs\nclear,opaque\nct\n90\n4\ngpu\nnone\n"
    result = call("new-study", asked, "--size", 40, typed=typed)
    assert result.exit_code == 0
    assert "Number of sites" in result.output
    assert asked.read_text() == by_options.read_text()


def test_new_study_never_overwrites_and_says_so_before_asking(tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("mine")
    error = refused("new-study", out)
    assert isinstance(error, StudyError)
    assert str(out) in str(error)
    assert out.read_text() == "mine"


def test_new_study_refuses_what_no_study_can_have(tmp_path: Path) -> None:
    out = tmp_path / "new.toml"
    assert "task.classes" in str(refused("new-study", out, *MORE, *ANSWERS, "--classes", "one"))
    assert call("new-study", out, *MORE, *ANSWERS, "--patients", 3).exit_code == 2
    assert not out.exists()


def test_new_study_cannot_write_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    error = refused("new-study", tmp_path / "no" / "new.toml", *ANSWERS, *MORE)
    assert isinstance(error, CoordinatorError)
    assert "No such file" in str(error)


def test_report_writes_the_page_into_the_runs_folder(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.json").write_text(load_study(study).canonical())
    assert call("report", run).exit_code == 0
    assert "lungs" in (run / "report.html").read_text()
    elsewhere = tmp_path / "page.html"
    assert str(elsewhere) in call("report", run, "--out", elsewhere).output
    assert elsewhere.read_text() == (run / "report.html").read_text()


def test_report_of_something_else_is_an_error(tmp_path: Path) -> None:
    assert "study.json" in str(refused("report", tmp_path))


def test_report_shows_the_test_result_of_the_model_card(study: Path, tmp_path: Path) -> None:
    plan = load_study(study)
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.json").write_text(plan.canonical())
    card = {
        "run": "r", "created": "2026-01-01T00:00:00Z", "code_version": "1", "rounds": 3,
        "study_digest": plan.digest, "study": plan.model_dump(mode="json"), "weights": "last",
        "weights_sha256": "0" * 64, "sites": {}, "closing": {}, "test_auc": 0.8765,
        "test_metrics": {"patients": 40},
    }  # fmt: skip
    (run / "model-card.json").write_text(json.dumps(card))
    assert call("report", run).exit_code == 0
    page = (run / "report.html").read_text()
    assert "0.8765" in page
    assert "on 40 patients no hospital had" in page
