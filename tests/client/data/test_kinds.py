"""By default an image is an image: what was made from one is set aside, unless the study asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dicom_kit import blob, build_dicom, image, make_dataset, why_not, written

UID = "1.2.840.10008.5.1.4.1.1."

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask": ("segmentation", {"SOPClassUID": UID + "66.4", "Modality": "SEG"}),
    "label map": ("segmentation", {"SOPClassUID": UID + "66.7", "Modality": "SEG"}),
    "dose": ("dose", {"SOPClassUID": UID + "481.2", "Modality": "RTDOSE"}),
    "tile": ("whole-slide", {"SOPClassUID": UID + "77.1.6", "Modality": "SM"}),
    "screen": ("screen-capture", {"SOPClassUID": UID + "7", "ConversionType": "WSD"}),
    "saved screen": (
        "screen-capture",
        {"SOPClassUID": UID + "7.2", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    ),
    "scanned letter": ("screen-capture", {"SOPClassUID": UID + "7", "ConversionType": "SD"}),
}

IMAGES: dict[str, dict[str, Any]] = {
    "X-ray": {},
    "parametric map": {"SOPClassUID": UID + "30"},
    "digitised film": {"SOPClassUID": UID + "7", "ConversionType": "DF"},
    "converted picture": {"SOPClassUID": UID + "7"},
    "microscopy": {"SOPClassUID": UID + "77.1.3", "Modality": "SM"},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_image_is_set_aside_unless_the_study_asks_for_it(name: str) -> None:
    kind, tags = KINDS[name]
    content = build_dicom(blob(1), **tags)
    assert why_not(content) == "wrong-kind"
    assert why_not(content, kinds=["image", kind]) == ""
    assert np.array_equal(image(content, kinds=[kind]), image(build_dicom(blob(1))))
    assert why_not(build_dicom(blob(1)), kinds=[kind]) == "wrong-kind"


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_images(name: str) -> None:
    assert why_not(build_dicom(blob(1), **IMAGES[name])) == ""


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE", "SM"])
def test_a_file_without_a_sop_class_is_known_by_its_modality(modality: str) -> None:
    dataset = make_dataset(blob(1), Modality=modality)
    del dataset.SOPClassUID
    assert why_not(written(dataset)) == "wrong-kind"
