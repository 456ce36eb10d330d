"""The report's tables: strategies, subgroups, and all scenarios at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from simulations.records import MEAN, WORST, Cell
from simulations.report_data import ALONE, BASELINE, FEDERATED, PERSONAL, POOLED, Book, Key
from simulations.report_sheet import (
    UNKNOWN,
    Entry,
    Sheet,
    count,
    estimate,
    part_closed,
    words,
)
from simulations.report_stats import GapClosed, gap_closed

METRIC_TITLES = {
    "auc": "AUC",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "average_precision": "Average precision",
    "ece": "Calibration error",
}
"""The columns of metrics, in order; lower is better for the last."""


def strategies_table(book: Book, scenario: str) -> Sheet:
    """Return one row a strategy, scored on the common test set and on each site's own patients."""
    titles = (
        "Strategy",
        *METRIC_TITLES.values(),
        "Gap closed",
        "Own patients: mean of sites",
        "Own patients: worst site",
        "Worst site is",
        "Seeds",
        "Sites",
        "Rounds",
        "MB moved",
        "Epsilon",
    )
    keys = [
        (title, key)
        for name in book.strategies(scenario)
        for title, key in _contenders(book, scenario, name)
    ]
    rows = tuple(_strategy_row(book, title, key) for title, key in keys)
    seeded = tuple(book.seeded(scenario, key.strategy) for _, key in keys)
    return Sheet(STRATEGIES_CAPTION, titles, rows, seeded)


STRATEGIES_CAPTION = (
    "First columns: the common test set, which no site has; of sites' own models the mean over "
    "the models, and the worst. Each figure is the mean over seeds; [95 % interval over seeds, "
    "Student's t]; (95 % bootstrap interval over patients, mean over seeds). Gap closed: which "
    "part of fedavg's distance to pooled in AUC a strategy makes up. Epsilon: of the site that "
    "spent most, in the seed in which it did."
)


def best_other(book: Book, scenario: str) -> str:
    """Return the best federated strategy that is not the baseline; empty: there is none."""
    return next((n for n in book.federated(scenario) if n != BASELINE), "")


def subgroups_table(book: Book, scenario: str) -> Sheet | None:
    """Return one row a strategy and one column a subgroup of the test set; None: there are none."""
    groups = book.subgroups(scenario)
    if not groups:
        return None
    rows, seeded = [], []
    for name in book.strategies(scenario):
        for title, key in _contenders(book, scenario, name):
            found = [estimate(book.figure(replace(key, subgroup=g))) for g in ("", *groups)]
            if any(entry is not UNKNOWN for entry in found[1:]):
                rows.append((words(title), *found))
                seeded.append(book.seeded(scenario, name))
    caption = "AUC in subgroups of the common test set. The fewer patients, the wider the interval."
    titles = [
        f"{group.replace(':', ': ')} (n = {_patients(book, scenario, group)})" for group in groups
    ]
    return Sheet(caption, ("Strategy", "All", *titles), tuple(rows), tuple(seeded))


def overview_table(book: Book) -> Sheet:
    """Return one row a scenario with what matters most."""
    titles = (
        "Scenario",
        "Data",
        "Sites",
        "Alone, mean",
        "Pooled",
        "FedAvg",
        "Best other",
        "Its AUC",
        "Gap closed",
        "Worst site, FedAvg",
        "Worst site, best other",
        "Finished",
    )
    rows = []
    for name in book.scenarios:
        cell, best = book.sample(name), best_other(book, name)
        worst = Key(name, BASELINE, where="own", site=WORST)
        every = [c for c in book.cells if c.scenario == name]
        rows.append(
            (
                words(name),
                words(cell.dataset if cell else "–"),
                count(len(book.site_names(name))),
                estimate(book.figure(Key(name, ALONE, model="local", site=MEAN))),
                estimate(book.figure(Key(name, POOLED))),
                estimate(book.figure(Key(name, BASELINE))),
                words(best or "–"),
                estimate(book.figure(Key(name, best))) if best else UNKNOWN,
                part_closed(closed(book, name, best)) if best else UNKNOWN,
                estimate(book.figure(worst)),
                estimate(book.figure(replace(worst, strategy=best))) if best else UNKNOWN,
                words(f"{len(book.finished(name))} of {len(every)}"),
            )
        )
    caption = (
        "AUC on the common test set, and of the worst site on its own patients. Intervals as in "
        "the tables below. The best other strategy was chosen by its AUC in this same table."
    )
    seeded = tuple(book.seeded(name) for name in book.scenarios)
    return Sheet(caption, titles, tuple(rows), seeded)


