"""From stored pixel values to grey levels in [0, 1]: modality, padding and display transforms."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.data.reasons import Reason, Unusable
from shared.study import Input

Grey = npt.NDArray[np.float32]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

AIR_HU = -1024.0  # CT scanners write nothing real below; outside their circle they write padding


def grey_levels(stored: npt.NDArray[np.generic], dataset: Dataset, frame: int, spec: Input) -> Grey:
    """Return one monochrome frame as it is meant to be seen: 0 is black, 1 is white.

    The order is that of DICOM PS3.3 C.11: modality transform, then window or VOI LUT, then
    inversion of MONOCHROME1. Padding is black and has no part in the full range.

    Args:
        stored: [rows, columns], values as stored in the file.
        dataset: The image's header.
        frame: Index of the frame, from 0, for headers that differ by frame.
        spec: The study's input; `window` chooses the display transform.

    Returns:
        float32 [rows, columns] in [0, 1].

    Raises:
        Unusable: The header has numbers that make no sense, or there is only padding.
    """
    padding = padding_mask(stored, dataset)
    values = modality_values(stored, dataset, frame)
    grey = _displayed(values, padding, dataset, frame, spec.window)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    if padding is not None:
        grey[padding] = 0
    return grey


def modality_values(stored: npt.NDArray[np.generic], dataset: Dataset, frame: int) -> Grey:
    """Apply the modality LUT or rescale slope and intercept (PS3.3 C.11.1).

    CT values below -1024 HU are raised to it: they are padding, not tissue.
    """
    module = frame_module(dataset, frame, "PixelValueTransformationSequence")
    if module.get("ModalityLUTSequence"):
        return looked_up(stored.astype(np.float32), module.ModalityLUTSequence[0], dataset)
    slope = number(module, "RescaleSlope", 1.0)
    if slope == 0:
        raise Unusable(Reason.DAMAGED)
    values = stored.astype(np.float32)
    values *= slope
    values += number(module, "RescaleIntercept", 0.0)
    if dataset.get("Modality") == "CT" and module.get("RescaleType", "HU") in ("HU", "", None):
        np.maximum(values, AIR_HU, out=values)
    return values


def padding_mask(stored: npt.NDArray[np.generic], dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Return which pixels are padding (PS3.3 C.7.5.1.1.2), or None where none is declared."""
    value = dataset.get("PixelPaddingValue")
    if value is None or stored.dtype.kind not in "iu":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    pair = (int(value), int(value if limit is None else limit))
    # The cast keeps the low bits, since files write -2000 as 63536 and the other way round.
    ends = np.array(pair, dtype=np.int64).astype(stored.dtype)
    mask: npt.NDArray[np.bool_] = np.logical_and(stored >= ends.min(), stored <= ends.max())
    return mask


def windowed(values: Grey, center: float, width: float, function: Function = "LINEAR") -> Grey:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3), giving values in [0, 1]."""
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - center) / width, -80, 80)
        return np.asarray(1 / (1 + np.exp(exponent)), dtype=np.float32)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width <= 0:
        return (values > center).astype(np.float32)
    return _unit(np.asarray((values - center) / width + 0.5))


def looked_up(values: Grey, item: Dataset, dataset: Dataset) -> Grey:
    """Look whole values up in a modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1).

    Values before the table's first take its first entry, those behind its last the last.

    Args:
        values: What to look up.
        item: The LUT sequence's item.
        dataset: The whole header, which knows the byte order.
    """
    entries, first, _ = (int(part) for part in item.LUTDescriptor)
    entries = entries or 2**16
    table = item.LUTData
    if isinstance(table, bytes):
        width = "u1" if len(table) == entries else "<u2" if dataset.original_encoding[1] else ">u2"
        table = np.frombuffer(table, dtype=width)
    position = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.intp)
    shown: Grey = np.asarray(table, dtype=np.float32)[position]
    return shown


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

    Raises:
        Unusable: One of them is not a finite number.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    items = [value] if isinstance(value, (str, int, float)) else list(value)
    found = [float(item) for item in items]
    if not np.isfinite(found).all():
        raise Unusable(Reason.DAMAGED)
    return found


def _displayed(
    values: Grey,
    padding: npt.NDArray[np.bool_] | None,
    dataset: Dataset,
    frame: int,
    window: Literal["file", "full"] | tuple[float, float],
) -> Grey:
    """Apply the study's window; a file without a usable one of its own shows its full range."""
    if isinstance(window, tuple):
        return windowed(values, *window)
    module = frame_module(dataset, frame, "FrameVOILUTSequence")
    if window == "file" and module.get("VOILUTSequence"):
        lut = module.VOILUTSequence[0]
        return _unit(looked_up(values, lut, dataset) / (2 ** int(lut.LUTDescriptor[2]) - 1))
    if window == "file" and (own := _file_window(module)):
        return windowed(values, *own)
    return _full_range(values, padding)


def _file_window(module: Dataset) -> tuple[float, float, Function] | None:
    """Return the file's first window, or None if it has none or an impossible width."""
    centers, widths = numbers(module, "WindowCenter"), numbers(module, "WindowWidth")
    function: Function = module.get("VOILUTFunction") or "LINEAR"
    if function not in get_args(Function):
        raise Unusable(Reason.DAMAGED)
    smallest = 1 if function == "LINEAR" else float(np.finfo(np.float32).tiny)
    if not centers or not widths or widths[0] < smallest:
        return None
    return centers[0], widths[0], function


def _full_range(values: Grey, padding: npt.NDArray[np.bool_] | None) -> Grey:
    valid = values if padding is None else values[~padding]
    if not valid.size:
        raise Unusable(Reason.BLANK_IMAGE)
    low, high = float(valid.min()), float(valid.max())
    if not low < high:
        raise Unusable(Reason.BLANK_IMAGE)
    return _unit((values - low) / (high - low))


def _unit(values: Grey) -> Grey:
    return np.clip(values, np.float32(0), np.float32(1))
