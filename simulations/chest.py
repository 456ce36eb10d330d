"""Draws chest phantoms: radiograph-like images in which only an opacity tells the classes apart.

The drawing is a sum of simple shapes on the coordinates x, y in [-1, 1] (x grows to the right of
the image, which is the patient's left; y grows downward). Every image is then mapped onto one
grey-value distribution drawn without regard to the class, as the tone scaling of a radiography
system does, so that no brightness statistic of a whole image can tell the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.float32]

TONE_RANKS = np.array([0.0, 0.06, 0.20, 0.38, 0.52, 0.66, 0.80, 0.93, 1.0], np.float32)
TONES = np.array([0.10, 0.18, 0.26, 0.38, 0.52, 0.65, 0.75, 0.85, 0.97], np.float32)
TONE_LEVELS = 1024
AIR_LEVELS = 40


@dataclass(frozen=True)
class Subjects:
    """Who is to be drawn.

    Attributes:
        opacity: bool [patients], whether the lungs hold an opacity.
        female: bool [patients].
        images: int64 [patients], images of each patient, all at least 1.
    """

    opacity: NDArray[np.bool_]
    female: NDArray[np.bool_]
    images: NDArray[np.int64]

    def __getitem__(self, part: slice) -> Subjects:
        """Some of these patients."""
        return Subjects(self.opacity[part], self.female[part], self.images[part])


def draw_chests(
    subjects: Subjects, shape: tuple[int, int], blur: float, rng: np.random.Generator
) -> Pixels:
    """Draw the images of some patients.

    Anatomy belongs to the patient; pose, exposure and tones to the image.

    Args:
        subjects: The patients.
        shape: Rows and columns.
        blur: Standard deviation of the scanner's point spread, in pixels.
        rng: Source of all chance.

    Returns:
        float32 [images, rows, columns] in [0, 1], dense tissue bright, patient after patient.
    """
    draw = _Draw(subjects, rng)
    x, y = _posed_grid(draw, shape)
    texture = _textures(draw, shape)
    side = np.abs(x)

    heart = _heart(draw, x, y)
    air = _lungs(draw, x, y, side) * (1 - 0.92 * heart)
    markings = _lung_markings(x, y, side, texture) * draw.patient(0.5, 1.3) * air
    air = air * (1 - _opacities(draw, x, y, texture)) * (1 - _haze(draw, side, y))
    density = _soft_tissue(draw, x, y, side)
    density *= 1 - draw.patient(0.50, 0.62) * air
    density += 0.05 * heart
    density += _bones(draw, x, y, side)
    density += markings
    density += _breasts(draw, side, y)
    np.maximum(density, 0.08, out=density)
    density *= _step(0.26 + 0.66 * _step(y + 0.74, 0.22) - side, 0.05)
    _add_devices(draw, density, x, y)
    density = gaussian_filter(density, (0, blur, blur), truncate=3)
    return _tone_scaled(density, draw)


class _Draw:
    """Chance for one batch: values per patient (repeated over the images) and per image."""

    def __init__(self, subjects: Subjects, rng: np.random.Generator) -> None:
        self.subjects, self.rng = subjects, rng
        self.count = int(subjects.images.sum())

    def image(self, low: float, high: float) -> Pixels:
        """One uniform value per image, float32 [images, 1, 1]."""
        values = self.rng.uniform(low, high, self.count)
        return values.astype(np.float32)[:, None, None]

    def patient(self, low: float, high: float) -> Pixels:
        """One uniform value per patient, float32 [images, 1, 1]."""
        return self.of_patients(self.rng.uniform(low, high, len(self.subjects.images)))

    def of_patients(self, values: NDArray[np.float64] | NDArray[np.bool_]) -> Pixels:
        """Repeat values of patients over their images, float32 [images, 1, 1]."""
        repeated = np.repeat(values, self.subjects.images)
        return repeated.astype(np.float32)[:, None, None]


def _step(distance: Pixels, softness: float) -> Pixels:
    """A soft edge: 0 outside, 1 inside, a ramp of the given width at the border."""
    ramp: Pixels = np.clip(distance * np.float32(1 / softness) + np.float32(0.5), 0, 1)
    return ramp


def _bump(squared: Pixels) -> Pixels:
    """A smooth hill of height 1 and finite support: (1 - r^2)^2 for r^2 < 1."""
    return np.square(np.clip(1 - squared, 0, 1))


def _posed_grid(draw: _Draw, shape: tuple[int, int]) -> tuple[Pixels, Pixels]:
    rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[None, :, None]
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, None, :]
    angle, zoom = draw.image(-0.06, 0.06), draw.image(0.93, 1.07)
    x = zoom * (columns + angle * rows) - draw.image(-0.06, 0.06)
    y = zoom * (rows - angle * columns) - draw.image(-0.06, 0.06)
    return x, y


def _textures(draw: _Draw, shape: tuple[int, int], bank: int = 24) -> Pixels:
    """Smooth noise of unit variance, one field of a small bank per patient."""
    noise = draw.rng.standard_normal((bank, *shape)).astype(np.float32)
    fields = 0.8 * _unit(gaussian_filter(noise, (0, 1.6, 1.2), mode="wrap"))
    fields += 0.6 * _unit(gaussian_filter(noise[::-1], (0, 4, 4), mode="wrap"))
    chosen = draw.rng.integers(0, bank, len(draw.subjects.images))
    return np.asarray(fields[np.repeat(chosen, draw.subjects.images)])


def _unit(fields: Pixels) -> Pixels:
    return np.asarray(fields / fields.std())


def _lungs(draw: _Draw, x: Pixels, y: Pixels, side: Pixels) -> Pixels:
    depth = np.clip((y + draw.patient(0.70, 0.78)) / 1.25, 0, 1)
    outer = 0.28 + draw.patient(0.48, 0.56) * np.sqrt(depth)
    inner = 0.17 + 0.10 * np.square(np.square(1 - depth))
    dome = draw.patient(0.42, 0.54) + 0.03 * np.sign(x) + 1.3 * np.square(side - 0.38)
    return _step(outer - side, 0.05) * _step(side - inner, 0.05) * _step(dome - y, 0.05)


def _heart(draw: _Draw, x: Pixels, y: Pixels) -> Pixels:
    across, down = x - draw.patient(0.06, 0.12), y - 0.33
    across, down = across + 0.15 * down, down - 0.45 * across
    radius = np.square(across / draw.patient(0.33, 0.41)) + np.square(down * (1 / 0.34))
    knob = np.square((x - 0.12) * (1 / 0.13)) + np.square((y + 0.24) * (1 / 0.17))
    return np.maximum(_step(1 - radius, 0.35), _step(1 - knob, 0.7))


def _opacities(draw: _Draw, x: Pixels, y: Pixels, texture: Pixels) -> Pixels:
    """How much of the lungs' air is lost, [images, rows, columns] in [0, 1)."""
    rng, patients = draw.rng, len(draw.subjects.images)
    first_side = rng.choice([-1.0, 1.0], patients)
    both = rng.random(patients) < 0.3
    lost: Pixels = np.zeros_like(x)
    for side, present in ((first_side, draw.subjects.opacity), (-first_side, both)):
        present = present & draw.subjects.opacity
        centre_x, centre_y = rng.uniform(0.38, 0.62, patients), rng.uniform(-0.10, 0.36, patients)
        across = (x - draw.of_patients(side * centre_x)) / draw.patient(0.24, 0.40)
        down = (y - draw.of_patients(centre_y)) / draw.patient(0.26, 0.42)
        tilt = draw.patient(-0.5, 0.5)
        radius = np.square(across + tilt * down) + np.square(down - tilt * across)
        ragged = 1 + 0.25 * texture
        lost += draw.of_patients(present * rng.uniform(0.7, 1.0, patients)) * (
            _bump(radius * ragged)
        )
    return np.minimum(lost, np.float32(0.95))


