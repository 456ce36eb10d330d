"""Layers the models share, and how a model's first weights are drawn."""

from __future__ import annotations

import math

import torch
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


def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter of the model anew, in the order of its modules.

    Filters and linear maps are Gaussian of variance 1 / fan-in, positions small, norms the
    identity, biases zero. A model sets its last layer to zero itself.

    Raises:
        TypeError: The model has a layer this function does not know.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=1 / math.sqrt(fan_in), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"no rule to draw the weights of {type(module).__name__}")
