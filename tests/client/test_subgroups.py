"""Subgroups of held-out patients leave as noised counts that the accounting covers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from client.data.patients import PatientSet
from client.evaluation import Evaluation, evaluate
from client.privacy.counts import GRID
from client.privacy.stream import OsStream
from shared.accounting import Mechanism, epsilon
from shared.errors import DataError
from shared.metrics import summarise
from shared.protocol import ScoreHistogram
from shared.study import Study
from shared.subgroups import CELLS, subgroup_keys

Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]
BINS = 32


class Shown(nn.Module):
    """Logits by which the probability of each class is read off the image's first pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3].logit() * self.unit


class ShownShares(Shown):
    """The same where the probabilities of the classes sum to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2].log() * self.unit


def make_study(*, findings: bool = False, subgroups: tuple[str, ...] = ("sex", "age")) -> Study:
    classes = ["a", "b", "c"] if findings else ["healthy", "ill"]
    return Study.model_validate(
        {
            "name": "s",
            "task": {"classes": classes, "findings": findings},
            "privacy": {"score_bins": BINS, "subgroups": subgroups},
        }
    )


def make_patients(n: int, *, findings: bool = False) -> PatientSet:
    """Patients, an image each, whose scores lie in the middle of bins: binning loses nothing.

    Scores separate best in women, worst in the old.
    """
    rng = np.random.default_rng(0)
    sex, age = rng.integers(0, 3, n), rng.integers(0, 6, n)
    targets = 3 if findings else 1
    labels = rng.integers(0, 2, (n, targets))
    raw = labels * (0.5 - 0.06 * age - 0.1 * sex)[:, None] + rng.random((n, targets))
    scores = (np.floor(raw / raw.max() * 0.999 * BINS) + 0.5) / BINS
    pixels = np.full((n, 1, 28, 28), 0.5)
    if findings:
        pixels[:, 0, 0, :3] = scores
        labels[rng.random(labels.shape) < 0.2] = -1
    else:
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = 1 - scores[:, 0], scores[:, 0]
    return PatientSet(
        images=torch.from_numpy(pixels).float(),
        image_patient=torch.arange(n),
        labels=torch.from_numpy(labels if findings else labels[:, 0]),
        patients=tuple(f"{i:064x}" for i in range(n)),
        groups={"sex": torch.from_numpy(sex), "age": torch.from_numpy(age)},
    )


def run(patients: PatientSet, study: Study, noise: float, *, subgroups: bool = True) -> Evaluation:
    return evaluate(
        Shown() if study.task.findings else ShownShares(),
        patients,
        study,
        noise_multiplier=noise,
        stream=OsStream(),
        device=torch.device("cpu"),
        physical_batch=50,
        subgroups=subgroups,
    )


def raw_scores(patients: PatientSet, target: int) -> np.ndarray:
    return patients.images[:, 0, 0, target].numpy().astype(np.float64)


def test_each_subgroups_metrics_are_scikit_learns_on_its_raw_scores() -> None:
    patients = make_patients(900)
    found = run(patients, make_study(), 0.0)
    aucs = []
    for key, histogram in found.subgroups.items():
        name, cell = key.split(":")
        members = patients.groups[name].numpy() == CELLS[name].index(cell)
        labels, scores = patients.labels.numpy()[members], raw_scores(patients, 1)[members]
        summary = summarise(histogram)
        assert sum(histogram.counts) == members.sum()
        assert summary.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        expected = average_precision_score(labels, scores)
        assert summary.average_precision == pytest.approx(expected, abs=0.02)
        aucs.append(summary.auc)
    assert max(aucs) - min(aucs) > 0.1, "all subgroups look alike"
    everyone = roc_auc_score(patients.labels.numpy(), raw_scores(patients, 1))
    assert summarise(found.overall).auc == pytest.approx(everyone, abs=1e-9)


def test_with_noise_the_intervals_hold_scikit_learns_values() -> None:
    patients = make_patients(4000)
    found = run(patients, make_study(), 3.0)
    held = 0
    for key, histogram in found.subgroups.items():
        name, cell = key.split(":")
        members = patients.groups[name].numpy() == CELLS[name].index(cell)
        truth = roc_auc_score(patients.labels.numpy()[members], raw_scores(patients, 1)[members])
        summary = summarise(histogram)
        held += summary.auc_low <= truth <= summary.auc_high
        assert summary.auc_high - summary.auc_low < 0.5
    assert held >= len(found.subgroups) - 1  # each with 95 % chance


def test_findings_are_told_by_subgroup_over_those_known() -> None:
    patients, study = make_patients(600, findings=True), make_study(findings=True)
    found = run(patients, study, 0.0)
    for cell, histogram in zip(CELLS["sex"], list(found.subgroups.values())[:3], strict=True):
        counts = np.array(histogram.counts).reshape(3, 2, BINS)
        members = patients.groups["sex"].numpy() == CELLS["sex"].index(cell)
        for target in range(3):
            labels = patients.labels.numpy()[members, target]
            known = labels >= 0
            single = ScoreHistogram(
                targets=1, bins=BINS, noise=0.0, counts=tuple(counts[target].ravel())
            )
            scores = raw_scores(patients, target)[members][known]
            assert counts[target].sum() == known.sum() < members.sum()
            truth = roc_auc_score(labels[known], scores)
            assert summarise(single).auc == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("subgroups", [(), ("sex",), ("age", "sex")])
def test_a_patient_moves_all_counts_together_by_the_sensitivity(
    findings: bool, subgroups: tuple[str, ...]
) -> None:
    study = make_study(findings=findings, subgroups=subgroups)
    patients = make_patients(60, findings=findings)
    if findings:
        patients = replace(patients, labels=patients.labels.clamp(min=0))
    stays = torch.ones(60, dtype=torch.bool)
    stays[17] = False

    def flat(who: PatientSet) -> np.ndarray:
        found = run(who, study, 0.0)
        return np.concatenate([h.counts for h in (found.overall, *found.subgroups.values())])

    moved = float(np.linalg.norm(flat(patients) - flat(patients.only(stays))))
    assert moved == pytest.approx(math.sqrt((3 if findings else 1) * (1 + len(subgroups))))
    noised = run(patients, study, 2.0)
    noises = {h.noise for h in (noised.overall, *noised.subgroups.values())}
    assert len(noises) == 1
    assert noises.pop() == pytest.approx(2 * moved)


def test_every_counts_noise_is_gaussian_of_the_stated_size_and_its_own() -> None:
    patients, study = make_patients(50, findings=True), make_study(findings=True)
    exact, noised = run(patients, study, 0.0), run(patients, study, 5.0)
    keys = subgroup_keys(study)
    assert tuple(noised.subgroups) == keys
    noise = np.stack(
        [np.array(noised.subgroups[k].counts) - exact.subgroups[k].counts for k in keys]
    )
    assert stats.kstest(noise.ravel() / noised.overall.noise, "norm").pvalue > 1e-4
    np.testing.assert_array_equal(noise * GRID, np.round(noise * GRID))
    rows = noise.reshape(-1, BINS)  # by cell, target, and without or with it
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.9


def test_rounds_evaluate_everybody_only() -> None:
    patients, study = make_patients(50), make_study()
    found = run(patients, study, 2.0, subgroups=False)
    assert found.subgroups == {}
    assert found.overall.noise == pytest.approx(2.0)


def test_patients_without_a_grouping_that_is_asked_for_are_refused() -> None:
    with pytest.raises(DataError, match="grouping"):
        run(make_patients(20), make_study(subgroups=("scanner",)), 1.0)


def test_the_closing_of_a_study_tells_subgroups_at_the_price_of_one_evaluation(
    make_ward: MakeWard,
) -> None:
    ward = make_ward()
    ward.held_out = 30
    study = ward.study(privacy={"subgroups": ["sex", "scanner"]})
    ward.approve(study)
    first = ward.ask(study, 1)
    assert first.subgroups == {}
    closing = ward.ask(study, 4, task="evaluate")
    assert tuple(closing.subgroups) == subgroup_keys(study)
    assert ward.kinds().count(("reserve", "evaluate")) == 2
    multiplier = first.evaluation.noise  # one target
    assert closing.evaluation.noise == pytest.approx(multiplier * math.sqrt(3))
    assert epsilon([Mechanism(multiplier, 1.0, study.evaluations)], 1e-5) <= 8
    assert "subgroups" in ward.audit()[-1].left.fields


def test_patients_who_opted_out_are_in_no_subgroup(make_ward: MakeWard) -> None:
    ward = make_ward(evaluation="exact", min_patients=1, min_patients_per_class=0)
    study = ward.study(privacy={"subgroups": ["sex"]})
    ward.approve(study)
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("held-out-2"))
    closing = ward.ask(study, 4, task="evaluate")
    assert sum(sum(h.counts) for h in closing.subgroups.values()) == ward.held_out - 1


@pytest.mark.parametrize(
    ("held_out", "policy", "shared"),
    [
        (30, {}, True),  # 10 of each sex, 5 of each class among them
        (30, {"min_patients": 11}, False),
        (30, {"min_patients_per_class": 6}, False),
        (16, {}, True),
        (14, {}, False),  # 5, 5 and 4
        (2, {"min_patients": 1, "min_patients_per_class": 0}, True),  # one sex is empty
        (14, {"evaluation": "noised"}, True),
    ],
)
def test_exact_subgroups_leave_only_if_each_is_large_enough_or_empty(
    make_ward: MakeWard, held_out: int, policy: dict[str, Any], shared: bool
) -> None:
    ward = make_ward(**({"evaluation": "exact"} | policy))
    ward.train, ward.held_out = 24, held_out
    study = ward.study(privacy={"subgroups": ["sex"]})
    ward.approve(study)
    closing = ward.ask(study, 4, task="evaluate")
    assert closing.evaluation is not None
    assert tuple(closing.subgroups) == (subgroup_keys(study) if shared else ())