def _haze(draw: _Draw, side: Pixels, y: Pixels) -> Pixels:
    """Air lost evenly on both sides, as in a shallow breath, [images, rows, columns] in [0, 1).

    Lungs without an opacity lose about as much air this way as others lose to the opacity: the
    classes differ in where the lungs are dense, not in how much.
    """
    rng, patients = draw.rng, len(draw.subjects.images)
    amount = rng.uniform(0.2, 0.55, patients) * np.where(draw.subjects.opacity, 0.2, 1.0)
    down = (y - draw.patient(-0.6, 0.0)) / draw.patient(0.4, 0.6)
    return draw.of_patients(amount) * _bump(np.square(down))


def _soft_tissue(draw: _Draw, x: Pixels, y: Pixels, side: Pixels) -> Pixels:
    tilt = 1 + draw.image(-0.07, 0.07) * x + draw.image(-0.05, 0.05) * y
    belly = draw.patient(0.08, 0.20) * _step(y - 0.55, 0.6)
    bubble = np.square((x - 0.36) * 5) + np.square((y - draw.patient(0.66, 0.9)) * 9)
    tissue: Pixels = 0.62 - 0.16 * np.square(side) + belly - 0.14 * _bump(bubble)
    return tissue * tilt


def _bones(draw: _Draw, x: Pixels, y: Pixels, side: Pixels) -> Pixels:
    spacing, shift = draw.patient(0.19, 0.23), draw.patient(0, 1)
    cage = _step(0.88 - side, 0.1) * _step(y + 0.75, 0.2) * _step(0.75 - y, 0.3)
    bow = 0.05 * side + 0.5 * side * side * side
    posterior = _ridges((y - bow) / spacing + shift)
    anterior = _ridges((y + 0.75 * side) / (1.3 * spacing) + shift) * _step(side - 0.30, 0.2)
    ribs = draw.patient(0.05, 0.10) * cage * (posterior + 0.55 * anterior)
    vertebrae = 1 + 0.35 * _ridges(y * 6 + shift)
    spine = 0.13 * vertebrae * _bump(np.square(x * (1 / 0.16)))
    collar = y + draw.patient(0.54, 0.62) + 0.18 * side - 0.30 * np.square(side - 0.4)
    clavicles = 0.10 * _bump(np.square(collar * (1 / 0.07))) * _step(side - 0.1, 0.05)
    bones: Pixels = ribs + spine + clavicles * _step(0.82 - side, 0.1)
    return bones


