"""Whatever happens in whatever order, the ledger says no less than what left of each patient."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from client.privacy.account import Limits, allowance
from client.privacy.anchor import read_anchor
from client.privacy.budget import Wanted
from client.privacy.groups import EVERYONE, charges_of, joined
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.vault import Vault
from shared.errors import PolicyRefusal
from shared.protocol import LedgerHead

OLD = Path(__file__).parents[2] / "data" / "homes-of-format-1" / "open-round"
VAULT = Vault((OLD / "vault.key").read_bytes())
# Eight who took part before the upgrade, where there was one, and two who did not.
PATIENTS = [VAULT.pseudonym(f"P-{number:02}") for number in (*range(8), 50, 51)]
DELTA = 1e-5
PLANS = {
    name: Plan(name * 64, "train", noise, 1.0, 1, uses, 1, 50.0, DELTA)
    for name, noise, uses in (("a", 4.0, 4), ("b", 2.0, 3), ("c", 3.0, 5))
}
LIMITS = Limits(12.0, DELTA)


class Ledgers(RuleBasedStateMachine):
    """A ledger beside a list of what really left, in this and in lost copies of it.

    A round goes as at a site: compare heads, let patients join, reserve, compute, send, commit;
    and it may be killed in between. The server remembers the heads that reached it, the audit log
    those that left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "home" / "ledger.sqlite"
        self.path.parent.mkdir()
        self.left: Counter[tuple[str, str]] = Counter()  # of a patient, in a study
        self.out: set[str] = set()
        self.known: LedgerHead | None = None
        self.sent: LedgerHead | None = None
        self.lost = False

    @initialize(upgraded=st.booleans())
    def begin(self, upgraded: bool) -> None:
        if upgraded:
            for name in ("ledger.sqlite", "ledger.anchor"):
                shutil.copy(OLD / name, self.path.parent / name)
        self.ledger = Ledger(self.path, VAULT)
        if upgraded:
            self.out = {VAULT.pseudonym("P-03")}
            assert self.ledger.opted_out() == self.out
            anchor = read_anchor(self.path, VAULT)
            assert anchor is not None
            self.known = self.sent = anchor.confirmed
        self.backup()

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @rule(
        study=st.sampled_from("abc"),
        who=st.sets(st.sampled_from(PATIENTS)),
        run=st.sampled_from(["one", "two"]),
        number=st.integers(1, 3),
        killed=st.sampled_from(["no", "no", "after joining", "after reserving", "after sending"]),
        arrives=st.booleans(),
    )
    def round(
        self, study: str, who: set[str], run: str, number: int, killed: str, arrives: bool
    ) -> None:
        plan = PLANS[study]
        if self.lost:
            with pytest.raises(PolicyRefusal, match="older copy"):
                self.ledger.check_head(self.known, sent=self.sent)
            return
        self.ledger.check_head(self.known, sent=self.sent)
        taking = self.ledger.join([Wanted(plan, frozenset(who))], LIMITS)["train"]
        assert taking <= who - self.out
        if killed == "after joining":
            self.crash()
            return
        try:
            paid = self.ledger.reserve([(plan, 1)], run=run, round_number=number)
        except PolicyRefusal:  # no use left, or closed: nothing leaves
            return
        if killed == "after reserving":
            self.crash()
            return
        self.left.update((patient, study) for patient in taking)
        self.sent = self.ledger.head()
        if arrives:
            self.known = self.sent
        if killed == "after sending":
            self.crash()
            return
        self.ledger.commit(paid)

    @rule()
    def crash(self) -> None:
        """Open the file anew beside the handle that a killed process would have left."""
        left = self.ledger
        self.ledger = Ledger(self.path, VAULT)
        left.close()

    @rule(patient=st.sampled_from(PATIENTS))
    def opt_out(self, patient: str) -> None:
        self.ledger.opt_out(patient)
        self.out.add(patient)

    @rule(study=st.sampled_from("abc"))
    def close_study(self, study: str) -> None:
        self.ledger.close_study(study * 64)

    @precondition(lambda self: not self.lost)
    @rule()
    def backup(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        shutil.copytree(self.path.parent, self.folder / "backup")
        self.ledger = Ledger(self.path, VAULT)

    @rule()
    def restore(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.path.parent)
        shutil.copytree(self.folder / "backup", self.path.parent)
        self.ledger = Ledger(self.path, VAULT)
        heads = [head for head in (self.known, self.sent) if head]
        entries = {(e.number, e.hash) for e in self.ledger.entries()}
        adopted = {e.note for e in self.ledger.entries() if e.kind == "adopt"}
        self.lost = any(
            (head.entries, head.hash) not in entries
            and f"{head.entries}:{head.hash}" not in adopted
            for head in heads
        )
        if not self.lost:  # opt-outs alone are private: a person must repeat them
            self.out = set(self.ledger.opted_out())

    @precondition(lambda self: self.lost)
    @rule()
    def recover(self) -> None:
        try:
            self.ledger.check_head(self.known, sent=self.sent)
        except PolicyRefusal:
            for patient in self.out:  # a person lists them
                self.ledger.opt_out(patient)
            self.ledger.adopt(list(PLANS.values()), self.ledger.lost_heads(self.sent))
        self.ledger.check_head(self.known, sent=self.sent)
        self.lost = False

    @invariant()
    def nobody_is_charged_less_than_left(self) -> None:
        if self.lost:
            return  # it refuses every round until it is recovered
        entries, members = self.ledger.entries(), self.ledger.members()
        charges, have = charges_of(entries), joined(entries, members)
        for (patient, study), uses in self.left.items():
            key = (study * 64, "train")
            assert {patient, EVERYONE} & have[key]
            assert charges[key].uses >= uses
        assert self.ledger.opted_out() >= self.out

    @invariant()
    def nobody_who_joined_by_choice_is_over_the_budget(self) -> None:
        entries, members = self.ledger.entries(), self.ledger.members()
        have = joined([e for e in entries if e.note], members)
        charges = charges_of(entries)
        for patient in PATIENTS:
            mine = [key for key, who in have.items() if key[0][0] in "abc" and patient in who]
            order = next(
                (
                    float(e.note)
                    for e in entries
                    if e.kind == "join" and e.note and e.cohort and patient in members[e.cohort]
                ),
                3.0,
            )
            # Of a plain Gaussian: order / (2 noise^2) for each use.
            cost = sum(
                charges[key].uses * order / (2 * charges[key].plan.noise_multiplier ** 2)
                for key in mine
            )
            assert cost <= allowance(LIMITS, order) * (1 + 1e-9)


Ledgers.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestLedgers = Ledgers.TestCase
