"""One round of local training: steps on random lots of patients, in place."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from client.arithmetic import fixed_arithmetic
from client.augment import augment, draw_views, is_active
from client.data.cohort import PatientSet
from client.privacy.dpsgd import Batch, Grid, add_noise, clipped_sum, per_image_gradients
from client.privacy.sampler import Lot, draw_lot
from client.privacy.stream import RandomStream
from client.terms import Term
from shared.errors import SiteError
from shared.losses import Criterion, make_loss
from shared.schedule import learning_rates
from shared.study import Study, Training

log = logging.getLogger(__name__)


def train_round(
    model: nn.Module,
    patients: PatientSet,
    study: Study,
    *,
    size: int,
    noise_multiplier: float,
    round_number: int,
    stream: RandomStream,
    device: torch.device,
    physical_batch: int,
    loss: Criterion | None = None,
    terms: Sequence[Term] = (),
) -> None:
    """Train the model in place for the study's `local_steps` of one round.

    Each step is one Poisson-subsampled Gaussian mechanism with the patient as unit (Abadi et al.
    2016); an empty lot is a step of noise alone, and so is each of a site without patients. The
    noised sum is divided by the expected lot and by the clipping norm C, so that the learning rate
    does not depend on C (De et al. 2022). Terms of other remedies correct that gradient, never a
    patient's.
    Without privacy everything is the same but the noise: clipped gradients train as well, and
    one learning rate serves every epsilon. The optimiser starts afresh each round: a site
    remembers nothing between rounds.

    Args:
        model: Any module Opacus accepts; moved to the device and back to the CPU.
        patients: The training patients.
        study: The approved plan.
        size: Training patients N as the site declared them, which the expected lot is of. The true
            number does not matter: a step that followed it would tell it.
        noise_multiplier: Standard deviation of the noise over `privacy.clip`; unused without
            privacy.
        round_number: 1 for the first, for the schedule.
        stream: Source of lots, image choices, views and noise.
        device: Where to compute.
        physical_batch: Rows computed at once. What a patient contributes depends on it in the last
            bits, and not on who else is in the lot.
        loss: The study's loss; None: the one it names, if that needs no counts.
        terms: Corrections of each step's noised, normalised gradient.

    Raises:
        PolicyRefusal: The loss needs counts and none was given.
        ValueError: Privacy is on and the noise is not finite and above 0.
    """
    plan, grid = study.training, Grid.of(study.privacy.clip)
    loss = make_loss(study) if loss is None else loss
    if study.privacy.enabled and not 0 < noise_multiplier < math.inf:
        raise ValueError("private training needs noise")
    log.info("training on %s", device)
    model.to(device).train()
    optimiser = _optimiser(model, plan)
    parameters = list(model.parameters())
    with per_image_gradients(model) as watched:
        for rate in learning_rates(study, round_number):
            lot = draw_lot(
                stream,
                patients.image_patient,
                len(patients),
                plan.sampling_rate,
                study.privacy.images_per_patient,
            )
            batches = lot_batches(patients, lot, study, stream, watched, physical_batch)
            total = clipped_sum(watched, batches, grid, loss)
            if study.privacy.enabled:
                add_noise(total, grid, noise_multiplier, stream)
            # From here on nothing is computed from patients, but from what was noised.
            unit = plan.sampling_rate * size * grid.clip / grid.step
            gradients = [
                (t.double() / unit).to(p.dtype) for t, p in zip(total, parameters, strict=True)
            ]
            for term in terms:
                term.correct(parameters, gradients)
            _step(optimiser, parameters, gradients, rate)
    model.to("cpu").eval().zero_grad(set_to_none=True)


def rows_at_once(study: Study, size: int, most: int) -> tuple[int, int]:
    """Return the rows of a batch in training and in scoring.

    A power of two that holds the expected lot, or the expected held-out patients, with one image
    each. It follows from what is declared, never from who is there, since blank rows fill up a
    batch and its size may show in the last bits.

    Args:
        study: The plan.
        size: Declared training patients.
        most: What the site allows, `compute.physical_batch`.
    """
    plan, held_out = study.training, study.data.held_out
    lot = plan.sampling_rate * size * (plan.augment.views if is_active(plan.augment) else 1)
    scored = size * held_out / (1 - held_out)
    trained, evaluated = (min(most, 2 ** math.ceil(math.log2(max(1, n)))) for n in (lot, scored))
    return trained, evaluated


def lot_batches(
    patients: PatientSet,
    lot: Lot,
    study: Study,
    stream: RandomStream,
    model: nn.Module,
    physical_batch: int,
) -> Iterator[Batch]:
    """Yield a lot's images, each in all its views, in batches of exactly `physical_batch` rows.

    Args:
        patients: All training patients.
        lot: Those of this step and their images.
        study: The plan; its augmentation says how many views.
        stream: Decides the views, for the whole lot before the first batch.
        model: Gives device and dtype.
        physical_batch: Rows at once; those for which no image is left are blank.
    """
    plan = study.training.augment
    views = plan.views if is_active(plan) else 1
    images, owner = lot.images.repeat_interleave(views), lot.owner.repeat_interleave(views)
    draws = draw_views(stream, len(images)) if is_active(plan) else None
    weights = 1 / torch.bincount(owner).to(torch.float64)[owner]
    targets = patients.labels[lot.patients][owner]
    parameter = next(model.parameters())
    for start in range(0, len(images), physical_batch):
        part, end = slice(start, start + physical_batch), start + physical_batch
        batch = _filled(patients.images[images[part]], physical_batch)
        batch = _move(batch, parameter).to(parameter.dtype)
        if draws is not None:
            batch = augment(batch, _filled(draws[part], physical_batch), plan)
        yield Batch(
            batch,
            _move(_filled(targets[part], physical_batch), parameter),
            _move(_filled(weights[part].to(parameter.dtype), physical_batch), parameter),
            _filled(owner[part], physical_batch, -1),
            goes_on=end < len(owner) and bool(owner[end] == owner[end - 1]),
        )


@torch.no_grad()
@fixed_arithmetic()
def predict(
    model: nn.Module,
    images: torch.Tensor,
    device: torch.device,
    physical_batch: int,
    *,
    findings: bool = False,
) -> torch.Tensor:
    """Return each image's probabilities, float32 [n, classes], on the CPU.

    Args:
        model: Moved to the device and back to the CPU.
        images: float32 [n, channels, size, size] in [-1, 1], or rows of a table [n, columns]; n
            may be 0.
        device: Where to compute.
        physical_batch: Rows computed at once: always as many, so that the bits of a score do not
            depend on who else is scored. They may depend on this number.
        findings: Whether each class is a finding with a probability of its own; otherwise the
            probabilities of an image sum to 1.
    """
    model.to(device).eval()
    parameter = next(model.parameters())
    parts = []
    for part in torch.split(images, physical_batch):
        rows = _move(_filled(part, physical_batch), parameter).to(parameter.dtype)
        logits = model(rows)[: len(part)].float()
        parts.append(_probabilities(logits, findings=findings).cpu())
    model.to("cpu")
    return torch.cat(parts)


def pick_device(wanted: str) -> torch.device:
    """Return the device to compute on.

    Args:
        wanted: `auto` (CUDA where there is one), `cpu` or `cuda`.

    Raises:
        SiteError: CUDA was asked for and there is none; nothing falls back in silence.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SiteError(
            "a CUDA device was asked for and PyTorch finds none",
            "compute.device",
            "Set it to 'cpu' or 'auto', or repair the driver",
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _probabilities(logits: torch.Tensor, *, findings: bool) -> torch.Tensor:
    """Return the probability of each class, or of each finding by itself, [b, classes]."""
    if not findings:
        return torch.softmax(logits, dim=1)
    # The sigmoid, by a softmax: PyTorch's own computes the last few numbers in other code.
    without = torch.zeros_like(logits)
    return torch.softmax(torch.stack([without, logits], dim=-1), dim=-1)[..., 1]


def _filled(rows: torch.Tensor, length: int, value: float = 0) -> torch.Tensor:
    """Return the rows with blank ones after them, `length` in all."""
    blank = rows.new_full((length - len(rows), *rows.shape[1:]), value)
    return torch.cat([rows, blank]) if len(blank) else rows


def _move(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bring a CPU tensor to a parameter's device, through pinned memory if that is a GPU."""
    if like.is_cuda:
        return tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor


def _optimiser(model: nn.Module, plan: Training) -> torch.optim.Optimizer:
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(
            model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=plan.learning_rate,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
    )


def _step(
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[torch.Tensor],
    rate: float,
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
