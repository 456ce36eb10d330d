"""Private training gone wrong in ways that were found in real systems, for the audit to flag.

Each wraps or replaces the product's functions from outside; the product has no switch for any of
them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

import client.hospital
import client.training
from client.data.cohort import PatientSet
from client.hospital import Hospital
from client.privacy.sampler import Lot, choose_images, draw_lot
from client.privacy.stream import RandomStream
from shared.accounting import calibrate
from shared.study import Study
from simulations.audit.attack import product_round
from simulations.seeded import SeededStream

UNCLIPPED = 1000.0  # larger than any patient's gradient here, and the largest a study allows


def noise_off(
    model: nn.Module, patients: PatientSet, study: Study, noise: float, *rest: Any
) -> None:
    """Add next to no noise."""
    product_round(model, patients, study, 1e-3, *rest)


def clipping_off(
    model: nn.Module, patients: PatientSet, study: Study, noise: float, *rest: Any
) -> None:
    """Add the noise that fits the clip norm C, and do not clip."""
    clip, rate = study.privacy.clip, study.training.learning_rate
    unclipped = study.model_copy(
        update={
            "privacy": study.privacy.model_copy(update={"clip": UNCLIPPED}),
            # The step is divided by the clip norm; this undoes it.
            "training": study.training.model_copy(
                update={"learning_rate": rate * UNCLIPPED / clip}
            ),
        }
    )
    product_round(model, patients, unclipped, noise * clip / UNCLIPPED, *rest)


def noise_for_one_round(
    model: nn.Module, patients: PatientSet, study: Study, noise: float, *rest: Any
) -> None:
    """Calibrate the noise as if the study had one round."""
    plan, budget = study.training, study.privacy
    enough_for_one = calibrate(budget.epsilon, budget.delta, plan.sampling_rate, plan.local_steps)
    product_round(model, patients, study, enough_for_one, *rest)


def images_as_patients(
    model: nn.Module, patients: PatientSet, study: Study, noise: float, *rest: Any
) -> None:
    """Protect images instead of patients: sample and clip each image by itself."""
    images = PatientSet(
        images=patients.images,
        image_patient=torch.arange(len(patients.images)),
        labels=patients.labels[patients.image_patient],
        patients=tuple(patients.patients[p] for p in patients.image_patient.tolist()),
    )
    # The steps are divided by the expected number of images; this undoes it.
    rate = study.training.learning_rate * len(images) / len(patients)
    plan = study.training.model_copy(update={"learning_rate": rate})
    product_round(model, images, study.model_copy(update={"training": plan}), noise, *rest)


def lots_of_equal_size(
    stream: RandomStream, image_patient: torch.Tensor, n: int, rate: float, k: int
) -> Lot:
    """Draw exactly the expected number of patients."""
    patients = stream.choose(n, round(rate * n)).sort().values
    return _lot(stream, image_patient, patients, k)


class ShuffledLots:
    """Shuffle the patients once an epoch and cut the row into lots, as data loaders do."""

    def __init__(self) -> None:
        self._waiting = torch.empty(0, dtype=torch.int64)

    def __call__(
        self, stream: RandomStream, image_patient: torch.Tensor, n: int, rate: float, k: int
    ) -> Lot:
        """Take the next lot of the epoch."""
        size = round(rate * n)
        if len(self._waiting) < size:
            self._waiting = stream.choose(n, n)
        patients, self._waiting = self._waiting[:size].sort().values, self._waiting[size:]
        return _lot(stream, image_patient, patients, k)


class ShuffledPoissonSizes(ShuffledLots):
    """Lots of binomial size, as Poisson sampling has them, but cut from a shuffled epoch."""

    def __call__(
        self, stream: RandomStream, image_patient: torch.Tensor, n: int, rate: float, k: int
    ) -> Lot:
        """Take the next lot of the epoch."""
        size = int((stream.uniform(n) < rate).sum())
        while len(self._waiting) < size:
            self._waiting = torch.cat([self._waiting, stream.choose(n, n)])
        patients, self._waiting = self._waiting[:size].unique(), self._waiting[size:]
        return _lot(stream, image_patient, patients, k)


def lots_at_another_rate(
    stream: RandomStream, image_patient: torch.Tensor, n: int, rate: float, k: int
) -> Lot:
    """Sample a tenth more patients than the accountant is told."""
    return draw_lot(stream, image_patient, n, 1.1 * rate, k)


def lots_of_pairs(
    stream: RandomStream, image_patient: torch.Tensor, n: int, rate: float, k: int
) -> Lot:
    """Include patients two by two: every one at the right rate, but not independently."""
    chosen = (stream.uniform((n + 1) // 2) < rate).repeat_interleave(2)[:n]
    return _lot(stream, image_patient, torch.nonzero(chosen).flatten(), k)


class StickyLots:
    """Keep every second lot for two steps."""

    def __init__(self) -> None:
        self._kept: Lot | None = None

    def __call__(
        self, stream: RandomStream, image_patient: torch.Tensor, n: int, rate: float, k: int
    ) -> Lot:
        """Return the lot kept, or draw one and keep it."""
        lot = self._kept or draw_lot(stream, image_patient, n, rate, k)
        self._kept = None if self._kept else lot
        return lot


class TorchStream(RandomStream):
    """Bytes of torch's global generator: whoever knows its 32 bits of seed knows them all."""

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        return torch.randint(0, 256, (size,), dtype=torch.uint8).numpy().tobytes()


class NumpyStream(RandomStream):
    """Bytes of numpy's global generator."""

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        return np.random.bytes(size)


class PythonStream(RandomStream):
    """Bytes of Python's own global generator."""

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        return random.randbytes(size)


class FixedStream(RandomStream):
    """Bytes of a generator whose seed stands in the code."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(1234)

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        return self._generator.bytes(size)


class ForkedStream(RandomStream):
    """Unpredictable, but parent and child go on alike after a fork."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng()

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        return self._generator.bytes(size)


def seeded_hospital(*given: Any) -> Hospital:
    """Open a hospital whose randomness follows from the request."""
    return Hospital(*given, make_stream=lambda request: SeededStream(0, request.run, request.round))


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """Put a fault of `INSIDE` where the product looks its own function up."""
    module, name, make = INSIDE[fault]
    sound = getattr(module, name)
    setattr(module, name, make())
    try:
        yield
    finally:
        setattr(module, name, sound)


def _lot(stream: RandomStream, image_patient: torch.Tensor, patients: torch.Tensor, k: int) -> Lot:
    images, owner = choose_images(stream, image_patient, patients, k)
    return Lot(patients, images, owner)


TRAINERS = {
    "noise off": noise_off,
    "clipping off": clipping_off,
    "noise for one round": noise_for_one_round,
    "image as the unit": images_as_patients,
}
SAMPLERS = {
    "lots of equal size": lambda: lots_of_equal_size,
    "shuffled epochs": ShuffledLots,
    "shuffled epochs, binomial sizes": ShuffledPoissonSizes,
    "rate a tenth too high": lambda: lots_at_another_rate,
    "patients in pairs": lambda: lots_of_pairs,
    "every lot twice": StickyLots,
}
STREAMS = {
    "torch's global generator": TorchStream,
    "numpy's global generator": NumpyStream,
    "Python's global generator": PythonStream,
    "a fixed seed": FixedStream,
    "alike after a fork": ForkedStream,
}
INSIDE = {
    "shuffled epochs inside training": (client.training, "draw_lot", ShuffledLots),
    "seeded stream from make_stream": (client.hospital, "Hospital", lambda: seeded_hospital),
}
