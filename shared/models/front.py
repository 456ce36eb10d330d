"""Fixed first steps of the models: channels in which anatomy counts and exposure does not.

They are computed from each image alone and have nothing to learn, so they cost no privacy.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from shared.models.layers import row_sums


class SeesWavelets(nn.Module):
    """Base of models that see each image in wavelet channels, on half its side.

    Args:
        size: Side of the images in pixels, at least 28; above 64 they are averaged down to 64.
        channels: Channels of the images.
    """

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.size, self.seen = min(size, _LARGEST_SIZE), WAVELET_CHANNELS * channels

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

    def seen_of(self, images: torch.Tensor) -> torch.Tensor:
        """Return the wavelet channels of images, or of what `see` made of them already."""
        return images if images.shape[1] == self.seen else self.see(images)


_LARGEST_SIZE = 64  # pixels a side that the wavelets work on


def contrast_channels(images: torch.Tensor) -> torch.Tensor:
    """Return each image standardised, and beside it its local contrast.

    The local contrast is the difference from a Gaussian mean over the local standard deviation
    (Jarrett et al. 2009), whose width is about a tenth of the image's.

    Args:
        images: [b, channels, size, size] in [-1, 1].

    Returns:
        [b, 2 * channels, size, size].
    """
    centred = images - _means(images)
    spread = (_means(centred.square()) + 1e-3).sqrt()
    detail = images - _local_mean(images)
    local = (_local_mean(detail.square()) + 0.02).sqrt()
    return torch.cat([centred / spread, detail / local], dim=1)


def wavelet_channels(images: torch.Tensor) -> torch.Tensor:
    """Return the contrast channels, and how strong the local contrast waves in each direction.

    The first order of a scattering transform (Bruna and Mallat 2013), which gives private
    training better features to start from (Tramèr and Boneh 2021): the modulus of the local
    contrast's Morlet wavelets in 8 directions and 2 octaves. Constants bring all channels to
    about mean 0 and deviation 1; means over 4 by 4 pixels halve the side.

    Args:
        images: [b, channels, size, size] in [-1, 1], size at least 28.

    Returns:
        [b, WAVELET_CHANNELS * channels, size // 2, size // 2].
    """
    standardised, contrast = contrast_channels(images).chunk(2, dim=1)
    bands = [standardised, contrast / 0.5]
    bands += [(_strength(contrast, octave) - 0.1) / 0.06 for octave in range(_OCTAVES)]
    seen = torch.cat(bands, dim=1)
    return functional.avg_pool2d(seen, 4, stride=2, padding=1, count_include_pad=False)


_DIRECTIONS, _OCTAVES = 8, 2
WAVELET_CHANNELS = 2 + _DIRECTIONS * _OCTAVES


def _means(images: torch.Tensor) -> torch.Tensor:
    """Return the mean of each image, [b, 1, 1, 1]."""
    flat = images.flatten(1)
    return (row_sums(flat) / flat.shape[1])[:, None, None, None]


def _strength(x: torch.Tensor, octave: int) -> torch.Tensor:
    """Return the modulus of an octave's wavelets, [b, channels * directions, size, size]."""
    wavelets = _morlet(octave, x)
    pad = (wavelets.shape[-1] // 2,) * 4
    planes = functional.pad(x.flatten(0, 1)[:, None], pad, mode="reflect")
    real, imaginary = functional.conv2d(planes, wavelets).chunk(2, dim=1)
    modulus = (real.square() + imaginary.square() + 1e-8).sqrt()
    return modulus.reshape(len(x), x.shape[1] * _DIRECTIONS, *x.shape[2:])


def _morlet(octave: int, like: torch.Tensor) -> torch.Tensor:
    """Return the wavelets' real, then their imaginary parts, [2 * directions, 1, k, k].

    A plane wave, 8/3 pixels long in octave 0, less the constant that makes the sum 0, under a
    Gaussian of integral 1 that is twice as wide across the wave's direction as along it.
    """
    sigma, frequency = 0.8 * 2**octave, 0.75 * math.pi / 2**octave
    radius = math.ceil(3 * sigma)
    at = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(at, at, indexing="ij")
    turns = torch.arange(_DIRECTIONS, device=like.device, dtype=like.dtype)
    angle = (turns * math.pi / _DIRECTIONS)[:, None, None]
    along, across = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    hill = torch.exp(-(along.square() + across.square() / 4) / (2 * sigma**2))
    hill = hill / (4 * math.pi * sigma**2)
    waves = torch.stack([torch.cos(frequency * along), torch.sin(frequency * along)])
    constant = (hill * waves).sum(dim=(2, 3), keepdim=True) / hill.sum(dim=(1, 2))[:, None, None]
    wavelets: torch.Tensor = hill * (waves - constant)
    return wavelets.flatten(0, 1)[:, None]


def _local_mean(x: torch.Tensor) -> torch.Tensor:
    """Convolve with a Gaussian of 3/28 of the side; outside, the edge goes on.

    Done on 28 by 28 pixels, for the result is smooth.
    """
    channels, size = x.shape[1:3]
    at = torch.arange(-_RADIUS, _RADIUS + 1, device=x.device, dtype=x.dtype)
    taps = torch.exp(-at.square() / (2 * _SIGMA**2))
    row = (taps / taps.sum()).expand(channels, 1, 1, -1)
    small = functional.adaptive_avg_pool2d(x, 28)
    small = functional.pad(small, (_RADIUS,) * 4, mode="replicate")
    small = functional.conv2d(small, row, groups=channels)
    small = functional.conv2d(small, row.transpose(2, 3), groups=channels)
    return functional.interpolate(small, size=size, mode="bilinear")


_SIGMA, _RADIUS = 3, 7
