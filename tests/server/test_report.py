"""The report page: well formed, and showing exactly what the run's files say."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from report_kit import (
    NAMES,
    Element,
    chart,
    elements,
    make_run,
    make_study,
    page_of,
    read_off,
    rows,
    section,
    three_rounds,
)

from server.report_tables import MEASURES, REFUSALS
from shared.protocol import RefusalCode


def test_everything_has_a_name_for_those_who_cannot_see_it(run: Path) -> None:
    page = page_of(run)
    assert page.one("html").attributes["lang"] == "en"
    identities = [e.attributes["id"] for e in elements(page) if "id" in e.attributes]
    assert len(set(identities)) == len(identities)
    for svg in page.all("svg"):
        if svg.attributes.get("role") == "img":
            assert set(svg.attributes["aria-labelledby"].split()) <= set(identities)
            assert {c.name for c in svg.children if isinstance(c, Element)} >= {"title", "desc"}
        else:
            assert svg.attributes["aria-hidden"] == "true"
    for table in page.all("table"):
        assert table.one("caption").text
        assert all(head.attributes["scope"] in ("col", "row") for head in table.all("th"))


def test_the_tables_show_the_numbers_of_the_metrics(run: Path) -> None:
    page = page_of(run, test={"auc": 0.9123, "accuracy": 0.8, "patients": 250})
    assert rows(section(page, "Hospitals")) == [
        ["Ashford", "120", "3", "3.125", "8", "1e-5", "1.062", "0.710", "evaluated", "–"],
        ["Brook", "120", "2", "2.500", "8", "1e-5", "1.062", "0.710", "evaluated",
         "round 1: refused, nobody there has approved the study"],
        ["Castle", "120", "3", "4.000", "8", "1e-5", "1.062", "0.710", "evaluated", "–"],
    ]  # fmt: skip
    assert rows(section(page, "Rounds"))[0] == [
        "1", "0.620 (0.560 to 0.660)", "2 of 3: Ashford, Castle",
        "Brook: refused, nobody there has approved the study", "14 s",
    ]  # fmt: skip
    assert rows(section(page, "Rounds"))[3][:4] == [
        "4 (closing)", "0.938 (0.875 to 0.969)", "3 of 3: Ashford, Brook, Castle", "–",
    ]  # fmt: skip
    assert rows(section(page, "Final metrics")) == [
        ["AUC (area under the ROC curve)", "0.9375", "0.8750 to 0.9688", "0.9123"],
        ["Expected calibration error", "0.1235", "0.1000 to 0.2000", ""],
        ["Accuracy", "", "", "0.8000"],
        ["Patients with opaque (estimated)", "42", "", ""],
        ["Patients", "", "", "250"],
    ]
    figures = {
        d.one("dt").text: [v.text for v in d.all("dd")]
        for d in page.one("dl", **{"class": "figures"}).all("div")
    }
    assert figures["Test AUC"] == ["0.912", "on 250 patients no hospital had"]
    assert figures["Rounds"] == ["3 of 3", "took 56 s"]
    assert figures["Hospitals"] == ["3", "3 took part in training"]
    assert figures["AUC at the hospitals"] == ["0.938", "95 % interval 0.875 to 0.969"]
    assert figures["Epsilon spent"][0] == "4.00"


def test_the_page_says_how_the_run_ended(run: Path) -> None:
    assert "22 November 2026, 12:00 UTC to 22 November 2026, 12:03 UTC. The run is finished." in (
        page_of(run).text
    )
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "run-started"}) + "\n")
    assert "The run is not finished." in page_of(run).text
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "run-failed", "error": "only 1 of 2 sites"}) + "\n")
    assert "The run failed: only 1 of 2 sites" in page_of(run).text


def test_every_reason_to_refuse_is_explained_in_words_of_its_own() -> None:
    assert set(REFUSALS) == set(typing.get_args(RefusalCode))
    assert len(set(REFUSALS.values())) == len(REFUSALS)
    assert "disk" in REFUSALS["site-unready"]
    assert "done" not in REFUSALS["out-of-order"]  # that is answered by sending it again


def test_a_round_that_was_begun_and_never_finished_is_named(run: Path) -> None:
    events = [{"event": "round-started", "round": number} for number in (1, 2, 3)]
    page = page_of(make_run(run, make_study(), three_rounds()[:1], events))
    assert [row[0] for row in rows(section(page, "Rounds"))] == ["1", "2", "3"]
    assert rows(section(page, "Rounds"))[2][3] == "The round was not finished."


def test_a_run_without_any_round_has_a_page(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", make_study()))
    assert "The run has not begun." in page.text
    assert [row[0] for row in rows(section(page, "Hospitals"))] == list(NAMES)
    assert not [s for s in page.all("svg") if s.attributes.get("role") == "img"]


def test_without_privacy_the_page_warns_and_shows_no_epsilon(tmp_path: Path) -> None:
    study = make_study(privacy={"enabled": False})
    lines = three_rounds()
    for line in lines:
        for entry in line["sites"].values():
            entry |= {"noise_multiplier": 0.0}
    page = page_of(make_run(tmp_path / "run", study, lines))
    alarm = page.one("div", role="alert")
    assert "without differential privacy" in alarm.text
    assert "may rebuild images" in alarm.text
    css = page.one("style").text
    red = re.search(r"--alarm: (#\w+)", css)
    assert ".alarm {" in css
    assert red
    assert int(red[1][1:3], 16) > 2 * int(red[1][3:5], 16)
    assert [row[3] for row in rows(section(page, "Hospitals"))] == ["no limit"] * 3
    assert [row[6] for row in rows(section(page, "Hospitals"))] == ["none"] * 3
    assert "4.00" not in page.one("dl", **{"class": "figures"}).text
    assert len([s for s in page.all("svg") if s.attributes.get("role") == "img"]) == 1


def test_with_privacy_there_is_no_warning(run: Path) -> None:
    assert not [e for e in elements(page_of(run)) if e.attributes.get("role") == "alert"]


def test_what_was_set_aside_is_counted_by_reason_and_hospital(run: Path) -> None:
    local = {
        "Ashford": {"no-label": 4, "damaged": 1},
        "Brook": {"damaged": 2},
        "Castle": {},
    }
    part = section(page_of(run, local_reports=local), "What was set aside, and why")
    assert rows(part) == [
        ["no label", "4", "–", "–"],
        ["damaged", "1", "2", "–"],
        ["all", "5", "2", "0"],
    ]
    assert "read from the hospitals' own folders" in part.text
    assert "never sent" in part.text


def test_a_real_federation_cannot_show_what_was_set_aside(run: Path) -> None:
    part = section(page_of(run), "What was set aside, and why")
    assert not part.all("table")
    assert "never sent" in part.text
    nothing = section(page_of(run, local_reports={"Ashford": {}}), "What was set aside, and why")
    assert "Nothing was set aside." in nothing.text


def test_notes_and_the_plan_are_on_the_page(run: Path) -> None:
    page = page_of(run, notes=["The images are phantoms."])
    assert "The images are phantoms." in page.text
    assert json.loads(page.one("pre").text) == make_study().model_dump(mode="json")
    assert make_study().digest in page.one("footer").text
    assert page.one("h1").text == "lungs"
    assert "Opacities <em>on</em> radiographs & more" in page.text


def test_the_page_of_a_run_of_the_real_round_loop(world: Any) -> None:
    refusing = world.sites[2]
    refusing.answer = lambda request, weights, time: refusing.refuse(request, "policy-epsilon")
    world.run()
    page = page_of(world.run_dir)
    card = json.loads((world.run_dir / "model-card.json").read_text())
    assert "The run is finished." in page.text
    shown = {row[0]: row for row in rows(section(page, "Hospitals"))}
    for name, record in card["sites"].items():
        assert shown[name][1:6] == [
            str(record["patients"]),
            str(record["rounds"]),
            f"{record['epsilon']:.3f}",
            "8",
            "1e-5",
        ]
    assert shown["Brook"][2] == "0"
    assert shown["Brook"][-1] == "closing: refused, its policy allows less epsilon"
    measured = {row[0]: row[1] for row in rows(section(page, "Final metrics"))}
    assert measured["AUC (area under the ROC curve)"] == f"{card['closing']['auc']:.4f}"
    assert measured["Brier score"] == f"{card['closing']['brier']:.4f}"
    assert set(card["closing"]) >= set(MEASURES) - {"accuracy", "patients"}
    assert [row[2][:6] for row in rows(section(page, "Rounds"))] == ["2 of 3"] * 4
    joint = read_off(chart(page, "auc"))[-2]
    assert [x for x, _ in joint] == pytest.approx([0, 1, 2, 3])
