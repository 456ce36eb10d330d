"""The report loads nothing, whatever names and damage a run folder holds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_kit import (
    NAMES,
    elements,
    make_run,
    make_study,
    page_of,
    rows,
    section,
    three_rounds,
)

from server.report import write_report
from shared.errors import ConsiliumError, CoordinatorError

HOSTILE = ("</td><script>alert(1)</script>", "\"'><img src=//x.org onerror=alert(1)>", "&lt;b&gt;")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NUMBER = st.floats() | st.floats(0, 1) | st.integers(-2, 10) | ANYTHING
FIGURES = ("auc", "auc_low", "auc_high")


SITE = st.fixed_dictionaries(
    {"state": st.sampled_from(["update", "refused", "late"]) | ANYTHING},
    optional=dict.fromkeys(
        (*FIGURES, "patients", "epsilon", "budget", "delta", "noise_multiplier"), NUMBER
    )
    | {"reason": ANYTHING},
)


LINE = st.fixed_dictionaries(
    {
        "round": st.integers(-1, 12) | NUMBER,
        "sites": st.dictionaries(st.sampled_from(NAMES) | st.text(), SITE, max_size=3) | ANYTHING,
    },
    optional=dict.fromkeys((*FIGURES, "seconds", "ece", "x"), NUMBER) | {"closing": NUMBER},
)


EVENT = st.fixed_dictionaries(
    {"event": st.sampled_from(["run-started", "run-failed", "round-started"]) | ANYTHING},
    optional=dict.fromkeys(("time", "round", "error", "site"), NUMBER | st.just("2026-01-01")),
)


def test_the_page_loads_and_runs_nothing(run: Path) -> None:
    page = page_of(run)
    text = (run / "report.html").read_text()
    assert not re.search(r"https?:|//|url\(|@import", text.replace("<!DOCTYPE", ""))
    names = {e.name for e in elements(page)}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    attributes = {a for e in elements(page) for a in e.attributes}
    assert not {a for a in attributes if a.startswith("on")} | attributes & {
        "src", "href", "style", "srcset", "action"
    }  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(page.one("style").text.encode()).digest()).decode()
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    lines = three_rounds()
    for line in lines:
        line["sites"] = dict(zip(HOSTILE, line["sites"].values(), strict=True))
        line["sites"][HOSTILE[0]] |= {"state": HOSTILE[1], "reason": HOSTILE[2]}
        line[HOSTILE[0]] = 1.0
    local = {name: {name: 1} for name in HOSTILE}
    run = make_run(tmp_path / "run", make_study(), lines, names=HOSTILE)
    page = page_of(run, local_reports=local, notes=HOSTILE, test=dict.fromkeys(HOSTILE, 1))
    assert not {e.name for e in elements(page)} & {"script", "img", "b"}
    assert [row[0] for row in rows(section(page, "Hospitals"))] == list(HOSTILE)
    legend = [li.text for ul in page.all("ul") for li in ul.all("li")]
    assert set(HOSTILE) <= set(legend)


def test_damaged_lines_are_left_out_and_counted(run: Path) -> None:
    before = rows(section(page_of(run), "Rounds"))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'not json\n\xff\xfe\n[]\n{"auc": 1}\n{"round": 5, "auc')
    page = page_of(run)
    assert rows(section(page, "Rounds")) == before
    assert "5 lines of the run's records could not be read" in page.text


def test_a_round_done_again_counts_once_and_as_it_was_done_last(run: Path) -> None:
    lines = three_rounds()
    again = lines[1] | {"auc": 0.5625}
    page = page_of(make_run(run, make_study(), [*lines[:2], again, *lines[2:]]))
    shown = [row[1][:5] for row in rows(section(page, "Rounds"))]
    assert shown == ["0.620", "0.562", "0.860", "0.938"]


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CoordinatorError, match=r"study\.json"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_an_error_that_leaves_nothing(run: Path) -> None:
    with pytest.raises(CoordinatorError):
        write_report(run, run / "no" / "such" / "folder.html")
    (run / "taken").mkdir()
    with pytest.raises(CoordinatorError):
        write_report(run, run / "taken")
    assert not list(run.glob(".taken*"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINE, max_size=5), st.lists(EVENT, max_size=4), ANYTHING, st.booleans(), ANYTHING)
def test_no_run_folder_can_break_the_page(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[Any],
    events: list[Any],
    names: Any,
    private: bool,
    value: Any,
) -> None:
    study = make_study(privacy={"enabled": private})
    run = make_run(tmp_path_factory.mktemp("any") / "run", study, lines, events)
    (run / "sites.json").write_text(json.dumps(names))
    page = page_of(run, test={"auc": value})
    numbers = "".join(
        e.attributes.get(a, "") for e in elements(page) for a in ("points", "cx", "cy", "y1", "x1")
    )
    assert not re.search("nan|inf", numbers)


def test_an_invalid_plan_is_an_error(run: Path) -> None:
    (run / "study.json").write_text('{"name": "x"}')
    with pytest.raises(ConsiliumError):
        write_report(run, run / "report.html")
