"""The learning rates of a round's steps: both ends of the wire must know them alike."""

from __future__ import annotations

import math

from shared.study import Study


def learning_rates(study: Study, round_number: int) -> tuple[float, ...]:
    """Return the learning rate of each local step of a round.

    The cosine (Loshchilov and Hutter 2017) falls from the plan's rate to 0 over all rounds of
    the study; fine-tuning at a site, in the rounds after them, has a whole fall of its own.

    Args:
        study: The plan.
        round_number: 1 for the first; those after `federation.rounds` are of fine-tuning.
    """
    plan, rounds = study.training, study.federation.rounds
    if plan.schedule == "constant":
        return (plan.learning_rate,) * plan.local_steps
    before = 0
    if round_number > rounds and plan.personal_rounds:
        before, rounds = rounds, plan.personal_rounds
    whole = rounds * plan.local_steps
    done = (round_number - 1 - before) * plan.local_steps
    return tuple(
        plan.learning_rate * (1 + math.cos(math.pi * min((done + step) / whole, 1))) / 2
        for step in range(plan.local_steps)
    )
