"""A scenario of the simulation harness: data, sites, imbalance, gaps, behaviour, strategies."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from shared.errors import SimulationError, StudyError
from shared.study import Study, explain_validation, parse_study
from shared.study_parts import Plan
from simulations.behaviour_plan import Behaviour, Dropout, Nonsense, Slow, Stay
from simulations.datasets import Data, Facts, PhantomData, describe_dataset
from simulations.degrade import Degrade
from simulations.partition import Partition
from simulations.shifts import Shift
from simulations.strategies import BUILT_IN, Strategy

__all__ = [
    "SCENARIOS",
    "Behaviour",
    "Dropout",
    "Nonsense",
    "Scenario",
    "Sites",
    "Slow",
    "Stay",
    "Strategy",
    "load_scenario",
    "study_of",
]

SCENARIOS = Path(__file__).parent / "scenarios"
"""Folder of the scenarios that come with the harness."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,47}$")]


class Sites(Plan):
    """The hospitals of a scenario."""

    number: int | None = Field(
        default=None, ge=1, le=10_000, description="unset: as the partition says"
    )


class Scenario(Plan):
    """One federation to simulate, as a researcher writes it."""

    name: Name
    description: str = Field(default="", max_length=200, description="one line")
    labels: dict[str, str] = Field(
        default_factory=dict, description="where it stands in a sweep: axis -> place"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(0,), min_length=1)
    data: Data = PhantomData()
    sites: Sites = Sites()
    partition: tuple[Partition, ...] = ()
    shifts: tuple[Shift, ...] = ()
    degrade: tuple[Degrade, ...] = ()
    behaviour: Behaviour = Behaviour()
    study: dict[str, Any] = Field(default_factory=dict, description="keys of study.toml")
    strategies: dict[Name, Strategy] = Field(default_factory=dict, description="own ones, by name")
    compare: tuple[str, ...] = Field(
        default=("alone", "pooled", "fedavg"), min_length=1, description="strategies to run"
    )

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides a result beside study and seed, 64 hex digits."""
        told = {"description", "labels", "seeds", "compare", "strategies"}
        return hashlib.sha256(self.model_dump_json(exclude=told).encode()).hexdigest()

    def strategy(self, name: str) -> Strategy:
        """Return a strategy by name: the scenario's own, or one that comes with the harness.

        Raises:
            SimulationError: There is none of this name.
        """
        known = BUILT_IN | self.strategies
        if name not in known:
            raise SimulationError(
                f"no strategy is named {name!r}", self.name, f"Known: {', '.join(sorted(known))}"
            )
        return known[name]


def study_of(scenario: Scenario, strategy: str, sites: int) -> Study:
    """Return the study plan of one strategy in a scenario.

    Classes, input and columns come from the data; the scenario's study is merged over that, and
    the strategy's over both.

    Args:
        scenario: The scenario.
        strategy: Name of a strategy; `alone` and `pooled` are federations of one site.
        sites: Number of sites.

    Raises:
        SimulationError: No such strategy, or the study is not valid.
    """
    chosen = scenario.strategy(strategy)
    values = _from_data(describe_dataset(scenario.data))
    values["name"] = f"{scenario.name}-{strategy}"[:64]
    values["description"] = scenario.description
    values["federation"] = {"sites": sites, "min_sites": 1}
    for changes in (scenario.study, chosen.study):
        values = merged(values, changes)
    if chosen.setting != "federated":
        values = merged(values, {"federation": {"sites": 1, "min_sites": 1}})
    try:
        return parse_study(values, f"scenario {scenario.name}, strategy {strategy}")
    except StudyError as error:
        raise SimulationError(error.what, error.where, "Correct the named keys") from None


def _from_data(facts: Facts) -> dict[str, Any]:
    """Return the keys of a study that follow from the data.

    Every site takes part, however small, unless the scenario says otherwise.
    """
    task = {"classes": list(facts.classes), "findings": facts.findings}
    values: dict[str, Any] = {"task": task, "data": {"min_patients": 1}}
    if facts.columns:
        columns = [column.model_dump(mode="json") for column in facts.columns]
        return values | {"table": {"columns": columns}, "model": {"name": "table"}}
    return values | {"input": {"size": facts.size, "channels": facts.channels}}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with changes laid over them; lists are replaced whole."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(change, Mapping)
        result[key] = merged(old, change) if both else change
    return result
