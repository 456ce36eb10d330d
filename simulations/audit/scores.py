"""How much a round's update looks as if a canary had been in the training data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from simulations.audit.canaries import SEARCHED

CHUNK = 256


@dataclass(frozen=True)
class Probe:
    """A canary's gradient at some weights, where it is looked for, in units of the clip norm.

    Attributes:
        direction: Unit vectors in the searched parameter, [canaries, numbers].
        strength: Length there of the clipped gradient over C, in [0, 1], [canaries].
    """

    direction: torch.Tensor
    strength: torch.Tensor


def probe(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, clip: float) -> Probe:
    """Compute the canaries' gradients, one by one and without the code that is audited.

    Args:
        model: With the weights before the round.
        images: One image of each canary, [canaries, channels, size, size].
        labels: Their classes, int64 [canaries].
        clip: The norm C the product clips to.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    directions, strengths = [], []
    for x, y in zip(torch.split(images, CHUNK), torch.split(labels, CHUNK), strict=True):
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
        norms = {name: g.flatten(1).norm(dim=1) for name, g in gradients.items()}
        whole = torch.stack(list(norms.values())).norm(dim=0).clamp_min(1e-30)
        here = norms[SEARCHED]
        directions.append(gradients[SEARCHED].flatten(1) / here.clamp_min(1e-30)[:, None])
        strengths.append((clip / whole).clamp_max(1) * here / clip)
    return Probe(torch.cat(directions), torch.cat(strengths))


def log_likelihood_ratio(
    seen: torch.Tensor, strength: torch.Tensor, noise: float, rate: float, steps: int
) -> torch.Tensor:
    """Compare "included" with "left out", given the noised sum along a canary's direction.

    A canary that is included is in Binomial(steps, rate) of the round's lots, so its projection
    is k strength + N(0, steps noise^2) with that k; without it k is 0. By Neyman and Pearson no
    score of this projection tells the two apart better.

    Args:
        seen: Projection of the sum over the round's steps, over C, float64 [canaries].
        strength: From `Probe`, [canaries].
        noise: The noise multiplier that is claimed.
        rate: Sampling rate.
        steps: Steps of the round.

    Returns:
        float64 [canaries].
    """
    from scipy.stats import binom

    times = torch.arange(steps + 1, dtype=torch.float64)[:, None]
    chance = torch.from_numpy(binom.logpmf(times.numpy(), steps, rate))
    shift = times * strength.double()
    exponent = (shift * seen.double() - shift.square() / 2) / (steps * noise**2)
    return torch.logsumexp(chance + exponent, dim=0)
