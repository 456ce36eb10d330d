"""Pictures of simulations: well formed, readable by everyone, and true to what they draw."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from simulation_kit import MadeUp, write_results

from simulations.plots import COLOURS, REFERENCE_LOOKS, Picture, looks, value_limits
from simulations.plots_results import learning_curves, steps_between, worst_site
from simulations.plots_sites import what_is_missing, who_has_what, who_took_part
from simulations.plots_sweep import ladder_picture, ladders, privacy_pictures
from simulations.records import Missing, Part, SiteRow
from simulations.report_data import Book, read_book
from simulations.strategies import BUILT_IN

TEN = (
    "fedavg", "alone", "pooled", "fedprox", "scaffold", "focal", "median", "fedadam", "fedyogi",
    "personal",
)  # fmt: skip
PIXELS = 200  # a side, per inch, of the PNG


def book_of(folder: Path, *scenarios: MadeUp) -> Book:
    return read_book(write_results(folder, scenarios))


def every_picture(book: Book) -> list[Picture]:
    style = looks([cell.strategy for cell in book.cells])
    found: list[Picture | None] = [ladder_picture("l", book, x, style) for x in ladders(book)]
    found += privacy_pictures("p", book, style)
    for scenario in book.scenarios:
        found.append(learning_curves("c", book, scenario, style))
        found.append(worst_site("w", book, scenario, style))
        cell = book.sample(scenario)
        if cell is not None:
            found.append(who_has_what("h", book.sites[cell.id], cell.classes, cell.findings))
            found.append(who_took_part("t", book.parts[cell.id], cell.rounds))
            if book.missing[cell.id]:
                found.append(what_is_missing("m", book.missing[cell.id], book.site_names(scenario)))
    return [picture for picture in found if picture is not None]


def check(picture: Picture) -> None:
    """Fail unless both files are whole, alike in shape, and tell nothing of when they were made."""
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date>" not in picture.svg
    links = [value for e in root.iter() for name, value in e.attrib.items() if "href" in name]
    assert all(link.startswith(("#", "data:image/png;")) for link in links)
    assert picture.png[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"Software" not in picture.png
    width, height = (int.from_bytes(picture.png[i : i + 4], "big") for i in (16, 20))
    points = [float(root.attrib[side].removesuffix("pt")) for side in ("width", "height")]
    assert (width, height) == pytest.approx([p / 72 * PIXELS for p in points], abs=1)
    assert max(width, height) < 15 * PIXELS
    assert picture.alt
    assert picture.caption


@pytest.mark.parametrize(
    ("sites", "strategies", "seeds"), [(2, TEN[:1], 1), (2, TEN[:3], 2), (100, TEN, 3)]
)
def test_pictures_of_small_and_large_federations(
    tmp_path: Path, sites: int, strategies: tuple[str, ...], seeds: int
) -> None:
    made_up = MadeUp(
        "any", strategies, seeds=seeds, sites=sites, rounds=3, dropouts=True, gaps=True,
        failed=((strategies[-1], 0),) if seeds > 1 else (),
        classes=("a", "b") if sites == 2 else tuple(f"finding number {i}" for i in range(14)),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: the layout did not fit
        found = every_picture(book_of(tmp_path, made_up))
    assert len(found) == 5
    for picture in found:
        check(picture)


def test_strange_names_do_not_break_a_picture() -> None:
    names = ("$x^2$", "<b>&", "_hidden", "a" * 200)
    rows = [SiteRow("c", name, 10, 2, 10, (4, 6)) for name in names]
    check(who_has_what("h", rows, ("$\\frac{", "%"), False))
    check(who_took_part("t", [Part("c", 1, name, "update") for name in names], 1))
    missing = [Missing("c", name, "label", name, "", 1, 4) for name in names]
    check(what_is_missing("m", missing, names))


def test_sites_that_have_nothing_are_drawn() -> None:
    rows = [SiteRow("c", "empty", 0, 0, 0, (0, 0)), SiteRow("c", "other", 0, 0, 0, (0, 0))]
    check(who_has_what("h", rows, ("a", "b"), False))


def test_no_two_strategies_look_alike() -> None:
    style = looks([*BUILT_IN, *(f"own-{i}" for i in range(6))])
    seen = [(look.colour, look.marker, look.line) for look in style.values()]
    assert len(style) >= 20
    assert len(set(seen)) == len(seen)
    first = list(style.values())[: len(COLOURS) + len(REFERENCE_LOOKS)]
    assert len({look.colour for look in first}) == len(first)
    assert len({look.marker for look in first}) == len(first)


def test_a_strategy_looks_the_same_whatever_else_is_shown() -> None:
    assert looks(["fedavg", "scaffold"])["fedavg"] == looks(["median", "fedavg"])["fedavg"]
    assert looks(["alone", "x", "y"])["x"] == looks(["x", "y", "pooled"])["x"]


@pytest.mark.parametrize("seen", ["normal", "deuteranopia", "protanopia"])
def test_colours_are_told_apart_by_colour_blind_readers(seen: str) -> None:
    colours = [*COLOURS, *(look.colour for look in REFERENCE_LOOKS.values())]
    lab = [_lab(_as_seen(to_rgb(colour), seen)) for colour in colours]
    distances = {
        pair: float(np.linalg.norm(lab[pair[0]] - lab[pair[1]]))
        for pair in itertools.combinations(range(len(colours)), 2)
    }
    # About 2.3 is just noticeable; lines and markers need much more.
    assert min(distances.values()) > 10


def _as_seen(colour: Iterable[float], seen: str) -> np.ndarray:
    """Return linear RGB as a dichromat sees it (Vienot, Brettel & Mollon 1999)."""
    value = np.array(list(colour))
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    lost = {
        "normal": np.eye(3),
        "protanopia": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
        "deuteranopia": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
    }[seen]
    found: np.ndarray = np.linalg.inv(to_lms) @ lost @ to_lms @ linear
    return found.clip(0, 1)


def _lab(linear: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* of linear sRGB."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_map_of_sites_names_the_largest_and_the_smallest() -> None:
    rows = [SiteRow("c", f"s{n}", n, 1, n, (n - 1, 1)) for n in (30, 500, 20, 100)]
    assert "Largest: s500 with 500 training patients; smallest: s20 with 20" in (
        who_has_what("h", rows, ("a", "b"), False).alt
    )


def test_missing_counts_of_several_causes_add_up() -> None:
    rows = [
        Missing("c", "s1", "label", "", "at random", 10, 100),
        Missing("c", "s1", "label", "", "positives only", 30, 100),
        Missing("c", "s2", "value", "age", "at random", 30, 100),
    ]
    picture = what_is_missing("m", rows, ["s1", "s2", "s3"])
    assert "at 3 sites: label, age" in picture.alt
    assert "Most: label at s1, 40 of 100" in picture.alt


def test_who_took_part_counts_updates_and_not_the_closing_evaluation() -> None:
    parts = [Part("c", n, "s1", "update") for n in (1, 2, 3, 4)]
    parts += [Part("c", n, "s2", "late" if n % 2 else "update") for n in (1, 2, 3)]
    closing = [Part("c", 5, s, "evaluated") for s in ("s1", "s2")]
    picture = who_took_part("t", [*parts, *closing], 4)
    # s2 was never heard of in round 4: five of eight.
    assert "2 sites in 4 rounds; 62 % of all updates arrived. Fewest: s2, 25 %" in picture.alt


def test_curves_are_drawn_only_where_rounds_were_scored(tmp_path: Path) -> None:
    book = book_of(tmp_path, MadeUp("x", ("alone", "fedavg"), seeds=2, sites=2, rounds=2))
    style = looks(["alone", "fedavg"])
    assert learning_curves("c", book, "x", style) is not None
    final = {key: value for key, value in book.figures.items() if key.round < 0}
    assert learning_curves("c", replace(book, figures=final), "x", style) is None


def test_curves_of_rounds_of_different_length_are_drawn_over_steps(tmp_path: Path) -> None:
    strategies = ("fedavg", "scaffold", "often")
    book = book_of(tmp_path, MadeUp("x", strategies, seeds=1, sites=2, rounds=2))
    assert steps_between(book, "x", strategies) == {"fedavg": 8, "scaffold": 8, "often": 4}
    assert steps_between(book, "x", strategies[:2]) == {"fedavg": 1, "scaffold": 1}
    picture = learning_curves("c", book, "x", looks(strategies))
    assert picture is not None
    assert "the steps of each site are counted" in picture.caption


def sweep() -> list[MadeUp]:
    base = MadeUp("", ("alone", "pooled", "fedavg"), seeds=2, sites=2, rounds=1)
    return [
        replace(
            base, name=f"{rung}-{privacy}", epsilon=epsilon, harm=harm,
            labels=(("rung", rung), ("privacy", privacy)),
        )
        for rung, harm in (("iid", 0.0), ("dirichlet", 0.1))
        for privacy, epsilon in (("none", None), ("eps-8", 8.0))
    ]  # fmt: skip


def test_a_sweep_makes_a_ladder_at_each_privacy_and_a_trade_off_at_each_rung(
    tmp_path: Path,
) -> None:
    book = book_of(tmp_path, *sweep())
    found = ladders(book)
    assert [(x.axis, x.rungs, x.labels) for x in found] == [
        ("rung", ("iid-none", "dirichlet-none"), ("iid", "dirichlet")),
        ("rung", ("iid-eps-8", "dirichlet-eps-8"), ("iid", "dirichlet")),
    ]
    assert [x.title for x in found] == ["phantoms, privacy: none", "phantoms, privacy: eps-8"]
    trade_offs = privacy_pictures("p", book, looks(["alone", "pooled", "fedavg"]))
    assert [p.title for p in trade_offs] == [
        "Privacy against utility: phantoms, rung: iid",
        "Privacy against utility: phantoms, rung: dirichlet",
    ]
    assert "at no privacy" in trade_offs[0].alt
    assert "at epsilon 8" in trade_offs[0].alt
    style = looks(["alone", "pooled", "fedavg"])
    for picture in [ladder_picture("l", book, found[1], style), trade_offs[1]]:
        check(picture)


def test_scenarios_of_no_sweep_are_rungs_only_with_the_same_privacy(tmp_path: Path) -> None:
    base = MadeUp("a", ("pooled", "fedavg", "scaffold"), seeds=1, sites=2, rounds=1)
    private = replace(base, name="c", epsilon=1.0)
    book = book_of(tmp_path, base, replace(base, name="b"), private)
    (ladder,) = ladders(book)
    assert ladder.rungs == ("a", "b")
    assert ladder.title == "phantoms, without differential privacy"
    assert privacy_pictures("p", book, looks(["scaffold"])) == []


def test_an_axis_shows_all_its_values_and_chance_if_it_is_near() -> None:
    low, high = value_limits([0.7, 0.9])
    assert low < 0.7
    assert 0.9 < high <= 1.02
    assert value_limits([0.58, 0.9], chance=0.5)[0] < 0.5
    assert value_limits([0.7, 0.9], chance=0.5)[0] > 0.6
    assert value_limits([0.0, 1.0]) == (-0.02, 1.02)
    assert value_limits([0.8]) == pytest.approx((0.79, 0.81))
