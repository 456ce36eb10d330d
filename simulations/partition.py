"""Who gets which patients: sizes of the sites, the mix of classes at each, real groups.

The parts compose: at most one says how large the sites are, at most one which classes they have
seen, and one may send patients with many images to some of them. `flwr-datasets` is not used: its
partitioners split rows where these split patients, its DirichletPartitioner draws anew until the
smallest site is large enough and its InnerDirichletPartitioner fills stated sizes row by row
until classes run out, neither with a minimum per site and class, and it brings `datasets` and
pyarrow along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from shared.errors import SimulationError
from shared.study_parts import Plan
from simulations.parts import Indices, Which, choose_sites
from simulations.patients import Facts, Patients, largest_remainders, strata
from simulations.proportions import fitted_counts

Floats = npt.NDArray[np.float64]


class EqualSizes(Plan):
    """Every site has as many patients as any other."""

    kind: Literal["equal"] = "equal"

    def share(self, sites: int) -> Floats:
        """Return each site's share of the patients."""
        return np.full(sites, 1 / sites)


class Shares(Plan):
    """Each site has a stated share of the patients."""

    kind: Literal["shares"]
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Shares:
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"they must sum to 1, and sum to {sum(self.shares):.6g}")
        return self

    def share(self, sites: int) -> Floats:
        """Return each site's share of the patients."""
        return np.array(self.shares) / sum(self.shares)


class PowerLaw(Plan):
    """Sizes fall as a power of the site's rank, the first `ratio` times the last."""

    kind: Literal["power-law"]
    ratio: float = Field(default=20.0, ge=1, le=10_000, description="largest site : smallest")

    def share(self, sites: int) -> Floats:
        """Return each site's share of the patients: rank^-a with a = log(ratio) / log(sites)."""
        exponent = np.log(self.ratio) / np.log(max(sites, 2))
        weights = np.arange(1, sites + 1) ** -exponent
        return np.asarray(weights / weights.sum())


class Dirichlet(Plan):
    """Each class is spread over the sites by a draw from a symmetric Dirichlet distribution.

    So in Yurochkin et al. (2019) and Li et al. (2022, NIID-Bench), where the sizes of the sites
    come out as they may. With sizes stated beside it, the same weights, independent Gamma(alpha)
    for each site and class, are fitted to both the sizes and the classes' totals. The mix of
    each site is then that of a Dirichlet draw with the odds of each class multiplied by one
    factor that is the same at all sites, so that every patient is dealt.
    """

    kind: Literal["dirichlet"]
    alpha: float = Field(gt=0, le=1e6, description="small: sites with nearly one class each")
    minimum: int = Field(default=2, ge=0, description="fewest patients per site and class")

    def counts(
        self, totals: Indices, sizes: Indices | None, sites: int, rng: np.random.Generator
    ) -> Indices:
        """Return the number of patients of each site and class, int64 [sites, classes].

        Raises:
            SimulationError: There are too few patients for the minimum.
        """
        # log Gamma(a) = log Gamma(a + 1) + log(U) / a, which no small alpha takes to log 0.
        shape = (sites, len(totals))
        weights = np.log(rng.standard_gamma(self.alpha + 1, shape))
        weights += np.log1p(-rng.random(shape)) / self.alpha
        least = self.minimum
        if totals.min() < least * sites:
            raise SimulationError(
                f"a class of {totals.min()} patients cannot have {least} at each of {sites} sites",
                "partition.dirichlet.minimum",
                "Lower it, or take fewer sites",
            )
        if sizes is None:
            share = np.exp(weights - weights.max(axis=0))
            exact = share / share.sum(axis=0) * (totals - least * sites)
            return least + _rounded_columns(exact, totals - least * sites)
        if sizes.min() < least * len(totals):
            raise SimulationError(
                f"the smallest site has {sizes.min()} patients, too few for {least} of each of "
                f"{len(totals)} classes",
                "partition.dirichlet.minimum",
                "Lower it, or take fewer sites or a smaller ratio",
            )
        rows, columns = sizes - least * len(totals), totals - least * sites
        return least + fitted_counts(weights, rows, columns)


class ClassesPerSite(Plan):
    """Each site has seen only so many of the classes; every class is at some site.

    A class is spread over its sites in proportion to their stated sizes.
    """

    kind: Literal["classes-per-site"]
    classes: int = Field(ge=1)

    def counts(
        self, totals: Indices, sizes: Indices | None, sites: int, rng: np.random.Generator
    ) -> Indices:
        """Return the number of patients of each site and class, int64 [sites, classes].

        Raises:
            SimulationError: There are fewer classes, or some would be nowhere.
        """
        kinds = len(totals)
        if self.classes > kinds:
            raise SimulationError(
                f"{self.classes} classes per site, but there are {kinds}", "partition"
            )
        if self.classes * sites < kinds:
            raise SimulationError(
                f"{sites} sites with {self.classes} of {kinds} classes leave a class nowhere",
                "partition",
                "Take more sites, or more classes per site",
            )
        turn = np.arange(sites)[:, None] * self.classes + np.arange(self.classes)
        seen = np.zeros((sites, kinds), dtype=bool)
        np.put_along_axis(seen, rng.permutation(kinds)[turn % kinds], True, axis=1)
        weights = rng.permutation(seen) * (np.ones(sites) if sizes is None else sizes)[:, None]
        exact = weights / weights.sum(axis=0) * totals
        return _rounded_columns(exact, totals)


