"""The server's part of learning: from a round's combined update to the next global state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from server.aggregate import running_mean
from server.optimise import initial_state, make_optimiser
from server.release import SiteRecord
from server.runs import Checkpoint
from shared.protocol import CONTROL
from shared.schedule import learning_rates
from shared.study import Study
from shared.transport import Weights


def first_state(study: Study, weights: Weights) -> Checkpoint:
    """Return the state before round 1, which has all arrays the study needs."""
    return Checkpoint(
        round=0,
        weights=weights,
        average=weights if study.federation.average else {},
        optimiser=initial_state(study.federation.optimiser, weights),
        control={n: np.zeros_like(a) for n, a in weights.items()} if study.training.control else {},
    )


def travelling_control(state: Checkpoint) -> Weights:
    """Return the server's control variate as it travels beside the weights; empty without."""
    return {CONTROL + name: array for name, array in state.control.items()}


def advance(
    study: Study, state: Checkpoint, combined: Weights, sites: Mapping[str, SiteRecord]
) -> Checkpoint:
    """Return the state after one more round; ledger heads are left as they were.

    Args:
        study: The plan.
        state: The state the round began with.
        combined: The sites' updates as the aggregator combined them.
        sites: What each site has contributed, this round included.
    """
    number = state.round + 1
    optimiser = make_optimiser(study.federation.optimiser, state.optimiser)
    change = optimiser.step(combined)
    weights = {name: array + change[name] for name, array in state.weights.items()}
    return replace(
        state,
        round=number,
        weights=weights,
        average=running_mean(state.average, weights, study.federation.average, number),
        optimiser=optimiser.state,
        control=next_control(study, state, combined, sites),
        sites=dict(sites),
    )


def next_control(
    study: Study, state: Checkpoint, combined: Weights, sites: Mapping[str, SiteRecord]
) -> Weights:
    """Return the server's control variate after a round, from the mean update alone.

    SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): a site's own variate becomes
    c_i+ = c_i - c + (x - y_i) / (K lr), and c stays the mean of them all. With the update
    u_i = y_i - x, and the sum of the round's learning rates for K lr, c_i changes by
    -c - u_i / sum(lr): the same c for all, so the mean update is all there is to know.

    All means are weighted by patients, as the model's updates are: c must be the gradient of
    what the updates minimise, or its zero lies elsewhere. A site that joins begins with c_i = 0,
    so c shrinks by as much as the known patients become more.

    Args:
        study: The plan; gives the learning rates.
        state: The state the round began with; its variate is empty in studies without.
        combined: Mean of the updates, weighted by patients.
        sites: What each site has contributed, this round included.
    """
    number = state.round + 1
    taken = math.fsum(learning_rates(study, number))
    known = sum(site.patients for site in sites.values())
    before = sum(site.patients for site in state.sites.values()) / known
    here = sum(site.patients for site in sites.values() if site.last_round == number) / known
    after: Weights = {}
    for name, array in state.control.items():
        c, mean = array.astype(np.float64), combined[name].astype(np.float64)
        after[name] = (before * c - here * (c + mean / taken)).astype(np.float32)
    return after
