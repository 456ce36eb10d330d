"""The patients of a round: those allowed, each with their own images and label."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from client.approvals import Approval
from client.data.cohort import PatientSet
from client.work import make_plans, take_part
from shared.study import Study

Ward = Any  # the class in conftest.py


def approval(study: Study, patients: int = 14) -> Approval:
    return Approval(study=study, patients=patients, by="Dr. A", time="2026", split_key=16 * "0")


def by_patient(patients: PatientSet) -> dict[str, tuple[torch.Tensor, int]]:
    return {
        name: (patients.images[patients.image_patient == index], int(patients.labels[index]))
        for index, name in enumerate(patients.patients)
    }


@pytest.mark.parametrize("gone", [["train-0"], ["train-3", "train-4", "train-11"], ["held-out-2"]])
def test_those_who_stay_keep_their_images_and_labels(ward: Ward, gone: list[str]) -> None:
    study, hospital = ward.study(), ward.hospital()
    cohort = ward.cohort(hospital.site, study)
    out = {ward.pseudonym(name) for name in gone}
    with hospital.ledger() as ledger:
        for patient in out:
            ledger.opt_out(patient)
        plans = make_plans(ledger, approval(study), "train", hospital.site.config.policy)
        work = take_part(ledger, plans, hospital.site.config.policy, cohort)
    for before, after in ((cohort.train, work.train), (cohort.held_out, work.held_out)):
        expected = {name: own for name, own in by_patient(before).items() if name not in out}
        found = by_patient(after)
        assert found.keys() == expected.keys()
        assert len(after.images) == sum(len(images) for images, _ in expected.values())
        for name, (images, label) in expected.items():
            assert torch.equal(found[name][0], images)
            assert found[name][1] == label


def test_an_evaluation_uses_no_training(ward: Ward) -> None:
    hospital, study = ward.hospital(), ward.study()
    with hospital.ledger() as ledger:
        plans = make_plans(ledger, approval(study), "evaluate", hospital.site.config.policy)
    assert [plan.purpose for plan, _ in plans.uses()] == ["evaluate"]


@pytest.mark.parametrize(("declared", "training"), [(14, 12), (1, 1), (400, 340), (40_000, 34_000)])
def test_delta_follows_from_the_declared_size(ward: Ward, declared: int, training: int) -> None:
    hospital, study = ward.hospital(), ward.study(privacy={"delta": None})
    with hospital.ledger() as ledger:
        plans = make_plans(ledger, approval(study, declared), "train", hospital.site.config.policy)
    assert plans.size == training
    assert plans.training.delta == min(1e-5, 0.1 / training)
