"""What training minimises: for each image a loss that no other patient has a part in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from shared.errors import PolicyRefusal, StudyError
from shared.protocol import Statistics
from shared.study import Study

ALLOWED = "Use the loss 'cross-entropy' or 'focal', which need no counts"


@dataclass(frozen=True)
class Criterion:
    """Cross entropy, as it is or changed by one of the remedies for unbalanced classes.

    A finding counts as two classes, without and with it, whose logits are 0 and the finding's
    own; a patient's loss is the mean over the findings known of this patient, and zero if none
    is. An image's loss depends on the image, its patient's label and constants.

    Attributes:
        findings: Whether every class is a finding, with a head of its own.
        gamma: Focal loss (Lin et al. 2017): each term is multiplied by (1 - p) ** gamma, where p
            is the probability of what is true. 0: no change.
        weights: Factor of each class, [classes], or of each finding's two, [findings, 2].
        shift: Added to the logits in training only, of the same shape (Menon et al. 2021).
    """

    findings: bool = False
    gamma: float = 0.0
    weights: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image, [b].

        Args:
            logits: [b, classes], float32 or float64.
            targets: Class index, int64 [b]; of findings [b, findings] in {0, 1}, -1: unknown.
        """
        scores = torch.stack([torch.zeros_like(logits), logits], -1) if self.findings else logits
        truth = targets.clamp(min=0)[..., None]
        if self.shift is not None:
            scores = scores + self.shift.to(scores)
        log_p = functional.log_softmax(scores, dim=-1).gather(-1, truth)[..., 0]
        losses = -log_p
        if self.gamma:
            # Not quite 0, where a power below 1 has no slope. By logarithms, for the last few
            # numbers of a power are computed in other code, and a row must not depend on its place.
            wrong = (-torch.expm1(log_p)).clamp(min=1e-12)
            losses = losses * torch.exp(self.gamma * torch.log(wrong))
        if self.weights is not None:
            losses = losses * self.weights.to(scores).expand_as(scores).gather(-1, truth)[..., 0]
        if not self.findings:
            return losses
        known = targets >= 0
        return losses.where(known, 0).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def make_loss(study: Study, statistics: Statistics | None = None) -> Criterion:
    """Return the study's loss.

    `class-balanced` weighs a class of n patients by (1 - beta) / (1 - beta ** n), its "effective
    number" (Cui et al. 2019), scaled so that the weights' mean is 1. `logit-adjustment` adds tau
    times the logarithm of the classes' shares to the logits while training (Menon et al. 2021).
    Both go by the site's own counts as they were noised and released, at least 1 each.

    Args:
        study: The plan.
        statistics: What this site itself released; needed by these two only.

    Raises:
        PolicyRefusal: `out-of-order`: the loss needs counts and the site has released none.
        StudyError: The counts are exact although the study promises privacy: through them one
            patient would change the gradients of others.
    """
    plan, findings = study.training.loss, study.task.findings
    if plan.name == "focal":
        return Criterion(findings, gamma=plan.gamma)
    if plan.name == "class-balanced":
        weights = 1 / (1 - plan.beta ** _counts(study, statistics))
        return Criterion(findings, weights=weights / weights.mean(dim=-1, keepdim=True))
    if plan.name == "logit-adjustment":
        counts = _counts(study, statistics)
        return Criterion(findings, shift=plan.tau * (counts / counts.sum(-1, keepdim=True)).log())
    return Criterion(findings)


def _counts(study: Study, statistics: Statistics | None) -> torch.Tensor:
    """Return patients by class, [classes] or [findings, 2], float64, at least 1."""
    name = study.training.loss.name
    if statistics is None:
        raise PolicyRefusal(
            "out-of-order",
            f"the loss {name!r} goes by the site's noised counts, and it has released none",
            "training.loss.name",
            f"The server must ask the site to describe its patients first. {ALLOWED}",
        )
    if study.privacy.enabled and not statistics.noise:
        raise StudyError(
            f"the loss {name!r} would weigh classes by exact counts: patients would change each "
            "other's gradients, which no noise covers",
            "training.loss.name",
            ALLOWED,
        )
    counts = torch.tensor(statistics.classes, dtype=torch.float64).clamp(min=1)
    return counts.view(-1, 2) if study.task.findings else counts
