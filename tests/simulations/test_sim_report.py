"""The report of simulations: right figures, honest words, one page that loads nothing."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats
from simulation_kit import MadeUp, Tags, write_results

from shared.errors import CoordinatorError
from simulations.plots import looks
from simulations.plots_results import learning_curves, worst_site
from simulations.report import write_report
from simulations.report_data import read_book
from simulations.report_sheet import Entry, Sheet, to_csv
from simulations.report_sites import gains
from simulations.report_words import caveats, overall, result

STRATEGIES = ("alone", "pooled", "fedavg", "scaffold", "personal")
MAIN = MadeUp(
    "skewed", STRATEGIES, seeds=3, sites=4, rounds=4, epsilon=8.0, dropouts=True, gaps=True,
    subgroups=True, failed=(("scaffold", 1),),
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_results(tmp_path_factory.mktemp("results"), [MAIN])
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture
def database(results: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(results / "results.sqlite")
    yield connection
    connection.close()


def table(results: Path, name: str) -> list[dict[str, str]]:
    with (results / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def in_database(database: sqlite3.Connection, **equal: object) -> list[tuple[float, float, float]]:
    """Return (value, low, high) by seed, read without the project's code."""
    wanted = {"where": "test", "model": "global", "site": "", "subgroup": "", "round": -1} | equal
    terms = " and ".join(f'"{name}" = ?' for name in wanted)
    query = (
        "select value, low, high from measurement join cell on cell.id = measurement.cell "
        f"where {terms} and value is not null order by seed"
    )
    return database.execute(query, list(wanted.values())).fetchall()


# The page


def test_the_page_is_well_formed_and_loads_nothing(results: Path) -> None:
    page = (results / "report.html").read_text()
    tags = Tags(page)
    names = {name for name, _ in tags.found}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert not [a for _, attrs in tags.found for a in attrs if a.startswith("on")]
    sources = [attrs["src"] for _, attrs in tags.found if "src" in attrs]
    assert len(sources) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    links = [attrs["href"] for _, attrs in tags.found if "href" in attrs]
    assert all(link.startswith("#") for link in links)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in page


def test_every_picture_of_the_page_is_also_a_file_and_says_what_it_shows(results: Path) -> None:
    tags = Tags((results / "report.html").read_text())
    images = [attrs for name, attrs in tags.found if name == "img"]
    shown = {base64.b64decode(image["src"].partition(",")[2]) for image in images}
    kinds = ("curves", "worst-site", "who-has-what", "missing", "took-part")
    assert {p.name for p in (results / "figures").iterdir()} == {
        f"skewed-{kind}.{ending}" for kind in kinds for ending in ("svg", "png")
    }
    assert shown == {path.read_bytes() for path in (results / "figures").glob("*.svg")}
    assert all(len(image["alt"]) > 30 for image in images)


def test_the_page_names_what_it_must(results: Path) -> None:
    text = Tags((results / "report.html").read_text()).text
    cell = read_book(results).finished("skewed", "fedavg")[0]
    for must in (
        cell.study_digest[:16], "0.1.0 (abc1234)", "Imaginary CPU", "consilium simulate run",
        "c0de" * 16, "phantoms", "normal and pneumonia", "400 patients", "14 of 15 cells",
        "<b>out</b> of memory", "Made-up <phantoms> & no one's lungs.", "seeded noise",
        "Student's t", "bootstrap", "sex: F (n = 200)",
    ):  # fmt: skip
        assert must in text, must


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = '<script>alert("1")</script>'
    made_up = MadeUp(name, ("pooled", "fedavg"), seeds=1, sites=2, rounds=2, classes=(name, "=1+1"))
    write_results(tmp_path, [made_up])
    tags = Tags(write_report(tmp_path).read_text())
    assert "script" not in {tag for tag, _ in tags.found}
    assert name in tags.text
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"script-alert-1-script-{kind}.{ending}"
        for kind in ("curves", "worst-site", "who-has-what")
        for ending in ("png", "svg")
    }


def test_the_same_results_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    made_up = MadeUp("same", ("alone", "pooled", "fedavg"), seeds=2, sites=3, rounds=2)
    found = []
    for number in (1, 2):
        folder = write_results(tmp_path / str(number), [made_up])
        code = "import sys, pathlib; from simulations.report import write_report as w; "
        code += "w(pathlib.Path(sys.argv[1]))"
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "TZ": f"UTC+{number}"}
        subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "sqlite" not in p.name]
        found.append({p.relative_to(folder): p.read_bytes() for p in files})
    assert len(found[0]) > 10
    assert found[0] == found[1]


