"""Canary patients: extreme patients whose gradients do not overlap, for the audit to look for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from client.data.cohort import PatientSet
from shared.errors import StudyError
from shared.study import Study, parse_study
from simulations.chest import Subjects, draw_chests

# The parameter whose update is searched for canaries.
SEARCHED = "first.weight"
HIDDEN = 4

SIZES = (32, 64)
MOST_CANARIES = SIZES[-1] ** 2


@dataclass(frozen=True)
class AuditPlan:
    """What is claimed, and the training in which it is put to the test.

    Attributes:
        epsilon: The claim, for the whole training.
        delta: The claim.
        canaries: How many canary patients a coin is thrown for, 2 to 4096.
        rounds: Rounds of the study.
        steps: Steps a round; the audit sees the weights after each round.
        sampling_rate: Chance of each patient to be in a step's lot.
        images: Images of a canary patient, all alike; also K of the study.
        ordinary: Patients who are no canaries.

    Raises:
        StudyError: The number of canaries is out of its range.
    """

    epsilon: float = 8.0
    delta: float = 1e-5
    canaries: int = 1024
    rounds: int = 48
    steps: int = 1
    sampling_rate: float = 0.5
    images: int = 8
    ordinary: int = 64

    def __post_init__(self) -> None:
        if not 2 <= self.canaries <= MOST_CANARIES:
            raise StudyError(f"canaries must be 2 to {MOST_CANARIES}, not {self.canaries}")

    @property
    def size(self) -> int:
        """Side of the images: the smallest with room for so many orthogonal ones."""
        return next(size for size in SIZES if size**2 >= self.canaries)

    def study(self) -> Study:
        """Return the study that is audited.

        Plain SGD, so that the weights show each round's noised sum exactly; no spare rounds, so
        that the whole budget is used. Its model is not used: `AuditModel` takes its place.

        Raises:
            StudyError: A value is out of its range.
        """
        values = {
            "name": "privacy-audit",
            "task": {"classes": ["one", "other"]},
            "input": {"size": self.size},
            "training": {
                "optimiser": "sgd",
                "learning_rate": 0.1,
                "momentum": 0,
                "weight_decay": 0,
                "schedule": "constant",
                "local_steps": self.steps,
                "sampling_rate": self.sampling_rate,
                "augment": dict.fromkeys(("shift", "rotate", "scale", "flip", "intensity"), 0),
            },
            "privacy": {
                "epsilon": self.epsilon,
                "delta": self.delta,
                "clip": 1,
                "images_per_patient": self.images,
                "spare_rounds": 0,
            },
            "federation": {"rounds": self.rounds},
        }
        return parse_study(values, "the options of the audit")


class AuditModel(nn.Module):
    """Two dense layers: a harder case than the models of a study.

    The claim holds for whatever weights and layers a server may send. Here an image's gradient
    in the first layer is the image times a short vector, so orthogonal images have orthogonal
    gradients, and each canary is seen without the others.

    Args:
        size: Side of the images in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Linear(size**2, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, 2)
        generator = torch.Generator().manual_seed(0)
        nn.init.normal_(self.first.weight, std=1 / size, generator=generator)
        nn.init.normal_(self.head.weight, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [b, 2] of images [b, 1, size, size] in [-1, 1]."""
        logits: torch.Tensor = self.head(self.first(images.flatten(1)).tanh())
        return logits


def canary_images(count: int, size: int) -> torch.Tensor:
    """Return images of pixels 1 and -1, any two orthogonal, float32 [count, 1, size, size].

    Rows of a Hadamard matrix in random order, with one random sign per pixel, so that they look
    like noise to the ordinary patients' gradients. Fixed: what is secret is only who takes part.
    """
    from scipy.linalg import hadamard

    rng = np.random.default_rng(0)
    rows = hadamard(size**2, dtype=np.int8)[rng.permutation(size**2)[:count]]
    signed = rows * rng.choice(np.array([-1, 1], np.int8), size**2)
    return torch.from_numpy(signed.astype(np.float32)).view(count, 1, size, size)


@torch.no_grad()
def mislabelled(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Give each image the class the model thinks least likely, int64 [n]: a large gradient."""
    labels: torch.Tensor = model(images).argmin(dim=1)
    return labels


def ordinary_patients(plan: AuditPlan) -> PatientSet:
    """Draw chest phantoms of patients with one to three images each."""
    rng = np.random.default_rng(1)
    images = rng.integers(1, 4, plan.ordinary)
    opacity = rng.random(plan.ordinary) < 0.5
    subjects = Subjects(opacity, rng.random(plan.ordinary) < 0.5, images)
    pixels = draw_chests(subjects, (plan.size, plan.size), 0.5, rng)
    return PatientSet(
        images=torch.from_numpy(2 * pixels - 1)[:, None],
        image_patient=torch.from_numpy(np.repeat(np.arange(plan.ordinary), images)),
        labels=torch.from_numpy(opacity.astype(np.int64)),
        patients=tuple(f"ordinary-{n}" for n in range(plan.ordinary)),
    )


def with_canaries(
    ordinary: PatientSet, images: torch.Tensor, labels: torch.Tensor, copies: int
) -> PatientSet:
    """Add canary patients to a set, each with `copies` copies of one image.

    Args:
        ordinary: The patients that are there anyway.
        images: The canaries to be included, [n, channels, size, size].
        labels: Their classes, int64 [n].
        copies: Images of each.
    """
    first = len(ordinary)
    owners = torch.arange(first, first + len(images)).repeat_interleave(copies)
    return PatientSet(
        images=torch.cat([ordinary.images, images.repeat_interleave(copies, dim=0)]),
        image_patient=torch.cat([ordinary.image_patient, owners]),
        labels=torch.cat([ordinary.labels, labels]),
        patients=ordinary.patients + tuple(f"canary-{n}" for n in range(len(images))),
    )
