"""Fitting an image into the study's square: aspect kept, antialiased, padded with black."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image


def fit(
    planes: npt.NDArray[np.float32], size: int, pixel_aspect: float = 1.0
) -> npt.NDArray[np.float32]:
    """Scale an image so that its longer side fills the square, and centre it on black.

    Resampling is bilinear with the filter widened to the scale when shrinking (a triangle over
    all source pixels, so nothing aliases); it never leaves the range of its input.

    Args:
        planes: float32 [channels, rows, columns] in [0, 1].
        size: Side of the square in pixels.
        pixel_aspect: Height of a source pixel divided by its width.

    Returns:
        float32 [channels, size, size] in [0, 1]; 0 outside the image.
    """
    _, rows, columns = planes.shape
    height = rows * pixel_aspect
    scale = size / max(height, columns)
    inner = (max(1, round(height * scale)), max(1, round(columns * scale)))
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    square = np.zeros((len(planes), size, size), dtype=np.float32)
    for plane, target in zip(planes, square, strict=True):
        target[top : top + inner[0], left : left + inner[1]] = _scaled(plane, inner)
    return square


def _scaled(plane: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    if plane.shape == shape:
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane))
    rows, columns = shape
    return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR), dtype=np.float32)
