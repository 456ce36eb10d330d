"""The shape of an image's pixels, from whichever element of the header tells it."""

from __future__ import annotations

from pydicom.dataset import Dataset

from client.data.header import frame_module, numbers
from client.data.reasons import Unusable

CENTIMETRES = 3
"""Unit of an ultrasound region that shows space, not time or velocity (PS3.3 C.8.5.5.1.15)."""

CORNERS = ("MinX0", "MinY0", "MaxX1", "MaxY1")
"""Left, top, right and bottom of a region in pixels, as its elements are called."""

WIDEST = 10
"""Pixels longer or wider than this many times are taken for an error in the header."""


def pixel_aspect(dataset: Dataset, index: int) -> float:
    """Return a pixel's height divided by its width, 1 where the file does not say so sanely.

    Args:
        dataset: The image's header.
        index: Of the frame, from 0.
    """
    measures = frame_module(dataset, index, "PixelMeasuresSequence")
    pairs = [
        _pair(dataset, "PixelAspectRatio"),
        _pair(measures, "PixelSpacing"),
        _pair(dataset, "ImagerPixelSpacing"),
        _pair(dataset, "NominalScannedPixelSpacing"),
        _ultrasound(dataset),
    ]
    for height, width in filter(None, pairs):
        if min(height, width) > 0 and 1 / WIDEST <= height / width <= WIDEST:
            return height / width
    return 1.0


def _pair(source: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return an element of two numbers; what is none says nothing of the shape."""
    try:
        values = numbers(source, keyword)
    except Unusable:
        return None
    return (values[0], values[1]) if len(values) == 2 else None


def _ultrasound(dataset: Dataset) -> tuple[float, float] | None:
    """Return height and width of a pixel in the largest region that shows space."""
    largest, found = 0, None
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        corners = [region.get(f"RegionLocation{corner}") for corner in CORNERS]
        steps = [region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")]
        if units != (CENTIMETRES, CENTIMETRES) or None in (*corners, *steps):
            continue
        left, top, right, bottom = corners
        area = (right - left + 1) * (bottom - top + 1)
        if area > largest:
            largest, found = area, (abs(float(steps[0])), abs(float(steps[1])))
    return found
