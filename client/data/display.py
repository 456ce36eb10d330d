"""From stored pixel values to grey levels in [0, 1]: modality, padding and display transforms."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.data.frames import Frame
from client.data.header import frame_module, number, numbers
from client.data.lookup import sequence_table
from client.data.reasons import Reason, Unusable
from shared.study import Input

Values = npt.NDArray[np.float64]
Grey = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

AIR_HU = -1024.0  # CT scanners write nothing real below; outside their circle they write padding

PADDING = {
    "i": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "f4": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "f8": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""What declares padding, by the type of the pixels (PS3.3 C.7.5.1.1.2, C.7.6.24, C.7.6.25)."""


def grey_levels(frame: Frame, dataset: Dataset, index: int, spec: Input) -> Grey:
    """Return one monochrome frame as it is meant to be seen: 0 is black, 1 is white.

    The order is that of DICOM PS3.3 C.11: modality transform, then window or VOI LUT, then
    inversion of MONOCHROME1. All is computed in double precision, since values may be large and
    a window narrow. Padding is black and has no part in the full range, and so is what is no
    number.

    Args:
        frame: The frame as stored.
        dataset: The image's header.
        index: Of the frame, from 0, for headers that differ by frame.
        spec: The study's input; `window` chooses the display transform.

    Returns:
        float32 [rows, columns] in [0, 1].

    Raises:
        Unusable: The header has numbers that make no sense, or there is only padding.
    """
    padding = padding_mask(frame, dataset)
    values = modality_values(frame.values, dataset, index)
    valid = np.isfinite(values)
    if padding is not None:
        valid &= ~padding
    if not valid.any():
        raise Unusable(Reason.BLANK_IMAGE)
    if not valid.all():
        values[~valid] = values[valid].min()
    grey = _displayed(values, dataset, index, spec.window)
    if frame.colour == "MONOCHROME1":
        grey = 1 - grey
    grey[~valid] = 0
    return grey.astype(np.float32)


def modality_values(stored: npt.NDArray[Any], dataset: Dataset, index: int) -> Values:
    """Apply the modality LUT, rescale slope and intercept, or dose scaling (PS3.3 C.11.1).

    CT values below -1024 HU are raised to it: they are padding, not tissue.

    Returns:
        float64, of the shape of `stored`.
    """
    module = frame_module(dataset, index, "PixelValueTransformationSequence")
    if table := sequence_table(module, "ModalityLUTSequence", dataset):
        return table.at(stored, negative=stored.dtype.kind != "u").astype(np.float64)
    slope = number(module, "RescaleSlope", number(dataset, "DoseGridScaling", 1.0))
    if slope == 0:
        raise Unusable(Reason.BAD_NUMBER)
    values = stored.astype(np.float64)
    values *= slope
    values += number(module, "RescaleIntercept", 0.0)
    if dataset.get("Modality") == "CT" and module.get("RescaleType", "HU") in ("HU", "", None):
        np.maximum(values, AIR_HU, out=values)
    return values


def padding_mask(frame: Frame, dataset: Dataset) -> Mask | None:
    """Return which pixels are padding, or None where none is declared.

    Files write the padding value with or without a sign, in the bits of a stored value or, where
    it does not fit into these, in all bits of the word.
    """
    ends = _padding_ends(frame.values.dtype, dataset)
    if not ends:
        return None
    values = frame.values
    if values.dtype.kind in "iu":
        bits = frame.bits
        if not all(-(2 ** (bits - 1)) <= end < 2**bits for end in ends):
            values, bits = frame.words, 8 * frame.words.itemsize
        ends = [_reduced(int(end), bits, values.dtype.kind) for end in ends]
    return np.logical_and(values >= min(ends), values <= max(ends))


def windowed(values: Values, center: float, width: float, function: Function = "LINEAR") -> Values:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3), giving values in [0, 1].

    The linear function is for widths of 1 and more. Below, which devices write for values that
    are no whole numbers, the exact one is meant.

    Args:
        values: float64, of any shape; overwritten.
        center: Middle of the window.
        width: Of the window, above 0.
        function: How values go to grey levels.
    """
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - center) / width, -80, 80)
        return np.asarray(1 / (1 + np.exp(exponent)))
    if function == "LINEAR" and width >= 1:
        center, width = center - 0.5, width - 1
    if width <= 0:
        return (values > center).astype(np.float64)
    values -= center
    values /= width
    values += 0.5
    return np.clip(values, 0, 1, out=values)


def _padding_ends(kind: np.dtype[Any], dataset: Dataset) -> list[float]:
    """Return the padding value and the other end of its range, as far as there are any."""
    names = PADDING.get(kind.str[1:]) or PADDING["i"]
    found = [dataset.get(name) for name in names]
    if found[0] is None:
        return []
    ends = [float(end) for end in found if isinstance(end, int | float)]
    return [end for end in ends if np.isfinite(end)]


def _reduced(value: int, bits: int, kind: str) -> int:
    """Return what so many low bits of a value stand for, with or without a sign."""
    span = 1 << bits
    low = value % span
    return low - span if kind == "i" and low >= span // 2 else low


def _displayed(
    values: Values,
    dataset: Dataset,
    index: int,
    window: Literal["file", "full"] | tuple[float, float],
) -> Values:
    """Apply the study's window; a file without a usable one of its own shows its full range."""
    if isinstance(window, tuple):
        return windowed(values, *window)
    module = frame_module(dataset, index, "FrameVOILUTSequence")
    if window == "file" and (table := sequence_table(module, "VOILUTSequence", dataset)):
        shown = table.at(values, negative=bool(values.min() < 0)).astype(np.float64)
        shown -= table.black
        shown /= table.white - table.black
        return np.clip(shown, 0, 1, out=shown)
    if window == "file" and (own := _file_window(module)):
        return windowed(values, *own)
    return _full_range(values)


def _file_window(module: Dataset) -> tuple[float, float, Function] | None:
    """Return the file's first window, or None if it has none or an impossible width."""
    centers, widths = numbers(module, "WindowCenter"), numbers(module, "WindowWidth")
    function: Function = module.get("VOILUTFunction") or "LINEAR"
    if function not in get_args(Function):
        raise Unusable(Reason.DAMAGED)
    if not centers or not widths or widths[0] < np.finfo(np.float32).tiny:
        return None
    return centers[0], widths[0], function


def _full_range(values: Values) -> Values:
    low, high = float(values.min()), float(values.max())
    if not low < high:
        raise Unusable(Reason.BLANK_IMAGE)
    values -= low
    values /= high - low
    return values
