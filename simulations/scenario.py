"""A scenario of the simulation harness: data, sites, imbalance, gaps, behaviour, strategies."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from shared.errors import SimulationError, StudyError
from shared.study import Study, explain_validation, parse_study
from shared.study_parts import Plan
from simulations.behaviour import check_behaviour
from simulations.behaviour_plan import Behaviour, Dropout, Nonsense, Slow, Stay
from simulations.checks import check_parts
from simulations.data_files import find_data
from simulations.datasets import (
    Data,
    DicomData,
    Facts,
    PhantomData,
    describe_dataset,
    with_data_at,
)
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
    "find_file",
    "list_scenarios",
    "load_scenario",
    "merged",
    "parse_scenario",
    "read_toml",
    "study_of",
]

SCENARIOS = Path(__file__).parent / "scenarios"
"""Folder of the scenarios that come with the harness."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


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


def load_scenario(
    source: str | Path, overrides: Mapping[str, Any] | None = None, data: str | None = None
) -> Scenario:
    """Read a scenario and check all that can be checked without computing.

    Args:
        source: Path of a file, or name of a scenario that comes with the harness.
        overrides: Values by dotted key, such as {"sites.number": 4, "partition.0.alpha": 0.3}.
        data: File or folder instead of the scenario's own, which need not be there then.

    Raises:
        SimulationError: The file is missing, is not TOML, a key is wrong, data is missing, or
            parts do not fit together.
    """
    path = find_file(source)
    return parse_scenario(read_toml(path), str(path), path.parent, overrides, data)


def list_scenarios() -> list[tuple[str, str, str]]:
    """Return name, description and kind ("scenario" or "sweep") of all that come along."""
    found = []
    for path in sorted(SCENARIOS.glob("*.toml")):
        values = read_toml(path)
        kind = "sweep" if "scenarios" in values else "scenario"
        found.append((path.stem, str(values.get("description", "")), kind))
    return found


def find_file(source: str | Path, base: Path | None = None) -> Path:
    """Return the path of a scenario: a file, or one that comes with the harness, by name.

    Args:
        source: Path or name.
        base: Folder that relative paths are tried in first.

    Raises:
        SimulationError: There is no such file or name.
    """
    for path in ((base or Path()) / source, Path(source), SCENARIOS / f"{source}.toml"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(path.stem for path in sorted(SCENARIOS.glob("*.toml")))
    raise SimulationError(
        f"there is no scenario {str(source)!r}",
        "",
        f"Give the path of a TOML file, or one of: {known}",
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        SimulationError: It cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SimulationError(f"cannot read the file: {error.strerror}", str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SimulationError(f"the file is not valid TOML: {error}", str(path)) from None


def parse_scenario(
    values: Mapping[str, Any],
    where: str,
    base: Path,
    overrides: Mapping[str, Any] | None = None,
    data: str | None = None,
) -> Scenario:
    """Validate and check a scenario given as nested values.

    Args:
        values: What a file held.
        where: Named in errors.
        base: Folder that paths of data are relative to.
        overrides: Values by dotted key.
        data: File or folder instead of the one that is named.

    Raises:
        SimulationError: A key is wrong, data is missing, or parts do not fit together.
    """
    changed = dict(values)
    for key, value in (overrides or {}).items():
        changed = _with(changed, key.split("."), value, key)
    section = changed.get("data", {})
    if isinstance(section, Mapping):
        section = with_data_at(section, data) if data is not None else section
        changed["data"] = {"source": "phantoms", **section}
    try:
        scenario = Scenario.model_validate(changed)
    except ValidationError as error:
        raise SimulationError(
            f"the scenario is not valid: {explain_validation(error)}",
            where,
            "Correct the named keys",
        ) from None
    # Of the data as validated: heart-disease has a path also where no key says it.
    named = scenario.data.model_dump(include={"path", "labels"})
    found = {key: find_data(path, base) for key, path in named.items()}
    located = scenario.data.model_copy(update=found)
    scenario = scenario.model_copy(update={"data": located})
    _check(scenario)
    return scenario


def _with(values: Any, keys: list[str], value: Any, whole: str) -> Any:
    """Return nested values with one of them changed."""
    if not keys:
        return value
    first, *rest = keys
    if isinstance(values, list):
        if not first.isdigit() or int(first) >= len(values):
            raise SimulationError(f"there is no {whole!r} to change", "", "Count from 0")
        place = int(first)
        return [*values[:place], _with(values[place], rest, value, whole), *values[place + 1 :]]
    if values is not None and not isinstance(values, Mapping):
        raise SimulationError(f"there is no {whole!r} to change", "", "Check the dotted key")
    inner = dict(values or {})
    return inner | {first: _with(inner.get(first), rest, value, whole)}


def _check(scenario: Scenario) -> None:
    """Check parts, every strategy that is to be run, and who is there in which round."""
    facts = describe_dataset(scenario.data)
    sites = check_parts(scenario, facts)
    for name in scenario.compare:
        study = _study(scenario, name, sites, facts)
        if scenario.strategy(name).setting == "federated":
            for seed in scenario.seeds:
                check_behaviour(scenario.behaviour, sites, study, seed)


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
    return _study(scenario, strategy, sites, describe_dataset(scenario.data))


def _study(scenario: Scenario, strategy: str, sites: int, facts: Facts) -> Study:
    chosen = scenario.strategy(strategy)
    values = _from_data(facts)
    if isinstance(scenario.data, DicomData):
        values["input"]["window"] = scenario.data.window
    values["name"] = f"{scenario.name}-{strategy}"[:64]
    values["description"] = scenario.description
    values["federation"] = {"sites": sites, "min_sites": 1}
    for changes in (scenario.study, chosen.study):
        values = merged(values, changes)
    if chosen.setting != "federated":
        values = merged(values, _ONE_SITE)
    where = f"scenario {scenario.name}, strategy {strategy}"
    try:
        study = parse_study(values, where)
        return parse_study(merged(values, _averaged(study, chosen.often, where)), where)
    except StudyError as error:
        raise SimulationError(error.what, error.where, "Correct the named keys") from None


_ONE_SITE: dict[str, Any] = {
    "federation": {"sites": 1, "min_sites": 1, "aggregator": "mean"},
    "training": {"control": False, "local_norms": False, "personal_rounds": 0},
}
"""What a federation of one site cannot have, or would pay privacy for without a use of it."""


def _averaged(study: Study, often: int, where: str) -> dict[str, Any]:
    """Return what lets the sites' work be averaged more often, with as many steps in all."""
    steps, rounds = study.training.local_steps, study.federation.rounds
    if steps % often:
        raise SimulationError(
            f"{steps} local steps cannot be parted into {often} rounds",
            where,
            "Choose training.local_steps so that the strategy's `often` divides it",
        )
    return {
        "training": {"local_steps": steps // often},
        "federation": {"rounds": rounds * often},
    }


def _from_data(facts: Facts) -> dict[str, Any]:
    """Return the keys of a study that follow from the data."""
    task = {"classes": list(facts.classes), "findings": facts.findings}
    values: dict[str, Any] = {"task": task}
    if facts.columns:
        columns = [column.model_dump(mode="json") for column in facts.columns]
        return values | {"table": {"columns": columns}, "model": {"name": "table"}}
    return values | {"input": {"size": facts.size, "channels": facts.channels}}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with changes laid over them; lists are replaced whole."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(change, Mapping):
            change = merged(old, change)
        result[key] = change
    return result
