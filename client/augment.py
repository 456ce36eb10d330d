"""Random views of images, every one drawn from the image alone."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from client.privacy.stream import RandomStream
from shared.study import Augment

NUMBERS_PER_VIEW = 7


def is_active(plan: Augment) -> bool:
    """Return whether the plan changes images at all."""
    return bool(plan.shift or plan.rotate or plan.scale or plan.flip or plan.intensity)


def draw_views(stream: RandomStream, n: int) -> torch.Tensor:
    """Draw what decides `n` views: uniform numbers in [0, 1), float64 [n, 7]."""
    return stream.uniform(n * NUMBERS_PER_VIEW).view(n, NUMBERS_PER_VIEW)


def augment(images: torch.Tensor, draws: torch.Tensor, plan: Augment) -> torch.Tensor:
    """Shift, rotate, scale, mirror and re-expose each image as its draws say.

    Args:
        images: [n, channels, size, size] in [-1, 1].
        draws: Uniform numbers in [0, 1), [n, 7], from `draw_views`.
        plan: The largest changes; what it leaves at 0 is not done.

    Returns:
        Images of the same shape; places from outside show the nearest edge.
    """
    d = draws.to(images.device, images.dtype)
    signed = 2 * d - 1
    if plan.shift or plan.rotate or plan.scale or plan.flip:
        angle = signed[:, 0] * math.radians(plan.rotate)
        zoom = 1 + signed[:, 1] * plan.scale
        mirror = 1 - 2 * (d[:, 2] < 0.5).to(d.dtype) if plan.flip else torch.ones_like(zoom)
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        shift = 2 * plan.shift * signed[:, 3:5]
        rows = [
            torch.stack([mirror * cos, -sin, shift[:, 0]], dim=1),
            torch.stack([mirror * sin, cos, shift[:, 1]], dim=1),
        ]
        grid = functional.affine_grid(
            torch.stack(rows, dim=1), list(images.shape), align_corners=False
        )
        images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if plan.intensity:
        gain = 1 + plan.intensity * signed[:, 5]
        offset = plan.intensity * signed[:, 6]
        images = images * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)
    return images