def test_a_report_without_any_finished_cell_says_so(tmp_path: Path) -> None:
    made_up = MadeUp("all-failed", ("fedavg",), seeds=1, failed=(("fedavg", 0),))
    page = write_report(write_results(tmp_path, [made_up])).read_text()
    assert "No cell of this scenario has finished" in page
    assert "&lt;b&gt;out&lt;/b&gt; of memory" in page


@pytest.mark.parametrize("planned", [False, True])
def test_no_results_are_one_clear_line(tmp_path: Path, planned: bool) -> None:
    if planned:
        write_results(tmp_path, [])
    with pytest.raises(CoordinatorError, match="consilium simulate run"):
        write_report(tmp_path)


# The tables


def test_a_figure_is_the_mean_over_seeds_with_students_interval(
    results: Path, database: sqlite3.Connection
) -> None:
    rows = {row["Strategy"]: row for row in table(results, "strategies")}
    assert list(rows) == [
        "alone: mean", "alone: worst", "pooled", "fedavg", "scaffold", "personal",
        "personal: own models",
    ]  # fmt: skip
    columns = {
        "AUC": "auc", "Balanced accuracy": "balanced_accuracy", "Accuracy": "accuracy",
        "Average precision": "average_precision", "Calibration error": "ece",
    }  # fmt: skip
    for strategy in ("pooled", "fedavg", "scaffold"):
        for title, metric in columns.items():
            found = in_database(database, strategy=strategy, metric=metric)
            values = [value for value, _, _ in found]
            assert len(values) == (2 if strategy == "scaffold" else 3)
            mean, error = statistics.mean(values), stats.sem(values)
            low, high = stats.t.interval(0.95, len(values) - 1, mean, error)
            row = rows[strategy]
            assert float(row[title]) == pytest.approx(mean)
            assert float(row[f"{title}: low"]) == pytest.approx(max(low, 0))
            assert float(row[f"{title}: high"]) == pytest.approx(min(high, 1))
    local = in_database(database, strategy="alone", metric="auc", model="local", site="(worst)")
    assert float(rows["alone: worst"]["AUC"]) == pytest.approx(
        statistics.mean(v for v, *_ in local)
    )
    assert rows["scaffold"]["Seeds"] == "2 of 3"
    assert float(rows["fedavg"]["MB moved"]) == pytest.approx(4 * 4 * 0.123)
    assert float(rows["fedavg"]["Epsilon"]) == pytest.approx(7.997)
    assert float(rows["fedavg"]["Rounds"]) == 4


def test_own_strategies_are_what_their_setting_says(tmp_path: Path) -> None:
    """One that pools does not win among the federated; one of sites alone has figures."""
    strategies = ("alone", "pooled", "fedavg", "scaffold", "pooled-more", "alone-more")
    settings = (("pooled-more", "pooled"), ("alone-more", "alone"))
    made_up = MadeUp("own", strategies, seeds=3, sites=4, rounds=3, settings=settings)
    folder = write_results(tmp_path, [made_up])
    write_report(folder)
    rows = {row["Strategy"]: row for row in table(folder, "strategies")}
    assert list(rows) == [
        "alone: mean", "alone: worst", "pooled", "fedavg", "scaffold", "pooled-more",
        "alone-more: mean", "alone-more: worst",
    ]  # fmt: skip
    with sqlite3.connect(folder / "results.sqlite") as database:
        local = {"model": "local", "site": "(mean)", "metric": "auc", "strategy": "alone-more"}
        found = in_database(database, **local)
    mean = statistics.mean(value for value, *_ in found)
    assert float(rows["alone-more: mean"]["AUC"]) == pytest.approx(mean)
    assert {name: row["Gap closed"] != "" for name, row in rows.items()} == {
        name: name == "scaffold" for name in rows
    }
    (overview,) = table(folder, "overview")
    assert overview["Best other"] == "scaffold"
    book = read_book(folder)
    assert book.federated("own") == ["scaffold", "fedavg"]
    said = " ".join([*result(book, "own"), *caveats(book), *overall(book)])
    assert "-more" not in said
    style = looks(strategies)
    curves = learning_curves("c", book, "own", style)
    assert curves is not None
    assert f"alone-more {mean:.3f}" in curves.alt


def test_the_bootstrap_interval_is_shown_beside_that_over_seeds(
    results: Path, database: sqlite3.Connection
) -> None:
    found = in_database(database, strategy="fedavg", metric="auc")
    low, high = (statistics.mean(row[i] for row in found) for i in (1, 2))
    page = (results / "report.html").read_text()
    assert f"({low:.3f}–{high:.3f})".replace("0.", ".") in page


