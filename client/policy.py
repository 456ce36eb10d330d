"""The site's policy: before anything is computed, when a refusal is free, and when it leaves."""

from __future__ import annotations

from client.privacy.account import Limits
from client.privacy.chain import Purpose
from client.privacy.plans import study_delta
from client.site import Policy
from shared.errors import PolicyRefusal
from shared.protocol import Reply, ScoreHistogram
from shared.study import Study


def check_study(policy: Policy, study: Study, patients: int) -> None:
    """Refuse a study that asks for more than the policy grants any study.

    Args:
        policy: The policy.
        study: The study.
        patients: Training patients N, from the declared size.

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
    check_delta(policy, study_delta(study, patients))
    if study.training.personal_rounds > policy.max_rounds_per_day:
        raise PolicyRefusal(
            "policy-rounds",
            f"the study fine-tunes for {study.training.personal_rounds} rounds in a row, the "
            f"policy allows {policy.max_rounds_per_day} a day",
            "policy.max_rounds_per_day",
            "Ask for a study with fewer training.personal_rounds, or raise the limit",
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


def limits(policy: Policy) -> Limits:
    """Return what the policy grants each patient over all studies."""
    waived: set[Purpose] = set()
    if policy.allow_without_privacy:
        waived.update(("describe", "train"))
    if policy.evaluation == "exact":
        waived.add("exact-evaluation")
    return Limits(policy.max_epsilon_per_patient, policy.max_delta, frozenset(waived))
