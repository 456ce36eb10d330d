"""The lifetime account of a patient: a Renyi filter, which holds however studies are chosen.

A study's own epsilon composes steps that are fixed in advance. Studies are not: whoever chooses
the next one has seen what the last one gave, or has several open at once, and for such a choice
no epsilon computed afterwards is a bound. A Renyi filter is one (Feldman and Zrnic 2021, theorem
3.1): while the Renyi divergences of everything a patient takes part in add up to no more than was
fixed beforehand, at one order fixed beforehand, all of it together keeps what was fixed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from client.privacy.chain import Purpose
from client.privacy.groups import Charge, bare
from client.privacy.plans import ORDERS


@dataclass(frozen=True)
class Limits:
    """What the site's policy grants each patient.

    Attributes:
        epsilon: Over all studies together, for life.
        delta: At which `epsilon` is stated.
        waived: Purposes the policy knowingly shares without noise; without this waiver such a
            release has an infinite epsilon and rules the patient out.
    """

    epsilon: float
    delta: float
    waived: frozenset[Purpose] = field(default_factory=frozenset)


def best_order(limits: Limits) -> float:
    """Return the order at which an account that opens now has the most room.

    Measured in plain Gaussian noise, whose divergence is proportional to the order.
    """
    return max(ORDERS, key=lambda order: allowance(limits, order) / order)


def allowance(limits: Limits, order: float) -> float:
    """Return the most Renyi divergence of an order that keeps the limits; 0 if none does."""
    return max(0.0, limits.epsilon - _surcharge(order, limits.delta))


def bound(divergence: float, order: float, delta: float) -> float:
    """Return the epsilon that a Renyi divergence of an order keeps (Canonne et al. 2020, prop. 12).

    Args:
        divergence: At least 0.
        order: Above 1.
        delta: In (0, 1).
    """
    return max(0.0, divergence + _surcharge(order, delta)) if divergence else 0.0


def divergence(charges: Collection[Charge], order: float) -> float:
    """Return the Renyi divergence of all charges with noise, at one of `ORDERS`."""
    at = ORDERS.index(order)
    return math.fsum(c.uses * c.plan.costs[at] for c in charges if c.plan.noise_multiplier)


def part_of(divergence: float, allowance: float) -> float:
    """Return which part of an allowance is taken: over 1 if more than all of it, 1 of none."""
    return divergence / allowance if allowance else float(divergence > 0)


def affords(charges: Collection[Charge], order: float, limits: Limits) -> bool:
    """Tell whether a patient's account, kept at an order, has room for all these charges."""
    room = divergence(charges, order) <= allowance(limits, order)
    return room and bare(charges) <= limits.waived


def _surcharge(order: float, delta: float) -> float:
    """Return what is added to a Renyi divergence to make it an epsilon."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
