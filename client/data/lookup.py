"""Look-up tables of DICOM headers: modality, VOI and palettes, as their data have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.data.reasons import Reason, Unusable

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Table:
    """A look-up table.

    Attributes:
        entries: Its values, int32.
        first: The input that the first entry is for, as the header has it.
        black: The least value an entry can have.
        white: The largest value an entry can have.
    """

    entries: Integers
    first: int
    black: int
    white: int

    def at(self, values: npt.NDArray[Any], *, negative: bool) -> Integers:
        """Look whole values up; those before the table take its first entry, those behind its last.

        The first input is 16 bits that files write with or without a sign, whatever is right
        (PS3.3 C.11.2.1.1). The reading is taken under which more of the values are in the table;
        under both alike, the one the standard has.

        Args:
            values: What to look up.
            negative: Whether such values can be negative, so that the standard has a sign.
        """
        whole = np.clip(np.rint(values), -(2**17), 2**17).astype(np.int32)
        unsigned = self.first % 2**16
        signed = unsigned - 2**16 if unsigned >= 2**15 else unsigned
        readings = (signed, unsigned) if negative else (unsigned, signed)
        first = max(readings, key=lambda start: self._inside(whole, start))
        whole -= first
        found: Integers = self.entries[np.clip(whole, 0, len(self.entries) - 1, out=whole)]
        return found

    def _inside(self, whole: Integers, first: int) -> int:
        return int(((whole >= first) & (whole < first + len(self.entries))).sum())


def sequence_table(module: Dataset, keyword: str, dataset: Dataset) -> Table | None:
    """Return the first table of a LUT sequence, None if there is none or it is empty.

    Args:
        module: What has the sequence.
        keyword: Its keyword.
        dataset: The whole header, which knows the byte order.
    """
    for item in module.get(keyword) or []:
        descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
        if descriptor is not None and len(descriptor) == 3 and data not in (None, b"", [], ""):
            return read_table(descriptor, _words(item, "LUTData", dataset))
    return None


def palette_colours(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.float32]:
    """Look a frame's colours up in its palette (PS3.3 C.7.6.3.1.5 and C.7.9).

    Args:
        stored: Indices, [rows, columns].
        dataset: The image's header.

    Returns:
        float32 [3, rows, columns] in [0, 1]: red, green and blue.
    """
    tables = [_palette(dataset, colour) for colour in ("Red", "Green", "Blue")]
    white = max(table.white for table in tables)
    planes = [table.at(stored, negative=stored.dtype.kind == "i") for table in tables]
    return np.clip(np.stack(planes) / white, 0, 1).astype(np.float32)


def read_table(descriptor: Sequence[int], words: Integers) -> Table:
    """Read a table as its data have it, where they contradict the descriptor.

    Entries of 8 bits may lie two in a word. White is what the descriptor says, unless entries
    need more bits, or the brightest would be under a quarter of it: then the table was made for
    fewer bits than it says, as many scanners write 12 under a descriptor of 16.

    Args:
        descriptor: Number of entries (0: 65,536), first input, bits of an entry.
        words: The data, in 16-bit words.
    """
    count, first, bits = (int(part) for part in descriptor)
    count = count % 2**16 or 2**16
    if len(words) == (count + 1) // 2 < count:
        words = _bytes(words)
    if len(words) < count:
        raise Unusable(Reason.DAMAGED)
    entries = _signed_or_not(words[:count])
    if entries.min() < 0:
        half = 2 ** max(0, min(bits, 16) - 1)
        return Table(entries, first, black=-half, white=half - 1)
    needed = max(1, int(entries.max()).bit_length())
    return Table(entries, first, 0, 2 ** (bits if needed <= bits < needed + 2 else needed) - 1)


def _signed_or_not(words: Integers) -> Integers:
    """Return entries as unsigned, which they are (PS3.3 C.11.1.1), even if written with a sign.

    Only where the signed values are the smoother curve, they were meant.
    """
    unsigned = words % 2**16
    smoother = np.abs(np.diff(words)).sum() < np.abs(np.diff(unsigned)).sum()
    return words if smoother else unsigned


def _palette(dataset: Dataset, colour: str) -> Table:
    descriptor = dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
    if descriptor is None or len(descriptor) != 3:
        raise Unusable(Reason.DAMAGED)
    plain, segmented = (f"{kind}{colour}PaletteColorLookupTableData" for kind in ("", "Segmented"))
    if plain in dataset:
        return read_table(descriptor, _words(dataset, plain, dataset))
    words = _words(dataset, segmented, dataset)
    narrow = int(descriptor[2]) <= 8
    return read_table(descriptor, _expanded(_bytes(words) if narrow else words, 2 - narrow))


def _words(source: Dataset, keyword: str, dataset: Dataset) -> Integers:
    """Return an element's data as 16-bit words."""
    element = source[keyword]
    if not isinstance(element.value, bytes):
        return np.atleast_1d(np.array(element.value, dtype=np.int32))
    little = element.VR == "OB" or dataset.original_encoding[1]
    padded = element.value + b"\0" * (len(element.value) % 2)
    return np.frombuffer(padded, dtype="<u2" if little else ">u2").astype(np.int32)


def _bytes(words: Integers) -> Integers:
    """Return the bytes of words, the less significant first."""
    return np.stack([words % 256, words // 256 % 256], axis=1).reshape(-1)


def _expanded(data: Integers, size: int) -> Integers:
    """Expand a segmented table of entries of so many bytes (PS3.3 C.7.9.2)."""
    found: list[int] = []
    _expand(data.tolist(), size, 0, None, found)
    return np.array(found, dtype=np.int32)


def _expand(data: list[int], size: int, at: int, count: int | None, found: list[int]) -> None:
    """Append what so many segments from a place on stand for; None: all of them."""
    while at < len(data) - 1 and count != 0 and len(found) <= 2**16:
        kind, length = data[at : at + 2]
        if kind == 0:  # discrete
            found += data[at + 2 : at + 2 + length]
            at += 2 + length
        elif kind == 1:  # linear, from the last entry to the one given
            start, end = found[-1], data[at + 2]
            found += [round(start + (end - start) * k / length) for k in range(1, length + 1)]
            at += 3
        elif kind == 2 and count is None:  # indirect: segments again, by their offset in bytes
            units = data[at + 2 : at + 2 + 4 // size]
            offset = sum(unit << 8 * size * place for place, unit in enumerate(units))
            _expand(data, size, offset // size, length, found)
            at += 2 + 4 // size
        else:
            raise Unusable(Reason.DAMAGED)
        count = count and count - 1
