"""Private training gone wrong in ways that were found in real systems, for the audit to flag.

Each wraps or replaces the product's functions from outside; the product has no switch for any of
them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import client.evaluation
import client.hospital
import client.privacy.chain
import client.privacy.ledger
import client.rounds
import client.training
import shared.models.table
from client.answers import answer
from client.attention import AttentionBook
from client.data.cohort import Cohort, PatientSet
from client.evaluation import Evaluation
from client.hospital import Hospital
from client.outbox import Parcel
from client.privacy.chain import PRIVATE
from client.privacy.dpsgd import Grid
from client.privacy.ledger import Ledger
from client.privacy.sampler import Lot, choose_images, draw_lot
from client.privacy.stream import RandomStream
from client.session import Session
from client.site import Policy
from client.work import Plans, Work, take_part
from shared.accounting import calibrate
from shared.errors import PolicyRefusal
from shared.study import Study
from simulations.audit.attack import product_round
from simulations.audit.company import company
from simulations.audit.distinguish import EPSILON, Distinguished
from simulations.audit.free_bits import FreeBits, cases, difference
from simulations.audit.low_bits import count_bits, training_bits
from simulations.seeded import SeededStream

evaluate = Session.evaluate
COINS = 40  # for an enemy to notice a fault
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


def float_noise(
    total: list[torch.Tensor], grid: Grid, noise_multiplier: float, stream: RandomStream
) -> None:
    """Add noise as floating-point numbers to floating-point sums."""
    for at, whole in enumerate(total):
        noise = _float_gaussian(stream, whole.shape, noise_multiplier * grid.clip)
        total[at] = ((whole * grid.step).float() + noise) / grid.step


def coarse_noise(
    total: list[torch.Tensor], grid: Grid, noise_multiplier: float, stream: RandomStream
) -> None:
    """Round noise to another grid than contributions are on."""
    for whole in total:
        noise = stream.rounded_gaussian(whole.shape, noise_multiplier * grid.radius / 256)
        whole += 256 * noise


def float_counts(
    counts: np.ndarray[Any, np.dtype[np.int64]], noise: float, stream: RandomStream
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Add float32 noise to counts, and round to the grid afterwards."""
    drawn = _float_gaussian(stream, counts.shape, noise).numpy().astype(np.float64)
    return np.round((counts + drawn) * 64) / 64


def short_batch(rows: torch.Tensor, length: int, value: float = 0) -> torch.Tensor:
    """Leave a last batch as short as it is."""
    return rows


def exact_count(session: Session, *given: Any, **found: Any) -> Parcel:
    """Send the exact number of patients."""
    parcel = answer(session, *given, **found)
    reply = parcel.kept.reply.model_copy(update={"patients": max(1, len(session.work.train))})
    return replace(parcel, kept=parcel.kept.model_copy(update={"reply": reply}))


def silent_side(session: Session, *given: Any, **options: Any) -> Evaluation | None:
    """Send no histogram of an empty side."""
    return evaluate(session, *given, **options) if len(session.work.held_out) else None


def refusal_for_one(ledger: Ledger, plans: Plans, policy: Policy, cohort: Cohort) -> Work:
    """Refuse where a patient has no budget."""
    work = take_part(ledger, plans, policy, cohort)
    if len(work.train) < len(cohort.train):
        raise PolicyRefusal("budget-exhausted", "a patient has no budget left")
    return work


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """Put a fault of `INSIDE` or `TELLTALES` where the product looks its own functions up."""
    patches = TELLTALES[fault] if fault in TELLTALES else (INSIDE[fault],)
    sound = [getattr(place, name) for place, name, _ in patches]
    for place, name, make in patches:
        setattr(place, name, make())
    try:
        yield
    finally:
        for (place, name, _), function in zip(patches, sound, strict=True):
            setattr(place, name, function)


def _float_gaussian(stream: RandomStream, shape: Sequence[int], std: float) -> torch.Tensor:
    """Draw float32 Gaussians as sums of four (Holohan and Braghin 2021), as was done once."""
    u, v = stream.uniform(8 * math.prod(shape)).view(2, 4, -1)
    sums = ((-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)).sum(dim=0)
    return (sums * (std / 2)).float().view(tuple(shape))


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

# Faults that let enemies tell data sets apart, and who must notice.
TELLTALES: dict[str, tuple[tuple[Any, str, Callable[[], Any]], ...]] = {
    "floating-point noise": ((client.training, "add_noise", lambda: float_noise),),
    "noise on a coarser grid": ((client.training, "add_noise", lambda: coarse_noise),),
    "floating-point noise on counts": ((client.evaluation, "noised", lambda: float_counts),),
    "a short last batch": (
        (shared.models.table, "RowLinear", lambda: nn.Linear),
        (client.training, "_filled", lambda: short_batch),
    ),
    "an exact count in the reply": ((client.rounds, "answer", lambda: exact_count),),
    "no answer for an empty side": ((Session, "evaluate", lambda: silent_side),),
    "a refusal for one patient": (
        (client.rounds, "take_part", lambda: refusal_for_one),
        (AttentionBook, "watch", lambda: lambda *_: nullcontext()),
    ),
    "opt-outs counted in the head": (
        (client.privacy.chain, "PRIVATE", lambda: PRIVATE - {"opt-out"}),
        (client.privacy.ledger, "PRIVATE", lambda: PRIVATE - {"opt-out"}),
    ),
}
NOTICED_BY = {
    "floating-point noise": "low bits: spacing",
    "noise on a coarser grid": "low bits: remainders",
    "floating-point noise on counts": "low bits: counts",
    "a short last batch": "company",
    "an exact count in the reply": "free bits: one of many to train on: message 0: patients",
    "no answer for an empty side": "free bits: the only one held out",
    "a refusal for one patient": "free bits: one without budget left",
    "opt-outs counted in the head": "free bits: one who opts out before round 2 or stays",
}


def findings_of(enemy: str, stream: RandomStream) -> list[str]:
    """Return what one enemy finds, who is named as in `NOTICED_BY`."""
    kind, _, rest = enemy.partition(": ")
    if kind == "free bits":
        case = next(case for case in cases() if case.name == rest.split(":")[0])
        said = difference(case)
        free = FreeBits((case.name,), {case.name: said} if said else {})
        return Distinguished((), free).findings
    if kind == "company":
        verdicts = company(stream, EPSILON, COINS)
    elif rest == "counts":
        verdicts = [count_bits(stream, COINS)]
    else:
        verdicts = training_bits(stream, EPSILON, COINS)
    return Distinguished(tuple(verdicts), FreeBits((), {})).findings
