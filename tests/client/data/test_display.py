"""Grey levels against pydicom's own transforms and against closed forms."""

from __future__ import annotations

import io

import numpy as np
import pytest
from dicom_kit import blob, build_dicom, image, make_dataset, why_not, written
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from client.data.display import grey_levels, modality_values, padding_mask, windowed
from client.data.frames import Frame, read_frame
from client.data.reasons import Reason, Unusable
from shared.study import Input

FILE, FULL = Input(window="file"), Input(window="full")


def opened(dicom, pixels, **tags):
    dataset = dcmread(io.BytesIO(dicom(pixels, **tags)))
    return read_frame(dataset, 0), dataset


def lut(bits, data, vr="OW"):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), 100, bits])
    item.add_new("LUTData", vr, data.astype("<u2").tobytes() if vr == "OW" else data.tolist())
    return item


@pytest.mark.filterwarnings("ignore:overflow")  # in pydicom's sigmoid
@given(
    center=st.floats(-2000, 2000),
    width=st.floats(1.001, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_a_window_is_the_one_pydicom_applies(center, width, function):
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 8, 0
    dataset.WindowCenter, dataset.WindowWidth = round(center, 3), round(width, 3)
    dataset.VOILUTFunction = function
    values = np.linspace(-3000, 3000, 400).astype(np.float32)
    theirs = apply_windowing(values.astype(np.float64), dataset) / 255
    ours = windowed(values, dataset.WindowCenter, dataset.WindowWidth, function)
    assert np.allclose(ours, theirs, atol=2e-4)


def test_a_window_of_width_one_is_a_step():
    values = np.array([9.4, 9.5, 9.6])
    assert windowed(values, 10, 1).tolist() == [0, 0, 1]


def test_a_window_narrower_than_one_is_the_exact_one():
    values = np.array([0.29, 0.3, 0.5, 0.7, 0.71])
    shown = windowed(values, 0.5, 0.4)
    assert np.allclose(shown, [0, 0, 0.5, 1, 1])


def test_a_window_of_256_at_128_shows_eight_bits_unchanged():
    values = np.arange(256, dtype=np.float64)
    assert np.allclose(windowed(values.copy(), 128, 256), values / 255, atol=1e-7)


def test_odd_number_strings_rescale_as_pydicom_does(dicom, ramp):
    stored, dataset = opened(
        dicom, ramp, RescaleSlope="001.000244E+00", RescaleIntercept="-01.024000E+03"
    )
    ours = modality_values(stored.values, dataset, 0)
    assert np.allclose(ours, apply_modality_lut(stored.values, dataset), atol=1e-3)


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_a_modality_lut_is_the_one_pydicom_applies(dicom, ramp, vr):
    table = np.random.default_rng(1).integers(0, 65536, 300)
    stored, dataset = opened(dicom, ramp, ModalityLUTSequence=[lut(16, table, vr)])
    assert np.array_equal(
        modality_values(stored.values, dataset, 0),
        apply_modality_lut(stored.values, dataset).astype(np.float32),
    )


@pytest.mark.parametrize("bits", [10, 16])
def test_a_voi_lut_is_the_one_pydicom_applies(dicom, ramp, bits):
    table = np.random.default_rng(2).integers(0, 2**bits, 300)
    stored, dataset = opened(dicom, ramp, VOILUTSequence=[lut(bits, table)])
    theirs = apply_voi(stored.values.astype(np.int64), dataset) / (2**bits - 1)
    assert np.allclose(grey_levels(stored, dataset, 0, FILE), theirs, atol=1e-6)


def test_the_files_first_window_is_used_and_an_impossible_one_is_not(dicom, ramp):
    stored, dataset = opened(dicom, ramp, WindowCenter=[400, 10], WindowWidth=[100, 5])
    expected = np.clip((ramp - 399.5) / 99 + 0.5, 0, 1)
    assert np.allclose(grey_levels(stored, dataset, 0, FILE), expected, atol=1e-6)
    stored, dataset = opened(dicom, ramp, WindowCenter=400, WindowWidth=0)
    assert np.allclose(grey_levels(stored, dataset, 0, FILE), ramp / 783, atol=1e-6)


def test_the_studys_window_outranks_the_files(dicom, ramp):
    stored, dataset = opened(dicom, ramp, WindowCenter=400, WindowWidth=100)
    grey = grey_levels(stored, dataset, 0, Input(window=(200.0, 50.0)))
    assert np.allclose(grey, np.clip((ramp - 199.5) / 49 + 0.5, 0, 1), atol=1e-6)


def test_monochrome1_is_inverted(dicom, ramp):
    stored, dataset = opened(dicom, ramp, PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(grey_levels(stored, dataset, 0, FULL), 1 - ramp / 783, atol=1e-6)


@pytest.mark.parametrize("colour", ["MONOCHROME1", "MONOCHROME2"])
def test_declared_padding_is_black_and_takes_no_contrast(dicom, colour):
    pixels = np.arange(784, dtype=np.int16).reshape(28, 28)
    pixels[:4] = -2000
    stored, dataset = opened(
        dicom, pixels, PixelPaddingValue=-2000, PhotometricInterpretation=colour
    )
    grey = grey_levels(stored, dataset, 0, FULL)
    body = (pixels[4:] - 112) / 671
    assert np.allclose(grey[4:], body if colour == "MONOCHROME2" else 1 - body, atol=1e-6)
    assert (grey[:4] == 0).all()


def test_a_padding_range_covers_both_ends_in_either_order(dicom, ramp):
    for ends in [(10, 20), (20, 10)]:
        stored, dataset = opened(
            dicom, ramp, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1]
        )
        assert np.array_equal(padding_mask(stored, dataset), (ramp >= 10) & (ramp <= 20))


def test_padding_written_with_the_wrong_sign_is_understood():
    dataset = Dataset()
    dataset.add_new(0x00280120, "US", 63536)
    stored = np.array([[-2000, 5]], dtype=np.int16)
    frame = Frame(stored, stored.view(np.uint16), "MONOCHROME2", 16)
    assert padding_mask(frame, dataset).tolist() == [[True, False]]


def test_undeclared_ct_padding_far_below_air_takes_no_contrast(dicom):
    pixels = np.linspace(0, 2000, 784).astype(np.int16).reshape(28, 28)
    pixels[:4] = -2000
    tags = {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "-1024"}
    stored, dataset = opened(dicom, pixels, **tags)
    assert modality_values(stored.values, dataset, 0).min() == -1024
    grey = grey_levels(stored, dataset, 0, FULL)
    assert (grey[:4] == 0).all()
    assert np.allclose(grey[4:], pixels[4:] / 2000, atol=1e-6)


def test_only_padding_or_a_rescale_slope_of_zero_is_refused(dicom):
    flat = np.full((28, 28), 7, dtype=np.uint16)
    stored, dataset = opened(dicom, flat, PixelPaddingValue=7)
    with pytest.raises(Unusable) as error:
        grey_levels(stored, dataset, 0, FULL)
    assert error.value.reason == Reason.BLANK_IMAGE
    stored, dataset = opened(dicom, flat, RescaleSlope="0", RescaleIntercept="0")
    with pytest.raises(Unusable) as error:
        grey_levels(stored, dataset, 0, FULL)
    assert error.value.reason == Reason.BAD_NUMBER


def test_each_frame_of_an_enhanced_image_has_its_own_rescale_and_window(dicom, ramp):
    groups = []
    for frame in range(2):
        rescale, window, group = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = frame + 1, 10
        window.WindowCenter, window.WindowWidth = 400, 200
        group.PixelValueTransformationSequence = [rescale]
        if frame == 1:
            group.FrameVOILUTSequence = [window]
        groups.append(group)
    stack = np.stack([ramp, ramp])
    stored, dataset = opened(dicom, stack, frames=2, PerFrameFunctionalGroupsSequence=groups)
    shared = Dataset()
    shared.FrameVOILUTSequence = [Dataset()]
    shared.FrameVOILUTSequence[0].WindowCenter = 300
    shared.FrameVOILUTSequence[0].WindowWidth = 101
    dataset.SharedFunctionalGroupsSequence = [shared]
    first = np.clip((ramp + 10 - 299.5) / 100 + 0.5, 0, 1)
    second = np.clip((2.0 * ramp + 10 - 399.5) / 199 + 0.5, 0, 1)
    assert np.allclose(grey_levels(stored, dataset, 0, FILE), first, atol=1e-6)
    assert np.allclose(grey_levels(stored, dataset, 1, FILE), second, atol=1e-6)


def test_a_files_window_narrower_than_one_is_used(dicom):
    pixels = blob(1, high=30000)
    tags = {"RescaleSlope": "0.0001", "RescaleIntercept": "0"}
    shown = image(
        dicom(pixels, WindowCenter="1.5", WindowWidth="0.5", **tags), size=28, window="file"
    )
    assert np.allclose(shown[0], np.clip((pixels / 1e4 - 1.5) / 0.5 + 0.5, 0, 1) * 2 - 1, atol=1e-5)


def floats(pixels, keyword="FloatPixelData", **tags):
    """A parametric map's pixels: [rows, columns] of float32 or float64."""
    dataset = make_dataset(pixels, **tags)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    setattr(dataset, keyword, pixels.tobytes())
    return written(dataset)


RAMP = np.arange(784, dtype=np.float32).reshape(28, 28)


@pytest.mark.parametrize(
    ("keyword", "dtype", "padding"),
    [
        ("FloatPixelData", np.float32, "FloatPixelPaddingValue"),
        ("DoubleFloatPixelData", np.float64, "DoubleFloatPixelPaddingValue"),
    ],
)
def test_padding_of_floating_point_is_black_and_takes_no_contrast(keyword, dtype, padding):
    pixels = RAMP.astype(dtype)
    pixels[:4] = -1e6
    shown = image(floats(pixels, keyword, **{padding: -1e6}))[0]
    assert (shown[:4] == -1).all()
    assert np.allclose(shown[4:], (RAMP[4:] - 112) / 671 * 2 - 1, atol=1e-5)
    ranged = pixels.copy()
    ranged[:2] = -2e6
    limit = {padding: -2e6, padding.replace("Value", "RangeLimit"): -1e6}
    assert np.array_equal(image(floats(ranged, keyword, **limit))[0], shown)


def test_what_is_no_number_in_a_float_image_is_black_and_the_rest_is_shown():
    pixels = RAMP.copy()
    pixels[5, 5], pixels[6, 6], pixels[0, 0] = np.nan, np.inf, -np.inf
    shown = image(floats(pixels))[0]
    expected = (RAMP - 1) / 782 * 2 - 1
    for at in ((5, 5), (6, 6), (0, 0)):
        assert shown[at] == -1
        expected[at] = -1
    assert np.allclose(shown, expected, atol=1e-5)
    assert why_not(floats(np.full((28, 28), np.nan, np.float32))) == "blank-image"


@pytest.mark.parametrize(
    ("signed", "said"), [(True, -2000), (True, 2096), (True, 63536), (False, 63536), (False, 2096)]
)
def test_padding_is_found_in_its_stored_bits_and_in_its_word(signed, said):
    pixels = (blob(1).astype(np.int32) % 1000).astype(np.int16)
    padded = pixels.copy()
    padded[:4] = -2000  # 0xf830: its low twelve bits are 2096
    tags = {"BitsStored": 12, "HighBit": 11}
    dataset = make_dataset(padded if signed else padded.view(np.uint16), **tags)
    dataset.add_new("PixelPaddingValue", "SS" if said < 0 else "US", said)
    shown = image(written(dataset))[0]
    body = pixels[4:].astype(float)
    assert (shown[:4] == -1).all()
    low, high = body.min(), body.max()
    assert np.allclose(shown[4:], (body - low) / (high - low) * 2 - 1, atol=1e-5)


def test_a_white_that_fills_all_stored_bits_is_no_padding_of_the_word(dicom):
    pixels = np.minimum(blob(1, high=6000), 4095)
    told = dicom(pixels, BitsStored=12, HighBit=11, PixelPaddingValue=65535)
    assert np.array_equal(image(told), image(dicom(pixels)))


def test_doses_are_scaled_before_a_window():
    pixels = blob(1, high=60000).astype(np.uint32)
    tags = {"Modality": "RTDOSE", "DoseGridScaling": "0.001"}
    shown = image(build_dicom(pixels, **tags), window=(30.0, 40.0))[0]
    expected = np.clip((pixels * 0.001 - 29.5) / 39 + 0.5, 0, 1) * 2 - 1
    assert np.allclose(shown, expected, atol=1e-5)


def test_a_narrow_window_on_large_values_loses_no_digit():
    pixels = blob(1, high=100).astype(np.uint32) + np.uint32(200_000_000)
    shown = image(build_dicom(pixels), window=(200_000_050.0, 100.0))[0]
    exact = pixels.astype(np.int64) - 200_000_000
    assert np.allclose(shown, np.clip((exact - 49.5) / 99 + 0.5, 0, 1) * 2 - 1, atol=1e-5)
    tags = {"RescaleSlope": "1", "RescaleIntercept": "20000000"}
    small = build_dicom(blob(1, high=100), **tags)
    moved = image(small, window=(20_000_050.0, 100.0))[0]
    assert np.allclose(moved, shown, atol=1e-5)
