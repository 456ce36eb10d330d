"""What kind of object a DICOM file with pixels is: an image of a patient, or made from one."""

from __future__ import annotations

from pydicom.dataset import Dataset

from shared.study_parts import Kind

CLASSES: dict[str, Kind] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",  # label maps
    "1.2.840.10008.5.1.4.1.1.481.2": "dose",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "whole-slide",
}
"""Kinds by SOP class (PS3.4 B.5)."""

MODALITIES: dict[str, Kind] = {"SEG": "segmentation", "RTDOSE": "dose", "SM": "whole-slide"}
"""Kinds by modality, of files that name no SOP class."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class of pictures that were converted (and, with a suffix, of several frames)."""

DRAWN = ("WSD", "SD", "DRW")
"""Conversion types of a workstation's screen, a scanned document and a drawing (PS3.3 C.8.6.1)."""

SCREEN = "SCREEN"
"""How the value of Image Type begins that viewers give to what they saved of their screen."""


def kind_of(dataset: Dataset) -> Kind:
    """Return what a file holds.

    A secondary capture is an image, such as digitised film, unless it says that it was drawn, or
    taken from a screen.
    """
    sop_class = str(dataset.get("SOPClassUID") or "")
    if not sop_class:
        return MODALITIES.get(str(dataset.get("Modality") or ""), "image")
    if sop_class in CLASSES:
        return CLASSES[sop_class]
    if sop_class == SECONDARY_CAPTURE or sop_class.startswith(f"{SECONDARY_CAPTURE}."):
        values = dataset.get("ImageType") or []
        words = [values] if isinstance(values, str) else [str(value) for value in values]
        from_screen = any(word.upper().startswith(SCREEN) for word in words)
        if from_screen or dataset.get("ConversionType") in DRAWN:
            return "screen-capture"
    return "image"
