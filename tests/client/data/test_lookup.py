"""Look-up tables and palettes whose header and data disagree, as scanners write them."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_kit import blob, build_dicom, image, lut_item, make_dataset, written
from pydicom.data import get_palette_files
from pydicom.pixels import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

pytestmark = pytest.mark.filterwarnings("ignore")

INDEX = (np.arange(28 * 28).reshape(28, 28) * 255 // 783).astype(np.uint8)
RED, GREEN, BLUE = (
    np.arange(256, dtype=np.uint16),
    np.arange(255, -1, -1, dtype=np.uint16),
    (np.arange(256) // 2).astype(np.uint16),
)
TRUE = np.stack([RED[INDEX], GREEN[INDEX], BLUE[INDEX]]) / 127.5 - 1


def palette(
    bits: int,
    form: str,
    scale: int = 1,
    syntax: str = ExplicitVRLittleEndian,
    pixels: np.ndarray = INDEX,
) -> bytes:
    """Return an image with the palette's entries times `scale` in this form of bytes."""
    if syntax == ExplicitVRBigEndian:
        pixels = pixels.byteswap() if pixels.itemsize == 2 else pixels
    dataset = make_dataset(pixels, syntax, PhotometricInterpretation="PALETTE COLOR")
    for name, entries in (("Red", RED), ("Green", GREEN), ("Blue", BLUE)):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        data = (entries * scale).astype(form).tobytes()
        setattr(dataset, f"{name}PaletteColorLookupTableData", data)
    return written(dataset)


PALETTES = {
    "8 bits packed": palette(8, "u1"),
    "8 bits in words": palette(8, "<u2"),
    "8 bits in words under 16": palette(16, "<u2"),
    "8 bits packed under 16": palette(16, "u1"),
    "16 bits": palette(16, "<u2", 257),
    "16 bits under 8": palette(8, "<u2", 257),
    "12 bits under 16": palette(16, "<u2", 16),
    "16 bits big-endian": palette(16, ">u2", 256, ExplicitVRBigEndian, INDEX.astype(np.uint16)),
    "8 bits in words big-endian": palette(8, ">u2", 1, ExplicitVRBigEndian, INDEX.astype("u2")),
    "16-bit pixels": palette(8, "u1", 1, ExplicitVRLittleEndian, INDEX.astype(np.uint16)),
}


@pytest.mark.parametrize("name", PALETTES)
def test_a_palette_is_the_same_in_every_form(name):
    assert np.allclose(image(PALETTES[name], channels=3), TRUE, atol=0.012)


def test_indices_behind_a_palettes_end_take_its_last_colour():
    far = INDEX.astype(np.uint16) * 3
    shown = image(palette(8, "u1", pixels=far), channels=3)
    last = np.minimum(far, 255)
    assert np.allclose(shown, np.stack([RED[last], GREEN[last], BLUE[last]]) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("name", ["spring.dcm", "summer.dcm", "fall.dcm", "winter.dcm", "pet.dcm"])
def test_the_standards_own_palettes_are_expanded_as_pydicom_does(name):
    from pydicom import dcmread

    source = dcmread(get_palette_files(name)[0])
    dataset = make_dataset(INDEX, PhotometricInterpretation="PALETTE COLOR")
    for element in source:
        if "PaletteColorLookupTable" in element.keyword and "UID" not in element.keyword:
            dataset.add(element)
    theirs = apply_color_lut(INDEX, source)
    shown = image(written(dataset), channels=3)
    assert np.allclose(shown, np.moveaxis(theirs, -1, 0) / 127.5 - 1, atol=0.01)


def test_segments_copied_from_an_offset_in_bytes_are_expanded():
    words = [0, 2, 0, 10, 1, 3, 40, 2, 2, 0, 0, 0, 2, 7, 65535]
    dataset = make_dataset(
        np.repeat(np.arange(12, dtype=np.uint8), 3 * 36).reshape(36, 36),
        PhotometricInterpretation="PALETTE COLOR",
    )
    for name in ("Red", "Green", "Blue"):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [12, 0, 16])
        data = np.array(words, dtype="<u2").tobytes()
        setattr(dataset, f"Segmented{name}PaletteColorLookupTableData", data)
    entries = [0, 10, 20, 30, 40, 0, 10, 20, 30, 40, 7, 65535]
    shown = image(written(dataset), size=36)[0, ::3, 0]
    assert np.allclose(shown, np.array(entries) / 32767.5 - 1, atol=1e-3)


