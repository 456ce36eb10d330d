"""The report page: well formed, self-contained, and showing exactly what the run's files say."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.charts import nice_ticks
from server.report import write_report
from server.report_tables import MEASURES
from shared.errors import ConsiliumError, CoordinatorError
from shared.study import Study, parse_study

VOID = {"meta", "br", "hr", "img", "input", "link"}
NAMES = ("Ashford", "Brook", "Castle")
EPSILONS = {"Ashford": (1.5, 2.25, 3.125), "Brook": (None, 1.75, 2.5), "Castle": (2.0, 2.0, 4.0)}


@dataclass
class Element:
    """A parsed element: its name, attributes, children and text in order."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, name: str) -> list[Element]:
        found = [self] if self.name == name else []
        return found + [e for c in self.children if isinstance(c, Element) for e in c.all(name)]

    def one(self, name: str, **attributes: str) -> Element:
        found = [e for e in self.all(name) if attributes.items() <= e.attributes.items()]
        assert len(found) == 1, (name, attributes, len(found))
        return found[0]


class Tree(HTMLParser):
    """Parses a page and fails on any element that is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open = [Element("page")]
        self.feed(page)
        self.close()
        assert [e.name for e in self.open] == ["page"], "elements left open"

    @property
    def root(self) -> Element:
        return self.open[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            last = self.open[-1].children[-1]
            assert isinstance(last, Element)
            self.open.append(last)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute comes twice"
        self.open[-1].children.append(Element(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def make_study(**changes: Any) -> Study:
    values = {
        "name": "lungs",
        "description": "Opacities <em>on</em> radiographs & more",
        "task": {"classes": ["clear", "opaque"]},
        "federation": {"rounds": 3},
    }
    return parse_study(values | changes, "test")


def make_run(
    folder: Path,
    study: Study,
    lines: Sequence[Any] = (),
    events: Sequence[Any] = (),
    names: Sequence[str] = NAMES,
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(study.canonical())
    (folder / "sites.json").write_text(json.dumps({str(i): n for i, n in enumerate(names)}))
    for file, records in (("metrics.jsonl", lines), ("events.jsonl", events)):
        (folder / file).write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def site(epsilon: float | None, **changes: Any) -> dict[str, Any]:
    values = {
        "state": "update", "reason": "", "patients": 120, "epsilon": epsilon, "budget": 8.0,
        "delta": 1e-5, "noise_multiplier": 1.0625, "sampling_rate": 0.2, "steps": 5,
        "auc": 0.71, "auc_low": 0.55, "auc_high": 0.8,
    }  # fmt: skip
    return values | changes


def three_rounds() -> list[dict[str, Any]]:
    """Return three rounds and the closing evaluation; Brook misses round 1."""
    lines = []
    for number in (1, 2, 3):
        sites = {name: site(EPSILONS[name][number - 1]) for name in NAMES}
        if number == 1:
            sites["Brook"] = {"state": "refused", "reason": "study-not-approved"}
        auc = 0.5 + 0.12 * number
        lines.append(
            {"round": number, "seconds": 14.0, "auc": auc, "auc_low": auc - 0.06,
             "auc_high": auc + 0.04, "ece": 0.123456, "ece_low": 0.1, "ece_high": 0.2,
             "positives": 41.6, "sites": sites}
        )  # fmt: skip
    closing = lines[-1] | {"round": 4, "auc": 0.9375, "auc_low": 0.875, "auc_high": 0.96875}
    sites = {name: site(EPSILONS[name][2], state="evaluated", patients=0) for name in NAMES}
    return [*lines, closing | {"closing": True, "sites": sites}]


def page_of(run: Path, **arguments: Any) -> Element:
    out = run / "report.html"
    write_report(run, out, **arguments)
    return Tree(out.read_text(encoding="utf-8")).root


def section(page: Element, title: str) -> Element:
    return next(s for s in page.all("section") if s.one("h2").text == title)


def rows(part: Element) -> list[list[str]]:
    return [
        [cell.text for cell in row.children if isinstance(cell, Element)]
        for row in part.one("tbody").all("tr")
    ]


def chart(page: Element, name: str) -> Element:
    return page.one("svg", **{"aria-labelledby": f"{name}-title {name}-summary"})


def scale(svg: Element, anchor: str, axis: str) -> tuple[float, float, float, float]:
    """Return two tick labels' values and places: from these alone a reader knows the axis."""
    ticks = [
        (float(t.text), float(t.attributes[axis]))
        for t in svg.all("text")
        if t.attributes.get("class") == "tick" and t.attributes["text-anchor"] == anchor
    ]
    (a, at_a), (b, at_b) = ticks[0], ticks[-1]
    return a, at_a, b, at_b


def read_off(svg: Element) -> list[list[tuple[float, float]]]:
    """Read each curve's points off a drawing, as a reader does with the axes' numbers."""
    x0, px0, x1, px1 = scale(svg, "middle", "x")
    y0, py0, y1, py1 = scale(svg, "end", "y")
    baseline = 5  # a label's baseline lies so far below the line it belongs to
    return [
        [
            (
                x0 + (float(x) - px0) / (px1 - px0) * (x1 - x0),
                y0 + (float(y) - (py0 - baseline)) / (py1 - py0) * (y1 - y0),
            )
            for x, y in (pair.split(",") for pair in line.attributes["points"].split())
        ]
        for line in svg.all("polyline") + svg.all("polygon")
    ]


