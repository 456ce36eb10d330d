"""The convolutional model: fixed wavelets, two or three stages of convolution, a dense head."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from shared.models.front import SeesWavelets
from shared.models.layers import RowLinear, StandardisedConv2d
from shared.study import CnnModel


class Cnn(SeesWavelets):
    """Stages of standardised convolution, group norm, max pooling and ReLU; a dense head.

    The stages see each image in wavelet channels, on half its side. No layer couples the images
    of a batch. Inputs above 64 pixels are first averaged down to 64, so that the last map is at
    most 8 by 8, and the number of parameters hardly depends on the input's size.

    Args:
        plan: Widths of the stages and of the dense layer.
        size: Side of the input in pixels, 28 to 256.
        channels: Channels of the input.
        classes: Number of outputs.
    """

    def __init__(self, plan: CnnModel, size: int, channels: int, classes: int) -> None:
        super().__init__(size, channels)
        stages: list[nn.Module] = []
        inputs = self.seen
        for width in plan.widths:
            stages.append(_stage(inputs, width))
            inputs = width
        self.stages = nn.Sequential(*stages)
        features = inputs * (self.size // 2 // 2 ** len(plan.widths)) ** 2
        self.dense = nn.Identity() if plan.hidden == 0 else _dense(features, plan.hidden)
        self.head = RowLinear(plan.hidden or features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [b, classes].

        Args:
            images: [b, channels, size, size] in [-1, 1], or what `see` made of them.
        """
        features = self.stages(self.seen_of(images)).flatten(1)
        return cast(torch.Tensor, self.head(self.dense(features)))


_GROUPS = 4  # of the norms


def _stage(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        StandardisedConv2d(inputs, width, kernel=3),
        nn.GroupNorm(_GROUPS, width, eps=1e-3),
        nn.MaxPool2d(2),  # before ReLU, which it commutes with, since that is less work
        nn.ReLU(),
    )


def _dense(features: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(RowLinear(features, hidden), nn.ReLU())
