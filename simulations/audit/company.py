"""Whether a patient moves what others contribute, by changing who is computed together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from client.privacy.stream import RandomStream
from shared.protocol import Reply
from shared.study import Study
from shared.transport import Weights
from simulations.audit.crafted import Rows, blank_weights, crafted_study, people
from simulations.audit.hospital import AuditedHospital
from simulations.audit.verdict import Verdict, gaussian_chance

Numbers = np.ndarray[Any, np.dtype[np.float64]]

COLUMNS, UNITS, PHYSICAL_BATCH = 256, 64, 64
SIZE = 1000  # patients that are declared: enough for batches as large as the site allows


@dataclass(frozen=True)
class Gate:
    """A unit that fires for a row or not, by how many rows are multiplied at once.

    Attributes:
        row: The features of every patient, float32 [columns].
        weight: Of the unit, float32 [columns].
        bias: Of the unit.
        rows: With so many rows at once it fires; with one more, or a full batch, it does not.
        value: What it fires with.
    """

    row: Rows
    weight: Rows
    bias: float
    rows: int
    value: float


def find_gate() -> Gate | None:
    """Search this machine's own kernels for a gate; None where rows never matter.

    A product of matrices is summed in another order for another number of rows. The bias takes
    away all of a unit's value but the last bit, which shows in which order it was summed.
    """
    rng = np.random.default_rng(1)
    row = rng.uniform(-1, 1, COLUMNS).astype(np.float32)
    weight = rng.normal(size=(UNITS, COLUMNS)).astype(np.float32)

    def values(rows: int, bias: torch.Tensor | None) -> torch.Tensor:
        """Return each unit's value for so many equal rows; beside numbers stand their flags, 0."""
        given = torch.from_numpy(np.concatenate([row, np.zeros_like(row)])).repeat(rows, 1)
        units = torch.from_numpy(np.concatenate([weight, np.zeros_like(weight)], axis=1))
        return functional.linear(given, units, bias)

    bias = -values(PHYSICAL_BATCH, None)[0]
    full = values(PHYSICAL_BATCH, bias).amax(dim=0)
    for rows in range(PHYSICAL_BATCH - 2, 0, -1):
        here, more = values(rows, bias).amin(dim=0), values(rows + 1, bias).amax(dim=0)
        fires = torch.where((full <= 0) & (more <= 0), here, 0)
        if fires.max() > 0:
            unit = int(fires.argmax())
            return Gate(row, weight[unit], float(bias[unit]), rows, float(fires[unit]))
    return None


def company(stream: RandomStream, epsilon: float, rounds: int) -> list[Verdict]:
    """Train on and score patients of equal rows, one more or less by a coin each round.

    All fill one batch and a few rows of a second, so that the coin decides whether the gate
    opens for those few. Sound code lets one patient move the sums by one contribution.

    Args:
        stream: Throws the coins, and serves lots and noise.
        epsilon: Of the study.
        rounds: Of the study; a coin each.

    Returns:
        Nothing where this machine has no gate.
    """
    study = crafted_study(COLUMNS, [UNITS], rounds=rounds, epsilon=epsilon, numbers=True)
    gate, coins = find_gate(), [bool(coin) for coin in stream.uniform(rounds) < 0.5]
    if gate is None:
        return []
    weights = _gated(blank_weights(study), gate)
    direction = gate.row / np.linalg.norm(gate.row)
    by_gradient, by_scores = [], []
    with TemporaryDirectory() as folder:
        hospital = AuditedHospital(
            Path(folder), study, size=SIZE, stream=stream, physical_batch=PHYSICAL_BATCH
        )
        for number, there in enumerate(coins, start=1):
            count = PHYSICAL_BATCH + gate.rows + there
            hospital.train = people("train", np.repeat(gate.row[None], count, axis=0), 1)
            hospital.held_out = people("held-out", np.repeat(gate.row[None], count, axis=0), 1)
            reply, update = hospital.ask(weights, number)
            along = float(update["hidden.0.weight"][0, :COLUMNS] @ direction) * reply.patients
            by_gradient.append(along > -gate.rows / 2)
            by_scores.append(_in_the_lowest_bin(reply, study) < gate.rows / 2)
        training, scoring = hospital.noise("train"), hospital.noise("evaluate")
    tried = (
        f"{rounds} rounds at epsilon {epsilon:g}; a unit fires where {gate.rows} rows are "
        f"multiplied at once and not where {gate.rows + 1} are"
    )
    return [
        Verdict.of("company: gradients", tried, by_gradient, coins, gaussian_chance(training)),
        Verdict.of("company: scores", tried, by_scores, coins, gaussian_chance(scoring)),
    ]


def _gated(weights: Weights, gate: Gate) -> Weights:
    """Let the gate decide between a sure right answer, without a gradient, and a sure wrong one."""
    weights["hidden.0.weight"][0, :COLUMNS] = gate.weight
    weights["hidden.0.bias"][0] = gate.bias
    weights["head.weight"][0, 0] = 1e4 / gate.value
    weights["head.bias"][1] = 1e3
    return weights


def _in_the_lowest_bin(reply: Reply, study: Study) -> float:
    """Return the noised count of patients who have the class and are scored near 0."""
    if reply.evaluation is None:
        raise RuntimeError("the audited hospital sent no scores")
    return reply.evaluation.counts[study.privacy.score_bins]
