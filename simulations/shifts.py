"""How sites' images differ: scanners, bias fields, blur, noise, resolution, inversion."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field
from scipy.ndimage import gaussian_filter

from shared.study_parts import Plan
from simulations.parts import Which
from simulations.scanners import Scanner, scanner

Pixels = npt.NDArray[np.float32]
"""float32 [n_images, channels, size, size] in [0, 1]."""


class Scanners(Plan):
    """Every site has a scanner of its own: another gain, offset, blur and noise."""

    kind: Literal["scanners"]
    sites: Which = "all"

    def __call__(self, images: Pixels, site: int, rng: np.random.Generator) -> Pixels:
        """Return the images as the scanner of this site takes them."""
        device = scanner(site)
        return device.expose(_blurred(images, device.blur), rng)


class Gain(Plan):
    """Contrast and brightness: each image becomes gain * image + offset, cut to the range."""

    kind: Literal["gain"]
    sites: Which = "all"
    gain: float = Field(default=1.0, gt=0, le=10)
    offset: float = Field(default=0.0, ge=-1, le=1, description="part of the grey scale")

    def __call__(self, images: Pixels, site: int, rng: np.random.Generator) -> Pixels:
        """Return the images with gain and offset."""
        return Scanner(gain=self.gain, offset=self.offset).expose(images, rng)


class BiasField(Plan):
    """A smooth field, the same over all images of a site, multiplies the brightness."""

    kind: Literal["bias-field"]
    sites: Which = "all"
    strength: float = Field(default=0.3, gt=0, lt=1, description="largest relative change")

    def __call__(self, images: Pixels, site: int, rng: np.random.Generator) -> Pixels:
        """Return the images times a random polynomial of the second degree in row and column."""
        x = np.linspace(-1, 1, images.shape[3])[None, :]
        y = np.linspace(-1, 1, images.shape[2])[:, None]
        weights = rng.standard_normal(5)
        terms = (x + 0 * y, y + 0 * x, x * y, x * x - 1 / 3 + 0 * y, y * y - 1 / 3 + 0 * x)
        field = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        change = 1 + self.strength * field / np.abs(field).max()
        changed: Pixels = np.clip(images * change.astype(np.float32), 0, 1)
        return changed


class Blur(Plan):
    """A wider point spread."""

    kind: Literal["blur"]
    sites: Which = "all"
    pixels: float = Field(default=1.0, gt=0, le=32, description="standard deviation")

    def __call__(self, images: Pixels, site: int, rng: np.random.Generator) -> Pixels:
        """Return the images convolved with a Gaussian."""
        return _blurred(images, self.pixels)


class Noise(Plan):
    """Gaussian noise in every pixel."""

    kind: Literal["noise"]
    sites: Which = "all"
    deviation: float = Field(default=0.1, gt=0, le=1, description="part of the grey scale")

    def __call__(self, images: Pixels, site: int, rng: np.random.Generator) -> Pixels:
        """Return the images with noise, cut to the range."""
        return Scanner(noise=self.deviation).expose(images, rng)


class Resolution(Plan):
    """Images taken at a lower resolution."""

    kind: Literal["resolution"]
    sites: Which = "all"
    factor: float = Field(default=2.0, gt=1, le=16, description="times fewer pixels a side")

    def __call__(self, images: Pixels, site: int, rng: np.random.Generator) -> Pixels:
        """Return the images made smaller, with averaging, and larger again."""
        rows, columns = images.shape[2:]
        small = (max(1, round(columns / self.factor)), max(1, round(rows / self.factor)))
        planes = np.ascontiguousarray(images).reshape(-1, rows, columns)
        coarse = [
            Image.fromarray(plane)
            .resize(small, Image.Resampling.BOX)
            .resize((columns, rows), Image.Resampling.BILINEAR)
            for plane in planes
        ]
        return np.stack([np.asarray(each, dtype=np.float32) for each in coarse]).reshape(
            images.shape
        )


class Inversion(Plan):
    """Black and white the other way round, as MONOCHROME1 read without care."""

    kind: Literal["inversion"]
    sites: Which = "all"

    def __call__(self, images: Pixels, site: int, rng: np.random.Generator) -> Pixels:
        """Return the negatives."""
        return 1 - images


Shift = Annotated[
    Scanners | Gain | BiasField | Blur | Noise | Resolution | Inversion,
    Field(discriminator="kind"),
]
"""Each is called with images in [0, 1], the site's index from 0 and a generator."""


def shifted(images: Pixels, shift: Shift, site: int, rng: np.random.Generator) -> Pixels:
    """Apply a shift to images as a study takes them.

    Args:
        images: float32 [n_images, channels, size, size] in [-1, 1]; left as they are.
        shift: What to do.
        site: The site's index from 0.
        rng: Source of all chance.

    Returns:
        Images of the same shape and range.
    """
    grey: Pixels = (images + np.float32(1)) / np.float32(2)
    changed: Pixels = np.clip(shift(grey, site, rng) * np.float32(2) - np.float32(1), -1, 1)
    return changed


def _blurred(images: Pixels, deviation: float) -> Pixels:
    if not deviation:
        return images
    return np.asarray(
        gaussian_filter(images, (0, 0, deviation, deviation), mode="nearest"), dtype=np.float32
    )
