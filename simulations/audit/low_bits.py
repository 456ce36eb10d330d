"""Whether the low bits of what is released show a patient whom the noise should hide."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from client.evaluation import evaluate
from client.privacy.dpsgd import Grid
from client.privacy.stream import RandomStream
from shared.models import build_model, set_weights
from shared.transport import Weights
from simulations.audit.crafted import Rows, blank_weights, crafted_study, people
from simulations.audit.hospital import AuditedHospital
from simulations.audit.verdict import Verdict, gaussian_chance

Numbers = np.ndarray[Any, np.dtype[np.float64]]

COLUMNS, UNITS, OTHERS = 4, 256, 31
SEARCHED = "hidden.2.weight"
USUAL, RARE = 0.0, 1.0  # the columns' categories, by index
LARGE_NOISE, EVALUATIONS, BITS = 2.0**30, 25, 40
STEPS = 1 / Grid.of(1.0).step  # of the product's own grid for C = 1, in which it counts


def training_bits(stream: RandomStream, epsilon: float, rounds: int) -> list[Verdict]:
    """Train with or without a patient, a coin each round, and guess from the update's low bits.

    The weights sent make `UNITS` squared numbers of the gradient zero for everybody but the
    patient, whose contribution there is C / `UNITS`; being tiny, they leave every bit of
    the update as it was.

    Args:
        stream: Throws the coins, and serves lots and noise.
        epsilon: Of the study.
        rounds: Of the study; a coin each.
    """
    study = crafted_study(COLUMNS, [UNITS, UNITS], rounds=rounds, epsilon=epsilon, numbers=False)
    weights, coins = _only_for_the_rare(blank_weights(study)), _coins(stream, rounds)
    others = np.full((OTHERS, COLUMNS), USUAL, np.float32)
    everybody = np.concatenate([others, np.full((1, COLUMNS), RARE, np.float32)])
    by_pattern, by_remainder = [], []
    with TemporaryDirectory() as folder:
        hospital = AuditedHospital(
            Path(folder), study, size=OTHERS + 1, stream=stream, physical_batch=OTHERS + 1
        )
        for number, there in enumerate(coins, start=1):
            hospital.train = people("train", everybody if there else others, 1)
            hospital.held_out = people("held-out", others, 0)
            reply, update = hospital.ask(weights, number)
            seen = update[SEARCHED].ravel()
            by_pattern.append(_has_steps_of(1 / UNITS, seen, reply.patients))
            by_remainder.append(_leaves_a_remainder(seen.astype(np.float64) * reply.patients))
        chance = gaussian_chance(hospital.noise("train"))
    tried = f"{rounds} updates at epsilon {epsilon:g}, weights that react to one patient alone"
    return [
        Verdict.of("low bits: spacing of noised gradients", tried, by_pattern, coins, chance),
        Verdict.of("low bits: remainders of noised gradients", tried, by_remainder, coins, chance),
    ]


def count_bits(stream: RandomStream, trials: int) -> Verdict:
    """Count scores with or without a patient under very large noise, and guess from the low bits.

    Args:
        stream: Throws the coins, and serves the noise.
        trials: Coins.
    """
    study = crafted_study(COLUMNS, [4], rounds=1, epsilon=1.0, numbers=True)
    model, coins = build_model(study), _coins(stream, trials)
    set_weights(model, blank_weights(study))
    guesses = []
    for there in coins:
        held_out = people("held-out", np.zeros((OTHERS + there, COLUMNS), np.float32), 1)
        score = 0
        for _ in range(EVALUATIONS):
            counts = evaluate(
                model,
                held_out,
                study,
                noise_multiplier=LARGE_NOISE,
                stream=stream,
                device=torch.device("cpu"),
                physical_batch=64,
            ).overall.counts
            filled = counts[study.privacy.score_bins + study.privacy.score_bins // 2]
            score += _zeros(filled - OTHERS - 1) - _zeros(filled - OTHERS)
        guesses.append(score > 0)
    return Verdict.of(
        "low bits: counts under large noise",
        f"{trials} times {EVALUATIONS} evaluations with noise {LARGE_NOISE:.0f}",
        guesses,
        coins,
        gaussian_chance(LARGE_NOISE, EVALUATIONS),
    )


def _only_for_the_rare(weights: Weights) -> Weights:
    """Let the rare patient alone reach the second layer, and have most of the gradient there.

    Activations are 2^10 and 2^-42, so that the head's 2^39 makes logits of 32 and -32.
    """
    # Features: of each column the usual and the rare category; then flags of missing values.
    weights["hidden.0.weight"][:, 0 : 2 * COLUMNS : 2] = -(2.0**8)
    weights["hidden.0.weight"][:, 1 : 2 * COLUMNS : 2] = 2.0**8
    weights[SEARCHED][:] = 2.0**-60
    weights["head.weight"][:] = [[2.0**39], [-(2.0**39)]]
    return weights


def _has_steps_of(size: float, seen: Rows, unit: float) -> bool:
    """Guess that a contribution of this size is in numbers that ended up near zero.

    Noise near minus the contribution has the spacing of floating-point numbers of that size, and
    so has the sum; noise alone is spaced as finely as its own size allows.
    """
    # Clipping leaves a contribution a hair shorter than its size.
    step = math.ldexp(1.0, math.frexp(0.999 * size)[1] - 24)
    small = seen[np.abs(seen) < size / 2 / unit].astype(np.float64)
    stepped = (np.round(small * unit / step) * step / unit).astype(np.float32)
    return len(small) > 0 and bool((stepped == small).all())


def _leaves_a_remainder(total: Numbers) -> bool:
    """Guess that a contribution is in numbers that are not multiples of what the others are.

    Of fine noise one number in 2^k is a multiple of 2^k steps, whatever is added to it. Only of
    numbers below 2^24 an update in float32 shows the last step.
    """
    steps = np.round(total * STEPS).astype(np.int64)
    steps = steps[np.abs(steps) < 2**24]
    off = []
    for k in range(1, 9):
        expected = len(steps) / 2**k
        multiples = np.count_nonzero(steps % 2**k == 0)
        off.append((multiples - expected) / math.sqrt(expected + 1))
    return bool(max(off, key=abs) < 0)


def _zeros(value: float) -> int:
    """Return how many low bits of a multiple of 1/64 are zero, `BITS` at most."""
    whole = int(value * 64)
    return min(BITS, (whole & -whole).bit_length() - 1) if whole else BITS


def _coins(stream: RandomStream, count: int) -> list[bool]:
    return [bool(coin) for coin in stream.uniform(count) < 0.5]
