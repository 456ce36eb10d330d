"""The private gradient: one clipped contribution per patient, summed, with noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from client.privacy.stream import RandomStream
from shared.losses import Criterion
from shared.models.layers import StandardisedConv2d

CROSS_ENTROPY = Criterion()
BLOCK = 128
"""Numbers of a gradient whose squares are summed in float32."""


@dataclass(frozen=True)
class Batch:
    """As many images of a lot as are computed at once; a patient may span several batches.

    Attributes:
        images: [b, channels, size, size], or rows of a table [b, columns], on the model's device.
        targets: Label of each image's patient: class index, int64 [b], or findings [b, findings].
        weights: 1 / (number of images and views of the image's patient in this step), [b].
        owner: Position of the image's patient in the lot, int64 [b], ascending over batches; on
            the CPU, for it steers the computation.
    """

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    owner: torch.Tensor


def weighted_loss(model: nn.Module, batch: Batch, loss: Criterion) -> torch.Tensor:
    """Return the sum over the batch of weight times loss: no image affects another."""
    with torch.autocast("cuda", torch.bfloat16, enabled=_may_autocast(batch.images)):
        logits = model(batch.images)
    return (loss(logits.to(batch.weights.dtype), batch.targets) * batch.weights).sum()


@contextmanager
def per_image_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Let Opacus keep the gradient of every image in `parameter.grad_sample` meanwhile."""
    from opacus.grad_sample import GradSampleModule, register_grad_sampler

    register_grad_sampler(StandardisedConv2d)(standardised_conv_gradient)
    watched = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
    try:
        with warnings.catch_warnings():
            # The first layers' inputs need no gradient; Opacus does not use it either.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield watched
    finally:
        watched.to_standard_module()
        for parameter in model.parameters():
            parameter.grad = None


def standardised_conv_gradient(
    layer: StandardisedConv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    """Compute the gradient of the raw weight for each image (a grad sampler of Opacus).

    Args:
        layer: The layer.
        activations: Its input, [b, in, h, w].
        backprops: Gradient of the loss by its output, [b, out, h', w'].
    """
    weight, norm = layer.standardised()
    x = activations[0].to(norm.dtype)  # after autocast, input and output may be of half width
    patches = functional.unfold(x, layer.kernel_size, padding=layer.pad, stride=layer.stride)
    scaled = (backprops.to(norm.dtype) / norm.view(-1, 1, 1)).flatten(2)
    gradient = torch.bmm(scaled, patches.transpose(1, 2))
    w = weight.flatten(1)
    along = torch.einsum("bok,ok->bo", gradient, w)[:, :, None]
    # The transposed Jacobian of w = c / n takes g to the centred (g - w <w, g>) / n.
    gradient.addcmul_(along, w, value=-1).sub_(gradient.mean(dim=2, keepdim=True))
    return {layer.weight: gradient.view(-1, *weight.shape)}


def clipped_sum(
    model: nn.Module, batches: Iterable[Batch], clip: float, loss: Criterion = CROSS_ENTROPY
) -> list[torch.Tensor]:
    """Sum the patients' gradients, each first scaled down to norm `clip` if it is longer.

    A patient's gradient is the weighted sum over the patient's images, in whichever batches they
    are. Norms are exact enough for any number of parameters (`_squared_norms`). A patient whose
    gradient is not finite contributes zero.

    Args:
        model: As given by `per_image_gradients`, in training mode.
        batches: The lot's images; may be empty.
        clip: Largest norm C of a contribution.
        loss: Of each image.

    Returns:
        One tensor per parameter of the model, of its shape.
    """
    parameters = list(model.parameters())
    total = [torch.zeros_like(p, dtype=_wide(p.dtype)) for p in parameters]
    unfinished: list[torch.Tensor] = []
    last = -1
    for batch in batches:
        torch.autograd.backward(weighted_loss(model, batch, loss))
        first = int(batch.owner[0])
        sums = [_per_patient(p, batch.owner - first) for p in parameters]
        if unfinished and last == first:
            for s, rest in zip(sums, unfinished, strict=True):
                s[0] += rest[0]
        elif unfinished:
            _add_clipped(total, unfinished, clip)
        # The next batch may hold more of the last patient, so that one waits.
        unfinished, last = [s[-1:].clone() for s in sums], int(batch.owner[-1])
        _add_clipped(total, [s[:-1] for s in sums], clip)
    if unfinished:
        _add_clipped(total, unfinished, clip)
    return [t.view_as(p) for t, p in zip(total, parameters, strict=True)]


def add_noise(total: list[torch.Tensor], stream: RandomStream, std: float) -> None:
    """Add Gaussian noise of standard deviation `std` to every number, in place."""
    for t in total:
        t += stream.gaussian(t.shape, std).to(t.device, t.dtype)


def _per_patient(parameter: nn.Parameter, owner: torch.Tensor) -> torch.Tensor:
    """Take the gradients of the batch's images off the parameter, summed by patient, [p, n]."""
    watched: Any = parameter  # Opacus adds the attribute
    gradients: torch.Tensor = watched.grad_sample.flatten(1)
    watched.grad_sample = watched.grad = None
    gradients = gradients.to(_wide(gradients.dtype))
    patients = int(owner[-1]) + 1
    if patients == len(owner):
        return gradients
    sums = gradients.new_zeros(patients, gradients.shape[1])
    return sums.index_add_(0, owner.to(sums.device), gradients)


def _add_clipped(total: list[torch.Tensor], gradients: list[torch.Tensor], clip: float) -> None:
    """Add the clipped gradients of some patients, each [p, n], to the total, in place."""
    norm = torch.stack([_squared_norms(g) for g in gradients]).sum(dim=0).sqrt()
    finite = norm.isfinite()
    # A hair below C, so that rounding in the norm cannot lift a contribution above it.
    hair = BLOCK * torch.finfo(gradients[0].dtype).eps / 2
    factor = (clip * (1 - hair) / norm).clamp(max=1).to(gradients[0].dtype)
    if not finite.all():
        factor = factor.where(finite, 0)
        gradients = [g.where(finite[:, None], 0) for g in gradients]
    for t, g in zip(total, gradients, strict=True):
        t += (factor @ g).view_as(t)


def _squared_norms(gradients: torch.Tensor) -> torch.Tensor:
    """Return the squared norm of each row of [p, n], float64 [p].

    Summed in float32 a norm loses up to 4e-4 of itself by rounding where n is 1e7. In blocks,
    whose squares are then summed in float64, it loses at most 65 times 2^-24 for any n and in any
    order (BLOCK roundings, halved by the root, and the root's own), and costs a fourth of float64
    throughout.
    """
    n = gradients.shape[1]
    whole = n // BLOCK * BLOCK
    blocks = gradients[:, :whole].view(len(gradients), n // BLOCK, BLOCK)
    rest = torch.linalg.vector_norm(gradients[:, whole:], dim=1)
    norms = torch.linalg.vector_norm(blocks, dim=2)
    squares: torch.Tensor = norms.double().square().sum(dim=1) + rest.double().square()
    return squares


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _may_autocast(images: torch.Tensor) -> bool:
    return images.is_cuda and images.dtype == torch.float32
