"""The convolutional model: two or three stages of convolution and pooling, and a dense head."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from shared.models.layers import StandardisedConv2d
from shared.study import CnnModel


class Cnn(nn.Module):
    """Stages of standardised convolution, group norm, max pooling and ReLU; a dense head.

    No layer couples the images of a batch. Inputs above 64 pixels are brought to at most 64 by
    the stride of the first convolution, and the last map is pooled to at most 8 by 8, so that the
    number of parameters hardly depends on the input's size.

    Args:
        plan: Widths of the stages and of the dense layer.
        size: Side of the input in pixels, 28 to 256.
        channels: Channels of the input.
        classes: Number of outputs.
    """

    def __init__(self, plan: CnnModel, size: int, channels: int, classes: int) -> None:
        super().__init__()
        stride = math.ceil(size / _LARGEST_MAP)
        side = math.ceil(size / stride) // 2 ** len(plan.widths)
        stages: list[nn.Module] = []
        for width in plan.widths:
            stages.append(_stage(channels, width, stride))
            channels, stride = width, 1
        self.stages = nn.Sequential(*stages)
        grid = min(side, _LARGEST_GRID)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        features = channels * grid**2
        self.dense = nn.Identity() if plan.hidden == 0 else _dense(features, plan.hidden)
        self.head = nn.Linear(plan.hidden or features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [b, classes] of images [b, channels, size, size] in [-1, 1]."""
        features = self.pool(self.stages(images)).flatten(1)
        return cast(torch.Tensor, self.head(self.dense(features)))


# Most pixels a side that a stage works on, most that the head sees, and groups of the norms.
_LARGEST_MAP, _LARGEST_GRID, _GROUPS = 64, 8, 4


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        StandardisedConv2d(channels, width, kernel=2 * stride + 1, stride=stride),
        nn.GroupNorm(_GROUPS, width, eps=1e-3),
        nn.MaxPool2d(2),  # before ReLU, which it commutes with, since that is less work
        nn.ReLU(),
    )


def _dense(features: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
