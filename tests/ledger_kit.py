"""A ledger's plans, patients and clock, for tests of the ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from client.privacy.account import Limits
from client.privacy.budget import Wanted
from client.privacy.groups import charges_of, epsilon_of, group_patients, joined
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.vault import Vault

VAULT = Vault(bytes(range(32)))
START = datetime(2026, 3, 1, 23, 50, tzinfo=UTC)
DELTA = 1e-5
LIMITS = Limits(epsilon=10.0, delta=DELTA)


class Clock:
    """A clock a test sets."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time


# Three rounds and a spare one of plain Gaussians.
TRAINING = Plan(
    study="a" * 64,
    purpose="train",
    noise_multiplier=3.0,
    sampling_rate=1.0,
    steps=1,
    uses=4,
    spares=1,
    epsilon=8.0,
    delta=DELTA,
)


def plan(study: str = "a", **changes: Any) -> Plan:
    return replace(TRAINING, study=study * 64, **changes)


def people(*names: str) -> frozenset[str]:
    return frozenset(VAULT.pseudonym(name) for name in names)


ANN_BOB, ANN_BOB_EVE = people("ann", "bob"), people("ann", "bob", "eve")


def join(
    ledger: Ledger, who: frozenset[str] = ANN_BOB, plan: Plan = TRAINING, limits: Limits = LIMITS
) -> frozenset[str]:
    """Let patients join a plan, and return who of them takes part."""
    return ledger.join([Wanted(plan, who)], limits)[plan.purpose]


def train(
    ledger: Ledger,
    number: int,
    who: frozenset[str] = ANN_BOB,
    plan: Plan = TRAINING,
    run: str = "run",
) -> None:
    """A round of training, as a site does it."""
    join(ledger, who, plan)
    ledger.commit(ledger.reserve([(plan, 1)], run=run, round_number=number))


def used(ledger: Ledger) -> int:
    return sum(e.uses for e in ledger.entries() if e.kind == "reserve")


def charged(ledger: Ledger) -> dict[frozenset[str], float]:
    """Epsilon of all that each group of patients is charged, as if fixed in advance."""
    entries, members = ledger.entries(), ledger.members()
    charges = charges_of(entries)
    return {
        group.patients: epsilon_of([charges[key] for key in group.plans], DELTA)
        for group in group_patients(joined(entries, members))
    }
