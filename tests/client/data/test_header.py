"""Numbers in the header as devices write them."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_kit import blob, build_dicom, image, why_not

PICTURE = blob(1, high=3000)
WINDOW = {"WindowCenter": "1500", "WindowWidth": "3000"}


def replaced(old: bytes, new: bytes, **tags: object) -> bytes:
    content = build_dicom(PICTURE, **{**WINDOW, **tags})
    assert content.count(old) == 1
    assert len(old) == len(new)
    return content.replace(old, new)


@pytest.mark.parametrize(
    ("comma", "tags"),
    [
        (b"1500,5", {"WindowCenter": "1500.5"}),
        (b"1,0001", {"RescaleSlope": "1.0001", "RescaleIntercept": "0"}),
        (b"-12,25", {"RescaleSlope": "1", "RescaleIntercept": "-12.25"}),
        (b"0,286\\0,143", {"PixelSpacing": ["0.286", "0.143"]}),
    ],
)
def test_a_decimal_comma_is_a_decimal_point(comma: bytes, tags: dict[str, object]) -> None:
    point = build_dicom(PICTURE, **{**WINDOW, **tags})
    said = replaced(comma.replace(b",", b"."), comma, **tags)
    assert np.array_equal(image(said, window="file"), image(point, window="file"))


@pytest.mark.parametrize("text", [b"0.143,0.143 ", b"unknown     ", b"0.143\\      "])
def test_a_spacing_that_is_no_number_leaves_pixels_square(text: bytes) -> None:
    said = replaced(b"0.143\\0.1431", text, PixelSpacing=["0.143", "0.1431"])
    assert np.array_equal(image(said), image(build_dicom(PICTURE)))


@pytest.mark.parametrize(
    ("old", "new", "tags"),
    [
        (b"1500.25", b"1.500,2", {"WindowCenter": "1500.25"}),
        (b"1.25", b"none", {"RescaleSlope": "1.25", "RescaleIntercept": "0"}),
        (b"13", b"1A", {"NumberOfFrames": "13"}),
    ],
)
def test_another_number_that_is_none_has_its_reason(
    old: bytes, new: bytes, tags: dict[str, object]
) -> None:
    said = replaced(old, new, **tags)
    assert why_not(said, window="file") == "bad-number"