def closed(book: Book, scenario: str, strategy: str) -> GapClosed:
    """Return the part of the baseline's gap to pooled data that a strategy closes."""
    wanted = [Key(scenario, name) for name in (strategy, BASELINE, POOLED)]
    first, second, third = (book.figures.get(key, {}) for key in wanted)
    return gap_closed(first, second, third)


def _patients(book: Book, scenario: str, subgroup: str) -> int:
    """Return how many patients of the test set are in a subgroup, mean over seeds."""
    keys = [Key(scenario, name, subgroup=subgroup) for name in book.strategies(scenario)]
    return next((found.patients for key in keys if (found := book.figure(key))), 0)


def which_is_worst(book: Book, own: Key) -> Entry:
    """Return the site that is worst in most seeds; the site of `own` does not matter."""
    worst: Counter[str] = Counter()
    values = {s: book.values(replace(own, site=s)) for s in book.site_names(own.scenario)}
    seeds = {seed for each in values.values() for seed in each}
    for seed in sorted(seeds):
        known = {site: each[seed] for site, each in values.items() if seed in each}
        worst[min(known, key=lambda site: known[site])] += 1
    if not worst:
        return UNKNOWN
    site, times = worst.most_common(1)[0]
    return words(site, *([f"{times} of {len(seeds)} seeds"] if len(seeds) > 1 else []))


def _contenders(book: Book, scenario: str, strategy: str) -> list[tuple[str, Key]]:
    """Return the rows a strategy has: its common model, or its sites' models' mean and worst."""
    key = book.judged_by(scenario, strategy)
    if key.site == MEAN:
        return [(f"{strategy}: mean", key), (f"{strategy}: worst", replace(key, site=WORST))]
    rows = [(strategy, key)]
    if book.has_model(scenario, strategy, PERSONAL):
        own = Key(scenario, strategy, model=PERSONAL, site=MEAN)
        rows += [(f"{strategy}: own models", own)]
    return rows


def _strategy_row(book: Book, title: str, key: Key) -> tuple[Entry, ...]:
    cells = book.finished(key.scenario, key.strategy)
    planned = book.planned(key.scenario, key.strategy)
    own = replace(key, where="own", site=MEAN)
    mean, worst = book.figure(own), replace(own, site=WORST)
    setting = book.setting(key.scenario, key.strategy)
    common = setting == FEDERATED and key.model == "global" and key.strategy != BASELINE
    return (
        words(title, *(["upper bound"] if setting == POOLED else [])),
        *(estimate(book.figure(replace(key, metric=metric))) for metric in METRIC_TITLES),
        part_closed(closed(book, key.scenario, key.strategy)) if common else UNKNOWN,
        *(
            (UNKNOWN, UNKNOWN, UNKNOWN)
            if key.site == WORST
            else (estimate(mean), estimate(book.figure(worst)), which_is_worst(book, own))
        ),
        words(f"{len(cells)} of {len(planned)}"),
        words(_out_of(mean.over, mean.of)) if mean else UNKNOWN,
        _rounds(cells),
        _traffic(cells),
        _epsilon(cells),
    )


def _traffic(cells: Sequence[Cell]) -> Entry:
    if not cells:
        return UNKNOWN
    moved = sum(cell.bytes_up + cell.bytes_down for cell in cells) / len(cells) / 1e6
    return count(moved, ",.1f" if 0 < moved < 100 else ",.0f")


def _epsilon(cells: Sequence[Cell]) -> Entry:
    if not cells:
        return UNKNOWN
    spent = [cell.epsilon for cell in cells if cell.epsilon is not None]
    if not all(cell.private for cell in cells) or not spent:
        return Entry("no bound", None)
    delta = max((cell.delta or 0.0) for cell in cells)
    seeded = ("seeded noise",) if any(cell.seeded_noise for cell in cells) else ()
    said = f"delta {delta:.1g}".replace("e-0", "e-")
    return Entry(f"{max(spent):.2f}", max(spent), notes=(said, *seeded))


def _out_of(over: int, of: int) -> str:
    return str(of) if over == of else f"{over} of {of}"


def _rounds(cells: Sequence[Cell]) -> Entry:
    done = sorted({cell.rounds for cell in cells})
    if not done:
        return UNKNOWN
    return count(done[0]) if len(done) == 1 else words(f"{done[0]} to {done[-1]}")
