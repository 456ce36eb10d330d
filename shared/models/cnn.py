"""The convolutional model: fixed wavelets, two or three stages of convolution, a dense head."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from shared.models.front import WAVELET_CHANNELS, wavelet_channels
from shared.models.layers import StandardisedConv2d
from shared.study import CnnModel


class Cnn(nn.Module):
    """Stages of standardised convolution, group norm, max pooling and ReLU; a dense head.

    The stages see each image in wavelet channels, on half its side. No layer couples the images
    of a batch. Inputs above 64 pixels are first averaged down to 64, and the last map is pooled
    to at most 8 by 8, so that the number of parameters hardly depends on the input's size.

    Args:
        plan: Widths of the stages and of the dense layer.
        size: Side of the input in pixels, 28 to 256.
        channels: Channels of the input.
        classes: Number of outputs.
    """

    def __init__(self, plan: CnnModel, size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.size = min(size, _LARGEST_SIZE)
        stages: list[nn.Module] = []
        self.seen = inputs = WAVELET_CHANNELS * channels
        for width in plan.widths:
            stages.append(_stage(inputs, width))
            inputs = width
        self.stages = nn.Sequential(*stages)
        grid = min(self.size // 2 // 2 ** len(plan.widths), _LARGEST_GRID)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        features = inputs * grid**2
        self.dense = nn.Identity() if plan.hidden == 0 else _dense(features, plan.hidden)
        self.head = nn.Linear(plan.hidden or features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [b, classes].

        Args:
            images: [b, channels, size, size] in [-1, 1], or what `see` made of them.
        """
        seen = images if images.shape[1] == self.seen else self.see(images)
        features = self.pool(self.stages(seen)).flatten(1)
        return cast(torch.Tensor, self.head(self.dense(features)))

    def see(self, images: torch.Tensor) -> torch.Tensor:
        """Return the wavelet channels of images: all that is done before anything learned.

        They are most of the work, and the same in every round: whoever trains on the same images
        again and again, as a simulation does, makes them once.

        Args:
            images: [b, channels, size, size] in [-1, 1].

        Returns:
            [b, WAVELET_CHANNELS * channels, side, side], side half of at most 64.
        """
        return wavelet_channels(functional.adaptive_avg_pool2d(images, self.size))


# Most pixels a side that the wavelets work on, most that the head sees, and groups of the norms.
_LARGEST_SIZE, _LARGEST_GRID, _GROUPS = 64, 8, 4


def _stage(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        StandardisedConv2d(inputs, width, kernel=3),
        nn.GroupNorm(_GROUPS, width, eps=1e-3),
        nn.MaxPool2d(2),  # before ReLU, which it commutes with, since that is less work
        nn.ReLU(),
    )


def _dense(features: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
