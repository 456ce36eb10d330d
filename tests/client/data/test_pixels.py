"""One pipeline for every syntax: real files against each other and against pydicom."""

from __future__ import annotations

import io
import resource
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from client.data.pixels import decode
from client.data.reasons import Reason, Unusable
from shared.study import Input

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = Input(size=28, window="full")
FOLDER = Path(get_testdata_file("CT_small.dcm", download=False)).parent  # pydicom's own files

LOSSLESS = ("1.2.1", "1.2.1.99", "1.2.2", "1.2", "1.2.5")
LOSSLESS += tuple(f"1.2.4.{number}" for number in (57, 70, 80, 90))
UNDECODABLE = tuple(f"1.2.4.{number}" for number in (51, 53, 55))


def image(content: bytes, spec: Input = FULL) -> np.ndarray:
    return decode(io.BytesIO(content), spec)[0]


def reason(content: bytes, spec: Input = FULL) -> Reason:
    with pytest.raises(Unusable) as error:
        image(content, spec)
    return error.value.reason


@cache
def bundled(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


@pytest.fixture(scope="module")
def edge(real_data):
    """The same CT in many transfer syntaxes, by the end of the syntax's UID."""
    folder = real_data / "dicom_edge" / "cornerstone-wado"
    files = {path.stem.rsplit("_", 1)[-1]: path.read_bytes() for path in folder.iterdir()}
    return {key.removeprefix("1.2.840.10008."): content for key, content in files.items()}


@pytest.mark.parametrize("window", ["file", "full", (-600.0, 1500.0)])
def test_a_ct_is_the_same_tensor_in_every_lossless_syntax(edge, window):
    spec = Input(size=64, window=window)
    original = image(edge["CTImage"], spec)
    assert len(LOSSLESS) == 9
    for syntax in LOSSLESS:
        assert np.array_equal(image(edge[syntax], spec), original), syntax


def test_lossy_syntaxes_are_close_and_undecodable_ones_say_so(edge):
    spec = Input(size=64)
    original = image(edge["CTImage"], spec)
    for syntax, error in (("1.2.4.91", 0.02), ("1.2.4.81", 0.02), ("1.2.4.50", 0.15)):
        assert np.abs(image(edge[syntax], spec) - original).mean() < error, syntax
    for syntax in UNDECODABLE:
        assert reason(edge[syntax]) == Reason.UNSUPPORTED_SYNTAX


def test_every_syntax_cut_off_is_set_aside(edge):
    for syntax in (*LOSSLESS, "1.2.4.91", "1.2.4.81", "1.2.4.50"):
        content = edge[syntax]
        assert reason(content[: len(content) * 6 // 10]) in (Reason.DAMAGED, Reason.LOST_PIXELS)


def test_the_ct_is_what_pydicom_shows(edge):
    dataset = dcmread(io.BytesIO(edge["CTImage"]))
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = -(2**15) - 1024, 2**15 - 1 - 1024  # what pydicom spreads 16 signed bits over
    grey = Image.fromarray(((shown - low) / (high - low)).astype(np.float32))
    expected = np.asarray(grey.resize((64, 64), Image.Resampling.BILINEAR)) * 2 - 1
    assert np.allclose(image(edge["CTImage"], Input(size=64))[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless],
)
def test_syntaxes_written_by_pydicom_agree(dicom, ramp, syntax):
    dataset = dcmread(io.BytesIO(dicom(ramp)))
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    dataset.save_as(stream, implicit_vr=syntax == ImplicitVRLittleEndian)
    assert np.array_equal(image(stream.getvalue()), image(dicom(ramp)))


def test_big_endian_agrees(dicom, ramp):
    swapped = dicom(ramp.byteswap(), syntax=ExplicitVRBigEndian)
    assert np.array_equal(image(swapped), image(dicom(ramp)))


def test_the_range_is_minus_one_to_one_and_a_ramp_stays_a_ramp(dicom, ramp):
    assert np.allclose(image(dicom(ramp))[0], ramp / 783 * 2 - 1, atol=1e-6)
    assert np.allclose(
        image(dicom(ramp, PhotometricInterpretation="MONOCHROME1")), -image(dicom(ramp)), atol=1e-6
    )


def test_colour_becomes_three_channels_or_luminance(dicom):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    content = dicom(pixels)
    colour = image(content, Input(size=28, channels=3))
    assert np.allclose(colour, np.moveaxis(pixels, -1, 0) / 127.5 - 1, atol=1e-6)
    grey = pixels @ [0.299, 0.587, 0.114]
    assert np.allclose(image(content)[0], grey / 127.5 - 1, atol=1e-5)


def test_grey_becomes_three_equal_channels(dicom, ramp):
    channels = image(dicom(ramp), Input(size=28, channels=3, window="full"))
    assert all(np.array_equal(channel, image(dicom(ramp))[0]) for channel in channels)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # lossless JPEG
        ("SC_rgb_gdcm_KY.dcm", 0),  # JPEG 2000
        ("SC_rgb_rle_16bit.dcm", 0),
        ("SC_rgb_rle_32bit.dcm", 1e-6),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 0.02),  # JPEG of RGB
        ("SC_rgb_jpeg_dcmtk.dcm", 0.01),  # JPEG of YBR_FULL
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 0.03),  # JPEG of YBR_FULL_422
        ("SC_ybr_full_422_uncompressed.dcm", 0.01),
        ("SC_rgb_jls_lossy_line.dcm", 0.01),
    ],
)
def test_one_colour_picture_is_the_same_in_every_encoding(name, error):
    spec = Input(size=100, channels=3)
    picture = image(bundled("SC_rgb_rle.dcm"), spec)
    assert picture[:, 5, 5].tolist() == [1, -1, -1]  # its first bar is red
    assert np.abs(image(bundled(name), spec) - picture).mean() <= error


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_one_mr_is_the_same_in_every_encoding(name):
    assert np.array_equal(image(bundled(name)), image(bundled("MR_small.dcm")))


