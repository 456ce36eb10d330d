"""Builds a scenario's federation: patients dealt to sites, degraded, split, all by one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from shared.errors import SimulationError
from simulations.checks import check_parts
from simulations.datasets import Dataset, Facts, Patients, load_dataset
from simulations.degrade import AbsentColumn, MissingValues, Removed
from simulations.partition import LeaveOut, deal
from simulations.parts import choose_sites
from simulations.patients import concatenate, require_classes, split_stratified, strata
from simulations.scenario import Scenario, study_of
from simulations.shifts import shifted

DEALING, SHIFTING, DEGRADING, SPLITTING = range(4)
"""Each stage draws from a stream of its own: a gap more leaves the partition as it was."""


@dataclass(frozen=True)
class SiteData:
    """One simulated hospital.

    Args:
        name: "site-1", ... or the hospital's own name.
        train: Patients to train on.
        held_out: Patients kept for evaluation there.
    """

    name: str
    train: Patients
    held_out: Patients


@dataclass(frozen=True)
class Missing:
    """What a site lacks of one kind.

    Args:
        site: Its name.
        what: "label", "wrong label", "image", "patient", or "value".
        name: Of which class, finding, column or group; empty: not of one.
        cause: "as found", or the kind of the degrading part, such as "missing-labels".
        count: How many are missing for this cause.
        total: Out of how many, of those there were just before.
    """

    site: str
    what: str
    name: str
    cause: str
    count: int
    total: int


_Loss = tuple[str, Removed, int]
"""The kind of a part, what it took, and out of how many."""


@dataclass(frozen=True)
class Federation:
    """All that a simulation needs of a scenario's data, for one seed.

    Args:
        sites: The hospitals.
        test: The common test set, which no shift or gap touches.
        dataset: What is known of the data set.
        missing: What is missing where.
        notes: What a reader should know, a clause each.
    """

    sites: tuple[SiteData, ...]
    test: Patients
    dataset: Facts
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()


def build_federation(scenario: Scenario, seed: int) -> Federation:
    """Build a scenario's federation; the same seed gives the same bits.

    Patients are held out at each site evenly by class, study.data.held_out of them, rather than
    each by a hash of an id as hospitals do: sites of few patients then have someone to score.

    Args:
        scenario: A checked scenario.
        seed: Of data that is made up, partition, shifts, gaps and split.

    Raises:
        SimulationError: The data cannot be read, nobody is left to test on, a class has no
            patient to train on, or a site would be left with fewer than two.
    """
    return build_from(load_dataset(scenario.data, seed), scenario, seed)


def build_from(everyone: Dataset, scenario: Scenario, seed: int) -> Federation:
    """Build a scenario's federation from data that are loaded already, or outlined.

    Raises:
        SimulationError: As `build_federation`.
    """
    dataset = _without_left_out(scenario, everyone)
    facts = dataset.facts
    require_classes(dataset.train.labels, facts)
    number = check_parts(scenario, facts)
    held_out = study_of(scenario, "pooled", number).data.held_out
    dealt = deal(scenario.partition, dataset.train, facts, number, _rng(seed, DEALING))
    sites, missing = [], []
    for index, (name, members) in enumerate(zip(dealt.names, dealt.patients, strict=True)):
        found = dataset.train.take(members)
        degraded, removed = _degraded(scenario, found, facts, (index, len(dealt.names)), seed)
        missing += [*_as_found(name, found, facts), *_named(name, removed)]
        sites.append(_split(name, degraded, held_out, _rng(seed, SPLITTING, index)))
    require_classes(
        np.concatenate([site.train.labels for site in sites]),
        facts,
        "training patient of any site",
        "Change what partition and degrade take away, or leave it out of the task",
    )
    unused = [f"{dealt.unused} patients are at no site"] if dealt.unused else []
    notes = (*facts.notes, *unused, *dealt.notes, *_unseen(scenario, facts))
    return Federation(tuple(sites), dataset.test, facts, tuple(missing), notes)


def _rng(seed: int, *stage: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stage])


def _without_left_out(scenario: Scenario, dataset: Dataset) -> Dataset:
    """Make the common test set of the cell that is left out, if one is.

    Patients whose cell nobody knows are nowhere then: they may be of the one that is left out.
    """
    for part in scenario.partition:
        if isinstance(part, LeaveOut):
            everyone = concatenate([dataset.train, dataset.test])
            cells = everyone.groups[part.group]
            cell = dataset.facts.group_names[part.group].index(part.cell)
            seen, out = (np.flatnonzero(k) for k in ((cells >= 0) & (cells != cell), cells == cell))
            if not len(out):
                raise SimulationError(
                    f"no patient is of {part.group} {part.cell}, so nobody is left to test on",
                    "partition.leave-out",
                    "Check that the column names the same patients as the data",
                )
            notes = [f"the test set is {part.group} {part.cell}, which no site has seen"]
            if unknown := len(everyone) - len(seen) - len(out):
                notes.append(f"patients left out, as their {part.group} is not known: {unknown}")
            facts = replace(dataset.facts, notes=(*dataset.facts.notes, *notes))
            return Dataset(facts, everyone.take(seen), everyone.take(out))
    return dataset


def _unseen(scenario: Scenario, facts: Facts) -> list[str]:
    """Tell of gaps that change no figure: in groups of patients, which no model sees."""
    known = {column.name for column in facts.columns}
    gaps = [part for part in scenario.degrade if isinstance(part, MissingValues)]
    lost = [name for part in gaps for name in part.columns]
    lost += [part.name for part in scenario.degrade if isinstance(part, AbsentColumn)]
    unseen = sorted({*lost} - known - {part.by for part in gaps})
    return [f"no model sees {name}, so what is missing of it changes no figure" for name in unseen]


def _degraded(
    scenario: Scenario, patients: Patients, facts: Facts, place: tuple[int, int], seed: int
) -> tuple[Patients, list[_Loss]]:
    """Shift and degrade a site's patients; return them, and what was removed by which kind.

    Those about whom nothing is known are then left out, as hospitals do.
    """
    site, sites = place
    for turn, shift in enumerate(scenario.shifts):
        if site in choose_sites(shift.sites, sites, _rng(seed, SHIFTING, turn)):
            rng = _rng(seed, SHIFTING, turn, site)
            images = shifted(patients.images, shift, site, rng)
            patients = replace(patients, images=images)
    removed: list[_Loss] = []
    for turn, part in enumerate(scenario.degrade):
        if site in choose_sites(part.sites, sites, _rng(seed, DEGRADING, turn)):
            before = patients
            patients, lost = part(before, facts, _rng(seed, DEGRADING, turn, site))
            removed += [(part.kind, each, _total(each, before, facts)) for each in lost]
    known = patients.labels >= 0
    stays = known.any(axis=1) if facts.findings else known
    return patients.take(np.flatnonzero(stays)), removed


def _as_found(site: str, patients: Patients, facts: Facts) -> Iterator[Missing]:
    """Yield what the data itself lacks at a site."""
    counts = {
        ("value", column.name): int(np.isnan(patients.images[:, place]).sum())
        for place, column in enumerate(facts.columns)
    }
    columns = {column.name for column in facts.columns}
    counts |= {
        ("value", name): int((cells < 0).sum())
        for name, cells in patients.groups.items()
        if name not in columns
    }
    if facts.findings:
        unknown = (patients.labels < 0).sum(axis=0)
        counts |= {("label", name): int(n) for name, n in zip(facts.classes, unknown, strict=True)}
    for (what, name), count in counts.items():
        if count:
            yield Missing(site, what, name, "as found", count, len(patients))


def _total(each: Removed, before: Patients, facts: Facts) -> int:
    """Return out of how many something was removed."""
    if each.what == "image":
        return len(before.images)
    if each.name in facts.classes and not facts.findings:
        return int((before.labels == facts.classes.index(each.name)).sum())
    return len(before)


def _named(site: str, removed: list[_Loss]) -> Iterator[Missing]:
    """Yield what was removed at a site, all parts of one kind together."""
    counts: dict[tuple[str, str, str], int] = {}
    totals: dict[tuple[str, str, str], int] = {}
    for part, each, total in removed:
        key = str(each.what), each.name, part
        counts[key] = counts.get(key, 0) + each.count
        # Noise between two parts may make more labels of a class than there were before either.
        totals[key] = max(totals.get(key, 0), total, counts[key])
    for (what, name, cause), count in counts.items():
        if count:
            yield Missing(site, what, name, cause, count, totals[what, name, cause])


def _split(name: str, patients: Patients, held_out: float, rng: np.random.Generator) -> SiteData:
    if len(patients) < 2:
        raise SimulationError(
            f"{name} is left with fewer than two patients", "degrade", "Take less away there"
        )
    train, kept = split_stratified(strata(patients.labels), held_out, rng)
    return SiteData(name, patients.take(train), patients.take(kept))
