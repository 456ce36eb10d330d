"""A sweep: scenarios, what a grid changes in each, strategies and seeds, multiplied out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from shared.errors import SimulationError
from shared.study import explain_validation
from shared.study_parts import Plan
from simulations.scenario import Name, Scenario, find_file, parse_scenario, read_toml
from simulations.strategies import Strategy

Changes = dict[str, Any]
"""Values by dotted key of a scenario, such as {"partition.0.alpha" = 0.3}."""


class Rung(Plan):
    """One scenario of a sweep."""

    scenario: str = Field(description="path of a file, or name of one that comes along")
    name: Name | None = Field(default=None, description="its place; default: the scenario's name")
    set: Changes = Field(default_factory=dict, description="changes by dotted key")
    compare: tuple[str, ...] = Field(default=(), description="strategies to run here besides")


class SweepPlan(Plan):
    """A sweep as a researcher writes it."""

    name: Name
    description: str = Field(default="", max_length=200, description="one line")
    axis: str = Field(default="scenario", min_length=1, description="what the scenarios vary")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(0,), min_length=1)
    compare: tuple[str, ...] = Field(
        default=("alone", "pooled", "fedavg"), min_length=1, description="strategies to run"
    )
    strategies: dict[Name, Strategy] = Field(default_factory=dict, description="own ones")
    set: Changes = Field(default_factory=dict, description="changes in every scenario")
    scenarios: tuple[Rung, ...] = Field(min_length=1)
    grid: dict[str, dict[Name, Changes]] = Field(
        default_factory=dict, description="axis -> place -> changes there"
    )


@dataclass(frozen=True)
class Sweep:
    """A sweep, multiplied out.

    Args:
        name: Its name.
        description: One line.
        scenarios: Every one with a name of its own, its strategies (`compare`), its seeds, and
            its place on each axis (`labels`).
    """

    name: str
    description: str
    scenarios: tuple[Scenario, ...]


def is_sweep(source: str | Path) -> bool:
    """Tell a sweep from a scenario.

    Raises:
        SimulationError: There is no such file, or it is not TOML.
    """
    return "scenarios" in read_toml(find_file(source))


def load_sweep(
    source: str | Path, overrides: Mapping[str, Any] | None = None, data: str | None = None
) -> Sweep:
    """Read a sweep and check every scenario of it, without computing.

    Args:
        source: Path of a file, or name of a sweep that comes with the harness.
        overrides: Values by dotted key, for every scenario: the last word, `seeds` and `compare`
            included.
        data: File or folder instead of those of the scenarios.

    Raises:
        SimulationError: A file is missing, a key is wrong, or a scenario is.
    """
    path = find_file(source)
    try:
        plan = SweepPlan.model_validate(read_toml(path))
    except ValidationError as error:
        raise SimulationError(
            f"the sweep is not valid: {explain_validation(error)}", str(path), "Correct these keys"
        ) from None
    scenarios = tuple(_multiplied(plan, path.parent, overrides or {}, data))
    names = [scenario.name for scenario in scenarios]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SimulationError(
            f"two scenarios are named {twice[0]!r}", str(path), "Give each a name of its own"
        )
    return Sweep(plan.name, plan.description, scenarios)


def _multiplied(
    plan: SweepPlan, base: Path, last: Mapping[str, Any], data: str | None
) -> Iterator[Scenario]:
    """Yield every scenario at every place of the grid."""
    axes = [[(axis, place) for place in places] for axis, places in plan.grid.items()]
    for rung in plan.scenarios:
        file = find_file(rung.scenario, base)
        values = read_toml(file)
        values["strategies"] = {
            **values.get("strategies", {}),
            **{name: strategy.model_dump() for name, strategy in plan.strategies.items()},
        }
        name = rung.name or values.get("name", file.stem)
        for places in itertools.product(*axes):
            labels = {plan.axis: name, **dict(places)}
            changes = {
                **plan.set,
                **rung.set,
                **{k: v for axis, place in places for k, v in plan.grid[axis][place].items()},
                "name": "-".join([plan.name, *labels.values()]),
                "labels": labels,
                "seeds": list(plan.seeds),
                "compare": list(dict.fromkeys((*plan.compare, *rung.compare))),
                **last,
            }
            yield parse_scenario(values, f"{plan.name}, {file.name}", file.parent, changes, data)
