"""All enemies that tell neighbouring data sets apart, let loose on the product's own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from client.privacy.stream import RandomStream
from simulations.audit.company import company
from simulations.audit.free_bits import FreeBits, free_bits
from simulations.audit.low_bits import count_bits, training_bits
from simulations.audit.verdict import Verdict

EPSILON = 8.0
"""Of the studies that the enemies write. Each is judged against the noise it really meets."""


@dataclass(frozen=True)
class Distinguished:
    """What the enemies achieved.

    Attributes:
        verdicts: Of those that guess coins.
        free: What differs beside the noise.
    """

    verdicts: tuple[Verdict, ...]
    free: FreeBits

    @property
    def findings(self) -> list[str]:
        """What contradicts the claim, a clause each; empty if nothing does."""
        found = [
            f"{v.name}: right {v.right} of {v.trials} times, where {v.chance:.1%} is the most "
            f"the noise allows (p = {v.p_value:.0e})"
            for v in self.verdicts
            if v.flagged
        ]
        return found + [f"free bits: {name}: {said}" for name, said in self.free.told_apart.items()]

    def record(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {
            "verdicts": [
                {
                    "name": v.name,
                    "tried": v.tried,
                    "trials": v.trials,
                    "right": v.right,
                    "chance": v.chance,
                    "p_value": v.p_value,
                    "flagged": v.flagged,
                }
                for v in self.verdicts
            ],
            "free_bits": {"pairs": self.free.pairs, "told_apart": self.free.told_apart},
        }


def distinguish(stream: RandomStream, trials: int, epsilon: float = EPSILON) -> Distinguished:
    """Let every enemy guess.

    Those that guess accuse sound code in one of a million audits each at most, whatever the
    number of trials; the comparison of free bits never does.

    Args:
        stream: Throws the coins and serves the hospitals.
        trials: Coins for each enemy; 20 are the fewest that can prove anything.
        epsilon: Of the studies.
    """
    verdicts = (
        *training_bits(stream, epsilon, trials),
        count_bits(stream, trials),
        *company(stream, epsilon, trials),
    )
    return Distinguished(verdicts, free_bits())
