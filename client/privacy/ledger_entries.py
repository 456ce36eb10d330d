"""What the ledger appends in a transaction: plans, uses of them, and who is named with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from client.privacy.budget import RECOVERED
from client.privacy.chain import Entry, Kind
from client.privacy.groups import EVERYONE, Key, joined, key_of, plans_of, uses_of
from client.privacy.ledger_store import Transaction
from client.privacy.plans import Plan
from shared.protocol import LedgerHead


def head_note(head: LedgerHead) -> str:
    """Return how an "adopt" entry names the head whose loss it notes."""
    return f"{head.entries}:{head.hash}"


def adopt_head(held: Transaction, lost: LedgerHead | None) -> None:
    """Note that the loss of a head is charged for; later entries are numbered past it."""
    entry = Entry(kind="adopt", note=head_note(lost) if lost else "")
    last = held.entries[-1]
    past = lost.entries + 1 + last.hidden if lost else 0
    held.append(replace(entry, seq=max(past, last.seq + 1)))


def fix_plan(held: Transaction, plan: Plan) -> Plan:
    """Append a plan, unless the study has one for the purpose, and return the one that holds."""
    fixed = plans_of(held.entries).get(key_of(plan))
    return fixed or Plan.of_entry(held.append(plan.entry()))


def use_plan(held: Transaction, plan: Plan, entry: Entry) -> int:
    """Append a reservation of a plan, and return its number."""
    made = replace(
        entry,
        study=plan.study,
        purpose=plan.purpose,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        steps=entry.uses * plan.steps,
    )
    return held.append(made).number


def name_patients(
    held: Transaction, kind: Kind, plan: Plan, patients: frozenset[str], note: str = ""
) -> None:
    """Append a private entry on patients and a plan."""
    named = Entry(kind=kind, study=plan.study, purpose=plan.purpose, note=note)
    held.append(replace(named, cohort=held.add_cohort(patients)))


def all_plans(held: Transaction, given: Sequence[Plan]) -> list[Plan]:
    """Return the plans in the ledger and those given, of several versions what costs most."""
    found = plans_of(held.entries)
    others: dict[Key, Plan] = {}
    for plan in given:
        key = key_of(plan)
        others[key] = others.get(key, plan).or_costlier(plan)
    return list((others | found).values())


def use_up(held: Transaction, plan: Plan) -> None:
    """Let everyone join a plan, and leave it no use."""
    fix_plan(held, plan)
    if EVERYONE not in joined(held.entries, held.members()).get(key_of(plan), ()):
        name_patients(held, "join", plan, frozenset({EVERYONE}))
    left = plan.uses - uses_of(held.entries, *key_of(plan))
    if left > 0:
        use_plan(held, plan, Entry(kind="reserve", run=RECOVERED, uses=left))
