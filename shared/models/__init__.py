"""The models a study can name, and their weights as plain named arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.errors import StudyError
from shared.models.attention import Attention
from shared.models.cnn import Cnn
from shared.models.layers import draw_weights
from shared.models.linear import Linear
from shared.models.table import TableNet
from shared.protocol import Statistics
from shared.statistics import means_and_medians
from shared.study import Study, TableModel

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

MODELS: dict[str, Callable[[Any, int, int, int], nn.Module]] = {
    "cnn": Cnn,
    "attention": Attention,
    "linear": Linear,
}
"""Models of images: name in the study -> built from its plan, size, channels and classes."""


def build_model(study: Study, statistics: Statistics | None = None) -> nn.Module:
    """Build the study's model with its initial weights, float32 on the CPU.

    The weights follow from what defines the model alone (`Study.model_digest`), so that everybody
    can check them; the global random state is not touched. The last layer, `head`, starts at zero.

    Args:
        study: The plan.
        statistics: Of all sites together; a study of a table that fills in from them (`mean`,
            `median`) fills in the middle of each range without.

    Returns:
        A module from images [b, channels, size, size], or rows of a table [b, columns], to
        logits [b, classes].

    Raises:
        StudyError: The study names an unknown model.
    """
    with torch.random.fork_rng(devices=[]):
        model = _table_model(study, statistics) if study.table else _image_model(study)
    draw_weights(model, study.model_digest)
    return model


def _image_model(study: Study) -> nn.Module:
    name, classes = study.model.name, len(study.task.classes)
    if name not in MODELS:
        raise StudyError(f"unknown model {name!r}", "model.name", f"Choose one of {list(MODELS)}")
    return MODELS[name](study.model, study.input.size, study.input.channels, classes)


def _table_model(study: Study, statistics: Statistics | None) -> nn.Module:
    plan, table = study.model, study.table
    if table is None or not isinstance(plan, TableModel):
        raise StudyError("a table needs the model 'table'", "model.name")
    centres: list[float] = []
    if table.fills_in and statistics is not None:
        found = means_and_medians(statistics, table)
        centres = [c.mean if table.missing == "mean" else c.median for c in found]
    return TableNet(plan, table, len(study.task.classes), centres)


def initial_weights(study: Study) -> Weights:
    """Return the weights training starts from; they follow from `Study.model_digest`."""
    return get_weights(build_model(study))


def get_weights(model: nn.Module) -> Weights:
    """Copy the model's parameters into named float32 arrays."""
    return {
        name: parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in model.named_parameters()
    }


def set_weights(model: nn.Module, weights: Weights) -> None:
    """Load named arrays into the model, in place.

    Raises:
        StudyError: A name is missing or unknown, or a shape differs; the model is unchanged.
    """
    parameters = dict(model.named_parameters())
    wrong = sorted(parameters.keys() ^ weights.keys()) or sorted(
        name for name, p in parameters.items() if tuple(p.shape) != weights[name].shape
    )
    if wrong:
        raise StudyError(
            f"weights are missing, unknown or of another shape: {', '.join(wrong)}",
            todo="Use weights of the same study; its digest is stored with them",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(weights[name]))
