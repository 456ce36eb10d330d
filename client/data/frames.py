"""One frame of a DICOM file as stored values, believed only where header and pixels agree."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLETransferSyntaxes,
    UncompressedTransferSyntaxes,
)

from client.data.header import number
from client.data.reasons import Reason, Unusable
from client.data.streams import StreamHeader, read_stream_header

COLOURS = {
    "MONOCHROME1": "MONOCHROME1",
    "MONOCHROME2": "MONOCHROME2",
    "PALETTE COLOR": "PALETTE COLOR",
    "RGB": "RGB",
    "YBR_RCT": "RGB",  # JPEG 2000 undoes its own transforms
    "YBR_ICT": "RGB",
    "YBR_FULL": "YBR_FULL",
    "YBR_FULL_422": "YBR_FULL_422",
}
"""Colour models that are read, and what samples are once they are decoded."""

PLUGINS = {
    "gdcm": JPEGTransferSyntaxes,
    "pyjpegls": JPEGLSTransferSyntaxes,
    "pylibjpeg": [*JPEG2000TransferSyntaxes, *RLETransferSyntaxes],
}
"""Which of pydicom's plug-ins decodes which transfer syntaxes."""

SECOND_OPINION = (JPEGBaseline8Bit, JPEGExtended12Bit)
"""Syntaxes that Pillow reads too, with libjpeg-turbo."""

CODEC_COPIES = 7
"""Times a decoded frame that codecs and pydicom need to decode it, measured."""

ROUNDING = 2
"""Levels that decoders of lossy JPEG may be apart."""

AS_STORED = {
    "correct_unused_bits": False,
    "apply_jls_sign_correction": False,
    "apply_j2k_sign_correction": False,
}
"""Options with which pydicom leaves the bits of a sample alone."""

STANDARD_ERROR = 2

FAR_OFF = 16
"""Levels out of 255 that lossy coding does not push a colour beyond what can be shown."""

