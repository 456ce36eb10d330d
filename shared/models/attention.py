"""The attention model: patches, learned positions and multi-head self-attention."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from shared.errors import StudyError
from shared.models.front import contrast_channels
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
        self.embed = nn.Sequential(_norm(values), nn.Linear(values, plan.width))
        self.positions = nn.Embedding(self.tokens, plan.width)
        self.blocks = nn.ModuleList(Block(plan.width, plan.heads) for _ in range(plan.depth))
        self.norm = _norm(plan.width)
        self.pool = nn.AdaptiveAvgPool2d(min(self.side, _LARGEST_GRID))
        self.head = nn.Linear(plan.width * min(self.side, _LARGEST_GRID) ** 2, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [b, classes] of images [b, channels, size, size] in [-1, 1]."""
        x = self._embedded(images)
        for block in self.blocks:
            x = block(x)
        places = self.norm(x).transpose(1, 2).unflatten(2, (self.side, self.side))
        return cast(torch.Tensor, self.head(self.pool(places).flatten(1)))

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
            _norm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
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
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

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


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-3)