def test_what_is_of_few_sites_says_so_beside_the_figure(tmp_path: Path) -> None:
    """With eight classes and small sites some lack a class, so that they have no AUC."""
    classes = tuple("abcdefgh")
    made_up = MadeUp("few", ("alone", "pooled", "fedavg"), seeds=2, rounds=1, classes=classes)
    folder = write_results(tmp_path, [made_up, replace(made_up, name="more")])
    query = (
        'select min(over), max("of") from measurement join cell on cell.id = measurement.cell '
        "where scenario = 'few' and strategy = 'fedavg' and metric = 'auc' and site = '(mean)' "
        "and \"where\" = 'own'"
    )
    with sqlite3.connect(folder / "results.sqlite") as database:
        ((over, of),) = database.execute(query).fetchall()
    assert 0 < over < of == 8
    few = f"{over} of 8 sites"
    page = write_report(folder).read_text()
    glance = page.partition("All scenarios at a glance")[2].partition("<h3>")[0]
    assert glance.count(f"of {few}") == 2
    book = read_book(folder)
    assert f"below the mean of the {few} where it is defined" in " ".join(result(book, "few"))
    assert f"the lowest of the {few} where it is defined" in " ".join(overall(book))
    picture = worst_site("w", book, "few", looks(made_up.strategies))
    assert picture is not None
    assert f"of {few}" in picture.alt


def test_every_table_of_private_figures_says_that_their_noise_is_seeded(tmp_path: Path) -> None:
    free = MadeUp("free", ("alone", "pooled", "fedavg"), seeds=1, sites=2, rounds=1, subgroups=True)
    folder = write_results(tmp_path, [free, replace(free, name="private", epsilon=8.0)])
    page = write_report(folder).read_text()
    captions = re.findall(r"<caption>(.*?)</caption>", page)
    noisy = [caption for caption in captions if "Noise of private runs is seeded" in caption]
    assert len(noisy) == 4  # all scenarios; strategies, sites and subgroups of the private one
    for name in ("overview", "strategies", "sites-private", "subgroups-private", "figures"):
        for row in table(folder, name):
            private = "private" in (row.get("scenario"), row.get("Scenario"))
            assert row["seeded_noise"] == str(private), name
    for name in ("sites-free", "subgroups-free"):
        assert "seeded_noise" not in table(folder, name)[0]


def test_the_worst_site_is_found_in_each_seed(results: Path, database: sqlite3.Connection) -> None:
    rows = {row["Strategy"]: row for row in table(results, "strategies")}
    query = (
        "select cell.seed, measurement.site, value from measurement join cell on "
        "cell.id = measurement.cell where strategy = 'fedavg' and metric = 'auc' and "
        "\"where\" = 'own' and measurement.site not like '(%' and value is not null"
    )
    by_seed: dict[int, dict[str, float]] = {}
    for seed, site, value in database.execute(query):
        by_seed.setdefault(seed, {})[site] = value
    worst = [min(values, key=lambda s: values[s]) for _, values in sorted(by_seed.items())]
    assert rows["fedavg"]["Worst site is"] == max(worst, key=worst.count)
    mean = statistics.mean(min(values.values()) for values in by_seed.values())
    assert float(rows["fedavg"]["Own patients: worst site"]) == pytest.approx(mean)


def test_sites_gain_where_a_paired_test_says_so(
    results: Path, database: sqlite3.Connection
) -> None:
    rows = table(results, "sites-skewed")
    assert [row["Site"] for row in rows] == [f"site-0{i}" for i in range(1, 5)]
    tested = 0
    verdicts = gains(read_book(results), "skewed", "fedavg")
    for row in rows:
        same = {"metric": "auc", "where": "own", "site": row["Site"]}
        pairs = [
            [v for v, *_ in in_database(database, strategy=s, model=m, **same)]
            for s, m in (("fedavg", "global"), ("alone", "local"))
        ]
        if len(pairs[0]) < 2:
            continue
        test = stats.ttest_rel(*pairs)
        assert float(row["With fedavg less alone"]) == pytest.approx(
            statistics.mean(pairs[0]) - statistics.mean(pairs[1])
        )
        clear = "higher" if test.statistic > 0 else "lower"
        assert row["Site"] in verdicts[clear if test.pvalue < 0.05 else "unclear"]
        tested += 1
    assert tested >= 3


def test_every_final_figure_is_in_figures_csv(results: Path, database: sqlite3.Connection) -> None:
    rows = table(results, "figures")
    query = (
        'select distinct strategy, metric, "where", model, site, subgroup from measurement '
        "join cell on cell.id = measurement.cell where round = -1"
    )
    names = ("strategy", "metric", "where", "model", "site", "subgroup")
    assert {tuple(row[n] for n in names) for row in rows} == set(database.execute(query))
    assert len(table(results, "cells")) == 15


def test_text_that_looks_like_a_formula_is_made_harmless() -> None:
    sheet = Sheet("", ("name", "value"), ((Entry("", "=1+1"), Entry("", -1.5)),))
    assert to_csv([("@x", sheet)]) == "scenario,name,value\n'@x,'=1+1,-1.5\n"


# The words