SLACK = 16
"""Pixel data may be longer than the picture by one part in so many, or by so many bytes."""


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        values: As stored, [rows, columns] or [rows, columns, 3].
        words: The same with the bits around those of the value, as the file or codec has them.
        colour: `MONOCHROME1`, `MONOCHROME2`, `PALETTE COLOR` or `RGB`.
        bits: How many bits a value has.
    """

    values: npt.NDArray[Any]
    words: npt.NDArray[Any]
    colour: str
    bits: int


def read_frame(dataset: Dataset, index: int) -> Frame:
    """Decode one frame.

    Args:
        dataset: The file.
        index: Of the frame, from 0.

    Raises:
        Unusable: It cannot be decoded, or its parts contradict each other.
    """
    colour = COLOURS.get(str(dataset.PhotometricInterpretation).strip())
    if colour is None:
        raise Unusable(Reason.UNSUPPORTED_COLOUR)
    syntax = transfer_syntax(dataset)
    decoded = _native if syntax in UncompressedTransferSyntaxes else _compressed
    frame = decoded(dataset, index, syntax, colour)
    if not frame.colour.startswith("YBR"):
        return frame
    if frame.values.dtype != np.uint8:
        raise Unusable(Reason.UNSUPPORTED_COLOUR)
    _require_luma_and_chroma(frame.values)
    rgb = convert_color_space(frame.values, "YBR_FULL", "RGB")
    return Frame(rgb, rgb, "RGB", frame.bits)


def _require_luma_and_chroma(values: npt.NDArray[np.uint8]) -> None:
    """Refuse as YBR what cannot be: luma and chroma of colours that RGB cannot show.

    Of all triples, a quarter are luma and chroma of a colour, so that a picture which is really
    RGB, under a wrong label, gives itself away.
    """
    step = max(1, len(values) // 256)
    luma, blue, red = np.moveaxis(values[::step, ::step].astype(np.float32), -1, 0)
    shown = luma + 1.402 * (red - 128), luma + 1.772 * (blue - 128)  # red and blue, from BT.601
    impossible = [(colour < -FAR_OFF) | (colour > 255 + FAR_OFF) for colour in shown]
    if np.logical_or(*impossible).mean() > 0.1:
        raise Unusable(Reason.CONTRADICTORY)


def transfer_syntax(dataset: Dataset) -> UID:
    """Return how the file is encoded; a file without its first header shows it."""
    if stated := dataset.file_meta.get("TransferSyntaxUID"):
        return UID(stated)
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise Unusable(Reason.CONTRADICTORY)
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _native(dataset: Dataset, index: int, syntax: UID, colour: str) -> Frame:
    _require_length(dataset)
    options: Any = {**AS_STORED, "allow_excess_frames": False}
    array, properties = get_decoder(syntax).as_array(dataset, index=index, raw=True, **options)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f":
        return Frame(array, array, colour, 8 * array.itemsize)
    colour = str(properties["photometric_interpretation"])
    return _frame(array, dataset, colour, int(dataset.BitsAllocated), lossy=False)


def _require_length(dataset: Dataset) -> None:
    """Refuse pixel data much longer than the picture: its size or number of frames is not true."""
    data = next(
        dataset[name].value
        for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
        if name in dataset
    )
    bits = int(dataset.BitsAllocated) * int(dataset.get("SamplesPerPixel") or 1)
    pixels = int(dataset.Rows) * int(dataset.Columns) * frame_count(dataset)
    expected = math.ceil(pixels * bits / 8)
    if len(data) > expected + max(SLACK, expected // SLACK):
        raise Unusable(Reason.CONTRADICTORY)


def frame_count(dataset: Dataset) -> int:
    """Return how many frames the file has, at least 1."""
    return max(1, int(number(dataset, "NumberOfFrames", 1)))


def _compressed(dataset: Dataset, index: int, syntax: UID, colour: str) -> Frame:
    decoder, plugin = _codec(syntax)
    bits, lossy = int(dataset.BitsAllocated), False
    stream = _stream(dataset, index)
    if syntax not in RLETransferSyntaxes:
        header = read_stream_header(stream)
        _require_agreement(header, dataset)
        colour, bits, lossy = _true_colour(header, colour), header.bits, header.lossy
    _require_memory(dataset)
    told = "YBR_FULL" if colour.startswith("YBR") else colour
    options: Any = {**AS_STORED, "decoding_plugin": plugin, "photometric_interpretation": told}
    try:
        with complaining_codec():
            array, _ = decoder.as_array(dataset, index=index, raw=True, **options)
    except RuntimeError:
        # Of single bits the codec reads one of the two forms there are.
        raise Unusable(Reason.UNSUPPORTED_SYNTAX if bits == 1 else Reason.DAMAGED) from None
    if syntax in SECOND_OPINION:
        _require_second_opinion(array, decoder, dataset, index, options)
    return _frame(array, dataset, colour, bits, lossy=lossy)


def _require_second_opinion(
    array: npt.NDArray[Any],
    decoder: Decoder,
    dataset: Dataset,
    index: int,
    options: dict[str, Any],
) -> None:
    """Refuse a picture of which a decoder of another origin, if it reads it, has another one.

    Where damage makes values that no encoder writes, decoders go apart.
    """
    other = {**options, "decoding_plugin": "pillow"}
    with suppress(RuntimeError):
        second, _ = decoder.as_array(dataset, index=index, raw=True, **other)
        if np.abs(np.subtract(array, second, dtype=np.int32)).max() > ROUNDING:
            raise Unusable(Reason.DAMAGED)


def _codec(syntax: UID) -> tuple[Decoder, str]:
    """Return what decodes a transfer syntax: one plug-in, so that a file has one picture."""
    plugin = next((name for name, syntaxes in PLUGINS.items() if syntax in syntaxes), None)
    if plugin is None:
        raise Unusable(Reason.UNSUPPORTED_SYNTAX)
    decoder = get_decoder(syntax)
    if plugin not in decoder.available_plugins:
        raise Unusable(Reason.CODEC_MISSING)
    return decoder, plugin


def _stream(dataset: Dataset, index: int) -> bytes:
    """Return the compressed bytes of one frame, where as many are listed as the header says."""
    listed = parse_basic_offsets(dataset.PixelData)
    if listed and len(listed) != frame_count(dataset):
        raise Unusable(Reason.CONTRADICTORY)
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return get_frame(
        dataset.PixelData,
        index,
        number_of_frames=frame_count(dataset),
        extended_offsets=offsets if all(offsets) else None,
    )


def _require_agreement(header: StreamHeader, dataset: Dataset) -> None:
    """Refuse a stream that is no picture of the size and kind the file's header says."""
    if header.coding == "JPEG" and header.bits != 8:
        raise Unusable(Reason.UNSUPPORTED_SYNTAX)
    if header.coding == "lossless JPEG" and header.bits < 8:
        raise Unusable(Reason.UNSUPPORTED_SYNTAX)  # ends the codec's process
    if header.coding == "JPEG 2000" and not header.same_size:
        raise Unusable(Reason.UNSUPPORTED_COLOUR)
    stated = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if (header.rows, header.columns, header.samples) != stated:
        raise Unusable(Reason.CONTRADICTORY)
    if header.bits > int(dataset.BitsAllocated):
        raise Unusable(Reason.CONTRADICTORY)


