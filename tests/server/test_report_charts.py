"""The report's curves, read off the page with the numbers at their axes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_kit import (
    chart,
    close,
    make_run,
    make_study,
    page_of,
    read_off,
    rows,
    scale,
    section,
    site,
    three_rounds,
)

from server.charts import nice_ticks


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


def test_an_auc_lost_in_the_noise_is_said_and_does_not_jump_about(run: Path) -> None:
    lines = three_rounds()
    for line, jumping in zip(lines, (0.1, 0.9, 0.2, 0.8), strict=True):
        line["sites"]["Ashford"] |= {"auc": jumping, "auc_low": 0.0, "auc_high": 1.0}
    page = page_of(make_run(run, make_study(), lines))
    drawn = [y for curve in read_off(chart(page, "auc")) for _, y in curve]
    assert len(read_off(chart(page, "auc"))) == 4  # two hospitals, and all with their band
    assert min(drawn) > 0.5
    assert "Too few patients for the noise, so not drawn there: Ashford." in page.text


def test_a_run_of_too_few_patients_has_no_curve_but_the_reason(run: Path) -> None:
    lines = three_rounds()
    for line in lines:
        for part in (line, *line["sites"].values()):
            part |= {"auc": 0.99, "auc_low": 0.0, "auc_high": 1.0}
    page = page_of(make_run(run, make_study(), lines))
    assert "the AUC cannot be told from chance" in section(page, "Curves").text
    assert "too few patients for the noise" in page.one("dl", **{"class": "figures"}).text


def test_the_page_can_be_read_by_night_and_prints_by_day(run: Path) -> None:
    style = page_of(run).one("style").text
    assert "@media screen and (prefers-color-scheme: dark)" in style
    # The line of all hospitals together has the colour of the letters.
    assert 'stroke="currentColor"' in (run / "report.html").read_text()
