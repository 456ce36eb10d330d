"""The stage: every site's patients in shared files, with the model's fixed steps made once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_kit import federation, study

from client.data.cohort import PatientSet
from shared.models import build_model
from shared.study import Study
from simulations import stage
from simulations.patients import Patients
from simulations.stage import Stage, write_stage


def plan(**changes: Any) -> Study:
    return Study.model_validate(study().model_dump() | changes)


def staged(folder: Path, **changes: Any) -> list[tuple[Patients, PatientSet]]:
    """Write the kit's hospitals; return each side as it was and as a hospital will see it."""
    hospitals = federation()
    folder.mkdir()
    sides = write_stage(folder, hospitals, plan(**changes))
    there = Stage(folder)
    return [
        pair
        for site, side in zip(hospitals.sites, sides, strict=True)
        for pair in (
            (site.train, there.patients(side.train)),
            (site.held_out, there.patients(side.held_out)),
        )
    ]


def test_the_model_says_the_same_of_what_is_staged_as_of_the_images(tmp_path: Path) -> None:
    model = build_model(plan()).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.get_parameter("head.weight"))
        for before, after in staged(tmp_path / "stage"):
            assert after.images.shape[1] == 18
            said = model(torch.tensor(before.images))
            assert said.std() > 0
            assert torch.equal(model(after.images), said)
            assert after.labels.tolist() == before.labels.tolist()
            assert after.image_patient.tolist() == before.image_patient.tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "attention"}},
        {"training": {"augment": {"flip": True}}},
    ],
)
def test_images_stay_where_something_comes_before_the_first_steps(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    for before, after in staged(tmp_path / "stage", **changes):
        np.testing.assert_array_equal(after.images.numpy(), before.images)


def test_images_stay_where_the_first_steps_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = staged(tmp_path / "all")
    needed = sum(after.images.nbytes for _, after in sides)
    monkeypatch.setattr(stage, "MOST_SEEN", needed)
    assert staged(tmp_path / "fits")[0][1].images.shape[1] == 18
    monkeypatch.setattr(stage, "MOST_SEEN", needed - 1)
    for before, after in staged(tmp_path / "images"):
        np.testing.assert_array_equal(after.images.numpy(), before.images)


def test_what_is_made_of_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    everyone = federation()
    first = everyone.sites[0]
    alone = dataclasses.replace(first, train=first.train.take([0]))
    made = []
    for number, site in enumerate((first, alone)):
        folder = tmp_path / str(number)
        folder.mkdir()
        here = dataclasses.replace(everyone, sites=(site, *everyone.sites[1:]))
        side = write_stage(folder, here, plan())[0].train
        made.append(Stage(folder).patients(side).images)
    assert torch.equal(made[1], made[0][:1])
