"""From one DICOM file to one array: the only pixel pipeline, run in the decoding process."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import JPEGExtended12Bit

from client.data.attributes import ATTRIBUTES, image_cells
from client.data.display import frame_module, grey_levels, numbers
from client.data.reasons import Reason, Unusable
from client.data.resize import fit
from shared.study import Input

Planes = npt.NDArray[np.float32]

TAGS: tuple[str, ...] = (
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PlanarConfiguration",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelAspectRatio",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
)
"""All that an image is made of: pixels, what they mean, and their shape. Every other tag (the
contrast agent, the name) is skipped, so none of it can leak into training; those of subgroups are
read in studies that ask for them, and go into counts only."""

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey (PS3.3 C.7.6.3.1.2, from ITU-R BT.601)."""

FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    BytesLengthException,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on files that are cut off or contradict themselves."""


def decode(
    stream: BinaryIO, spec: Input, want_patient: bool = False, groupings: Sequence[str] = ()
) -> tuple[Planes, str, tuple[int, ...]]:
    """Turn one DICOM file into one array.

    Args:
        stream: The file, at its start.
        spec: The study's input.
        want_patient: Whether to read the patient's id from the file too.
        groupings: Those for which the image's cell is wanted too (`shared.subgroups`).

    Returns:
        float32 [channels, size, size] in [-1, 1], with -1 as black and as background; the
        patient's id, empty if not wanted or absent; and the cell in each grouping.

    Raises:
        Unusable: With the reason to set the file aside.
    """
    try:
        also = [*["PatientID"] * want_patient, *chain(*(ATTRIBUTES[name] for name in groupings))]
        dataset = dcmread(stream, specific_tags=[*TAGS, *also])
        patient = str(dataset.get("PatientID") or "").strip()
        return _image(dataset, spec), patient, image_cells(dataset, groupings)
    except InvalidDicomError:
        raise Unusable(Reason.NOT_DICOM) from None
    except MemoryError:
        raise Unusable(Reason.TOO_LARGE) from None
    except FAULTS:
        raise Unusable(Reason.DAMAGED) from None


def _image(dataset: Dataset, spec: Input) -> Planes:
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Unusable(Reason.NO_PIXELS)
    if spec.modalities and dataset.get("Modality") not in spec.modalities:
        raise Unusable(Reason.WRONG_MODALITY)
    frame = _frame_index(dataset, spec)
    planes = _planes(dataset, frame, spec)
    if planes.min() == planes.max():
        raise Unusable(Reason.BLANK_IMAGE)
    if not np.isfinite(planes).all():
        raise Unusable(Reason.DAMAGED)
    image = fit(_with_channels(planes, spec.channels), spec.size, _pixel_aspect(dataset, frame))
    return np.clip(image * 2 - 1, np.float32(-1), np.float32(1))


def _frame_index(dataset: Dataset, spec: Input) -> int:
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    if spec.frame == "middle":
        return frames // 2
    if spec.frame > frames:
        raise Unusable(Reason.NO_SUCH_FRAME)
    return spec.frame - 1


def _planes(dataset: Dataset, frame: int, spec: Input) -> Planes:
    """Return one frame as float32 [1 or 3, rows, columns] in [0, 1]."""
    stored, properties = _decoder(dataset).as_array(dataset, index=frame)
    colour = properties["photometric_interpretation"]
    if colour in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == 2:
        return grey_levels(stored, dataset, frame, spec)[None]
    if colour == "PALETTE COLOR" and stored.ndim == 2:
        stored = apply_color_lut(stored, dataset)[..., :3]
        return _scaled_colour(stored, 8 * stored.dtype.itemsize)
    if colour == "RGB" and stored.ndim == 3 and stored.dtype.kind == "u":
        return _scaled_colour(stored, int(dataset.BitsStored))
    raise Unusable(Reason.UNSUPPORTED_COLOUR)


def _decoder(dataset: Dataset) -> Decoder:
    """Return the decoder of the file's transfer syntax, if one is installed."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Unusable(Reason.UNSUPPORTED_SYNTAX) from None
    if not decoder.is_available:
        raise Unusable(Reason.UNSUPPORTED_SYNTAX)
    # GDCM and Pillow read this syntax up to 8 bits only.
    twelve_bits = syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8
    if twelve_bits and "pylibjpeg" not in decoder.available_plugins:
        raise Unusable(Reason.UNSUPPORTED_SYNTAX)
    return decoder


def _scaled_colour(stored: npt.NDArray[Any], bits: int) -> Planes:
    planes: Planes = np.moveaxis(stored, -1, 0).astype(np.float32) / (2**bits - 1)
    return np.clip(planes, np.float32(0), np.float32(1))


def _with_channels(planes: Planes, channels: int) -> Planes:
    if len(planes) == channels:
        return planes
    if channels == 3:
        return np.repeat(planes, 3, axis=0)
    grey: Planes = np.tensordot(LUMINANCE, planes, axes=1)[None]
    return grey


def _pixel_aspect(dataset: Dataset, frame: int) -> float:
    """Return a pixel's height divided by its width, 1 where the file does not say so sanely."""
    measures = frame_module(dataset, frame, "PixelMeasuresSequence")
    for source, keyword in (
        (dataset, "PixelAspectRatio"),
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
    ):
        pair = numbers(source, keyword)
        if len(pair) == 2 and min(pair) > 0 and 0.1 <= pair[0] / pair[1] <= 10:
            return pair[0] / pair[1]
    return 1.0
