"""How sites' images differ: scanners, bias fields, blur, noise, resolution, inversion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.study_parts import Plan
from simulations.parts import Which


class Scanners(Plan):
    """Every site has a scanner of its own: another gain, offset, blur and noise."""

    kind: Literal["scanners"]
    sites: Which = "all"


class Gain(Plan):
    """Contrast and brightness: each image becomes gain * image + offset, cut to the range."""

    kind: Literal["gain"]
    sites: Which = "all"
    gain: float = Field(default=1.0, gt=0, le=10)
    offset: float = Field(default=0.0, ge=-1, le=1, description="part of the grey scale")


class BiasField(Plan):
    """A smooth field over each image multiplies its brightness."""

    kind: Literal["bias-field"]
    sites: Which = "all"
    strength: float = Field(default=0.3, gt=0, lt=1, description="largest relative change")


class Blur(Plan):
    """A wider point spread."""

    kind: Literal["blur"]
    sites: Which = "all"
    pixels: float = Field(default=1.0, gt=0, le=32, description="standard deviation")


class Noise(Plan):
    """Gaussian noise in every pixel."""

    kind: Literal["noise"]
    sites: Which = "all"
    deviation: float = Field(default=0.1, gt=0, le=1, description="part of the grey scale")


class Resolution(Plan):
    """Images taken at a lower resolution."""

    kind: Literal["resolution"]
    sites: Which = "all"
    factor: float = Field(default=2.0, gt=1, le=16, description="times fewer pixels a side")


class Inversion(Plan):
    """Black and white the other way round, as MONOCHROME1 read without care."""

    kind: Literal["inversion"]
    sites: Which = "all"


Shift = Annotated[
    Scanners | Gain | BiasField | Blur | Noise | Resolution | Inversion,
    Field(discriminator="kind"),
]
