"""Grey levels against pydicom's own transforms and against closed forms."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from client.data.display import grey_levels, modality_values, padding_mask, windowed
from client.data.reasons import Reason, Unusable
from shared.study import Input

FILE, FULL = Input(window="file"), Input(window="full")


def opened(dicom, pixels, **tags):
    dataset = dcmread(io.BytesIO(dicom(pixels, **tags)))
    return dataset.pixel_array, dataset


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
    values = np.array([9.4, 9.5, 9.6], dtype=np.float32)
    assert windowed(values, 10, 1).tolist() == [0, 0, 1]


def test_a_window_of_256_at_128_shows_eight_bits_unchanged():
    values = np.arange(256, dtype=np.float32)
    assert np.allclose(windowed(values, 128, 256), values / 255, atol=1e-7)


def test_odd_number_strings_rescale_as_pydicom_does(dicom, ramp):
    stored, dataset = opened(
        dicom, ramp, RescaleSlope="001.000244E+00", RescaleIntercept="-01.024000E+03"
    )
    ours = modality_values(stored, dataset, 0)
    assert np.allclose(ours, apply_modality_lut(stored, dataset), atol=1e-3)


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_a_modality_lut_is_the_one_pydicom_applies(dicom, ramp, vr):
    table = np.random.default_rng(1).integers(0, 65536, 300)
    stored, dataset = opened(dicom, ramp, ModalityLUTSequence=[lut(16, table, vr)])
    assert np.array_equal(
        modality_values(stored, dataset, 0), apply_modality_lut(stored, dataset).astype(np.float32)
    )


@pytest.mark.parametrize("bits", [10, 16])
def test_a_voi_lut_is_the_one_pydicom_applies(dicom, ramp, bits):
    table = np.random.default_rng(2).integers(0, 2**bits, 300)
    stored, dataset = opened(dicom, ramp, VOILUTSequence=[lut(bits, table)])
    theirs = apply_voi(stored.astype(np.int64), dataset) / (2**bits - 1)
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
    assert padding_mask(stored, dataset).tolist() == [[True, False]]


def test_undeclared_ct_padding_far_below_air_takes_no_contrast(dicom):
    pixels = np.linspace(0, 2000, 784).astype(np.int16).reshape(28, 28)
    pixels[:4] = -2000
    tags = {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "-1024"}
    stored, dataset = opened(dicom, pixels, **tags)
    assert modality_values(stored, dataset, 0).min() == -1024
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
    assert error.value.reason == Reason.DAMAGED


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
    _, dataset = opened(dicom, stack, frames=2, PerFrameFunctionalGroupsSequence=groups)
    shared = Dataset()
    shared.FrameVOILUTSequence = [Dataset()]
    shared.FrameVOILUTSequence[0].WindowCenter = 300
    shared.FrameVOILUTSequence[0].WindowWidth = 101
    dataset.SharedFunctionalGroupsSequence = [shared]
    first = np.clip((ramp + 10 - 299.5) / 100 + 0.5, 0, 1)
    second = np.clip((2.0 * ramp + 10 - 399.5) / 199 + 0.5, 0, 1)
    assert np.allclose(grey_levels(ramp, dataset, 0, FILE), first, atol=1e-6)
    assert np.allclose(grey_levels(ramp, dataset, 1, FILE), second, atol=1e-6)