def test_a_palette_is_looked_up():
    content = bundled("examples_palette.dcm")
    dataset = dcmread(io.BytesIO(content))
    colour = apply_color_lut(dataset.pixel_array, dataset)
    colour = colour / np.iinfo(colour.dtype).max
    shown = image(content, Input(size=160, channels=3)) / 2 + 0.5
    blocks = colour.reshape(70, 5, 160, 5, 3).mean((1, 3))  # 350 x 800 in squares of 5
    assert np.abs(np.moveaxis(blocks, -1, 0) - shown[:, 45:115]).mean() < 0.01
    assert (shown[:, :45] == 0).all()


def test_every_file_that_comes_with_pydicom_decodes_or_has_a_reason():
    decoded, refused = 0, 0
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            try:
                result = image(path.read_bytes(), Input(size=64, channels=3))
            except Unusable:
                refused += 1
            else:
                decoded += 1
                assert result.shape == (3, 64, 64), path
                assert np.isfinite(result).all(), path
                assert np.abs(result).max() <= 1, path
    assert decoded > 70
    assert refused > 20


def test_the_named_frame_or_the_middle_one_is_taken(dicom, ramp):
    stack = np.stack([ramp * 0 + ramp // (k + 1) for k in range(4)]).astype(np.uint16)
    content = dicom(stack, frames=4)
    for frame in range(1, 5):
        taken = image(content, Input(size=28, window="full", frame=frame))
        assert np.array_equal(taken, image(dicom(stack[frame - 1]))), frame
    assert np.array_equal(image(content), image(dicom(stack[2])))
    assert reason(content, Input(size=28, frame=5)) == Reason.NO_SUCH_FRAME


def test_no_tag_but_pixels_and_what_they_mean_has_any_effect(dicom, ramp):
    told = dicom(
        ramp,
        PatientID="ill-7",
        PatientName="Ill^Very",
        PatientAge="099Y",
        ContrastBolusAgent="OMNIPAQUE",
        Manufacturer="X",
        StudyDescription="pneumonia",
        ImageComments="ill",
        SeriesNumber=9,
    )
    assert np.array_equal(image(told), image(dicom(ramp)))
    assert decode(io.BytesIO(told), FULL)[1] == ""
    assert decode(io.BytesIO(told), FULL, want_patient=True)[1] == "ill-7"


def test_the_patients_id_is_what_the_eye_sees(dicom, ramp):
    for said in ("4711", " 4711 ", "4711\u00ad"):
        content = dicom(ramp, PatientID=said, SpecificCharacterSet="ISO_IR 192")
        assert decode(io.BytesIO(content), FULL, want_patient=True)[1] == "4711"


def test_hopeless_files_have_their_reasons(dicom, ramp):
    assert reason(b"") == Reason.NOT_DICOM
    assert reason(b"%PDF-1.4" * 100) == Reason.NOT_DICOM
    assert reason(bundled("test-SR.dcm")) == Reason.NO_PIXELS
    assert reason(dicom(np.full((28, 28), 5, np.uint16))) == Reason.BLANK_IMAGE
    assert reason(dicom(ramp), Input(modalities=("CT",))) == Reason.WRONG_MODALITY
    assert reason(dicom(ramp, Rows=60000, Columns=60000)) == Reason.DAMAGED
    assert reason(dicom(ramp, RescaleSlope="0", RescaleIntercept="0")) == Reason.BAD_NUMBER
    assert reason(dicom(ramp, PhotometricInterpretation="HSV")) == Reason.UNSUPPORTED_COLOUR


def test_a_file_without_preamble_is_dicom(dicom, ramp):
    content = dicom(ramp)
    assert np.array_equal(image(content[132:]), image(content))
    for syntax, order in ((ImplicitVRLittleEndian, "<"), (ExplicitVRBigEndian, ">")):
        dataset = dcmread(io.BytesIO(content))
        dataset.PixelData = ramp.astype(f"{order}u2").tobytes()
        bare = Dataset()
        bare.update({element.tag: element for element in dataset})
        stream = io.BytesIO()
        dcmwrite(
            stream,
            bare,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=order == "<",
        )
        assert np.array_equal(image(stream.getvalue()), image(content)), syntax


def test_an_image_whose_pixels_are_gone_is_told_from_a_report(dicom, ramp):
    content = dicom(ramp)
    at = content.index(b"\xe0\x7f\x10\x00")
    for end in (at, at // 2, 400, 200):
        assert reason(content[:end]) == Reason.LOST_PIXELS, end
    private = b"\x29\x00\x10\x10SQ\0\0\xff\xff\xff\xff"  # opened before the pixels, never closed
    assert reason(content[:at] + private + content[at:]) == Reason.LOST_PIXELS
    assert reason(bundled("test-SR.dcm")) == Reason.NO_PIXELS


@pytest.mark.parametrize("length", [2**31 - 2, 2**32 - 18])
def test_a_false_length_is_damage_and_takes_no_memory(tmp_path, dicom, ramp, length):
    content = dicom(ramp)
    at = content.index(b"\xe0\x7f\x10\x00") + 8
    cut = content[:at] + length.to_bytes(4, "little") + content[at + 4 : at + 400]
    (tmp_path / "cut.dcm").write_bytes(cut)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))
    try:
        with open(tmp_path / "cut.dcm", "rb") as file, pytest.raises(Unusable) as error:
            decode(file, FULL)
        assert error.value.reason == Reason.DAMAGED
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


MUTABLE = ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_rle_2frame.dcm", "ExplVR_BigEnd.dcm")


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(MUTABLE),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_whatever_is_changed_in_a_file_it_decodes_or_has_a_reason(name, changes, kept):
    content = bytearray(bundled(name))
    header = min(len(content), 4096)
    for place, value in changes:
        content[int(place**2 * (header - 1))] = value
    try:
        result = image(bytes(content[: int(len(content) * kept)]))
    except Unusable:
        return
    assert np.isfinite(result).all()
    assert np.abs(result).max() <= 1
