"""What the report says of remedies, fine-tuned models and groups of patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report_kit import NAMES, make_run, make_study, page_of, rows, section, three_rounds

GROUP = {
    "auc": 0.75, "auc_low": 0.5, "auc_high": 0.875, "ece": 0.0625, "ece_low": 0.0,
    "ece_high": 0.125, "sensitivity_at_95_specificity": 0.4, "positives": 31.6, "negatives": 80.0,
}  # fmt: skip
LOST = {"auc": None, "auc_low": 0.0, "auc_high": 1.0, "positives": 2.0, "negatives": 0.0}


def closed(**closing: Any) -> list[dict[str, Any]]:
    *lines, last = three_rounds()
    return [*lines, last | closing]


def test_groups_of_patients_have_a_table_and_lost_ones_say_so(tmp_path: Path) -> None:
    groups = {"sex:F": GROUP, "sex:other": LOST, "age:80+": GROUP, "scanner:GE": GROUP}
    study = make_study(privacy={"subgroups": ["sex", "age", "scanner"]})
    page = page_of(make_run(tmp_path / "run", study, closed(subgroups=groups)))
    figures = ["32", "80", "0.750", "0.5000 to 0.8750", "0.400", "0.062"]
    assert rows(section(page, "Groups of patients")) == [
        ["women", *figures],
        ["other sex, or none stated", "2", "0", "cannot be told from noise", "", "", ""],
        ["80+ years", *figures],
        ["GE scanners", *figures],
    ]
    titles = [h.text for h in section(page, "Groups of patients").one("thead").all("th")]
    assert titles[1] == "Patients with opaque (estimated)"


def test_before_the_closing_evaluation_no_group_has_figures(tmp_path: Path) -> None:
    study = make_study(privacy={"subgroups": ["sex"]})
    page = page_of(make_run(tmp_path / "run", study, three_rounds()[:2]))
    assert "No hospital has sent" in section(page, "Groups of patients").text
    plain = page_of(make_run(tmp_path / "plain", make_study(), three_rounds()))
    assert "Groups of patients" not in plain.text


def test_fine_tuned_models_stand_beside_the_released_one(tmp_path: Path) -> None:
    lines = closed(personal_auc=0.96, personal_auc_low=0.9, personal_auc_high=0.98)
    lines[-1]["sites"][NAMES[0]] |= {"personal_auc": 0.8125}
    study = make_study(training={"personal_rounds": 2})
    page = page_of(make_run(tmp_path / "run", study, lines), test={"auc": 0.9, "accuracy": 0.8})
    final = rows(section(page, "Final metrics"))
    assert final[0] == [
        "AUC (area under the ROC curve)", "0.9375", "0.8750 to 0.9688",
        "0.9600 (0.9000 to 0.9800)", "0.9000",
    ]  # fmt: skip
    assert final[1][3:] == ["", ""]
    titles = [h.text for h in section(page, "Hospitals").one("thead").all("th")]
    column = titles.index("Own AUC, fine-tuned")
    assert [row[column] for row in rows(section(page, "Hospitals"))] == ["0.812", "–", "–"]


def test_without_fine_tuning_there_is_no_column_for_it(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", make_study(), three_rounds()))
    assert "ine-tuned" not in page.text


def test_the_page_names_the_remedies_that_were_on(tmp_path: Path) -> None:
    study = make_study(
        training={"proximal": 0.1, "loss": {"name": "focal"}},
        federation={"rounds": 3, "optimiser": {"name": "yogi", "learning_rate": 0.01}},
    )
    page = page_of(make_run(tmp_path / "run", study, three_rounds()))
    assert "Remedies: focal loss, FedProx, server yogi." in page.one("header").text
    words = section(page, "The study in plain words")
    assert "Remedy (FedProx)" in [topic.text for topic in words.all("dt")]
    plain = page_of(make_run(tmp_path / "plain", make_study(), three_rounds()))
    assert "Remedies: none, updates are averaged as they are." in plain.one("header").text
