"""Layers the models share, and how a model's first weights are drawn."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import nn
from torch.nn import functional


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters are brought to mean 0 and norm 1 before use.

    Weight standardisation (Qiao et al. 2019). The parameter is the raw weight, so its gradient
    is that of the standardised one sent through the Jacobian of `standardised`.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the filters, odd; the input is padded with zeros by half of it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        self.pad = kernel // 2
        super().__init__(inputs, outputs, kernel, padding=self.pad, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve x, [b, in, h, w], with the standardised filters."""
        weight, _ = self.standardised()
        return functional.conv2d(x, weight, padding=self.pad)

    def standardised(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the filters w = c / n and n = sqrt(|c|^2 + 1e-4), c being the centred filter.

        Returns:
            [out, in, kernel, kernel] and [out, 1, 1, 1].
        """
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        norm = (centred.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-4).sqrt()
        return centred / norm, norm


class RowLinear(nn.Linear):
    """A linear map that takes each row of a batch as a product of its own.

    One product of all rows is computed in blocks, whose last one other code computes: the bits of
    a row would depend on how many there are and on its place. Products of one shape do not.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x, [b, in] or [b, tokens, in], to as many outputs."""
        rows = x if x.dim() == 3 else x[:, None]
        product = torch.bmm(rows, self.weight.t().expand(len(x), -1, -1)) + self.bias
        return product if x.dim() == 3 else product[:, 0]


def row_sums(x: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension, by the same additions for every row.

    On CUDA a sum reads four numbers at a time, and what of a row lies before or behind these by
    other code: how much that is depends on where the row begins. So rows are filled up with zeros
    to a multiple of four.
    """
    rest = -x.shape[-1] % 4
    return (functional.pad(x, (0, rest)) if rest else x).sum(dim=-1)


def draw_weights(model: nn.Module, seed: str) -> None:
    """Draw every parameter of the model anew: the same bits on every platform.

    Filters and linear maps are nearly Gaussian of variance 1 / fan-in, positions small, norms the
    identity, biases and the last layer, `head`, zero.

    Args:
        model: Float32, on the CPU; changed in place.
        seed: Any text; with a parameter's name it decides that parameter's weights.

    Raises:
        TypeError: The model has a layer this function does not know.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            _draw(module.weight, 1 / math.sqrt(fan_in), f"{seed} {name}.weight")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _draw(module.weight, 0.02, f"{seed} {name}.weight")
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"no rule to draw the weights of {type(module).__name__}")
    nn.init.zeros_(model.get_parameter("head.weight"))


def _draw(weight: torch.Tensor, std: float, seed: str) -> None:
    """Fill a tensor with standard draws times `std`.

    A standard draw is the sum of twelve uniform numbers less their mean, of variance 1: whole
    numbers throughout, from the ChaCha20 stream whose key is the SHA-256 of the seed. Only the
    product with `std` and its float32 are rounded, which IEEE 754 does the same way everywhere.
    """
    stream = Cipher(algorithms.ChaCha20(hashlib.sha256(seed.encode()).digest(), bytes(16)), None)
    words = np.frombuffer(stream.encryptor().update(bytes(4 * 12 * weight.numel())), "<u4")
    draws = words.reshape(-1, 12).sum(axis=1, dtype=np.int64) - 6 * 2**32
    with torch.no_grad():
        values = (draws / 2**32 * std).astype(np.float32)
        weight.copy_(torch.from_numpy(values).view_as(weight))
