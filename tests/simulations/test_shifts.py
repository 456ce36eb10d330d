"""What each feature shift does to pixels."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.ndimage import gaussian_filter

from simulations.scanners import scanner
from simulations.shifts import (
    BiasField,
    Blur,
    Gain,
    Inversion,
    Noise,
    Resolution,
    Scanners,
    Shift,
    shifted,
)

SHIFTS: list[Shift] = [
    Scanners(kind="scanners"),
    Gain(kind="gain", gain=0.7, offset=0.1),
    BiasField(kind="bias-field", strength=0.4),
    Blur(kind="blur", pixels=1.5),
    Noise(kind="noise", deviation=0.2),
    Resolution(kind="resolution", factor=3),
    Inversion(kind="inversion"),
]


def some_images(count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (count, 1, 24, 24)).astype(np.float32)


def grey(images: np.ndarray) -> np.ndarray:
    return (images + 1) / 2


def shift_with(shift: Shift, images: np.ndarray, site: int = 0, seed: int = 0) -> np.ndarray:
    return shifted(images, shift, site, np.random.default_rng(seed))


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.kind)
def test_shape_type_range_and_seed(shift: Shift) -> None:
    images = some_images()
    before = images.copy()
    changed = shift_with(shift, images)
    assert changed.dtype == np.float32
    assert changed.shape == images.shape
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert np.abs(changed - images).max() > 0.05
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(changed, shift_with(shift, images))


def test_gain_and_offset() -> None:
    images = some_images()
    changed = shift_with(Gain(kind="gain", gain=0.5, offset=0.2), images)
    np.testing.assert_allclose(grey(changed), 0.5 * grey(images) + 0.2, atol=1e-6)
    bright = shift_with(Gain(kind="gain", gain=4, offset=0.3), images)
    np.testing.assert_allclose(grey(bright), np.minimum(4 * grey(images) + 0.3, 1), atol=1e-6)


def test_noise_has_the_stated_deviation() -> None:
    flat = np.zeros((40, 1, 32, 32), dtype=np.float32)
    changed = grey(shift_with(Noise(kind="noise", deviation=0.07), flat)) - 0.5
    assert changed.std() == pytest.approx(0.07, rel=0.03)
    assert abs(changed.mean()) < 0.002
    assert len({image.tobytes() for image in changed}) == 40


def test_blur_is_gaussian_within_each_image() -> None:
    images = some_images(3)
    changed = shift_with(Blur(kind="blur", pixels=1.2), images)
    for before, after in zip(grey(images), grey(changed), strict=True):
        np.testing.assert_allclose(
            after[0], gaussian_filter(before[0], 1.2, mode="nearest"), atol=1e-5
        )


def test_bias_field_is_smooth_bounded_and_the_sites_own() -> None:
    images = np.full((3, 1, 24, 24), -0.2, dtype=np.float32)
    part = BiasField(kind="bias-field", strength=0.4)
    ratio = grey(shift_with(part, images)) / grey(images)
    np.testing.assert_allclose(ratio[0], ratio[2], atol=1e-6)
    assert np.abs(ratio - 1).max() == pytest.approx(0.4, abs=1e-3)
    assert np.abs(np.diff(ratio, axis=3)).max() < 0.12
    other = grey(shift_with(part, images, seed=1)) / grey(images)
    assert np.abs(ratio - other).max() > 0.1


def test_resolution_loses_what_is_finer() -> None:
    fine = np.where(np.indices((24, 24)).sum(axis=0) % 2, 0.8, -0.8).astype(np.float32)
    coarse = np.where(np.indices((24, 24)).sum(axis=0) // 12 % 2, 0.8, -0.8).astype(np.float32)
    part = Resolution(kind="resolution", factor=2)
    assert np.abs(shift_with(part, fine[None, None])).max() < 1e-5
    kept = shift_with(part, coarse[None, None])[0, 0]
    assert np.corrcoef(kept.ravel(), coarse.ravel())[0, 1] > 0.9
    flat = np.full((2, 3, 24, 24), 0.3, dtype=np.float32)
    np.testing.assert_allclose(shift_with(part, flat), flat, atol=1e-6)


def test_inversion_twice_is_nothing() -> None:
    images = some_images()
    part = Inversion(kind="inversion")
    once = shift_with(part, images)
    np.testing.assert_allclose(once, -images, atol=1e-6)
    np.testing.assert_allclose(shift_with(part, once), images, atol=1e-6)


def test_every_site_has_its_own_scanner() -> None:
    flat = np.full((30, 1, 24, 24), 0.4, dtype=np.float32)
    part = Scanners(kind="scanners")
    for site in range(5):
        changed = grey(shift_with(part, flat, site))
        device = scanner(site)
        assert changed.mean() == pytest.approx(0.7 * device.gain + device.offset, abs=0.005)
        assert changed.std() == pytest.approx(device.noise, rel=0.05)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="sharpen"):
        TypeAdapter(Shift).validate_python({"kind": "sharpen"})
