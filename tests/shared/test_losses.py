"""Each loss equals its paper's formula, and no patient has a part in another's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from shared.errors import PolicyRefusal, StudyError
from shared.losses import Criterion, make_loss
from shared.protocol import Statistics
from shared.study import Study

NAMES = ["cross-entropy", "focal", "class-balanced", "logit-adjustment"]
COUNTS = (900.0, 90.0, 10.0)
FINDINGS = (900.0, 100.0, 500.0, 500.0, 30.0, 970.0)  # without and with each of three


def make_study(name: str, *, findings: bool = False, private: bool = True, **plan: Any) -> Study:
    return Study.model_validate(
        {
            "name": "s",
            "task": {"classes": ["a", "b", "c"], "findings": findings},
            "training": {"loss": {"name": name} | plan},
            "privacy": {"enabled": private},
        }
    )


def loss_of(name: str, *, findings: bool = False, **plan: Any) -> Criterion:
    counts = FINDINGS if findings else COUNTS
    return make_loss(
        make_study(name, findings=findings, **plan), Statistics(classes=counts, noise=3.0)
    )


def batch(findings: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    if findings:
        return logits, torch.randint(-1, 2, (7, 3), generator=generator)
    return logits, torch.randint(0, 3, (7,), generator=generator)


def by_hand(name: str, logits: list[float], label: int, counts: tuple[float, ...]) -> float:
    """The loss of one patient and one target with the defaults of the plan, in plain floats."""
    if name == "logit-adjustment":
        logits = [z + math.log(n / sum(counts)) for z, n in zip(logits, counts, strict=True)]
    p = math.exp(logits[label]) / math.fsum(map(math.exp, logits))
    if name == "focal":
        return (1 - p) ** 2 * -math.log(p)
    if name == "class-balanced":
        weights = [(1 - 0.999) / (1 - 0.999**n) for n in counts]
        return len(counts) * weights[label] / sum(weights) * -math.log(p)
    return -math.log(p)


@pytest.mark.parametrize("name", NAMES)
def test_classes_follow_the_formula(name: str) -> None:
    logits, targets = batch(findings=False)
    expected = [
        by_hand(name, row, label, COUNTS)
        for row, label in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    np.testing.assert_allclose(loss_of(name)(logits, targets), expected, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_findings_follow_the_formula_over_those_known_of_the_patient(name: str) -> None:
    logits, targets = batch(findings=True)
    targets[2] = -1
    expected = []
    for row, labels in zip(logits.tolist(), targets.tolist(), strict=True):
        known = [
            by_hand(name, [0.0, z], label, FINDINGS[2 * i : 2 * i + 2])
            for i, (z, label) in enumerate(zip(row, labels, strict=True))
            if label >= 0
        ]
        expected.append(sum(known) / max(1, len(known)))
    assert expected[2] == 0
    np.testing.assert_allclose(loss_of(name, findings=True)(logits, targets), expected, rtol=1e-10)


def test_torchs_own_losses_agree() -> None:
    logits, targets = batch(findings=False)
    own = functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(loss_of("cross-entropy")(logits, targets), own)
    logits, targets = batch(findings=True)
    both = functional.binary_cross_entropy_with_logits(logits, targets.double(), reduction="none")
    known = targets.clamp(min=0) == targets
    means = torch.stack(
        [row[k].mean() if k.any() else row.sum() * 0 for row, k in zip(both, known, strict=True)]
    )
    torch.testing.assert_close(loss_of("cross-entropy", findings=True)(logits, targets), means)


@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_one_patient_changes_only_the_own_loss_and_gradient(name: str, findings: bool) -> None:
    logits, targets = batch(findings)
    loss = loss_of(name, findings=findings)

    def run(changed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        z, t = logits.clone(), targets.clone()
        if changed:
            z[3], t[3] = -z[3] + 1, (t[3] + 1) % 3 if not findings else -1
        z.requires_grad_()
        losses = loss(z, t)
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        return losses.detach(), gradient

    others = torch.arange(7) != 3
    before, after = run(False), run(True)
    assert all(torch.equal(a[others], b[others]) for a, b in zip(before, after, strict=True))
    assert not torch.equal(before[1][3], after[1][3])
    alone = loss(logits[3:4], targets[3:4])
    torch.testing.assert_close(alone[0], before[0][3])


@pytest.mark.parametrize("name", NAMES)
def test_a_patient_of_whom_nothing_is_known_has_neither_loss_nor_gradient(name: str) -> None:
    logits = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    targets = torch.tensor([[-1, -1, -1], [1, 0, -1]])
    losses = loss_of(name, findings=True)(logits, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses[0] == 0
    assert not gradient[0].any()
    assert gradient[1, :2].all()
    assert gradient[1, 2] == 0, "an unknown finding has a gradient"


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_the_focal_loss_stays_finite_where_the_model_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0], [-200.0, 0, 0]], requires_grad=True)
    losses = loss_of("focal", gamma=gamma)(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert losses[0] == 0
    assert losses[1] > 200


def test_strengths_of_zero_leave_cross_entropy() -> None:
    logits, targets = batch(findings=False)
    plain = loss_of("cross-entropy")(logits, targets)
    off = {"focal": {"gamma": 0}, "class-balanced": {"beta": 0}, "logit-adjustment": {"tau": 0}}
    for name, plan in off.items():
        torch.testing.assert_close(loss_of(name, **plan)(logits, targets), plain)


def test_counts_that_noise_made_negative_count_as_one() -> None:
    study = make_study("logit-adjustment")
    noised = make_loss(study, Statistics(classes=(8.0, -5.3, 0.2), noise=3.0))
    clamped = make_loss(study, Statistics(classes=(8.0, 1.0, 1.0), noise=3.0))
    logits, targets = batch(findings=False)
    assert torch.equal(noised(logits, targets), clamped(logits, targets))


@pytest.mark.parametrize("name", ["class-balanced", "logit-adjustment"])
def test_without_the_sites_own_noised_counts_it_is_refused_with_the_alternative(name: str) -> None:
    with pytest.raises(PolicyRefusal, match="'cross-entropy' or 'focal'") as refused:
        make_loss(make_study(name), None)
    assert refused.value.code == "out-of-order"
    exact = Statistics(classes=COUNTS, noise=0.0)
    with pytest.raises(StudyError, match=r"exact counts.*'cross-entropy' or 'focal'"):
        make_loss(make_study(name), exact)
    make_loss(make_study(name, private=False), exact)
