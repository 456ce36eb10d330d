"""The server's part of learning: from a round's combined update to the next global state."""

from __future__ import annotations

import math
from collections.abc import Mapping

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


def share_of_patients(sites: Mapping[str, SiteRecord], number: int) -> float:
    """Return which part of all known training patients is at the sites that delivered a round.

    Args:
        sites: All sites that have ever delivered, this round included.
        number: The round, which at least one of them delivered.
    """
    patients = [(site.patients, site.last_round == number) for site in sites.values()]
    return sum(n for n, delivered in patients if delivered) / sum(n for n, _ in patients)


def advance(study: Study, state: Checkpoint, combined: Weights, share: float) -> Checkpoint:
    """Return the state after one more round; sites and ledger heads are left as they were.

    Args:
        study: The plan.
        state: The state the round began with.
        combined: The sites' updates as the aggregator combined them.
        share: Of all known training patients, the part at the sites combined, in (0, 1].
    """
    number = state.round + 1
    optimiser = make_optimiser(study.federation.optimiser, state.optimiser)
    change = optimiser.step(combined)
    weights = {name: array + change[name] for name, array in state.weights.items()}
    return Checkpoint(
        round=number,
        weights=weights,
        average=running_mean(state.average, weights, study.federation.average, number),
        optimiser=optimiser.state,
        control=next_control(study, number, state.control, combined, share),
        sites=state.sites,
        heads=state.heads,
    )


def next_control(
    study: Study, number: int, control: Weights, combined: Weights, share: float
) -> Weights:
    """Return the server's control variate after a round, from the mean update alone.

    SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): a site's own variate becomes
    c_i+ = c_i - c + (x - y_i) / (K lr), and the server's changes by |S| / N times the mean over
    the sites S of c_i+ - c_i. With the update u_i = y_i - x, and the sum of the round's learning
    rates for K lr, that difference is -c - u_i / sum(lr): the same c for all, so the mean update
    is all there is to know. The mean and |S| / N are weighted by patients, as the model's
    updates are: c must be the gradient of what the updates minimise, or its zero lies elsewhere.

    Args:
        study: The plan; gives the learning rates.
        number: The round.
        control: The variate the sites were sent; empty in studies without.
        combined: Mean of their updates, weighted by patients.
        share: As in `advance`.
    """
    taken = math.fsum(learning_rates(study, number))
    return {
        name: (c - share * (c + combined[name].astype(np.float64) / taken)).astype(np.float32)
        for name, c in ((name, array.astype(np.float64)) for name, array in control.items())
    }
