"""The results of simulations, sorted for a report: which figure belongs to whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.study import Study
from simulations.aggregate import Aggregate, aggregate
from simulations.records import FINAL, MEAN, Cell, Measurement, Missing, Part, SiteRow
from simulations.results import Results
from simulations.strategies import REFERENCES

ALONE, POOLED, BASELINE = REFERENCES
"""The first two are also the settings (`Cell.setting`) of those two and of strategies like them."""

FEDERATED = "federated"
"""The setting of all other strategies."""

PERSONAL = "personal"
"""`Measurement.model` of models that were fine-tuned at a site."""

HEADLINE = "auc"
"""The metric that the summary, the pictures and the gap closed are about."""


@dataclass(frozen=True)
class Key:
    """What a figure is of; the attributes are those of `Measurement`, without the seed."""

    scenario: str
    strategy: str
    metric: str = HEADLINE
    where: str = "test"
    model: str = "global"
    site: str = ""
    subgroup: str = ""
    round: int = FINAL


@dataclass(frozen=True)
class Book:
    """All results of a folder.

    Attributes:
        cells: Every planned cell, in the order they were planned.
        figures: What was measured, by seed.
        sites: What each site of a finished cell had, by id of the cell.
        parts: Who took part in its rounds.
        missing: What was missing where.
    """

    cells: tuple[Cell, ...] = ()
    figures: dict[Key, dict[int, Measurement]] = field(default_factory=dict)
    sites: dict[str, list[SiteRow]] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    missing: dict[str, list[Missing]] = field(default_factory=dict)

    @property
    def scenarios(self) -> list[str]:
        """The scenarios in the order they were planned."""
        return list(dict.fromkeys(cell.scenario for cell in self.cells))

    def strategies(self, scenario: str) -> list[str]:
        """Return the strategies asked for, references first, then as planned."""
        names = dict.fromkeys(c.strategy for c in self._cells(scenario))
        return [*(n for n in REFERENCES if n in names), *(n for n in names if n not in REFERENCES)]

    def federated(self, scenario: str) -> list[str]:
        """Return the strategies that are real federations, best first by the headline."""
        names = [n for n in self.strategies(scenario) if self.setting(scenario, n) == FEDERATED]
        known = [n for n in names if self.value(Key(scenario, n)) is not None]
        return sorted(known, key=lambda name: -(self.value(Key(scenario, name)) or 0.0))

    def setting(self, scenario: str, strategy: str) -> str:
        """Return who learns together in a planned strategy, as `Cell.setting`."""
        return self.planned(scenario, strategy)[0].setting

    def judged_by(self, scenario: str, strategy: str) -> Key:
        """Return the key of a strategy's model on the test set, or of its sites' models' mean."""
        key = Key(scenario, strategy)
        alone = self.setting(scenario, strategy) == ALONE
        return replace(key, model="local", site=MEAN) if alone else key

    def planned(self, scenario: str, strategy: str) -> list[Cell]:
        """Return a strategy's cells, finished or not."""
        return [cell for cell in self._cells(scenario) if cell.strategy == strategy]

    def finished(self, scenario: str, strategy: str = "") -> list[Cell]:
        """Return finished cells in order; of one strategy, if given."""
        return [
            cell
            for cell in self._cells(scenario)
            if cell.state == "finished" and strategy in ("", cell.strategy)
        ]

    def seeded(self, scenario: str, strategy: str = "") -> bool:
        """Return whether noise that came from a seed is in the figures, also of one strategy."""
        return any(cell.seeded_noise for cell in self.finished(scenario, strategy))

    def study(self, scenario: str, strategy: str) -> Study:
        """Return the study of a planned strategy."""
        return Study.model_validate_json(self.planned(scenario, strategy)[0].study_text)

    def unfinished(self) -> list[Cell]:
        """Return the cells that failed or were never finished."""
        return [cell for cell in self.cells if cell.state != "finished"]

    def sample(self, scenario: str) -> Cell | None:
        """Return the cell whose sites are shown: the baseline's first seed if there is one.

        What the sites have depends on scenario and seed only; the pooled cell has one site.
        """
        cells = self.finished(scenario)
        if not cells:
            return None
        return min(
            cells,
            key=lambda c: (c.setting == POOLED, c.setting == ALONE, c.strategy != BASELINE),
        )

    def values(self, key: Key) -> dict[int, float]:
        """Return the defined values by seed."""
        found = self.figures.get(key, {})
        return {seed: m.value for seed, m in sorted(found.items()) if m.value is not None}

    def figure(self, key: Key) -> Aggregate | None:
        """Return a figure over all its seeds, or None if it was never measured."""
        found = self.figures.get(key)
        return aggregate(found[seed] for seed in sorted(found))[0] if found else None

    def value(self, key: Key) -> float | None:
        """Return the mean over seeds, or None if it is nowhere defined."""
        figure = self.figure(key)
        return None if figure is None else figure.value

    def rounds(self, key: Key) -> dict[int, dict[int, float]]:
        """Return a figure after each round it was measured in, by seed."""
        last = max((c.rounds for c in self.finished(key.scenario, key.strategy)), default=0)
        curves = {n: self.values(replace(key, round=n)) for n in range(last + 1)}
        return {n: values for n, values in curves.items() if values}

    def site_names(self, scenario: str) -> list[str]:
        """Return the names of the sites, in the order of the cell that is shown."""
        cell = self.sample(scenario)
        return [row.site for row in self.sites.get(cell.id, [])] if cell else []

    def subgroups(self, scenario: str) -> list[str]:
        """Return the subgroups that were scored."""
        mine = [k.subgroup for k in self.figures if k.scenario == scenario and k.subgroup]
        return list(dict.fromkeys(mine))

    def has_model(self, scenario: str, strategy: str, model: str) -> bool:
        """Return whether a strategy has models of a kind ("global", "local", "personal")."""
        own = Key(scenario, strategy, where="own", model=model, site=MEAN)
        return own in self.figures or replace(own, where="test") in self.figures

    def _cells(self, scenario: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.scenario == scenario]


def read_book(folder: Path) -> Book:
    """Read `results.sqlite` of a folder.

    Raises:
        CoordinatorError: There are no results, or the file cannot be used.
    """
    with Results(folder) as results:
        cells = tuple(results.cells())
        done = [cell.id for cell in cells if cell.state == "finished"]
        return Book(
            cells=cells,
            figures=sort_figures(results.measurements()),
            sites={cell: results.sites(cell) for cell in done},
            parts={cell: results.parts(cell) for cell in done},
            missing={cell: results.missing(cell) for cell in done},
        )


def sort_figures(measurements: Iterable[Measurement]) -> dict[Key, dict[int, Measurement]]:
    """Return measurements by what they are of, then by seed."""
    figures: dict[Key, dict[int, Measurement]] = {}
    for m in measurements:
        key = Key(m.scenario, m.strategy, m.metric, m.where, m.model, m.site, m.subgroup, m.round)
        figures.setdefault(key, {})[m.seed] = m
    return figures