class Prevalence(Plan):
    """Each site has a stated part of patients of one class.

    The other classes keep their proportions. So that every site has its prevalence, and its
    share of the patients, some patients are at no site.
    """

    kind: Literal["prevalence"]
    prevalence: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        min_length=1, description="one a site, or repeated in turn"
    )
    name: str = Field(default="", description="of which class or finding; default: the last")

    def counts(self, totals: Indices, sizes: Indices | None, sites: int, place: int) -> Indices:
        """Return the number of patients of each site and class, int64 [sites, classes].

        Args:
            totals: Patients of each class.
            sizes: Patients of each site, all of them dealt; None: equal.
            sites: Number of sites.
            place: The class the prevalence is of.
        """
        shares = np.full(sites, 1 / sites) if sizes is None else sizes / sizes.sum()
        part = np.resize(np.array(self.prevalence), sites)
        others = np.where(np.arange(len(totals)) == place, 0, totals).astype(np.float64)
        mix = (1 - part)[:, None] * others / max(others.sum(), 1)
        mix[:, place] = part
        wanted = shares[:, None] * mix
        asked = wanted.sum(axis=0) > 0
        dealt = (totals[asked] / wanted.sum(axis=0)[asked]).min()
        counts: Indices = np.floor(wanted * dealt + 1e-9).astype(np.int64)
        return counts


class ManyImages(Plan):
    """The patients with the most images are at these sites."""

    kind: Literal["many-images"]
    sites: Which


class ByGroup(Plan):
    """Every cell of a group is a site: real hospitals, scanners."""

    kind: Literal["by-group"]
    group: str = "hospital"


class LeaveOut(Plan):
    """A cell of a group is at no site: all of its patients are the common test set."""

    kind: Literal["leave-out"]
    group: str = "hospital"
    cell: str


MOST_OFF = 0.02
"""A site's share of the patients may be off by so much before a note tells."""

Size = EqualSizes | Shares | PowerLaw
Mix = Dirichlet | ClassesPerSite | Prevalence
Partition = Annotated[Size | Mix | ManyImages | ByGroup | LeaveOut, Field(discriminator="kind")]


@dataclass(frozen=True)
class Dealt:
    """Who is where.

    Args:
        names: Of the sites.
        patients: Of each site the indices of its patients, in random order; nobody is twice.
        unused: Patients at no site.
        notes: What came out otherwise than one would think, a clause each.
    """

    names: tuple[str, ...]
    patients: tuple[Indices, ...]
    unused: int
    notes: tuple[str, ...] = ()


def deal(
    parts: tuple[Partition, ...],
    patients: Patients,
    facts: Facts,
    sites: int,
    rng: np.random.Generator,
) -> Dealt:
    """Deal patients to sites.

    Without any part, sites are of equal size and every patient is as likely at one as at another.

    Args:
        parts: As `simulations.checks` has found them to fit together.
        patients: Everyone there is to deal.
        facts: The names of classes and groups.
        sites: Number of sites; for `by-group` it follows from the group.
        rng: Source of all chance.

    Raises:
        SimulationError: There are too few patients, or a site would have fewer than two.
    """
    if group := next((part for part in parts if isinstance(part, ByGroup)), None):
        return _by_group(group, patients, facts, rng)
    if len(patients) < 2 * sites:
        raise SimulationError(
            f"{sites} sites need at least {2 * sites} patients; there are {len(patients)}",
            "sites.number",
            "Take fewer sites or more patients",
        )
    size = next((part for part in parts if isinstance(part, Size)), None)
    mix = next((part for part in parts if isinstance(part, Mix)), None)
    many = next((part for part in parts if isinstance(part, ManyImages)), None)
    shares = (size or EqualSizes()).share(sites)
    sizes = largest_remainders(shares * len(patients), len(patients))
    cells = np.zeros(len(patients), dtype=np.int64)
    counts = sizes[:, None]
    if mix:
        cells = _cells(mix, patients.labels, facts)
        counts = _counts(mix, cells, facts, sizes if size else None, sites, rng)
    if counts.sum(axis=1).min() < 2:
        raise SimulationError(
            f"site-{counts.sum(axis=1).argmin() + 1} would have fewer than two patients",
            "partition",
            "Take fewer sites, more patients or a milder skew",
        )
    first = choose_sites(many.sites, sites, rng) if many else np.arange(0)
    dealt = _draw(cells, counts, patients.image_counts, first, rng)
    names = tuple(f"site-{number}" for number in range(1, sites + 1))
    notes = _missed(size, shares, counts.sum(axis=1)) if size else ()
    return Dealt(names, dealt, len(patients) - int(counts.sum()), notes)