def _require_memory(dataset: Dataset) -> None:
    """Refuse a picture too large to decode before a codec finds out by crashing."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
    needed = CODEC_COPIES * samples * int(dataset.BitsAllocated) // 8
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if needed > limit - used:
        raise Unusable(Reason.TOO_LARGE)


def _true_colour(header: StreamHeader, colour: str) -> str:
    """Return what decoded samples are: the encoder knew better than the file's header."""
    if header.samples != 3 or not header.colour:
        return colour
    return "RGB" if header.colour == "RGB" else "YBR_FULL"


@contextmanager
def complaining_codec() -> Iterator[None]:
    """Take what a codec writes to standard error for what it is: the picture is damaged.

    Codecs fill what is missing with grey and go on, and those in Rust panic in a way of their
    own; a line there is what they have in common.
    """
    reading, writing = os.pipe()
    kept = os.dup(STANDARD_ERROR)
    try:
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)  # a flood of complaints is cut off
        os.dup2(writing, STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, STANDARD_ERROR)
        complained = _holds_something(reading)
        for descriptor in (reading, writing, kept):
            os.close(descriptor)
        if complained:
            raise Unusable(Reason.DAMAGED)


def _holds_something(pipe: int) -> bool:
    try:
        return bool(os.read(pipe, 1))
    except BlockingIOError:
        return False


def _frame(
    array: npt.NDArray[Any], dataset: Dataset, colour: str, container: int, *, lossy: bool
) -> Frame:
    """Return values free of what lies around their bits: overlays, or nothing of meaning.

    Args:
        array: The samples as decoded, with or without a sign.
        dataset: The file's header.
        colour: What the samples are.
        container: How many bits of a sample the codec or the file filled.
        lossy: Whether they may be off, and so run over the ends of their range.
    """
    words = array.view(f"u{array.itemsize}")
    kind = ("i" if dataset.get("PixelRepresentation") else "u") + str(array.itemsize)
    bits = min(int(dataset.BitsStored), container)
    if bits < 1:
        raise Unusable(Reason.DAMAGED)
    if lossy:
        low = -(2 ** (bits - 1)) if kind.startswith("i") else 0
        values = np.clip(_cut_out(words, 0, container, kind), low, low + 2**bits - 1)
    else:
        values = _cut_out(words, _lowest_bit(words, dataset, bits, container), bits, kind)
    return Frame(values, words, colour, bits)


def _lowest_bit(words: npt.NDArray[Any], dataset: Dataset, bits: int, container: int) -> int:
    """Return where in a word the value begins (PS3.5 8.1.1).

    Some files say that it ends at the top of the word and begin it at the bottom all the same.
    """
    lowest = int(dataset.get("HighBit") or bits - 1) + 1 - bits
    if not 0 < lowest <= container - bits:
        return 0
    at_bottom = words.max() < 2**bits and (words % 2**lowest).any()
    return 0 if at_bottom else lowest


def _cut_out(words: npt.NDArray[Any], lowest: int, bits: int, kind: str) -> npt.NDArray[Any]:
    """Return the values of so many bits that begin at a bit of each word, with their sign."""
    above = 8 * words.itemsize - lowest - bits
    if not above and not lowest:
        return words.view(kind)
    return np.asarray((words << above).view(kind) >> (above + lowest))
