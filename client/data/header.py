"""Numbers in DICOM headers, as devices write them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from client.data.reasons import Reason, Unusable
from client.data.text import NUMBER


def frame_module(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """Return a frame's own functional group, else the shared one, else the dataset itself.

    Enhanced multi-frame images (PS3.3 C.7.6.16) keep per frame what others keep at the top.
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[frame : frame + 1], *shared[:1]):
        if items := group.get(keyword):
            item: Dataset = items[0]
            return item
    return dataset


def number(dataset: Dataset, keyword: str, default: float) -> float:
    """Return a numeric element (the first, of several), or the default if absent or empty."""
    values = numbers(dataset, keyword)
    return values[0] if values else default


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return all values of a numeric element, empty if it is absent.

    In text, a comma is read as the decimal point, which German and French devices write.

    Raises:
        Unusable: One of them is not a finite number.
    """
    if keyword not in dataset:
        return []
    if dictionary_VR(keyword) in ("DS", "IS"):
        found = [_parsed(text) for text in _texts(dataset, keyword)]
    else:
        value = dataset.get(keyword)
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        found = [float(item) for item in items if item is not None and item != ""]
    if not all(map(math.isfinite, found)):
        raise Unusable(Reason.BAD_NUMBER)
    return found


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    """Return the values of an element of text that are not empty, as they stand in the file."""
    element = dataset.get_item(keyword)
    if isinstance(element, RawDataElement):
        texts = (element.value or b"").decode("ascii", "replace").split("\\")
    else:
        value = dataset[keyword].value
        texts = [value] if isinstance(value, (str, float, int)) else list(value or [])
    return [text for text in (str(text).strip(" \0") for text in texts) if text]


def _parsed(text: str) -> float:
    text = text.replace(",", ".")
    if not NUMBER.fullmatch(text):
        raise Unusable(Reason.BAD_NUMBER)
    return float(text)
