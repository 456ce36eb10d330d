"""The private gradient: one clipped contribution per patient in whole numbers, summed, noised."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from client.arithmetic import fixed_arithmetic
from client.privacy.rounded_gaussian import at_least
from client.privacy.stream import RandomStream
from shared.losses import Criterion
from shared.models.layers import RowLinear, StandardisedConv2d, row_sums

CROSS_ENTROPY = Criterion()
HAIR = 2.0**-20
"""How far below the radius a contribution is clipped, as a part of it, so that rounding in the norm
cannot lift it above: it is less in a gradient of up to 2^32 numbers."""
ROWS = 8
"""Most gradients that are clipped at once: the processor's cache holds them."""


@dataclass(frozen=True)
class Batch:
    """As many images of a lot as are computed at once; a patient may span several batches.

    All batches of a site have the same number of rows, for the bits of a row's gradient may depend
    on how many there are, and must not depend on who else is there. Rows that no image is left for
    are at the end.

    Attributes:
        images: [b, channels, size, size], or rows of a table [b, columns], on the model's device.
        targets: Label of each image's patient: class index, int64 [b], or findings [b, findings].
        weights: 1 / (number of images and views of the image's patient in this step), [b]; 0 of
            rows without an image.
        owner: Position of the image's patient in the lot, int64 [b], ascending over batches; -1 of
            rows without an image; on the CPU, for it steers the computation.
        goes_on: Whether the next batch has more images of the last patient.
    """

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    owner: torch.Tensor
    goes_on: bool = False


@dataclass(frozen=True)
class Grid:
    """The whole steps in which contributions are counted; public, for it follows from C alone.

    Attributes:
        clip: Largest norm C of a contribution, above 0.
        step: A power of two between C 2^-26 and C 2^-25.
        radius: Largest norm in steps: C / step, rounded down; in [2^25, 2^26).
    """

    clip: float
    step: float
    radius: int

    @classmethod
    def of(cls, clip: float) -> Grid:
        """Return the grid of the clipping norm C."""
        # A finer one would take the squares of a radius beyond what float64 holds exactly.
        step = math.ldexp(1.0, math.frexp(clip)[1] - 26)
        return cls(clip, step, math.floor(clip / step))


def weighted_loss(model: nn.Module, batch: Batch, loss: Criterion) -> torch.Tensor:
    """Return the sum over the batch of weight times loss: no image affects another."""
    return (loss(model(batch.images), batch.targets) * batch.weights).sum()


@contextmanager
def per_image_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Let Opacus keep the gradient of every image in `parameter.grad_sample` meanwhile.

    Inside, arithmetic is fixed (`client.arithmetic`): a gradient's bits are its image's alone.
    """
    from opacus.grad_sample import GradSampleModule, register_grad_sampler
    from opacus.grad_sample.linear import compute_linear_grad_sample

    register_grad_sampler(StandardisedConv2d)(standardised_conv_gradient)
    register_grad_sampler(RowLinear)(compute_linear_grad_sample)
    watched = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
    try:
        with fixed_arithmetic(), warnings.catch_warnings():
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
    patches = functional.unfold(
        activations[0], layer.kernel_size, padding=layer.pad, stride=layer.stride
    )
    scaled = (backprops / norm.view(-1, 1, 1)).flatten(2)
    gradient = torch.bmm(scaled, patches.transpose(1, 2))
    w = weight.flatten(1)
    along = row_sums(gradient * w)[:, :, None]
    mean = row_sums(gradient)[:, :, None] / gradient.shape[2]
    # The transposed Jacobian of w = c / n takes g to the centred (g - w <w, g>) / n.
    gradient.sub_(along * w).sub_(mean)
    return {layer.weight: gradient.view(-1, *weight.shape)}


def clipped_sum(
    model: nn.Module, batches: Iterable[Batch], grid: Grid, loss: Criterion = CROSS_ENTROPY
) -> list[torch.Tensor]:
    """Sum the patients' gradients in whole steps of the grid, each clipped to the grid's radius.

    A patient's gradient is the weighted sum over the patient's images, in their order, in
    whichever batches they are. It is scaled down to the radius if it is longer, and each number is
    cut towards zero to whole steps, so that it only gets shorter. A patient whose gradient is not
    finite contributes zero.

    Whole numbers make the sum exact: with another patient it changes by that patient's
    contribution and nothing else. A contribution's numbers are below 2^26, so a sum over 2^35
    patients stays below 2^61.

    Args:
        model: As given by `per_image_gradients`, in training mode.
        batches: The lot's images; may be empty.
        grid: Of the clipping norm.
        loss: Of each image.

    Returns:
        One tensor per parameter of the model, int64, of its shape, on its device, in steps.
    """
    parameters = list(model.parameters())
    total = [torch.zeros_like(p, dtype=torch.int64) for p in parameters]
    begun: list[torch.Tensor] = []
    for batch in batches:
        torch.autograd.backward(weighted_loss(model, batch, loss))
        sums = _by_patient([_taken(p) for p in parameters], batch.owner, begun)
        begun = []
        if batch.goes_on:
            last = int(batch.owner[-1] - batch.owner[0])
            begun = [s[last].clone() for s in sums]
            for s in sums:
                s[last] = 0
        _add_clipped(total, sums, _at_once(len(batch.owner)), grid)
    return total


def add_noise(
    total: list[torch.Tensor], grid: Grid, noise_multiplier: float, stream: RandomStream
) -> None:
    """Add rounded Gaussian noise to every number, in place.

    As the sum is whole, adding rounded noise is rounding the sum with noise added in real
    numbers: post-processing of the Gaussian mechanism.

    Args:
        total: As given by `clipped_sum`.
        grid: The same as there.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        stream: Source of the noise.

    Raises:
        ValueError: The noise is not above 0, or so large that it would overflow.
    """
    s = at_least(noise_multiplier * (grid.clip / grid.step))
    for t in total:
        t += stream.rounded_gaussian(t.shape, s).to(t.device)


def _taken(parameter: nn.Parameter) -> torch.Tensor:
    """Take the gradients of the batch's rows off the parameter, [b, n]."""
    watched: Any = parameter  # Opacus adds the attribute
    gradients: torch.Tensor = watched.grad_sample.flatten(1)
    watched.grad_sample = watched.grad = None
    return gradients


