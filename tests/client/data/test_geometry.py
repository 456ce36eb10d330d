"""Pixels that are not square are made so, whichever element says it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dicom_kit import build_dicom, image
from pydicom.dataset import Dataset

WIDE = np.arange(14 * 28, dtype=np.uint16).reshape(14, 28)


def fills_the_square(**tags: Any) -> bool:
    """Whether the picture of 14 x 28 pixels is shown as high as it is wide."""
    shown = image(build_dicom(WIDE, **tags))[0]
    assert (image(build_dicom(WIDE))[0, :7] == -1).all()
    return bool(shown[1].min() > -1)


def region(**changes: Any) -> Dataset:
    """A region of an ultrasound image, as wide in centimetres as the pixels are high."""
    item = Dataset()
    item.RegionLocationMinX0 = item.RegionLocationMinY0 = 0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 27, 13
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX, item.PhysicalDeltaY = 0.01, 0.02
    for name, value in changes.items():
        setattr(item, name, value)
    return item


SECONDS = region(PhysicalUnitsXDirection=4, PhysicalDeltaY=0.01)
SMALL = region(RegionLocationMaxX1=5, PhysicalDeltaY=0.01)


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": [2.0, 1.0]},
        {"PixelAspectRatio": [2, 1]},
        {"ImagerPixelSpacing": ["0.4", "0.2"]},
        {"NominalScannedPixelSpacing": ["0.4", "0.2"]},
        {"SequenceOfUltrasoundRegions": [region()]},
        {"SequenceOfUltrasoundRegions": [region(PhysicalDeltaY=-0.02)]},
        {"SequenceOfUltrasoundRegions": [SECONDS, SMALL, region()]},
    ],
)
def test_pixels_that_are_not_square_are_made_so(tags: dict[str, Any]) -> None:
    assert fills_the_square(**tags)


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": ["0", "0"]},
        {"PixelSpacing": ["100", "1"]},
        {"SequenceOfUltrasoundRegions": [SECONDS]},
        {"SequenceOfUltrasoundRegions": [SECONDS, SMALL]},
        {"SequenceOfUltrasoundRegions": []},
    ],
)
def test_what_says_nothing_sane_leaves_them_square(tags: dict[str, Any]) -> None:
    assert not fills_the_square(**tags)
