"""The patients of a round: those allowed, each with their own images and label."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from client.data.cohort import PatientSet
from client.work import plan_work

Ward = Any  # the class in conftest.py


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
        work = plan_work(ledger, study, "train", hospital.site.config.policy, cohort)
    for before, after in ((cohort.train, work.train), (cohort.held_out, work.held_out)):
        expected = {name: own for name, own in by_patient(before).items() if name not in out}
        found = by_patient(after)
        assert found.keys() == expected.keys()
        assert len(after.images) == sum(len(images) for images, _ in expected.values())
        for name, (images, label) in expected.items():
            assert torch.equal(found[name][0], images)
            assert found[name][1] == label


def test_an_evaluation_plans_no_training(ward: Ward) -> None:
    hospital, study = ward.hospital(), ward.study()
    cohort = ward.cohort(hospital.site, study)
    with hospital.ledger() as ledger:
        work = plan_work(ledger, study, "evaluate", hospital.site.config.policy, cohort)
    assert work.training is None
    assert [plan.purpose for plan, _ in work.uses()] == ["evaluate"]
