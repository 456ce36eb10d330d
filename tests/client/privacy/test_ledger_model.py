"""Whatever happens in whatever order, each patient is charged as a list kept by hand says."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from client.privacy.budget import Limits, Wanted
from client.privacy.groups import charges_of, group_patients, mechanism, spent
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.vault import Vault
from shared.accounting import Mechanism, epsilon
from shared.errors import LedgerError, PolicyRefusal

VAULT = Vault(bytes(range(32)))
DELTA = 1e-5
PATIENTS = [VAULT.pseudonym(str(number)) for number in range(5)]
PLANS = {
    name: Plan(name * 64, "train", noise, 1.0, 1, uses, 1, 50.0, DELTA)
    for name, noise, uses in (("a", 4.0, 4), ("b", 2.0, 3))
}
MECHANISMS = [Mechanism(p.noise_multiplier, 1, p.uses) for p in PLANS.values()]
# Room for either study and for part of the other.
LIMIT = (max(epsilon([m], DELTA) for m in MECHANISMS) + epsilon(MECHANISMS, DELTA)) / 2


class Ledgers(RuleBasedStateMachine):
    """The ledger beside lists kept by hand: every charge of every patient."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.folder / "ledger.sqlite", VAULT)
        self.charged: dict[str, list[str]] = defaultdict(list)
        self.rounds: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.open: list[int] = []
        self.out: set[str] = set()
        self.closed: set[str] = set()

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @rule(
        study=st.sampled_from("ab"),
        who=st.sets(st.sampled_from(PATIENTS), min_size=1),
        run=st.sampled_from(["one", "two"]),
        number=st.integers(1, 3),
    )
    def reserve(self, study: str, who: set[str], run: str, number: int) -> None:
        plan, rounds = PLANS[study], self.rounds[study]
        repeats = len(rounds) - len(set(rounds))
        room = (
            study not in self.closed
            and len(rounds) < plan.uses
            and ((run, number) not in rounds or repeats < plan.spares)
        )
        try:
            (reservation,) = self.ledger.reserve(
                [Wanted(plan, frozenset(who))], Limits(LIMIT, DELTA), run=run, round_number=number
            )
        except LedgerError:
            assert who & self.out
        except PolicyRefusal:
            assert not room or any(self.after(p, study) > LIMIT for p in who)
        else:
            assert room
            assert not who & self.out
            for patient in who:
                assert self.after(patient, study) <= LIMIT
                self.charged[patient].append(study)
            rounds.append((run, number))
            self.open.append(reservation.seq)

    def after(self, patient: str, study: str) -> float:
        """Return what the patient will have spent when all open studies are done."""
        uses = Counter(self.charged[patient])
        uses[study] += PLANS[study].uses - len(self.rounds[study])
        for other in {"a", "b"} - {study} - self.closed:
            if patient in self.last_cohort(other):
                uses[other] += PLANS[other].uses - len(self.rounds[other])
        mechanisms = [Mechanism(PLANS[name].noise_multiplier, 1, n) for name, n in uses.items()]
        return epsilon(mechanisms, DELTA)

    def last_cohort(self, study: str) -> frozenset[str]:
        last = [
            e.cohort
            for e in self.ledger.entries()
            if e.kind == "reserve" and e.study == study * 64 and e.cohort
        ]
        return self.ledger.members()[last[-1]] if last else frozenset()

    @precondition(lambda self: self.open)
    @rule()
    def commit(self) -> None:
        self.ledger.commit([self.open.pop()])

    @rule()
    def crash(self) -> None:
        """Open the file anew beside the handle that a killed process would have left."""
        left = self.ledger
        self.ledger = Ledger(self.folder / "ledger.sqlite", VAULT)
        left.close()

    @rule(patient=st.sampled_from(PATIENTS))
    def opt_out(self, patient: str) -> None:
        self.ledger.opt_out(patient)
        self.out.add(patient)

    @rule(study=st.sampled_from("ab"))
    def close_study(self, study: str) -> None:
        self.ledger.close_study(study * 64)
        self.closed.add(study)

    @invariant()
    def every_patient_is_charged_as_the_lists_say(self) -> None:
        charges, members = charges_of(self.ledger.entries()), self.ledger.members()
        found: dict[str, float] = {}
        for group in group_patients([c.cohort for c in charges], members):
            own = sum(
                (_uses(mechanism(c)) for c in charges if c.cohort in group.cohorts), Counter()
            )
            for patient in group.patients:
                assert patient not in found
                found[patient] = spent(group, charges, DELTA).epsilon
                by_hand = Counter(PLANS[name].noise_multiplier for name in self.charged[patient])
                assert own == by_hand
        assert found.keys() == {patient for patient, uses in self.charged.items() if uses}
        assert self.ledger.opted_out() == self.out


def _uses(mechanism: Mechanism) -> Counter[float]:
    return Counter({mechanism.noise_multiplier: mechanism.steps})


Ledgers.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestLedgers = Ledgers.TestCase
