"""Whether this machine computes a row in the same way whoever else is there: tried, not assumed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from client.augment import NUMBERS_PER_VIEW, augment, is_active
from client.privacy.dpsgd import Batch, per_image_gradients, weighted_loss
from client.training import predict
from shared.errors import PolicyRefusal
from shared.losses import Criterion
from shared.models import build_model
from shared.study import Study, Training

GAINS = (0.3, 30.0)
"""Standard deviation of the weights that are tried: usual ones, and such as amplify last bits."""


def check_company(study: Study, device: torch.device, physical_batch: int) -> None:
    """Refuse to compute where the bits of a row depend on its place or on the other rows.

    A patient moves the sum by no more than the clipping norm only if nobody else's contribution
    changes by the patient's presence, not even in the last bit, for weights can be made so that
    this bit decides everything. The layers are built so that it cannot; but the kernels are those
    of this machine. So rows of random numbers go through the study's model in several companies
    before the cohort is opened. Once in a process for each model, device, batch and number of
    threads; a small model takes a fraction of a second.

    Args:
        study: The plan.
        device: Where to compute.
        physical_batch: Rows at once.

    Raises:
        PolicyRefusal: `policy-device`: they do.
    """
    # What the computation of a row depends on, and nothing else, for a scenario has many studies.
    plain = Study(
        name="company",
        task=study.task,
        input=study.input,
        table=study.table,
        model=study.model,
        training=Training(augment=study.training.augment),
    )
    if differs := _differs(plain, device, physical_batch, torch.get_num_threads()):
        raise PolicyRefusal(
            "policy-device",
            f"on this machine the {differs} of a patient depends, in the last bits, on who else "
            "is computed with the patient, which no noise covers",
            "compute.threads, compute.physical_batch",
            "Set threads = 1, then device = 'cpu'; physical_batch = 1 always helps, at a cost; or "
            "install another build of PyTorch",
        )


@lru_cache(maxsize=64)
def _differs(study: Study, device: torch.device, batch: int, threads: int) -> str:
    """Return what of a row depends on others, "gradient" or "score"; empty: nothing."""
    del threads  # PyTorch's own; it is in the signature because the answer depends on it
    generator = torch.Generator().manual_seed(1)
    rows, strangers = _rows(study, batch, generator), _rows(study, batch, generator)
    draws = torch.rand(batch, NUMBERS_PER_VIEW, generator=generator, dtype=torch.float64)
    model, findings, places = build_model(study), study.task.findings, torch.arange(batch)
    for gain, order in zip(GAINS, ((places + 1) % batch, batch - 1 - places), strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(gain * torch.randn(parameter.shape, generator=generator))
        others, stays = rows[order], places % 3 < 2
        others[~stays] = strangers[~stays]
        gradients = _gradients(model, rows, draws, study, device)[order]
        moved = _gradients(model, others, draws[order], study, device)
        if not _same_bits(moved[stays], gradients[stays]):
            return "gradient"
        scores = predict(model, rows, device, batch, findings=findings)[order]
        if not _same_bits(
            predict(model, others, device, batch, findings=findings)[stays], scores[stays]
        ):
            return "score"
    return ""


def _rows(study: Study, n: int, generator: torch.Generator) -> torch.Tensor:
    """Return random images, or rows of a table, some with values missing."""
    if study.table is None:
        size, channels = study.input.size, study.input.channels
        return torch.rand(n, channels, size, size, generator=generator) * 2 - 1
    columns = study.table.columns
    rows = torch.rand(n, len(columns), generator=generator) * 2 - 1
    for at, column in enumerate(columns):
        if column.categories:
            rows[:, at] = torch.randint(0, len(column.categories), (n,), generator=generator)
    rows[torch.rand(rows.shape, generator=generator) < 0.2] = torch.nan
    return rows


def _gradients(
    model: nn.Module, rows: torch.Tensor, draws: torch.Tensor, study: Study, device: torch.device
) -> torch.Tensor:
    """Return each row's gradient as training computes it, [b, all parameters], on the CPU."""
    classes, findings, plan = len(study.task.classes), study.task.findings, study.training.augment
    shape = (classes, 2) if findings else (classes,)
    loss = Criterion(findings, 1.5, torch.ones(shape), torch.zeros(shape))
    targets = torch.zeros((len(rows), classes) if findings else len(rows), dtype=torch.int64)
    model.to(device).train()
    rows = rows.to(device)
    with per_image_gradients(model) as watched:
        batch = Batch(
            augment(rows, draws, plan) if is_active(plan) else rows,
            targets.to(device),
            torch.ones(len(rows), device=device),
            torch.arange(len(rows)),
        )
        torch.autograd.backward(weighted_loss(watched, batch, loss))
        watched_parameters: list[Any] = list(model.parameters())  # Opacus adds the attribute
        found = [p.grad_sample.flatten(1).cpu() for p in watched_parameters]
        for parameter in watched_parameters:
            parameter.grad_sample = None
    model.to("cpu")
    return torch.cat(found, dim=1)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two float32 tensors are the same, also where they are not numbers."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))
