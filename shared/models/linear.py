"""The linear model: fixed wavelets and one layer, for hospitals with few patients."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from shared.models.front import SeesWavelets
from shared.models.layers import RowLinear
from shared.study import LinearModel


class Linear(SeesWavelets):
    """Logistic regression on each image's wavelet channels, averaged over a grid of places.

    What Tramèr and Boneh (2021) found best where privacy is strict or patients are few: noise grows
    with the number of weights, and these are a tenth of the cnn's. The features are divided by
    the root of their number, so that the gradients of most patients are about as long as the
    usual clipping norm of 1 and tell an unsure patient from a sure one.

    Args:
        plan: Places a side.
        size: Side of the input in pixels, 28 to 256.
        channels: Channels of the input.
        classes: Number of outputs.
    """

    def __init__(self, plan: LinearModel, size: int, channels: int, classes: int) -> None:
        super().__init__(size, channels)
        self.pool = nn.AdaptiveAvgPool2d(plan.grid)
        features = self.seen * plan.grid**2
        self.scale = features**-0.5
        self.head = RowLinear(features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [b, classes].

        Args:
            images: [b, channels, size, size] in [-1, 1], or what `see` made of them.
        """
        places = self.pool(self.seen_of(images)).flatten(1)
        return cast(torch.Tensor, self.head(places * self.scale))
