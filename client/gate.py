"""The gate for arrays: what comes in and what goes out has the declared names, shapes and type."""

from __future__ import annotations

import numpy as np
from torch import nn

from shared.errors import ConsiliumError, ProtocolError
from shared.models import build_model, get_weights, set_weights
from shared.protocol import CONTROL, Statistics
from shared.statistics import statistics_layout
from shared.study import Study
from shared.transport import Weights


def split_control(study: Study, task: str, weights: Weights) -> tuple[Weights, Weights]:
    """Part what came in into the global weights and the server's control variate.

    Args:
        study: The plan.
        task: What the server asks; the control variate comes with "train" only.
        weights: As received.

    Returns:
        The weights, which `load_model` checks, and the control variate by the names of the
        parameters; empty where the study has none.

    Raises:
        ProtocolError: The control variate is missing or was not asked for, or it does not have
            the names, shapes, type of the weights, or is not finite.
    """
    control = {n.removeprefix(CONTROL): a for n, a in weights.items() if n.startswith(CONTROL)}
    model = {name: array for name, array in weights.items() if not name.startswith(CONTROL)}
    expected = model if study.training.control and task == "train" else {}
    _check(control, expected, ProtocolError, "the control variate is refused")
    return model, control


def load_model(study: Study, weights: Weights, statistics: Statistics | None = None) -> nn.Module:
    """Return the study's model with the global weights.

    Args:
        study: The plan.
        weights: As received.
        statistics: Of all sites, as received; a study that fills in from them cannot do without.

    Raises:
        ProtocolError: The weights are not those of the study's model, or not finite; or the
            statistics are missing, or not what the study counts.
    """
    _check_statistics(study, statistics)
    model = build_model(study, statistics)
    _check(weights, get_weights(model), ProtocolError, "the global weights are refused")
    set_weights(model, weights)
    return model


def check_update(update: Weights, weights: Weights) -> None:
    """Let an update pass only if it is what was declared and finite.

    Args:
        update: New minus global weights.
        weights: The global weights, already checked.

    Raises:
        ConsiliumError: It must not leave; the fault is this program's.
    """
    _check(update, weights, ConsiliumError, "the update is not fit to leave")


def _check_statistics(study: Study, statistics: Statistics | None) -> None:
    if statistics is None:
        if study.table is not None and study.table.fills_in:
            raise ProtocolError("the statistics that missing values are filled in from are missing")
        return
    lengths = len(statistics.classes), tuple(map(len, statistics.columns))
    if lengths != statistics_layout(study):
        raise ProtocolError("the statistics are not those the study counts")


def _check(arrays: Weights, like: Weights, error: type[ConsiliumError], what: str) -> None:
    """Compare arrays with the declared ones; the same gate stands at the way in and out."""
    if arrays.keys() != like.keys():
        raise error(f"{what}: names differ from the study's model")
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != like[name].shape:
            raise error(f"{what}: shape or type differs", name)
        if not np.isfinite(array).all():
            raise error(f"{what}: values are not finite", name)
