"""Small scenarios and their cells, computed by the real engine in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from client.site import SiteConfig
from simulations import hospital
from simulations.build import Federation, build_federation
from simulations.engine import Resources, simulate
from simulations.experiment import run_cell
from simulations.records import FINAL, Measurement, Outcome
from simulations.runner import plan_jobs
from simulations.scenario import Scenario

IN_PROCESS = partial(simulate, resources=Resources(engine="local"))
ROUNDS = 2


def tiny(**changes: Any) -> Scenario:
    """Return a scenario of three small sites; the third may be left with few patients."""
    values: dict[str, Any] = {
        "name": "tiny",
        "data": {"source": "phantoms", "patients": 90, "test_patients": 60, "size": 28},
        "partition": [{"kind": "shares", "shares": [0.45, 0.45, 0.1]}],
        "study": {
            "federation": {"rounds": ROUNDS},
            "training": {"local_steps": 2},
            "model": {"name": "cnn", "widths": [4, 4], "hidden": 0},
            "privacy": {"enabled": False},
            "data": {"held_out": 0.3},
        },
        "compare": ["alone", "pooled", "fedavg"],
    }
    return Scenario.model_validate(values | changes)


def with_study(**parts: Any) -> Scenario:
    study = tiny().study
    return tiny(study=study | {key: {**study.get(key, {}), **v} for key, v in parts.items()})


@contextmanager
def least_patients(number: int) -> Iterator[None]:
    """Let every simulated hospital with fewer training patients refuse to train."""
    settings = hospital._settings

    def strict(scene: hospital.Scene, site: int) -> SiteConfig:
        config = settings(scene, site)
        if scene.sites[site].sides.train.patients >= number:
            return config
        policy = config.policy.model_copy(update={"max_rounds_per_day": 0})
        return config.model_copy(update={"policy": policy})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hospital, "_settings", strict)
        yield


def compute(
    scenario: Scenario,
    strategy: str,
    folder: Path,
    seed: int = 0,
    federation: Federation | None = None,
) -> Outcome:
    (job,) = plan_jobs([scenario.model_copy(update={"compare": (strategy,), "seeds": (seed,)})])
    told: list[float] = []
    federation = federation or build_federation(scenario, seed)
    outcome = run_cell(job.cell, scenario, federation, folder, IN_PROCESS, "cpu", told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    return outcome


def only(outcome: Outcome, **equal: object) -> Measurement:
    (found,) = select(outcome, **equal)
    return found


def select(outcome: Outcome, **equal: object) -> list[Measurement]:
    where = {"metric": "auc", "round": FINAL, "subgroup": "", **equal}
    return [m for m in outcome.measurements if all(getattr(m, k) == v for k, v in where.items())]
