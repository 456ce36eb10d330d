"""Cells whose hospitals have real names, fail, or are always late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from experiment_kit import compute, only, tiny, with_study

from shared.errors import SimulationError
from simulations.build import Federation, build_federation
from simulations.scenario import Behaviour, Slow

NAMES = ("St Mary's", "H\u00f4pital Nord", "A/B")


def called(federation: Federation) -> Federation:
    """Return a federation whose sites have the names of real hospitals."""
    pairs = zip(federation.sites, NAMES, strict=True)
    return replace(federation, sites=tuple(replace(site, name=name) for site, name in pairs))


@pytest.mark.parametrize("strategy", ["personal", "alone"])
def test_sites_may_be_called_whatever_hospitals_are(strategy: str, tmp_path: Path) -> None:
    private = with_study(privacy={"enabled": True, "epsilon": 8})
    federation = called(build_federation(private, 0))
    outcome = compute(private, strategy, tmp_path, federation=federation)
    assert {part.state for part in outcome.parts} == {"update", "evaluated"}
    assert {part.site for part in outcome.parts} == set(NAMES)
    assert [row.site for row in outcome.sites] == list(NAMES)
    assert all(0 < (row.epsilon or 0) <= 8 for row in outcome.sites)
    kind = "personal" if strategy == "personal" else "local"
    for name in NAMES:
        assert only(outcome, model=kind, where="test", site=name).value is not None
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("run", "personal", "site-1", "site-2", "site-3"),
    }
    assert outcome.cell.notes == build_federation(private, 0).notes


@pytest.mark.parametrize("strategy", ["fedavg", "alone"])
def test_a_hospital_whose_program_fails_fails_the_cell(strategy: str, tmp_path: Path) -> None:
    named = called(build_federation(tiny(), 0))
    train = named.sites[1].train
    broken = replace(named.sites[1], train=replace(train, labels=train.labels + 7))
    named = replace(named, sites=(named.sites[0], broken, named.sites[2]))
    with pytest.raises(
        SimulationError, match="the program of H\u00f4pital Nord failed in round 1"
    ) as caught:
        compute(tiny(), strategy, tmp_path, federation=named)
    assert "\n" not in str(caught.value)
    (note,) = caught.value.__notes__
    assert "Traceback" in note


def test_a_site_that_is_late_in_every_round_has_spent_what_its_ledger_says(tmp_path: Path) -> None:
    private = with_study(privacy={"enabled": True, "epsilon": 8})
    slow = private.model_copy(
        update={"behaviour": Behaviour(slow=(Slow(sites=(3,), seconds=1e6),))}
    )
    outcome = compute(slow, "fedavg", tmp_path / "slow")
    in_time = compute(private, "fedavg", tmp_path / "in-time")
    assert {p.state for p in outcome.parts if p.site == "site-3"} == {"late"}
    for row, other in zip(outcome.sites, in_time.sites, strict=True):
        assert row.epsilon is not None
        assert row.epsilon == other.epsilon
        assert (row.delta, row.noise_multiplier) == (other.delta, other.noise_multiplier)
    assert outcome.cell.epsilon == in_time.cell.epsilon
