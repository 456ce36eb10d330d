"""Runs' folders for reports, and reading a report's page as a reader would."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from server.report import write_report
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


def elements(page: Element) -> list[Element]:
    nested = [elements(c) for c in page.children if isinstance(c, Element)]
    return [page, *itertools.chain.from_iterable(nested)]


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