def _by_patient(
    gradients: list[torch.Tensor], owner: torch.Tensor, begun: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Sum the rows' gradients by patient, each patient's rows in their order.

    Args:
        gradients: Of each parameter, [b, n].
        owner: As in `Batch`.
        begun: What the first patient has from earlier batches, [n] each; may be empty.

    Returns:
        [m, n] each, the patients in the first rows and zeros in the others: whole groups of
        `_at_once`.
    """
    there = int((owner >= 0).sum())
    place = owner[:there] - owner[0]
    images = torch.bincount(place)
    if len(images) == len(owner) and not begun:
        return gradients
    group = _at_once(len(owner))
    height = math.ceil(len(images) / group) * group
    sums = [g.new_zeros(height, g.shape[1]) for g in gradients]
    for s, earlier in zip(sums, begun, strict=False):
        s[0] = earlier
    slot = torch.arange(there) - (images.cumsum(0) - images)[place]
    for at in range(int(images.max())):
        # No patient twice in one addition, so nothing but the slots decides the order.
        rows = torch.nonzero(slot == at).flatten()
        for s, g in zip(sums, gradients, strict=True):
            s.index_add_(0, place[rows].to(s.device), g[rows.to(g.device)])
    return sums


def _at_once(batch: int) -> int:
    """Return how many gradients are clipped at once: always as many, so it divides the batch.

    What computes a row, in clipping too, must not depend on its place or on who is there.
    """
    return next(n for n in range(ROWS, 0, -1) if batch % n == 0)


def _add_clipped(
    total: list[torch.Tensor], gradients: list[torch.Tensor], group: int, grid: Grid
) -> None:
    """Add the clipped gradients of patients, [m, n] each, to the total, in place.

    In float64 the norm has an error below `HAIR`, and whole numbers of so few rows add up exactly.
    """
    longest = grid.radius * (1 - HAIR)
    sizes = [g.shape[1] for g in gradients]
    for some in zip(*(torch.split(g, group) for g in gradients), strict=True):
        rows = torch.cat(some, dim=1).double()
        norm = row_sums(rows.square()).sqrt()
        whole = rows.mul_((longest / norm).clamp(max=1 / grid.step)[:, None]).trunc_()
        kept = norm.isfinite() & within(whole, grid.radius)
        if not kept.all():
            whole.masked_fill_(~kept[:, None], 0)
        sums = torch.split(whole.sum(dim=0).to(torch.int64), sizes)
        for t, s in zip(total, sums, strict=True):
            t += s.view_as(t)


def within(whole: torch.Tensor, radius: int) -> torch.Tensor:
    """Return which rows of whole numbers have a norm of at most the radius, exactly; bool [p].

    Squares and their sums are exact in float64 below 2^53, in any order, and do not round to less
    if they are more. The root is correctly rounded: that of radius^2 is the radius, and that of
    the next whole number is above it, since for a radius below 2^26 they differ by 2^-27 or more.

    Args:
        whole: float64 [p, n].
        radius: In [2^25, 2^26).
    """
    norms: torch.Tensor = torch.linalg.vector_norm(whole, dim=1)
    return norms <= radius
