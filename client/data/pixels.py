"""From one DICOM file to one array: the only pixel pipeline, run in the decoding process."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.uid import UID

from client.data.attributes import ATTRIBUTES, image_cells
from client.data.display import grey_levels
from client.data.folder import begins_like_dicom
from client.data.frames import Frame, frame_count, read_frame
from client.data.geometry import pixel_aspect
from client.data.kinds import kind_of
from client.data.lookup import palette_colours
from client.data.reasons import Reason, Unusable
from client.data.resize import fit
from client.data.text import plain
from shared.study import Input

Planes = npt.NDArray[np.float32]

TAGS: tuple[str, ...] = (
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "SOPClassUID",
    "ImageType",
    "ConversionType",
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
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
    "PixelAspectRatio",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SequenceOfUltrasoundRegions",
    "DoseGridScaling",
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
        dataset = _read(stream, [*TAGS, *also])
        patient = plain(str(dataset.get("PatientID") or ""))
        return _image(dataset, spec), patient, image_cells(dataset, groupings)
    except MemoryError:
        raise Unusable(Reason.TOO_LARGE) from None
    except FAULTS:
        raise Unusable(Reason.DAMAGED) from None


class _ToTheEnd:
    """A file that never reads beyond its end, whatever length a damaged header asks for.

    Python would set aside as much memory as it is asked for, before it finds the file shorter.

    Args:
        stream: The file, at its start.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        self.tell, self.seek, self.close = stream.tell, stream.seek, stream.close

    def read(self, count: int = -1) -> bytes:
        """Read so many bytes, or what is left."""
        if count < 0 or count > self._size:
            count = max(0, self._size - self._stream.tell())
        return self._stream.read(count)


def _read(stream: BinaryIO, tags: Sequence[str]) -> Dataset:
    """Read the header and the pixels still encoded; old archives leave out the preamble."""
    try:
        if not begins_like_dicom(stream.read(132)):
            raise Unusable(Reason.NOT_DICOM)
        return dcmread(cast(BinaryIO, _ToTheEnd(stream)), specific_tags=list(tags), force=True)
    except OSError as error:  # of the disk, or of pydicom where a sequence has no end
        raise Unusable(Reason.UNREADABLE_FILE if error.errno else Reason.LOST_PIXELS) from None


def _image(dataset: Dataset, spec: Input) -> Planes:
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Unusable(Reason.NO_PIXELS if _never_had_pixels(dataset) else Reason.LOST_PIXELS)
    if spec.modalities and dataset.get("Modality") not in spec.modalities:
        raise Unusable(Reason.WRONG_MODALITY)
    if kind_of(dataset) not in spec.kinds:
        raise Unusable(Reason.WRONG_KIND)
    index = _frame_index(dataset, spec)
    planes = _planes(read_frame(dataset, index), dataset, index, spec)
    if planes.min() == planes.max():
        raise Unusable(Reason.BLANK_IMAGE)
    image = fit(_with_channels(planes, spec.channels), spec.size, pixel_aspect(dataset, index))
    return np.clip(image * 2 - 1, np.float32(-1), np.float32(1))


def _never_had_pixels(dataset: Dataset) -> bool:
    """Tell a report or a plan from an image that was cut off, of which little may be left."""
    stated = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    return "Rows" not in dataset and stated is not None and "Image" not in UID(stated).name


def _frame_index(dataset: Dataset, spec: Input) -> int:
    frames = frame_count(dataset)
    if spec.frame == "middle":
        return frames // 2
    if spec.frame > frames:
        raise Unusable(Reason.NO_SUCH_FRAME)
    return spec.frame - 1


def _planes(frame: Frame, dataset: Dataset, index: int, spec: Input) -> Planes:
    """Return one frame as float32 [1 or 3, rows, columns] in [0, 1]."""
    stored = frame.values
    if frame.colour.startswith("MONOCHROME") and stored.ndim == 2:
        return grey_levels(frame, dataset, index, spec)[None]
    if frame.colour == "PALETTE COLOR" and stored.ndim == 2 and stored.dtype.kind in "iu":
        return palette_colours(stored, dataset)
    if frame.colour == "RGB" and stored.ndim == 3 and stored.dtype.kind == "u":
        planes: Planes = np.moveaxis(stored, -1, 0).astype(np.float32) / (2**frame.bits - 1)
        return np.clip(planes, np.float32(0), np.float32(1))
    raise Unusable(Reason.UNSUPPORTED_COLOUR)


def _with_channels(planes: Planes, channels: int) -> Planes:
    if len(planes) == channels:
        return planes
    if channels == 3:
        return np.repeat(planes, 3, axis=0)
    grey: Planes = np.tensordot(LUMINANCE, planes, axes=1)[None]
    return grey
