"""Builds a scenario's federation: patients dealt to sites, degraded, split, all by one seed."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.datasets import Facts, Patients
from simulations.scenario import Scenario


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
        total: How many there were when the patients were dealt.
    """

    site: str
    what: str
    name: str
    cause: str
    count: int
    total: int


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
    """Build a scenario's federation; the same seed gives the same bits."""
    raise NotImplementedError
