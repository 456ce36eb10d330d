"""The site's policy: before anything is computed, when a refusal is free, and when it leaves."""

from __future__ import annotations

import torch

from client.data.patients import PatientSet
from client.data.targets import count_labels
from client.privacy.account import Limits
from client.privacy.chain import Purpose
from client.site import Policy
from shared.errors import PolicyRefusal
from shared.protocol import Reply, ScoreHistogram
from shared.study import Study


def check_study(policy: Policy, study: Study) -> None:
    """Refuse a study that asks for more than the policy grants any study.

    Raises:
        PolicyRefusal: `policy-epsilon`, `policy-delta` or `policy-rounds`.
    """
    asked, granted = study.privacy.epsilon, policy.max_epsilon_per_study
    if not study.privacy.enabled and not policy.allow_without_privacy:
        raise PolicyRefusal(
            "policy-epsilon",
            "the study trains without differential privacy",
            "policy.allow_without_privacy",
            "Allow it only if whoever sees the updates may know the patients' data",
        )
    # Without privacy in training the noised evaluation still has the study's epsilon.
    spends = study.privacy.enabled or policy.evaluation == "noised"
    if spends and asked > granted:
        raise PolicyRefusal(
            "policy-epsilon",
            f"the study asks for epsilon {asked:g}, the policy grants {granted:g}",
            "policy.max_epsilon_per_study",
            "Ask for a study with a smaller epsilon, or raise the limit",
        )
    if study.privacy.delta is not None:
        check_delta(policy, study.privacy.delta)
    if study.training.personal_rounds > policy.max_rounds_per_day:
        raise PolicyRefusal(
            "policy-rounds",
            f"the study fine-tunes for {study.training.personal_rounds} rounds in a row, the "
            f"policy allows {policy.max_rounds_per_day} a day",
            "policy.max_rounds_per_day",
            "Ask for a study with fewer training.personal_rounds, or raise the limit",
        )


def check_patients(policy: Policy, study: Study, labels: torch.Tensor) -> None:
    """Refuse to train on too few patients, in all or of a class.

    Args:
        policy: The policy.
        study: The study.
        labels: Of the training patients: class indices int64 [n_patients], or findings
            [n_patients, findings]. A finding that is known of no patient is no reason to refuse.

    Raises:
        PolicyRefusal: `policy-cohort`.
    """
    if len(labels) < policy.min_patients:
        raise PolicyRefusal(
            "policy-cohort",
            f"{len(labels)} training patients where the policy asks for {policy.min_patients}",
            "policy.min_patients",
            "Add patients; `consilium site data` says what was set aside and why",
        )
    for name, count in _rare(policy, study, labels).items():
        raise PolicyRefusal(
            "policy-cohort",
            f"{count} training patients of class {name} where the policy asks for "
            f"{policy.min_patients_per_class}",
            "policy.min_patients_per_class",
            "Add patients of this class, or check the mapping of labels in site.toml",
        )


def shares_counts(policy: Policy, study: Study, labels: torch.Tensor) -> bool:
    """Tell whether counts of the scores of these held-out patients may leave.

    Without noise the count of one patient is that patient's score and class, so exact counts
    need as many patients as training does, in all and of each class.
    """
    if policy.evaluation != "exact":
        return policy.evaluation == "noised"
    return len(labels) >= policy.min_patients and not _rare(policy, study, labels)


def shares_subgroups(policy: Policy, study: Study, held_out: PatientSet) -> bool:
    """Tell whether the same holds of every subgroup in which anybody is; else none may leave."""
    return all(
        shares_counts(policy, study, held_out.labels[cells == cell])
        for cells in held_out.groups.values()
        for cell in set(cells.tolist())
    )


def check_delta(policy: Policy, delta: float) -> None:
    """Refuse a study whose delta, given or derived from the number of patients, is too large.

    Raises:
        PolicyRefusal: `policy-delta`.
    """
    if delta > policy.max_delta:
        raise PolicyRefusal(
            "policy-delta",
            f"the study's delta is {delta:g}, the policy allows {policy.max_delta:g}",
            "policy.max_delta",
            "Ask for a study with a smaller delta, or raise the limit",
        )


def check_day(policy: Policy, rounds_today: int, coming: int = 1) -> None:
    """Refuse rounds beyond the day's limit.

    Args:
        policy: The policy.
        rounds_today: Rounds of training charged today.
        coming: Rounds that are to follow at once.

    Raises:
        PolicyRefusal: `policy-rounds`.
    """
    if rounds_today + coming > policy.max_rounds_per_day:
        raise PolicyRefusal(
            "policy-rounds",
            f"{rounds_today} rounds were begun today (UTC), the policy allows "
            f"{policy.max_rounds_per_day}, which leaves no room for {coming} more",
            "policy.max_rounds_per_day",
            "The site takes part again tomorrow",
        )


def allowed(policy: Policy, reply: Reply) -> Reply:
    """Return a reply without the counts of held-out patients that the policy does not share.

    A kept reply may be older than the policy. Counts are exact where their noise is 0, and only
    there: a study without privacy trains without noise, and evaluates with it all the same.
    """

    def shared(counts: ScoreHistogram | None) -> bool:
        if counts is None or policy.evaluation == "none":
            return False
        return policy.evaluation == "exact" or counts.noise > 0

    return reply.model_copy(
        update={
            "evaluation": reply.evaluation if shared(reply.evaluation) else None,
            "personal": reply.personal if shared(reply.personal) else None,
            "subgroups": {cell: own for cell, own in reply.subgroups.items() if shared(own)},
        }
    )


def _rare(policy: Policy, study: Study, labels: torch.Tensor) -> dict[str, int]:
    """Return the classes of which there are too few patients, and how many there are."""
    return {
        name: count
        for name, count in count_labels(labels, study.task).items()
        if count < policy.min_patients_per_class and (count or not study.task.findings)
    }


def limits(policy: Policy) -> Limits:
    """Return what the policy grants each patient over all studies."""
    waived: set[Purpose] = set()
    if policy.allow_without_privacy:
        waived.update(("describe", "train"))
    if policy.evaluation == "exact":
        waived.add("exact-evaluation")
    return Limits(policy.max_epsilon_per_patient, policy.max_delta, frozenset(waived))
