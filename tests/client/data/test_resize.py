"""Fitting against the triangle filter written as a matrix, and against its own promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.resize import fit


def triangle(source: int, target: int) -> np.ndarray:
    """Weights [target, source] of bilinear interpolation, widened to the scale when shrinking."""
    scale = source / target
    reach = max(scale, 1.0)
    centers = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None] + 0.5 - centers[:, None])
    weights = np.clip(1 - distance / reach, 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("side", "size"), [(512, 28), (100, 64), (64, 64), (28, 64)])
def test_scaling_is_the_antialiased_triangle_filter(side, size):
    plane = np.random.default_rng(side).random((side, side), dtype=np.float32)
    matrix = triangle(side, size)
    assert np.allclose(fit(plane[None], size)[0], matrix @ plane @ matrix.T, atol=1e-5)


def test_fine_stripes_become_grey_and_not_a_pattern():
    stripes = np.zeros((1, 512, 512), dtype=np.float32)
    stripes[:, :, ::2] = 1
    inner = fit(stripes, 30)[0, 1:-1, 1:-1]
    assert np.abs(inner - 0.5).max() < 0.03


def test_the_aspect_is_kept_and_the_rest_is_black():
    image = fit(np.ones((1, 50, 100), dtype=np.float32), 64)[0]
    expected = np.zeros((64, 64))
    expected[16:48] = 1
    assert np.array_equal(image, expected)


def test_pixels_twice_as_high_as_wide_are_stretched():
    assert (fit(np.ones((1, 50, 100), dtype=np.float32), 64, pixel_aspect=2.0) == 1).all()


@given(rows=st.integers(1, 90), columns=st.integers(1, 90), aspect=st.floats(0.1, 10))
def test_any_shape_fits_and_stays_in_range(rows, columns, aspect):
    planes = np.random.default_rng(0).random((3, rows, columns), dtype=np.float32)
    image = fit(planes, 28, aspect)
    assert image.shape == (3, 28, 28)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.max() > 0
