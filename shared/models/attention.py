"""The attention model: patches, learned positions and multi-head self-attention."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from shared.errors import StudyError
from shared.models.front import contrast_channels
from shared.models.layers import RowLinear
from shared.study import AttentionModel

MOST_TOKENS = 36**2

_LARGEST_GRID = 8  # places a side that the head reads


class Attention(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021) of layers Opacus knows.

    It sees each image in contrast channels, cut into patches that overlap by 2/7 of their side
    at each edge. The head reads every place by itself, of at most 8 by 8: a mean over all
    patches learns slowly under clipped, noised gradients.

    Args:
        plan: Side of the patches, width, depth and heads.
        size: Side of the input in pixels, a multiple of the patch.
        channels: Channels of the input.
        classes: Number of outputs.

    Raises:
        StudyError: There would be more patches than attention can afford.
    """

    places: torch.Tensor

    def __init__(self, plan: AttentionModel, size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.patch, self.overlap = plan.patch, 2 * plan.patch // 7
        self.side = size // plan.patch
        self.tokens = self.side**2
        if self.tokens > MOST_TOKENS:
            raise StudyError(
                f"patches of {plan.patch} pixels cut an image of {size} into {self.tokens}; the "
                f"most is {MOST_TOKENS}",
                "model.patch",
                f"Choose at least {math.ceil(size / math.isqrt(MOST_TOKENS))}, a divisor of {size}",
            )
        values = 2 * channels * (plan.patch + 2 * self.overlap) ** 2
        self.embed = nn.Sequential(_norm(values), RowLinear(values, plan.width))
        self.positions = nn.Embedding(self.tokens, plan.width)
        self.blocks = nn.ModuleList(Block(plan.width, plan.heads) for _ in range(plan.depth))
        self.norm = _norm(plan.width)
        grid = min(self.side, _LARGEST_GRID)
        self.register_buffer("places", _means(self.side, grid), persistent=False)
        self.head = RowLinear(plan.width * grid**2, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [b, classes] of images [b, channels, size, size] in [-1, 1]."""
        x = self._embedded(images)
        for block in self.blocks:
            x = block(x)
        places = torch.bmm(self.norm(x).transpose(1, 2), self.places.expand(len(x), -1, -1))
        return cast(torch.Tensor, self.head(places.flatten(1)))

    @torch.no_grad()
    def attention_map(self, images: torch.Tensor) -> torch.Tensor:
        """Return how much each patch attends to each other one.

        Returns:
            [b, depth, heads, tokens, tokens] in [0, 1]; the last axis sums to 1. Token i is
            the patch in row i // side and column i % side of the grid of patches.
        """
        x, maps = self._embedded(images), []
        for module in self.blocks:
            block = cast(Block, module)
            maps.append(block.attention.map(block.before(x)))
            x = block(x)
        return torch.stack(maps, dim=1)

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        patches = functional.unfold(
            contrast_channels(images),
            self.patch + 2 * self.overlap,
            stride=self.patch,
            padding=self.overlap,
        ).transpose(1, 2)
        # Expanded to the batch: a bare range would make one gradient of all images together.
        index = torch.arange(self.tokens, device=images.device).expand(len(images), -1)
        return cast(torch.Tensor, self.embed(patches) + self.positions(index))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before = _norm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp = nn.Sequential(
            _norm(width), RowLinear(width, 2 * width), nn.GELU(), RowLinear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform tokens [b, tokens, width]."""
        x = x + self.attention(self.before(x))
        return cast(torch.Tensor, x + self.mlp(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) whose weights live in linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = RowLinear(width, 3 * width)
        self.out = RowLinear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix tokens [b, tokens, width] by their attention to each other."""
        query, key, value = self._split(x)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return cast(torch.Tensor, self.out(mixed.transpose(1, 2).flatten(2)))

    def map(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention of tokens [b, tokens, width]: [b, heads, tokens, tokens]."""
        query, key, _ = self._split(x)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return torch.softmax(scores, dim=-1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        b, tokens, width = x.shape
        joint = cast(torch.Tensor, self.query_key_value(x))
        return joint.view(b, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)


def _means(side: int, grid: int) -> torch.Tensor:
    """Return the matrix that takes a map of side^2 tokens to means over grid^2 places.

    That of adaptive average pooling, whose own gradient on CUDA is summed in no fixed order.
    """
    each = torch.eye(side**2).view(-1, 1, side, side)
    return functional.adaptive_avg_pool2d(each, grid).flatten(1)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-3)
