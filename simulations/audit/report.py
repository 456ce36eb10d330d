"""The whole audit, and what it says to a reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from client.privacy.sampler import draw_lot
from client.privacy.stream import RandomStream
from simulations.audit.attack import CONFIDENCE, AttackResult, attack
from simulations.audit.canaries import AuditPlan
from simulations.audit.distinguish import Distinguished, distinguish
from simulations.audit.lots import LotsResult, check_lots, judge_lots
from simulations.audit.replay import ReplayResult, check_replay, hospital_streams


@dataclass(frozen=True)
class AuditReport:
    """What was claimed and what was found.

    Attributes:
        plan: The claim and the training.
        attack: The empirical lower bound.
        sampler: Whether the sampler alone draws Poisson lots.
        training: Whether the lots of the attacked training were Poisson samples.
        replay: Whether randomness can be replayed.
        distinguished: What enemies told apart; None: none was let loose.
    """

    plan: AuditPlan
    attack: AttackResult
    sampler: LotsResult
    training: LotsResult
    replay: ReplayResult
    distinguished: Distinguished | None = None

    @property
    def findings(self) -> list[str]:
        """What contradicts the claim, a clause each; empty if nothing does."""
        found = []
        if self.attack.bound.epsilon > self.plan.epsilon:
            found.append(
                f"epsilon is above {self.attack.bound.epsilon:.2f}, not {self.plan.epsilon:g}"
            )
        for name, lots in (("the sampler", self.sampler), ("training", self.training)):
            off = {n: z for n, z in lots.deviations.items() if abs(z) > lots.limit}
            found += [
                f"lots of {name} are not Poisson: {n} off by {z:+.1f} sigma" for n, z in off.items()
            ]
        drawn, planned = len(self.attack.lots), self.plan.rounds * self.plan.steps
        if drawn != planned:
            found.append(f"training drew {drawn} lots where {planned} are accounted for")
        if self.replay.reopened:
            found.append("two streams of randomness opened alike drew the same")
        if self.replay.forked:
            found.append("a stream of randomness repeats itself in a forked process")
        return found + (self.distinguished.findings if self.distinguished else [])

    def record(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        bound = self.attack.bound
        return {
            "claim": {"epsilon": self.plan.epsilon, "delta": self.plan.delta},
            "training": {
                "rounds": self.plan.rounds,
                "steps": self.plan.steps,
                "sampling_rate": self.plan.sampling_rate,
                "noise_multiplier": self.attack.noise_multiplier,
            },
            "canaries": {"thrown": self.plan.canaries, "included": self.attack.included},
            "guesses": {"made": bound.guesses, "right": bound.right},
            "confidence": CONFIDENCE,
            "epsilon_lower_bound": bound.epsilon,
            "largest_possible_bound": self.attack.largest,
            "lots": {
                "sampler": {
                    "poisson": self.sampler.poisson,
                    "deviations": self.sampler.deviations,
                },
                "training": {
                    "drawn": len(self.attack.lots),
                    "poisson": self.training.poisson,
                    "deviations": self.training.deviations,
                },
            },
            "replay": {"reopened": self.replay.reopened, "forked": self.replay.forked},
            "distinguished": self.distinguished.record() if self.distinguished else None,
            "findings": self.findings,
        }


def audit(plan: AuditPlan, seeded: RandomStream | None = None, trials: int = 0) -> AuditReport:
    """Audit the product's training, lots, randomness and messages.

    Sound code is accused by the attack in one audit of twenty at most, if it spends the
    whole claim on every canary; by its lots in one of 100 000, all statistics together, and so
    by the enemies that guess coins; by the replay never, as far as 64 random bits do not meet,
    and by the free bits never.

    Args:
        plan: The claim and the training.
        seeded: Serves coins, training and lots instead of the stream of a hospital, so that an
            audit can be repeated.
        trials: Coins for each enemy that tells data sets apart; 0: without them.

    Raises:
        StudyError: A value of the plan is out of its range.
    """
    with hospital_streams(plan.study()) as open_stream:
        stream = seeded or open_stream()
        attacked = attack(plan, stream)
        return AuditReport(
            plan=plan,
            attack=attacked,
            sampler=check_lots(draw_lot, stream),
            training=judge_lots(attacked.lots, plan.sampling_rate),
            replay=check_replay(open_stream),
            distinguished=distinguish(stream, trials) if trials else None,
        )