def close(points: list[tuple[float, float]]) -> list[Any]:
    return [pytest.approx(point, abs=2e-3) for point in points]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    events = [
        {"event": "run-started", "time": "2026-11-22T12:00:00+00:00"},
        {"event": "run-finished", "time": "2026-11-22T12:03:00+00:00", "round": 3},
    ]
    return make_run(tmp_path / "run", make_study(), three_rounds(), events)


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


def elements(page: Element) -> list[Element]:
    nested = [elements(c) for c in page.children if isinstance(c, Element)]
    return [page, *itertools.chain.from_iterable(nested)]


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


def test_the_auc_curve_is_drawn_where_the_metrics_say(run: Path) -> None:
    curves = read_off(chart(page_of(run), "auc"))
    joint = [(0, 0.62), (1, 0.74), (2, 0.86), (3, 0.9375)]
    assert curves[-2] == close(joint)
    upper = [(0, 0.66), (1, 0.78), (2, 0.90), (3, 0.96875)]
    lower = [(3, 0.875), (2, 0.80), (1, 0.68), (0, 0.56)]
    assert curves[-1] == close(upper + lower)
    everywhere = [(x, 0.71) for x in range(4)]
    assert curves[:-2] == [close(everywhere), close(everywhere[1:]), close(everywhere)]


def test_a_missing_auc_breaks_the_curve_and_is_shown_as_not_known(run: Path) -> None:
    lines = three_rounds()
    lines[1] |= {"auc": None, "auc_low": 0.0, "auc_high": 1.0}
    lines[1]["sites"]["Ashford"] |= {"auc": None}
    page = page_of(make_run(run, make_study(), lines))
    curves = read_off(chart(page, "auc"))
    assert close([(0, 0.62)]) in curves
    assert close([(2, 0.86), (3, 0.9375)]) in curves
    assert rows(section(page, "Rounds"))[1][1] == "not known"


def test_epsilon_starts_at_nothing_and_follows_each_hospital(run: Path) -> None:
    svg = chart(page_of(run), "epsilon")
    assert read_off(svg) == [
        close([(0, 0), (1, 1.5), (2, 2.25), (3, 3.125)]),
        close([(0, 0), (2, 1.75), (3, 2.5)]),
        close([(0, 0), (1, 2.0), (2, 2.0), (3, 4.0)]),
    ]
    mark = next(e for e in svg.all("line") if e.attributes["class"] == "mark")
    y0, at_y0, y1, at_y1 = scale(svg, "end", "y")
    expected = at_y0 - 5 + (8.0 - y0) / (y1 - y0) * (at_y1 - at_y0)
    assert float(mark.attributes["y1"]) == pytest.approx(expected, abs=0.02)
    assert "budget 8" in svg.text


def test_all_of_a_chart_lies_between_its_axes(run: Path) -> None:
    for name in ("auc", "epsilon"):
        svg = chart(page_of(run), name)
        ground = next(e for e in svg.all("line") if e.attributes["class"] == "axis")
        left, right = (float(ground.attributes[a]) for a in ("x1", "x2"))
        bottom = float(ground.attributes["y1"])
        top = min(float(e.attributes["y1"]) for e in svg.all("line"))
        assert bottom == max(
            float(e.attributes["y1"]) for e in svg.all("line") if e.attributes["class"] == "grid"
        )
        for dot in svg.all("circle"):
            assert left <= float(dot.attributes["cx"]) <= right
            assert top <= float(dot.attributes["cy"]) <= bottom


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


HOSTILE = ("</td><script>alert(1)</script>", "\"'><img src=//x.org onerror=alert(1)>", "&lt;b&gt;")


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


def test_thousands_of_points_stay_a_modest_page(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 300, "sites": 12})
    names = [f"Site {n}" for n in range(12)]
    lines = [
        {"round": r, "auc": 0.7, "sites": {n: site(r / 50) for n in names}} for r in range(1, 301)
    ]
    run = make_run(tmp_path / "run", study, lines, names=names)
    page = page_of(run)
    assert len(rows(section(page, "Rounds"))) == 300
    assert (run / "report.html").stat().st_size < 3_000_000
    ticks = [t for t in chart(page, "auc").all("text") if t.attributes["class"] == "tick"]
    assert len(ticks) < 25


@given(
    st.floats(-1e6, 1e6),
    st.floats(0, 1e6),
    st.integers(2, 12),
    st.booleans(),
)
def test_ticks_are_few_round_and_cover_the_range(
    low: float, span: float, most: int, whole: bool
) -> None:
    span = max(span, 1e-6 * abs(low))
    ticks = nice_ticks(low, low + span, most, whole)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert 2 <= len(ticks) <= most + 1
    assert ticks[0] <= low + 1e-6 * max(span, 1)
    assert ticks[-1] >= low + span - 1e-6 * max(span, 1)
    assert all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6), 3) in (1, 2, 5)
    assert not whole or steps[0] >= 1


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


def test_an_invalid_plan_is_an_error(run: Path) -> None:
    (run / "study.json").write_text('{"name": "x"}')
    with pytest.raises(ConsiliumError):
        write_report(run, run / "report.html")
