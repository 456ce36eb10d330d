"""What a compressed picture says of itself: the header inside JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from client.data.reasons import Reason, Unusable

Coding = Literal["JPEG", "lossless JPEG", "JPEG-LS", "JPEG 2000"]
Colour = Literal["", "RGB", "YBR"]

FRAMES: dict[int, Coding] = {
    0xC0: "JPEG",
    0xC1: "JPEG",
    0xC2: "JPEG",
    0xC3: "lossless JPEG",
    0xF7: "JPEG-LS",
}
"""Markers that begin a frame of Huffman coding (T.81 table B.1) or of JPEG-LS (T.87 C.1.1)."""

OTHER_FRAMES = frozenset(range(0xC5, 0xD0)) - {0xC8, 0xCC}
"""Markers of hierarchical and arithmetic coding, which no decoder here reads."""

ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment behind them."""


@dataclass(frozen=True)
class StreamHeader:
    """The header of one compressed frame.

    Attributes:
        coding: Which standard it follows.
        rows: Height.
        columns: Width.
        samples: Components of a pixel.
        bits: Precision of a sample.
        lossy: Whether samples may differ from those that were compressed.
        colour: What three components are, where the stream itself settles it; else empty.
        same_size: Whether all components have as many samples.
    """

    coding: Coding
    rows: int
    columns: int
    samples: int
    bits: int
    lossy: bool
    colour: Colour = ""
    same_size: bool = True


def read_stream_header(stream: bytes) -> StreamHeader:
    """Read the header of a JPEG, JPEG-LS or JPEG 2000 stream.

    Raises:
        Unusable: It is none of them, is cut off, or of a kind that no decoder here reads.
    """
    try:
        if stream[:3] == b"\xff\xd8\xff":
            return _jpeg(stream)
        start = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # behind the boxes of a JP2 file, if any
        if start >= 0:
            return _jpeg2000(stream[start:])
    except (IndexError, struct.error):
        pass
    raise Unusable(Reason.DAMAGED)


def _jpeg(stream: bytes) -> StreamHeader:
    """Read the segments of T.81 annex B up to the first scan, and what libjpeg tells colours by."""
    frame: StreamHeader | None = None
    told: Colour = ""
    for marker, body in _segments(stream):
        if marker in FRAMES:
            frame = _jpeg_frame(FRAMES[marker], body)
        elif marker in OTHER_FRAMES:
            raise Unusable(Reason.UNSUPPORTED_SYNTAX)
        elif marker == 0xE0 and body.startswith(b"JFIF"):
            told = "YBR"
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11 and not told:
            told = "YBR" if body[11] else "RGB"
        elif marker == 0xDA and frame:
            near = body[1 + 2 * body[0]]  # T.87 C.2.3: how far samples may be off
            if frame.coding == "JPEG-LS":
                return replace(frame, lossy=near > 0)
            return replace(frame, colour=told or frame.colour) if frame.lossy else frame
    raise Unusable(Reason.DAMAGED)


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment."""
    at = 2
    while True:
        if stream[at] != 0xFF:
            raise Unusable(Reason.DAMAGED)
        while stream[at] == 0xFF:
            at += 1
        marker = stream[at]
        at += 1
        if marker in ALONE:
            continue
        (length,) = struct.unpack_from(">H", stream, at)
        yield marker, stream[at + 2 : at + length]
        at += length


def _jpeg_frame(coding: Coding, body: bytes) -> StreamHeader:
    """Read a frame header (T.81 B.2.2): precision, lines, samples a line, and the components.

    Components named R, G and B are that. Chroma that is coarser than luma, or quantised by a
    table of its own, is no green and blue: encoders of RGB treat all three alike.
    """
    bits, rows, columns, samples = struct.unpack_from(">BHHB", body)
    parts = [body[6 + 3 * index : 9 + 3 * index] for index in range(samples)]
    names = bytes(part[0] for part in parts)
    sizes, tables = {part[1] for part in parts}, {part[2] for part in parts}
    colour: Colour = ""
    if names in (b"RGB", b"rgb"):
        colour = "RGB"
    elif samples == 3 and (len(sizes) > 1 or len(tables) > 1):
        colour = "YBR"
    return StreamHeader(
        coding, rows, columns, samples, bits, coding == "JPEG", colour, len(sizes) == 1
    )


def _jpeg2000(stream: bytes) -> StreamHeader:
    """Read the size and coding style of a codestream (ISO 15444-1 A.5.1, A.6.1)."""
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    (samples,) = struct.unpack_from(">H", stream, 40)
    parts = [stream[42 + 3 * index : 45 + 3 * index] for index in range(samples)]
    bits = max((part[0] & 0x7F) + 1 for part in parts[:4])
    transformed, wavelet = _coding_style(stream)
    colour: Colour = "RGB" if transformed and samples == 3 else ""
    same_size = len({part[1:] for part in parts}) == 1
    rows, columns = bottom - top, right - left
    lossy = wavelet == 0
    return StreamHeader("JPEG 2000", rows, columns, samples, bits, lossy, colour, same_size)


def _coding_style(stream: bytes) -> tuple[int, int]:
    """Return whether components were transformed into luma and chroma, and the wavelet.

    Decoders undo the transform, so that its pictures are RGB; wavelet 0 is the irreversible one.
    """
    at = 2
    while stream[at + 1] not in (0x90, 0xD9):  # the first tile, or the end
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker == 0xFF52:
            return stream[at + 8], stream[at + 13]
        at += 2 + length
    raise Unusable(Reason.DAMAGED)