def _missed(size: Size, shares: Floats, dealt: Indices) -> tuple[str, ...]:
    """Tell of the site whose size the mix of classes bent most, if any is far off."""
    got = dealt / dealt.sum()
    worst = int(np.abs(got - shares).argmax())
    if abs(got[worst] - shares[worst]) <= MOST_OFF:
        return ()
    return (
        f"the classes of the sites do not allow the sizes of {size.kind}: site-{worst + 1} "
        f"has {got[worst]:.0%} of the patients in place of {shares[worst]:.0%}",
    )


def _rounded_columns(exact: Floats, totals: Indices) -> Indices:
    """Round [sites, classes] so that every class keeps its total."""
    columns = zip(exact.T, totals, strict=True)
    return np.stack([largest_remainders(each, int(total)) for each, total in columns], axis=1)


def _by_group(part: ByGroup, patients: Patients, facts: Facts, rng: np.random.Generator) -> Dealt:
    """Make every cell of a group a site that has two patients at least, and count those left."""
    cells, group = facts.group_names[part.group], patients.groups[part.group]
    members = {name: np.flatnonzero(group == place) for place, name in enumerate(cells)}
    there = {name: rng.permutation(index) for name, index in members.items() if len(index) > 1}
    if not there:
        raise SimulationError(
            f"no {part.group} has two patients",
            "partition.by-group",
            "Check that the column names the same patients as the data",
        )
    single = [name for name, index in members.items() if len(index) == 1]
    notes = [
        f"{part.group} {name} has one patient and is no site; sites are numbered without it"
        for name in single
    ]
    unused = len(patients) - sum(map(len, there.values()))
    if unknown := unused - len(single):
        notes.append(f"patients whose {part.group} is not known: {unknown}")
    return Dealt(tuple(there), tuple(there.values()), unused, tuple(notes))


def _cells(mix: Mix, labels: Indices, facts: Facts) -> Indices:
    """Return int64 [patients]: of which class the mix counts each patient.

    Where patients may have several findings, the prevalence of one is of all who have it, whatever
    else they have: there are those without it, 0, and those with it, 1.
    """
    if isinstance(mix, Prevalence) and facts.findings:
        return np.asarray(labels[:, _place(mix, facts)] == 1, dtype=np.int64)
    return strata(labels)


def _place(mix: Prevalence, facts: Facts) -> int:
    return facts.classes.index(mix.name) if mix.name else len(facts.classes) - 1


def _counts(
    mix: Mix,
    cells: Indices,
    facts: Facts,
    sizes: Indices | None,
    sites: int,
    rng: np.random.Generator,
) -> Indices:
    """Return how many patients of each class each site gets, int64 [sites, classes]."""
    totals = np.bincount(cells).astype(np.int64)
    if isinstance(mix, Prevalence):
        return mix.counts(totals, sizes, sites, 1 if facts.findings else _place(mix, facts))
    # Of findings a combination may not occur at all; such a class has no say.
    some = np.flatnonzero(totals)
    counts = np.zeros((sites, len(totals)), dtype=np.int64)
    counts[:, some] = mix.counts(totals[some], sizes, sites, rng)
    return counts


def _draw(
    cells: Indices, counts: Indices, images: Indices, first: Indices, rng: np.random.Generator
) -> tuple[Indices, ...]:
    """Draw so many patients of each class for each site.

    Args:
        cells: int64 [patients], class of each.
        counts: int64 [sites, classes].
        images: int64 [patients], number of images of each.
        first: Sites that take the patients with the most images.
        rng: Decides among equals.
    """
    sites = len(counts)
    turn = np.concatenate([first, np.setdiff1d(np.arange(sites), first)]).astype(np.int64)
    dealt: list[list[Indices]] = [[] for _ in range(sites)]
    for cell, wanted in enumerate(counts.T):
        members = rng.permutation(np.flatnonzero(cells == cell))
        if len(first):
            members = members[np.argsort(-images[members], kind="stable")]
            taken = wanted[first].sum()
            members[:taken] = rng.permutation(members[:taken])
            members[taken:] = rng.permutation(members[taken:])
        ends = np.cumsum(wanted[turn])
        for site, own in zip(turn, np.split(members, ends)[:-1], strict=True):
            dealt[site].append(own)
    return tuple(rng.permutation(np.concatenate(own)) for own in dealt)
