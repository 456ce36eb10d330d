"""What a report says in plain words: the summary, and what to beware of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from simulations.records import MEAN, WORST
from simulations.report_data import ALONE, BASELINE, POOLED, Book, Key
from simulations.report_sheet import few_sites
from simulations.report_sites import best_personal, gains
from simulations.report_stats import difference
from simulations.report_tables import best_other, closed, which_is_worst

FEW_SEEDS = 5
"""With fewer, intervals over seeds are wide or absent."""


def about(book: Book) -> list[str]:
    """Return paragraphs on what was simulated, on which data."""
    strategies = list(dict.fromkeys(cell.strategy for cell in book.cells))
    seeds = {cell.seed for cell in book.cells}
    done = [cell for cell in book.cells if cell.state == "finished"]
    first = (
        f"Simulated: {_some(len(book.scenarios), 'scenario')} with {_listed(strategies)}, "
        f"{_some(len(seeds), 'seed')} each; {len(done)} of {_some(len(book.cells), 'cell')} "
        f"(scenario, strategy, seed) finished."
    )
    data: dict[str, list[str]] = {}
    for name in book.scenarios:
        if text := _federation(book, name):
            data.setdefault(text, []).append(name)
    said = [
        f"{text} This holds for {_listed(names, 4)}." if len(data) > 1 else text
        for text, names in data.items()
    ]
    return [first, *said]


def result(book: Book, scenario: str) -> list[str]:
    """Return sentences on who won, the worst site, and what it cost."""
    if not book.finished(scenario):
        return ["No cell of this scenario has finished, so nothing can be said."]
    sentences = [_levels(book, scenario), *_winner(book, scenario)]
    shown = list(dict.fromkeys(n for n in (BASELINE, best_other(book, scenario)) if n))
    sentences += [text for name in shown for text in _worst(book, scenario, name)]
    sentences += [text for name in shown for text in _gains(book, scenario, name)]
    sentences += _personal(book, scenario)
    return [*sentences, *_cost(book, scenario)]


def overall(book: Book) -> list[str]:
    """Return sentences on all scenarios together."""
    return [*_wins(book), *_distances(book), *_worst_of_all(book), *_losers(book), *_costs(book)]


def caveats(book: Book) -> list[str]:
    """Return what a reader must know before believing the figures."""
    done = [cell for cell in book.cells if cell.state == "finished"]
    found = []
    if any(cell.private and cell.seeded_noise for cell in done):
        found.append(SEEDED)
    if any(not cell.private for cell in done):
        found.append(
            "Cells without an epsilon trained without noise: their figures are an upper bound for "
            "private training, and such models guarantee nothing."
        )
    seeds = {cell.seed for cell in done}
    if len(seeds) == 1:
        found.append(
            "There is one seed: intervals are over patients only, and whether a strategy wins by "
            "more than the luck of one partition cannot be told."
        )
    elif len(seeds) < FEW_SEEDS:
        found.append(
            f"There are {len(seeds)} seeds: Student's intervals over so few are wide, and pictures "
            "show the lowest and highest seed instead."
        )
    unfinished = book.unfinished()
    if unfinished:
        failed = sum(cell.state == "failed" for cell in unfinished)
        found.append(
            f"{_some(len(unfinished), 'cell')} of {len(book.cells)} gave no figures ({failed} "
            "failed); means over the seeds that are left may be unlike means over all."
        )
    if any(len(book.federated(scenario)) > 2 for scenario in book.scenarios):
        found.append(CHOSEN)
    if _undefined(book):
        found.append(
            "Some sites' figures are undefined, since their held-out patients lack a class; means "
            "and worst sites are over the others, as the column Sites says."
        )
    return found


CHOSEN = (
    "The best strategy of several was chosen by the test set that also scores it; its lead is a "
    "little too good. Confirm it with other seeds."
)

SEEDED = (
    "The noise of private cells came from their seeds, so that they can be repeated. It has the "
    "distribution of real noise, but whoever knows the seed can take it away: epsilon says what "
    "the same study would spend in a hospital, and these models must not be released."
)


def _federation(book: Book, scenario: str) -> str:
    cell = book.sample(scenario)
    if cell is None:
        return ""
    rows = book.sites[cell.id]
    sizes = [row.train_patients for row in rows]
    kind = "findings" if cell.findings else "classes"
    sites = (
        f"{_some(len(rows), 'site')} with {sum(sizes):,} training patients, from {min(sizes):,} "
        f"to {max(sizes):,} a site (seed {cell.seed})"
        if rows
        else "no site known"
    )
    said = (
        f"Data: {cell.dataset}, {kind} {_listed(cell.classes, 8)}; {sites}; a common test set of "
        f"{cell.test_patients:,} patients that no site has."
    )
    return " ".join([said, *map(_sentence, cell.notes)])


def _levels(book: Book, scenario: str) -> str:
    alone = Key(scenario, ALONE, model="local", site=MEAN)
    worst = book.value(replace(alone, site=WORST))
    parts = [
        ("pooled data reach", book.value(Key(scenario, POOLED)), ""),
        ("fedavg", book.value(Key(scenario, BASELINE)), ""),
        (
            "a site alone",
            book.value(alone),
            f" on average and {worst:.3f} at worst" if worst is not None else "",
        ),
    ]
    said = [f"{who} {value:.3f}{more}" for who, value, more in parts if value is not None]
    if not said:
        return "None of alone, pooled and fedavg was measured."
    return f"On the common test set, by AUC: {_listed(said)}."


def _winner(book: Book, scenario: str) -> list[str]:
    best, order = best_other(book, scenario), book.federated(scenario)
    if not order:
        return ["No federated strategy was measured."]
    if not best:
        return []
    if BASELINE not in order:
        return [f"{best} is the best federated strategy, with AUC {_shown(book, scenario, best)}."]
    lead = difference(
        book.figures[Key(scenario, best)], book.figures[Key(scenario, BASELINE)]
    )  # fmt: skip
    verdict = lead.verdict if lead else "unclear"
    by = f" by {lead.mean:+.3f}" if lead else ""
    said = {
        "higher": f"{best} wins with AUC {_shown(book, scenario, best)}: clearly above fedavg{by}.",
        "lower": f"fedavg wins: the next, {best}, is clearly below it{by}.",
        "unclear": f"There is no clear winner: {best} comes to AUC {_shown(book, scenario, best)}, "
        f"but its distance to fedavg{by} is within noise.",
    }
    gap = closed(book, scenario, best)
    if gap.value is None:
        return [said[verdict], f"The gap closed is not defined: {gap.reason}."]
    ends = "" if gap.low is None or gap.high is None else _percents(gap.low, gap.high)
    return [
        said[verdict],
        f"{best} closes {100 * gap.value:.0f} % of fedavg's gap to pooled data{ends}.",
    ]


def _worst(book: Book, scenario: str, strategy: str) -> list[str]:
    own = Key(scenario, strategy, where="own", site=MEAN)
    mean, worst = book.value(own), book.value(replace(own, site=WORST))
    if mean is None or worst is None:
        return []
    site = which_is_worst(book, own)
    often = "most often " if site.notes else ""
    return [
        f"With {strategy}, the worst site ({often}{site.text}) has AUC {worst:.3f} on its own "
        f"patients, {mean - worst:.3f} below the mean of {_those(book, own)}."
    ]


def _those(book: Book, key: Key) -> str:
    """Return which sites a mean or a worst one is of."""
    few = few_sites(book.figure(key))
    return f"the {few} where it is defined" if few else "the sites"


def _gains(book: Book, scenario: str, strategy: str) -> list[str]:
    found = gains(book, scenario, strategy)
    of = sum(len(found[verdict]) for verdict in ("higher", "lower", "unclear"))
    if not of:
        return []
    lost = f" ({_listed(found['lower'], 5)})" if found["lower"] else ""
    rest = len(book.site_names(scenario)) - of
    unknown = f" Of {_some(rest, 'site')} the AUC is undefined." if rest else ""
    return [
        f"Against staying alone, with {strategy} {len(found['higher'])} of {_some(of, 'site')} "
        f"clearly gain on their own patients and {len(found['lower'])} clearly lose{lost}; "
        f"{len(found['below'])} end below their own local model, chance included.{unknown}"
    ]


def _personal(book: Book, scenario: str) -> list[str]:
    name = best_personal(book, scenario)
    own = Key(scenario, name, where="own", model="personal", site=MEAN)
    value = book.value(own)
    if value is None:
        return []
    return [
        f"Models fine-tuned at the sites ({name}) reach {value:.3f} on own patients, in the mean "
        f"of {_those(book, own)}."
    ]


def _cost(book: Book, scenario: str) -> list[str]:
    name = next(iter(book.federated(scenario)), "")
    cells = book.finished(scenario, name)
    if not name or not cells:
        return []
    moved = sum(cell.bytes_up + cell.bytes_down for cell in cells) / len(cells) / 1e6
    spent = [cell.epsilon for cell in cells if cell.epsilon is not None]
    privacy = (
        f"spends epsilon {max(spent):.2f} at the site that spends most"
        if spent and all(cell.private for cell in cells)
        else "has no bound on what it reveals (no privacy)"
    )
    rounds = max(cell.rounds for cell in cells)
    return [f"{name} moves {moved:,.1f} MB in {_some(rounds, 'round')} and {privacy}."]


def _wins(book: Book) -> list[str]:
    compared = [name for name in book.scenarios if best_other(book, name)]
    if not compared:
        return []
    wins = Counter(_clear_winner(book, name) for name in compared)
    said = [
        f"{who or 'no strategy clearly'} in {number}" for who, number in wins.most_common()
    ]  # fmt: skip
    return [
        f"Best of the federated strategies, in the {_some(len(compared), 'scenario')} that compare "
        f"some with fedavg: {_listed(said)}."
    ]


def _clear_winner(book: Book, scenario: str) -> str:
    best = best_other(book, scenario)
    keys = Key(scenario, best), Key(scenario, BASELINE)
    lead = difference(book.figures[keys[0]], book.figures.get(keys[1], {}))
    if lead is None or lead.verdict == "higher":
        return best
    return BASELINE if lead.verdict == "lower" else ""


def _distances(book: Book) -> list[str]:
    gaps = {}
    for name in book.scenarios:
        pooled, plain = book.value(Key(name, POOLED)), book.value(Key(name, BASELINE))
        if pooled is not None and plain is not None:
            gaps[name] = pooled - plain
    if not gaps:
        return []
    least, most = min(gaps, key=lambda n: gaps[n]), max(gaps, key=lambda n: gaps[n])
    return [
        f"Pooled data are ahead of fedavg in AUC by {gaps[least]:+.3f} ({least}) to "
        f"{gaps[most]:+.3f} ({most})."
    ]


def _worst_of_all(book: Book) -> list[str]:
    found = []
    for name in book.scenarios:
        own = Key(name, BASELINE, where="own", site=WORST)
        value = book.value(own)
        if value is not None:
            found.append((value, name, own))
    if not found:
        return []
    value, name, own = min(found)
    return [
        f"The worst site under fedavg is {which_is_worst(book, own).text} in {name}: AUC "
        f"{value:.3f} on its own patients, the lowest of {_those(book, own)}."
    ]


def _losers(book: Book) -> list[str]:
    found = {name: gains(book, name, BASELINE) for name in book.scenarios}
    clear = sum(len(of["lower"]) for of in found.values())
    of = sum(len(f[v]) for f in found.values() for v in ("higher", "lower", "unclear"))
    if not of:
        return []
    where = _listed([name for name, f in found.items() if f["lower"]], 5)
    return [
        f"{clear} of {of} sites clearly lose by taking part in fedavg instead of staying alone"
        + (f" ({where})." if clear else ".")
    ]


def _costs(book: Book) -> list[str]:
    cells = [cell for name in book.scenarios for cell in book.finished(name)]
    moved = [(cell.bytes_up + cell.bytes_down) / 1e6 for cell in cells]
    moved = [megabytes for megabytes in moved if megabytes]
    spent = [cell.epsilon for cell in cells if cell.private and cell.epsilon is not None]
    traffic = f"{_span(moved, ',.1f')} MB" if moved else "nothing"
    if not spent:
        return [f"A federated run moves {traffic}; none had differential privacy."]
    return [
        f"A federated run moves {traffic}. Private runs spend epsilon {_span(spent, '.2f')} at "
        "the site that spends most."
    ]


def _span(values: Sequence[float], form: str) -> str:
    return " to ".join(dict.fromkeys(format(v, form) for v in (min(values), max(values))))


def _undefined(book: Book) -> bool:
    return any(
        m.over < m.of
        for key, by_seed in book.figures.items()
        if key.where == "own" and key.site == MEAN
        for m in by_seed.values()
    )


def _shown(book: Book, scenario: str, strategy: str) -> str:
    figure = book.figure(Key(scenario, strategy))
    if figure is None or figure.value is None:
        return "unknown"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} (95 % interval {figure.low:.3f} to {figure.high:.3f})"


def _sentence(clause: str) -> str:
    return f"{clause[:1].upper()}{clause[1:].rstrip('.')}." if clause else ""


def _percents(low: float, high: float) -> str:
    return f" (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def _some(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
