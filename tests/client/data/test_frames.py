"""Header and pixels that contradict each other: what is stored is right, or there is a reason."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from dicom_kit import (
    blob,
    build_dicom,
    encapsulated,
    image,
    jpeg,
    jpeg2000,
    make_dataset,
    transcoded,
    why_not,
    written,
)
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

pytestmark = pytest.mark.filterwarnings("ignore")

BARS = np.zeros((28, 28, 3), np.uint8)
BARS[:14], BARS[14:], BARS[:, 8:14] = [200, 40, 40], [40, 60, 180], [10, 220, 30]

TWO = np.zeros((20, 30), np.uint8)
TWO[:, :15], TWO[5:10] = 200, 90


@pytest.mark.parametrize("stored", [10, 12, 15])
def test_a_value_ends_at_its_high_bit(stored):
    values = np.minimum(blob(1, high=3000), 2**stored - 1)
    right = build_dicom(values, BitsStored=stored, HighBit=stored - 1)
    left = build_dicom(values << (16 - stored), BitsStored=stored, HighBit=15)
    middle = build_dicom(values << 1, BitsStored=stored, HighBit=stored)
    assert np.array_equal(image(left), image(right))
    assert np.array_equal(image(middle), image(right))


def test_a_signed_value_at_the_top_of_its_word_keeps_its_sign():
    values = blob(1).astype(np.int16) - 500
    right = build_dicom(values, BitsStored=12, HighBit=11)
    left = build_dicom(values << 4, BitsStored=12, HighBit=15)
    window = {"window": (100.0, 2000.0)}
    assert np.array_equal(image(left, **window), image(right, **window))


def test_values_that_lie_at_the_bottom_are_read_there_whatever_the_high_bit_says():
    values = blob(1, high=3000)
    said = build_dicom(values, BitsStored=12, HighBit=15)
    assert np.array_equal(image(said), image(build_dicom(values)))


@pytest.mark.parametrize("syntax", ["", "RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_an_overlay_in_the_bits_above_the_value_is_no_part_of_it(syntax):
    values = blob(1, high=3000)
    overlay = values | ((np.arange(784).reshape(28, 28) % 3 == 0) * 0x8000).astype(np.uint16)
    content = build_dicom(overlay)
    if syntax:
        content = transcoded(content, syntax)
    dataset = dcmread(io.BytesIO(content))
    dataset.BitsStored, dataset.HighBit = 12, 11
    assert np.array_equal(image(written(dataset)), image(build_dicom(values)))


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "RLELossless", "JPEGLosslessProcess14_1"])
def test_signed_values_are_the_same_compressed(syntax):
    values = blob(1).astype(np.int16) - 500
    plain = build_dicom(values, BitsStored=12, HighBit=11)
    window = {"window": (100.0, 2000.0)}
    assert np.array_equal(image(transcoded(plain, syntax), **window), image(plain, **window))


def test_values_that_lossy_coding_pushes_over_the_end_do_not_wrap():
    values = np.where(blob(1) > 500, 4095, 0).astype(np.uint16)
    stream = jpeg2000(values, irreversible=True, quality_layers=[20])
    content = encapsulated(values, stream, "1.2.840.10008.1.2.4.91", BitsStored=12, HighBit=11)
    decoded = np.asarray(Image.open(io.BytesIO(stream))).astype(np.uint16)
    assert decoded.max() > 4095
    assert np.array_equal(image(content), image(build_dicom(np.minimum(decoded, 4095))))


COLOUR_STREAMS = {
    "JFIF marker": (jpeg(BARS, quality=100), JPEGBaseline8Bit, "RGB"),
    "no marker, chroma quantised by its own table": (
        jpeg(BARS, marker=False, quality=100),
        JPEGBaseline8Bit,
        "RGB",
    ),
    "labelled YBR as it is": (
        jpeg(BARS, marker=False, quality=100),
        JPEGBaseline8Bit,
        "YBR_FULL_422",
    ),
    "JPEG 2000 with its colour transform": (jpeg2000(BARS, mct=1), JPEG2000Lossless, "YBR_FULL"),
    "JPEG 2000 labelled RGB": (jpeg2000(BARS, mct=1), JPEG2000Lossless, "RGB"),
    "JPEG 2000 labelled YBR_RCT": (jpeg2000(BARS, mct=1), JPEG2000Lossless, "YBR_RCT"),
    "JPEG 2000 without": (jpeg2000(BARS, mct=0), JPEG2000Lossless, "RGB"),
    "JPEG 2000 of luma and chroma": (
        jpeg2000(np.asarray(Image.fromarray(BARS).convert("YCbCr")), mct=0),
        JPEG2000Lossless,
        "YBR_FULL",
    ),
}


@pytest.mark.parametrize("name", COLOUR_STREAMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_those_of_the_stream_whatever_the_label(name, channels):
    stream, syntax, label = COLOUR_STREAMS[name]
    content = encapsulated(BARS, stream, syntax, PhotometricInterpretation=label)
    expected = image(build_dicom(BARS), channels=channels)
    assert np.abs(image(content, channels=channels) - expected).max() < 0.06


@pytest.mark.parametrize("syntax", ["", "RLELossless"])
def test_red_green_and_blue_labelled_luma_and_chroma_are_not_believed(syntax):
    content = build_dicom(BARS)
    dataset = dcmread(io.BytesIO(transcoded(content, syntax) if syntax else content))
    dataset.PhotometricInterpretation = "YBR_FULL"
    assert why_not(written(dataset)) == "contradictory"


def test_coarse_chroma_is_no_green_and_blue():
    smooth = np.repeat(np.repeat(BARS[::14, ::14], 14, 0), 14, 1)
    stream = jpeg(smooth, marker=False, subsampling=2, quality=100)
    shown = image(encapsulated(smooth, stream, JPEGBaseline8Bit), channels=3)
    label = {"PhotometricInterpretation": "YBR_FULL_422"}
    labelled = encapsulated(smooth, stream, JPEGBaseline8Bit, **label)
    assert np.array_equal(shown, image(labelled, channels=3))
    assert np.abs(shown - image(build_dicom(smooth), channels=3)).mean() < 0.1


def test_a_stream_of_rgb_stays_so():
    ids = bytearray(jpeg(BARS[..., 0]))
    assert why_not(encapsulated(BARS, bytes(ids), JPEGBaseline8Bit)) == "contradictory"
    out = io.BytesIO()
    Image.fromarray(BARS).save(out, "JPEG", quality=100, subsampling=0, keep_rgb=True)
    for label in ("RGB", "YBR_FULL"):
        content = encapsulated(
            BARS, out.getvalue(), JPEGBaseline8Bit, PhotometricInterpretation=label
        )
        expected = image(build_dicom(BARS), channels=3)
        assert np.abs(image(content, channels=3) - expected).max() < 0.06, label


@pytest.mark.parametrize("size", [(30, 20), (15, 40), (20, 29), (40, 30)])
@pytest.mark.parametrize(
    ("stream", "syntax"),
    [(jpeg(TWO), JPEGBaseline8Bit), (jpeg2000(TWO), JPEG2000Lossless)],
    ids=["JPEG", "JPEG 2000"],
)
def test_a_stream_of_another_size_is_not_believed(stream, syntax, size):
    rows, columns = size
    assert why_not(encapsulated(TWO, stream, syntax)) == ""
    said = encapsulated(TWO, stream, syntax, Rows=rows, Columns=columns)
    assert why_not(said) == "contradictory"


@pytest.mark.parametrize("syntax", ["JPEGLSLossless", "JPEGLosslessProcess14_1"])
def test_a_lossless_stream_of_another_size_is_not_believed(syntax):
    dataset = dcmread(io.BytesIO(transcoded(build_dicom(TWO), syntax)))
    dataset.Rows, dataset.Columns = 30, 20
    assert why_not(written(dataset)) == "contradictory"


def test_a_stream_of_more_bits_or_other_samples_is_not_believed():
    deep = encapsulated(TWO, jpeg2000(TWO.astype(np.uint16) * 200), JPEG2000Lossless)
    assert why_not(deep) == "contradictory"
    grey = encapsulated(TWO, jpeg2000(np.stack([TWO] * 3, axis=-1)), JPEG2000Lossless)
    assert why_not(grey) == "contradictory"


@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_many_times_longer_than_the_picture_are_not_believed(times, dtype):
    dataset = make_dataset(blob(1).astype(dtype))
    dataset.PixelData *= times
    assert why_not(written(dataset)) == "contradictory"


@pytest.mark.parametrize("stated", [1, 2, 4])
def test_another_number_of_compressed_frames_than_the_header_says_is_not_believed(stated):
    dataset = make_dataset(np.stack([TWO] * 3), JPEGBaseline8Bit, frames=3)
    dataset.PixelData = encapsulate([jpeg(TWO)] * 3)
    assert why_not(written(dataset)) == ""
    dataset.NumberOfFrames = stated
    assert why_not(written(dataset)) == "contradictory"


def test_a_little_padding_behind_the_pixels_is_nothing():
    dataset = make_dataset(blob(1))
    dataset.PixelData += bytes(64)
    assert np.array_equal(image(written(dataset)), image(build_dicom(blob(1))))


GREY = blob(6, 128, high=200).astype(np.uint8)


def holed(stream: bytes, start: float, length: int) -> bytes:
    """Return a stream with bytes from a place on overwritten with zeros."""
    at = int(len(stream) * start)
    return stream[:at] + bytes(length) + stream[at + length :]


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("pixels", [GREY, np.stack([GREY] * 3, axis=-1)], ids=["grey", "colour"])
def test_a_jpeg_cut_off_and_closed_with_an_end_marker_is_damaged(pixels, kept):
    stream = jpeg(pixels)
    closed = stream[: int(len(stream) * kept)] + b"\xff\xd9"
    assert why_not(encapsulated(pixels, stream, JPEGBaseline8Bit)) == ""
    assert why_not(encapsulated(pixels, closed, JPEGBaseline8Bit)) == "damaged"


@pytest.mark.parametrize("start", [0.4, 0.6, 0.8])
def test_a_jpeg_with_a_hole_is_damaged(start):
    stream = holed(jpeg(GREY), start, 300)
    assert why_not(encapsulated(GREY, stream, JPEGBaseline8Bit)) == "damaged"


def test_a_jpeg_of_which_two_decoders_have_two_pictures_is_damaged():
    stream = bytearray(jpeg(GREY))
    table = stream.index(b"\xff\xdb") + 5
    stream[table : table + 64] = b"\xff" * 64  # values that no encoder writes
    assert why_not(encapsulated(GREY, bytes(stream), JPEGBaseline8Bit)) == "damaged"


def test_a_lossless_jpeg_with_a_hole_is_damaged():
    dataset = dcmread(io.BytesIO(transcoded(build_dicom(GREY), "JPEGLosslessProcess14_1")))
    stream = dataset.PixelData[16 + 4 :]
    dataset.PixelData = encapsulate([holed(stream, 0.5, 300)])
    assert why_not(written(dataset)) == "damaged"


def test_a_jpeg_without_its_end_marker_is_whole():
    content = encapsulated(GREY, jpeg(GREY)[:-2], JPEGBaseline8Bit)
    assert np.abs(image(content) - image(build_dicom(GREY))).mean() < 0.02


@pytest.mark.parametrize("bits", [2, 5, 6, 7, 8, 12, 16])
def test_jpeg_ls_of_any_depth_is_read(bits):
    import jpeg_ls

    values = (blob(1, high=1000).astype(np.uint32) * (2**bits - 1) // 1050).astype(np.uint16)
    if bits <= 8:
        values = values.astype(np.uint8)
    stream = bytes(jpeg_ls.encode_array(values)) if bits in (8, 16) else None
    options = {"bits_stored": bits, "rows": 28, "columns": 28, "samples_per_pixel": 1}
    if stream is None:
        stream = bytes(jpeg_ls.encode_pixel_data(values.tobytes(), lossy_error=0, **options))
    tags = {"BitsStored": bits, "HighBit": bits - 1}
    content = encapsulated(values, stream, JPEGLSLossless, **tags)
    assert np.array_equal(image(content), image(build_dicom(values, **tags)))


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_lossless_jpeg_of_few_bits_has_a_reason_and_ends_nothing(bits):
    stream = bytearray(encapsulated(TWO, lossless_jpeg(TWO), JPEGLosslessSV1))
    at = stream.index(b"\xff\xc3")
    stream[at + 4] = bits
    assert why_not(bytes(stream)) == "unsupported-syntax"


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    dataset = dcmread(io.BytesIO(transcoded(build_dicom(pixels), "JPEGLosslessProcess14_1")))
    return dataset.PixelData[16:]


def test_a_jpeg_of_twelve_bits_has_a_reason():
    stream = bytearray(jpeg(TWO))
    stream[stream.index(b"\xff\xc0") + 4] = 12
    pixels = TWO.astype(np.uint16)
    content = encapsulated(pixels, bytes(stream), JPEGExtended12Bit, BitsStored=12, HighBit=11)
    assert why_not(content) == "unsupported-syntax"


def test_single_bits_in_rle_are_read_a_byte_each_and_have_a_reason_packed():
    bits = (blob(1) > 500).astype(np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    dataset = make_dataset(bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    dataset.PixelData = packed
    assert np.array_equal(image(written(dataset)), image(build_dicom(bits)))
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([rle(bits.tobytes())])
    assert np.array_equal(image(written(dataset)), image(build_dicom(bits)))
    dataset.PixelData = encapsulate([rle(packed)])
    assert why_not(written(dataset)) == "unsupported-syntax"


def rle(content: bytes) -> bytes:
    """Return one segment of literal runs (PS3.5 annex G)."""
    parts = [content[at : at + 128] for at in range(0, len(content), 128)]
    body = b"".join(bytes([len(part) - 1]) + part for part in parts)
    return struct.pack("<16I", 1, 64, *[0] * 14) + body


def test_an_rle_stream_that_makes_its_codec_panic_is_damaged():
    dataset = make_dataset(TWO, RLELossless)
    dataset.PixelData = encapsulate([struct.pack("<16I", 1, 64, *[0] * 14) + b"\x7f"])
    assert why_not(written(dataset)) == "damaged"


@pytest.mark.parametrize(
    "colour", ["ARGB", "CMYK", "HSV", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "XYB"]
)
def test_a_colour_model_that_is_not_read_says_so(colour):
    samples = 4 if colour in ("ARGB", "CMYK") else 3
    pixels = np.zeros((28, 28, samples), np.uint8)
    pixels[:14] = 200
    dataset = make_dataset(pixels, PhotometricInterpretation=colour, SamplesPerPixel=samples)
    assert why_not(written(dataset)) == "unsupported-colour"
