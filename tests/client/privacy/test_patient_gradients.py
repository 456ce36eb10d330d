"""The private gradient of every model and loss, on phantoms, against one autograd call a patient.

Patients have several images, physical batches are smaller than the lot, findings have gaps, and
no patient has a part in another's contribution.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from split_kit import fix_split
from torch import nn
from torch.nn import functional

from client.data.cohort import load_cohort
from client.data.patients import PatientSet
from client.privacy.dpsgd import Grid, clipped_sum, per_image_gradients
from client.privacy.sampler import Lot, draw_lot
from client.site import Site, SiteConfig
from client.training import lot_batches
from shared.losses import make_loss
from shared.models import MODELS, build_model
from shared.protocol import Statistics
from shared.study import Study
from simulations.phantoms import make_phantoms
from simulations.seeded import SeededStream

K = 3
LOSSES = ("cross-entropy", "focal", "class-balanced", "logit-adjustment")
TABLES = ("drop", "mean", "indicator", "embedding")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
COLUMNS = [
    {"name": "age", "low": 0, "high": 100},
    {"name": "dose", "low": 0, "high": 1},
    {"name": "stage", "categories": ["one", "two", "three"]},
]


def make_study(model: str, loss: str, findings: bool) -> Study:
    name, _, missing = model.partition(" ")
    table = {"table": {"columns": COLUMNS, "missing": missing, "bins": 4}} if missing else {}
    sizes = {"cnn": {"widths": [4, 4]}, "attention": {"width": 16}, "linear": {"grid": 2}}
    size = {"layers": [6]} if missing else sizes[name]
    return Study.model_validate(
        {
            "name": "t",
            "task": {"classes": ["a", "b", "c"], "findings": findings},
            "input": {"size": 28},
            "model": {"name": name} | size,
            "training": {"loss": {"name": loss}},
            "privacy": {"images_per_patient": K},
        }
        | table
    )


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PatientSet:
    """Patients of a made-up hospital, decoded as a hospital would, one to four images each."""
    folder = make_phantoms(tmp_path_factory.mktemp("p"), sites=1, patients=24, test_patients=2)[0]
    site = SiteConfig.model_validate(
        {
            "name": "A",
            "server": {"address": "localhost:1"},
            "data": {"images": folder.images, "labels": folder.labels},
            "policy": {"min_patients": 1, "min_patients_per_class": 0},
        }
    )
    study = Study.model_validate(
        {
            "name": "p",
            "task": {"classes": folder.classes},
            "input": {"size": 28},
        }
    )
    return load_cohort(Site(fix_split(tmp_path_factory.mktemp("home")), site), study).train


def patients_of(study: Study, phantoms: PatientSet) -> PatientSet:
    """The phantoms with labels the study can use; for a table, a row in place of each image."""
    rng = np.random.default_rng(3)
    images = phantoms.images
    if study.table is not None:
        rows = rng.uniform(-1, 1, (len(images), len(COLUMNS)))
        rows[:, 2] = rng.integers(0, 3, len(images))
        rows[rng.random(rows.shape) < 0.3] = np.nan
        images = torch.from_numpy(rows).float()
    shape = (len(phantoms), 3) if study.task.findings else len(phantoms)
    labels = torch.from_numpy(rng.integers(-study.task.findings, 3 - study.task.findings, shape))
    if study.task.findings:
        labels[::5] = -1  # of some patients nothing is known
    return dataclasses.replace(phantoms, images=images, labels=labels)


def statistics_of(study: Study) -> Statistics:
    classes = (30.0, 9.0, -2.0, 44.0, 17.0, 20.0) if study.task.findings else (50.0, 8.0, -1.0)
    fills = study.table is not None and study.table.fills_in
    columns = ((5.0, 9, 3, 1, 2), (1.0, 1, 8, 8, 2), (3.0, 9.0, 1, 4)) if fills else ()
    return Statistics(classes=classes, columns=columns, noise=3.0)


def model_of(study: Study, device: str) -> nn.Module:
    """The study's model in float64, its weights moved away from their special start."""
    model = build_model(study, statistics_of(study)).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model.to(device)