CR = blob(1, high=3500)


def voi(descriptor: list[int], data: bytes, vr: str = "US", data_vr: str = "OW", **tags) -> bytes:
    """Return a 12-bit picture with a VOI LUT."""
    dataset = make_dataset(CR, **{"BitsStored": 12, "HighBit": 11, **tags})
    dataset.VOILUTSequence = [lut_item(descriptor, data, vr, data_vr)]
    return written(dataset)


IDENTITY = np.arange(4096, dtype="<u2")


@pytest.mark.parametrize(
    ("bits", "data"),
    [
        (12, IDENTITY),
        (16, IDENTITY),
        (16, IDENTITY * 16 + IDENTITY // 256),
        (14, IDENTITY),
        (8, IDENTITY),
        (16, (IDENTITY // 16).astype("u1")),
        (8, (IDENTITY // 16).astype("u1")),
    ],
)
def test_a_table_made_for_fewer_or_more_bits_than_it_says_has_full_contrast(bits, data):
    shown = image(voi([4096, 0, bits], data.tobytes()), window="file")[0]
    assert np.allclose(shown, CR / 4095 * 2 - 1, atol=0.01)


def test_a_table_whose_brightest_is_half_of_white_stays_as_dark_as_it_is():
    shown = image(voi([4096, 0, 16], (IDENTITY * 8).tobytes()), window="file")[0]
    assert np.allclose(shown, CR * 8 / 65535 * 2 - 1, atol=1e-4)


def test_entries_written_with_a_sign_are_unsigned():
    whole = (IDENTITY.astype(np.int64) * 16).astype(np.uint16).view(np.int16).tolist()
    shown = image(voi([4096, 0, 16], whole, data_vr="SS"), window="file")[0]
    assert np.allclose(shown, CR * 16 / 65535 * 2 - 1, atol=1e-4)


def test_a_modality_table_of_hounsfield_units_keeps_its_sign():
    dataset = make_dataset(CR, BitsStored=12, HighBit=11)
    units = (np.arange(4096) - 1024).tolist()
    dataset.ModalityLUTSequence = [lut_item([4096, 0, 16], units, data_vr="SS")]
    shown = image(written(dataset), window=(500.0, 3001.0))[0]
    assert np.allclose(shown, np.clip((CR - 1024.0 - 499.5) / 3000 + 0.5, 0, 1) * 2 - 1, atol=1e-5)


HU = {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "-1024", "RescaleType": "HU"}


@pytest.mark.parametrize(
    ("syntax", "vr", "first"),
    [
        (ExplicitVRLittleEndian, "SS", -1024),
        (ExplicitVRLittleEndian, "US", 64512),
        (ImplicitVRLittleEndian, "US", 64512),
    ],
)
def test_the_first_input_has_a_sign_where_rescaled_values_have_one(syntax, vr, first):
    dataset = make_dataset(CR, syntax, **HU)
    data = (IDENTITY * 16).tobytes()
    dataset.VOILUTSequence = [lut_item([4096, first, 16], data, vr)]
    shown = image(written(dataset), window="file")[0]
    assert np.allclose(shown, CR * 16 / 65535 * 2 - 1, atol=1e-4)


def test_the_first_input_has_none_where_values_are_large():
    dataset = make_dataset(CR + np.uint16(40000))
    dataset.VOILUTSequence = [lut_item([4096, 40000, 16], (IDENTITY * 16).tobytes())]
    shown = image(written(dataset), window="file")[0]
    assert np.allclose(shown, CR * 16 / 65535 * 2 - 1, atol=1e-4)


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("item", ["empty", "without data", "without descriptor"])
def test_an_empty_item_is_no_table(keyword, item):
    entry = lut_item([4096, 0, 16], IDENTITY.tobytes())
    for name in {"empty": ("LUTDescriptor", "LUTData"), "without data": ("LUTData",)}.get(
        item, ("LUTDescriptor",)
    ):
        delattr(entry, name)
    dataset = make_dataset(CR)
    setattr(dataset, keyword, [entry])
    assert np.array_equal(image(written(dataset), window="file"), image(build_dicom(CR)))
