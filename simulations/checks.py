"""What can be known to be wrong with a scenario before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.errors import SimulationError
from simulations.degrade import (
    AbsentClass,
    AbsentColumn,
    Degrade,
    LabelNoise,
    MissingImages,
    MissingLabels,
    MissingValues,
)
from simulations.partition import (
    ByGroup,
    ClassesPerSite,
    LeaveOut,
    ManyImages,
    Mix,
    Partition,
    Prevalence,
    Shares,
    Size,
)
from simulations.parts import check_sites
from simulations.patients import Facts
from simulations.phantom_data import PhantomData
from simulations.table_phantoms import MadeUpTable

if TYPE_CHECKING:
    from simulations.scenario import Scenario


def check_parts(scenario: Scenario, facts: Facts) -> int:
    """Check partition, shifts and gaps against each other and the data.

    Args:
        scenario: The scenario.
        facts: What is known of its data.

    Returns:
        The number of sites.

    Raises:
        SimulationError: Something does not fit.
    """
    sites = _number_of_sites(scenario, facts)
    _check_partition(scenario.partition, sites, facts)
    for shift in scenario.shifts:
        check_sites(shift.sites, sites)
        if facts.columns:
            raise SimulationError(
                f"a table has no images to change by {shift.kind!r}", "shifts", "Leave it out"
            )
    for degrade in scenario.degrade:
        check_sites(degrade.sites, sites)
        _check_degrade(degrade, facts)
    data = scenario.data
    if isinstance(data, PhantomData | MadeUpTable) and data.patients < 2 * sites:
        raise SimulationError(
            f"{sites} sites need at least {2 * sites} patients; there are {data.patients}",
            "sites.number",
            "Take fewer sites or more patients",
        )
    return sites


def _number_of_sites(scenario: Scenario, facts: Facts) -> int:
    """Return the number of sites: as stated, or as the partition has it."""
    stated, implied = scenario.sites.number, None
    left_out = {(p.group, p.cell) for p in scenario.partition if isinstance(p, LeaveOut)}
    for part in scenario.partition:
        if isinstance(part, ByGroup):
            cells = _cells(facts, part.group)
            implied = sum((part.group, cell) not in left_out for cell in cells)
        elif isinstance(part, Shares):
            implied = len(part.shares)
    if stated and implied and stated != implied:
        raise SimulationError(
            f"sites.number is {stated}, but the partition makes {implied} sites",
            scenario.name,
            "Leave sites.number out, or make them agree",
        )
    number = stated or implied
    if not number:
        raise SimulationError(
            "nothing says how many sites there are", scenario.name, "Give sites.number"
        )
    return number


def _check_partition(parts: Sequence[Partition], sites: int, facts: Facts) -> None:
    by_group = [part for part in parts if isinstance(part, ByGroup)]
    for kind, found in (
        ("sizes", [part for part in parts if isinstance(part, Size)]),
        ("the mix of classes", [part for part in parts if isinstance(part, Mix)]),
        ("many-images", [part for part in parts if isinstance(part, ManyImages)]),
        ("by-group", by_group),
        ("leave-out", [part for part in parts if isinstance(part, LeaveOut)]),
    ):
        if len(found) > 1:
            raise SimulationError(
                f"two parts decide on {kind}: {found[0].kind} and {found[1].kind}",
                "partition",
                "Keep one of them",
            )
    others = [part for part in parts if not isinstance(part, ByGroup | LeaveOut)]
    if by_group and others:
        raise SimulationError(
            f"by-group deals everyone; {others[0].kind} has nothing left to decide", "partition"
        )
    for part in parts:
        _check_part(part, sites, facts)


def _check_part(part: Partition, sites: int, facts: Facts) -> None:
    if isinstance(part, ManyImages):
        check_sites(part.sites, sites)
        if facts.columns:
            raise SimulationError("a table has no images for 'many-images'", "partition")
    if isinstance(part, LeaveOut) and part.cell not in _cells(facts, part.group):
        raise SimulationError(
            f"the group {part.group!r} has no cell {part.cell!r}",
            "partition.leave-out",
            f"It has: {', '.join(facts.group_names[part.group])}",
        )
    if isinstance(part, Prevalence):
        if part.name:
            _check_class(part.name, facts)
        if len(part.prevalence) > sites:
            raise SimulationError(
                f"{len(part.prevalence)} prevalences for {sites} sites", "partition.prevalence"
            )
    if isinstance(part, ClassesPerSite):
        kinds = len(facts.classes) + facts.findings
        if part.classes > kinds:
            raise SimulationError(
                f"{part.classes} classes per site, but there are {kinds}",
                "partition.classes-per-site",
            )


def _check_degrade(part: Degrade, facts: Facts) -> None:
    if isinstance(part, MissingLabels | LabelNoise):
        for name in part.classes:
            _check_class(name, facts)
    if isinstance(part, MissingLabels) and part.only != "any" and not facts.findings:
        raise SimulationError(
            f"only = {part.only!r} is about findings; of classes, name them in classes",
            "degrade.missing-labels",
            "With data.findings = true the classes become findings",
        )
    if isinstance(part, AbsentClass):
        _check_class(part.name, facts)
    if isinstance(part, MissingImages) and facts.columns:
        raise SimulationError(f"a table has no images for {part.kind!r}", "degrade")
    if isinstance(part, AbsentColumn):
        _check_column(part.name, facts)
    if isinstance(part, MissingValues):
        for name in (*part.columns, *([part.by] if part.by else [])):
            _check_column(name, facts)
        if not part.columns and not facts.columns:
            raise SimulationError(
                "missing-values does not say of which columns",
                "degrade.missing-values",
                f"Images have the groups: {', '.join(facts.group_names) or 'none'}",
            )


def _check_class(name: str, facts: Facts) -> None:
    if name not in facts.classes:
        raise SimulationError(
            f"there is no class {name!r}", facts.name, f"There are: {', '.join(facts.classes)}"
        )


def _check_column(name: str, facts: Facts) -> None:
    known = (*(column.name for column in facts.columns), *facts.group_names)
    if name not in known:
        raise SimulationError(
            f"there is no column or group {name!r}", facts.name, f"There are: {', '.join(known)}"
        )


def _cells(facts: Facts, group: str) -> tuple[str, ...]:
    if group not in facts.group_names:
        raise SimulationError(
            f"the data has no group {group!r}",
            facts.name,
            f"It has: {', '.join(facts.group_names) or 'none'}",
        )
    return facts.group_names[group]
