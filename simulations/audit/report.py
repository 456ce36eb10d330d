"""The whole audit, and what it says to a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from client.privacy.sampler import draw_lot
from client.privacy.stream import RandomStream
from simulations.audit.attack import CONFIDENCE, AttackResult, attack
from simulations.audit.canaries import AuditPlan
from simulations.audit.lots import LotsResult, check_lots
from simulations.audit.replay import ReplayResult, check_replay


@dataclass(frozen=True)
class AuditReport:
    """What was claimed and what was found.

    Attributes:
        plan: The claim and the training.
        attack: The empirical lower bound.
        lots: Whether lots are Poisson samples.
        replay: Whether randomness can be replayed.
    """

    plan: AuditPlan
    attack: AttackResult
    lots: LotsResult
    replay: ReplayResult

    @property
    def findings(self) -> list[str]:
        """What contradicts the claim, a clause each; empty if nothing does."""
        found = []
        if self.attack.bound.epsilon > self.plan.epsilon:
            found.append(
                f"epsilon is above {self.attack.bound.epsilon:.2f}, not {self.plan.epsilon:g}"
            )
        off = {n: z for n, z in self.lots.deviations.items() if abs(z) > self.lots.limit}
        found += [f"lots are not Poisson: {n} off by {z:+.1f} sigma" for n, z in off.items()]
        if self.replay.reopened:
            found.append("two streams of randomness opened alike drew the same")
        if self.replay.forked:
            found.append("a stream of randomness repeats itself in a forked process")
        return found

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
            "lots": {"poisson": self.lots.poisson, "deviations": self.lots.deviations},
            "replay": {"reopened": self.replay.reopened, "forked": self.replay.forked},
            "findings": self.findings,
        }


def audit(
    plan: AuditPlan, open_stream: Callable[[], RandomStream], seeded: RandomStream | None = None
) -> AuditReport:
    """Audit the product's training, lots and randomness.

    Args:
        plan: The claim and the training.
        open_stream: How a hospital opens its source of randomness.
        seeded: Serves coins, training and lots instead, so that an audit can be repeated.

    Raises:
        StudyError: A value of the plan is out of its range.
    """
    stream = seeded or open_stream()
    return AuditReport(
        plan=plan,
        attack=attack(plan, stream),
        lots=check_lots(draw_lot, stream),
        replay=check_replay(open_stream),
    )
