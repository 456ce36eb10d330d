"""The report's table of sites: what each has, and whether it gains by taking part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulations.records import MEAN, SiteRow
from simulations.report_data import ALONE, BASELINE, HEADLINE, PERSONAL, Book, Key
from simulations.report_sheet import UNKNOWN, Entry, Sheet, change, count, estimate, words
from simulations.report_stats import Difference, difference
from simulations.report_tables import best_other


def sites_table(book: Book, scenario: str) -> Sheet:
    """Return one row a site: what it has, and whether it gains by taking part."""
    names = book.site_names(scenario)
    rows = _rows_of_sites(book, scenario)
    cell = book.sample(scenario)
    classes = cell.classes if cell else ()
    models = [(f"With {name}", name, "global") for name in _compared(book, scenario)]
    if personal := best_personal(book, scenario):
        models.append((f"Own model of {personal}", personal, PERSONAL))
    alone = Key(scenario, ALONE, where="own", model="local")
    titles = ["Site", "Training patients", _mix_title(classes, bool(cell and cell.findings))]
    titles += ["Alone"] if book.has_model(scenario, ALONE, "local") else []
    table: list[tuple[Entry, ...]] = []
    for site in names:
        row = [words(site), _size(rows[site]), _mix(rows[site], classes)]
        if "Alone" in titles:
            row.append(estimate(book.figure(replace(alone, site=site))))
        for _, strategy, model in models:
            key = Key(scenario, strategy, where="own", model=model, site=site)
            row.append(estimate(book.figure(key)))
            if "Alone" in titles:
                row.append(change(_gain(book, key)))
        table.append(tuple(row))
    for title, *_ in models:
        titles += [title, "… less alone"] if "Alone" in titles else [title]
    seeded = (book.seeded(scenario),) * len(table)
    return Sheet(_CAPTION, tuple(_distinct(titles)), tuple(table), seeded)


_CAPTION = (
    "Training patients: mean over seeds, below the least and the most. Then the AUC on the site's "
    "own held-out patients, of the model the site would use, with intervals as above. Gains and "
    "loses: the 95 % interval of the paired difference over seeds leaves out zero (with one seed: "
    "the bootstrap intervals do not meet), and 20 patients were scored. Of many sites about one in "
    "twenty is marked by chance."
)


def gains(book: Book, scenario: str, strategy: str) -> dict[str, list[str]]:
    """Return the sites that clearly gain, clearly lose, and lie below staying alone at all.

    The keys are "higher", "lower", "unclear" and "below"; a site is in one of the first three.
    """
    found: dict[str, list[str]] = {"higher": [], "lower": [], "unclear": [], "below": []}
    for site in book.site_names(scenario):
        gain = _gain(book, Key(scenario, strategy, where="own", site=site))
        if gain is not None:
            found[gain.verdict].append(site)
            if gain.mean < 0:
                found["below"].append(site)
    return found


def best_personal(book: Book, scenario: str) -> str:
    """Return the strategy whose personal models do best on their own patients; or nothing."""
    names = [n for n in book.strategies(scenario) if book.has_model(scenario, n, PERSONAL)]
    key = Key(scenario, "", where="own", model=PERSONAL, site=MEAN)
    return max(names, key=lambda n: book.value(replace(key, strategy=n)) or 0.0, default="")


def _compared(book: Book, scenario: str) -> list[str]:
    names = [BASELINE, best_other(book, scenario)]
    return [n for n in names if n in book.federated(scenario)]


def _gain(book: Book, key: Key) -> Difference | None:
    alone = Key(key.scenario, ALONE, HEADLINE, "own", "local", key.site)
    return difference(book.figures.get(key, {}), book.figures.get(alone, {}))


def _rows_of_sites(book: Book, scenario: str) -> dict[str, list[SiteRow]]:
    """Return each site's rows, one a seed."""
    sample = book.sample(scenario)
    cells = book.finished(scenario, sample.strategy) if sample else []
    rows: dict[str, list[SiteRow]] = {name: [] for name in book.site_names(scenario)}
    for cell in cells:
        for row in book.sites[cell.id]:
            rows.setdefault(row.site, []).append(row)
    return rows


def _size(rows: Sequence[SiteRow]) -> Entry:
    sizes = [row.train_patients for row in rows]
    entry = count(sum(sizes) / len(sizes))
    varied = min(sizes) != max(sizes)
    return replace(entry, notes=(f"{min(sizes):,} to {max(sizes):,}",)) if varied else entry


def _mix_title(classes: Sequence[str], findings: bool) -> str:
    return f"With {classes[-1]}" if len(classes) == 2 and not findings else "Most common"


def _mix(rows: Sequence[SiteRow], classes: Sequence[str]) -> Entry:
    """Return the part of the last of two classes; of more, the most common class's."""
    patients = max(sum(row.train_patients for row in rows), 1)
    parts = [sum(row.counts[i] for row in rows) / patients for i in range(len(classes))]
    if not parts:
        return UNKNOWN
    if len(parts) == 2:
        return Entry(f"{100 * parts[-1]:.0f} %", parts[-1])
    most = max(range(len(parts)), key=lambda i: parts[i])
    return words(f"{classes[most]}, {100 * parts[most]:.0f} %")


def _distinct(titles: Sequence[str]) -> list[str]:
    """Return titles that may be told apart in a CSV."""
    return [
        f"{titles[i - 1]} {title[2:]}" if title.startswith("…") else title
        for i, title in enumerate(titles)
    ]
