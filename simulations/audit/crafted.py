"""Studies, patients and weights of an enemy who writes them and knows all patients but one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from client.data.patients import PatientSet
from shared.models import initial_weights
from shared.study import Study, parse_study
from shared.transport import Weights

Rows = np.ndarray[Any, np.dtype[np.float32]]


def crafted_study(
    columns: int, layers: Sequence[int], *, rounds: int, epsilon: float, numbers: bool
) -> Study:
    """Return a study of a table in which everybody is in the lot of each round's one step.

    Plain steps of length 1, so that an update is the noised sum over the expected lot and C.

    Args:
        columns: How many.
        layers: Units of the hidden layers.
        rounds: Of the study.
        epsilon: Of the study.
        numbers: Whether the columns hold numbers in [-1, 1]; else one of two categories.
    """
    kind: dict[str, Any] = {"low": -1, "high": 1} if numbers else {"categories": ["usual", "rare"]}
    values = {
        "name": "privacy-audit",
        "task": {"classes": ["one", "other"]},
        "table": {"columns": [{"name": f"c{n}"} | kind for n in range(columns)]},
        "model": {"name": "table", "layers": list(layers)},
        "training": {
            "optimiser": "sgd",
            "learning_rate": 1.0,
            "momentum": 0,
            "weight_decay": 0,
            "schedule": "constant",
            "local_steps": 1,
            "sampling_rate": 1.0,
        },
        "privacy": {"epsilon": epsilon, "delta": 1e-5, "clip": 1, "spare_rounds": 0},
        "federation": {"rounds": rounds},
    }
    return parse_study(values, "the options of the audit")


def blank_weights(study: Study) -> Weights:
    """Return the arrays of the study's model, all zero."""
    return {name: np.zeros_like(array) for name, array in initial_weights(study).items()}


def people(side: str, rows: Rows, label: int) -> PatientSet:
    """Return patients of one row each, all of one class.

    Args:
        side: Part of their names, so that no two sides share one.
        rows: float32 [patients, columns].
        label: Index of the class.
    """
    count = len(rows)
    return PatientSet(
        images=torch.from_numpy(rows),
        image_patient=torch.arange(count),
        labels=torch.full((count,), label),
        patients=tuple(f"{side}-{n:06d}" for n in range(count)),
    )