def reference_loss(study: Study, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """One patient's loss from torch's own functions: mean over images, then known findings."""
    counts = torch.tensor(statistics_of(study).classes, dtype=torch.float64).clamp(min=1)
    if not study.task.findings:
        return _one(study, logits, label, counts.to(logits))
    known = [
        _one(study, torch.stack([z * 0, z], 1), value, counts[2 * at : 2 * at + 2].to(logits))
        for at, (z, value) in enumerate(zip(logits.T, label, strict=True))
        if value >= 0
    ]
    return torch.stack(known).mean() if known else logits.sum() * 0


def _one(
    study: Study, logits: torch.Tensor, label: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    plan, targets = study.training.loss, label.expand(len(logits)).to(logits.device)
    if plan.name == "class-balanced":
        weights = (1 - plan.beta) / (1 - plan.beta**counts)
        weights = weights * len(counts) / weights.sum()
        return functional.cross_entropy(logits, targets, weights, reduction="sum") / len(logits)
    if plan.name == "logit-adjustment":
        logits = logits + plan.tau * (counts / counts.sum()).log()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    if plan.name == "focal":
        losses = losses * (1 - (-losses).exp()) ** plan.gamma
    return losses.mean()


def one_by_one(
    study: Study, model: nn.Module, patients: PatientSet, lot: Lot, clip: float
) -> list[torch.Tensor]:
    """The clipped sum by one autograd call per patient, each cut to the grid."""
    step = 2.0 ** (math.floor(math.log2(clip)) - 25) if clip < math.inf else 2.0**-40
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for position, patient in enumerate(lot.patients):
        images = patients.images[lot.images[lot.owner == position]].to(parameters[0])
        loss = reference_loss(study, model(images), patients.labels[patient])
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        norm = torch.cat([g.flatten() for g in gradient]).norm().item()
        for t, g in zip(total, gradient, strict=True):
            t += torch.trunc(g * min(1.0, clip / norm) / step) * step if norm else g
    return total


def fast(
    study: Study, model: nn.Module, patients: PatientSet, lot: Lot, clip: float, physical: int
) -> list[torch.Tensor]:
    loss = make_loss(study, statistics_of(study))
    with per_image_gradients(model) as watched:
        batches = lot_batches(patients, lot, study, SeededStream(0), watched, physical)
        grid = Grid.of(clip)
        return [t.double() * grid.step for t in clipped_sum(watched, batches, grid, loss)]


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def everyone(patients: PatientSet, rate: float = 0.8) -> Lot:
    return draw_lot(SeededStream(4), patients.image_patient, len(patients), rate, K)


ALL_MODELS = (*sorted(MODELS), *(f"table {missing}" for missing in TABLES))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_private_gradient_equals_a_loop_over_patients(
    name: str, loss: str, findings: bool, device: str, phantoms: PatientSet
) -> None:
    study = make_study(name, loss, findings)
    model, patients = model_of(study, device), patients_of(study, phantoms)
    lot = everyone(patients)
    most = torch.bincount(lot.owner).max()
    assert most == K < torch.bincount(patients.image_patient).max(), "no patient has more than K"
    unclipped = one_by_one(study, model, patients, lot, math.inf)
    clip = float(flat(unclipped).norm()) / len(lot.patients)
    expected = one_by_one(study, model, patients, lot, clip)
    for physical in (4, 1000):
        found = fast(study, model, patients, lot, clip, physical)
        for f, e in zip(found, expected, strict=True):
            assert (f - e).norm() <= 1e-5 * e.norm()
    assert (flat(expected) - flat(unclipped)).norm() > 1e-2 * clip, "clipping had no effect"


@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["cnn", "attention", "table embedding"])
def test_changing_a_patient_changes_only_that_patients_contribution(
    name: str, loss: str, findings: bool, phantoms: PatientSet
) -> None:
    study = make_study(name, loss, findings)
    model, patients = model_of(study, "cpu"), patients_of(study, phantoms)
    lot = everyone(patients)
    which = 1
    patient = int(lot.patients[which])
    changed = dataclasses.replace(
        patients, images=patients.images.clone(), labels=patients.labels.clone()
    )
    mine = patients.image_patient == patient
    changed.images[mine] = changed.images[mine].flip(0).flip(-1) * 0.3
    changed.labels[patient] = (changed.labels[patient] + 1) % (2 if findings else 3)
    alone = Lot(
        lot.patients[which : which + 1],
        lot.images[lot.owner == which],
        torch.zeros(int((lot.owner == which).sum()), dtype=torch.int64),
    )

    def run(who: PatientSet, of: Lot) -> torch.Tensor:
        return flat(fast(study, model, who, of, 0.1, 4))

    moved = run(changed, lot) - run(patients, lot)
    own = run(changed, alone) - run(patients, alone)
    assert own.norm() > 1e-3
    assert (moved - own).norm() < 1e-9 * own.norm()


def test_a_patient_of_whom_nothing_is_known_contributes_nothing(phantoms: PatientSet) -> None:
    study = make_study("cnn", "class-balanced", findings=True)
    model, patients = model_of(study, "cpu"), patients_of(study, phantoms)
    unknown = dataclasses.replace(patients, labels=torch.full_like(patients.labels, -1))
    found = fast(study, model, unknown, everyone(unknown, 1.0), 1.0, 8)
    assert not flat(found).any()