def _ridges(phase: Pixels) -> Pixels:
    """Bands of height 1 where the phase is near a whole number."""
    return _bump(np.square((phase - np.rint(phase)) * (1 / 0.3)))


def _lung_markings(x: Pixels, y: Pixels, side: Pixels, texture: Pixels) -> Pixels:
    hilum = np.square((side - 0.24) * (1 / 0.34)) + np.square((y - 0.02) * (1 / 0.60))
    near = _bump(hilum)
    return 0.015 * texture + near * (0.10 * near + 0.045 * texture)


def _breasts(draw: _Draw, side: Pixels, y: Pixels) -> Pixels:
    radius = np.square((side - 0.46) * (1 / 0.36)) + np.square((y - 0.30) * (1 / 0.36))
    thickness = draw.patient(0.03, 0.09) * draw.of_patients(draw.subjects.female)
    return thickness * _step(1 - radius, 0.25)


def _add_devices(draw: _Draw, density: Pixels, x: Pixels, y: Pixels) -> None:
    """Put electrodes and now and then a pacemaker on the chest, whatever the class."""
    rng = draw.rng
    for chance, width, height, dense in ((0.25, 0.045, 0.045, 0.25), (0.06, 0.15, 0.12, 0.5)):
        on = np.flatnonzero(rng.random(draw.count) < chance)
        at_x = (rng.choice([-1, 1], len(on)) * rng.uniform(0.35, 0.7, len(on))).astype(np.float32)
        at_y = rng.uniform(-0.5, -0.3, len(on)).astype(np.float32)
        across = (x[on] - at_x[:, None, None]) * np.float32(1 / width)
        down = (y[on] - at_y[:, None, None]) * np.float32(1 / height)
        radius = np.square(np.square(across)) + np.square(np.square(down))
        density[on] += dense * _step(1 - radius, 0.5)


def _tone_scaled(density: Pixels, draw: _Draw) -> Pixels:
    """Map each image onto a grey-value distribution that does not depend on the class.

    The grey value of a pixel becomes the quantile, at the pixel's rank within its image, of a
    target distribution whose gamma is drawn per image (histogram specification; Gonzalez and
    Woods, Digital Image Processing, section 3.3).
    """
    count = len(density)
    low, high = density.min((1, 2), keepdims=True), density.max((1, 2), keepdims=True)
    level = ((density - low) * ((TONE_LEVELS - 1) / (high - low))).astype(np.int64)
    level += TONE_LEVELS * np.arange(count)[:, None, None]
    counts = np.bincount(level.ravel(), minlength=TONE_LEVELS * count).reshape(count, TONE_LEVELS)
    counts[:, :AIR_LEVELS] = 0
    ranks = (counts.cumsum(1) - 0.5 * counts) / counts.sum(1, keepdims=True)
    tones = np.interp(ranks, TONE_RANKS, TONES) ** draw.image(0.75, 1.35)[:, :, 0]
    tones[:, :AIR_LEVELS] = 0
    return np.asarray(tones.astype(np.float32).ravel()[level])
