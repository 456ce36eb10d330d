"""What a study would take of the patients' lifetime budget, and who has room for it."""

from __future__ import annotations

from collections.abc import Collection

from client.data.patients import Cohort
from client.hospital import Hospital
from client.judge import Doubt
from client.policy import limits
from client.privacy.account import Limits, allowance, best_order, divergence, part_of
from client.privacy.budget import Wanted, decide
from client.privacy.groups import EVERYONE, Charge, bare
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan, description_plan, evaluation_plan, training_plan
from client.site import Policy
from shared.errors import StudyError
from shared.study import Study

NEWCOMER = "(somebody who never took part)"
"""A pseudonym that no patient has."""


def outlook(
    hospital: Hospital, study: Study, patients: int, cohort: Cohort | None = None
) -> list[str]:
    """Say, before a study is approved, what it takes of the lifetime budget and who has so much.

    Nothing is charged by it.

    Args:
        hospital: The site.
        study: The study.
        patients: Declared size of the cohort, or about that.
        cohort: Its patients; None: those the ledger knows.
    """
    granted = limits(hospital.site.config.policy)
    try:
        train, held_out = _plans(study, study.training_size(patients), hospital.site.config.policy)
    except StudyError as error:
        return [str(error)]
    lines = [
        f"Of each patient's lifetime budget (epsilon {granted.epsilon:g}) it takes "
        f"{_share(train, granted)} where it trains and {_share(held_out, granted)} where "
        "it evaluates, all at once: see `consilium site privacy` for what is charged so far."
    ]
    with hospital.ledger() as ledger:
        if cohort is None:
            known = frozenset[str]().union(*ledger.members().values()) - {EVERYONE}
            lines.append(_room(ledger, train, known, granted, "patients in the ledger"))
            lines.append(_room(ledger, train, {NEWCOMER}, granted, "somebody new"))
        else:
            lines.append(_room(ledger, train, cohort.train.patients, granted, "to train on"))
            lines.append(_room(ledger, held_out, cohort.held_out.patients, granted, "held out"))
    return [line for line in lines if line]


def doubt_of_room(hospital: Hospital, study: Study, patients: int, cohort: Cohort) -> list[Doubt]:
    """Return that so few have room for a study that it would train on hardly more than noise.

    Nobody else can tell: in what a site sends, patients without room do not show.

    Args:
        hospital: The site.
        study: The study.
        patients: Declared size of the cohort.
        cohort: Its patients.
    """
    policy, here = hospital.site.config.policy, frozenset(cohort.train.patients)
    try:
        train, _ = _plans(study, study.training_size(patients), policy)
    except StudyError:
        return []  # `outlook` says why there is no such study
    with hospital.ledger() as ledger:
        out = _without_room(ledger, train, here - ledger.opted_out(), limits(policy))
    if not out or len(here - out) >= policy.min_patients:
        return []
    return [
        Doubt(
            "room",
            f"{len(here - out)} of {len(here)} patients to train on have room for the study in "
            f"policy.max_epsilon_per_patient; policy.min_patients is {policy.min_patients}",
        )
    ]


def _plans(study: Study, size: int, policy: Policy) -> tuple[list[Plan], list[Plan]]:
    """Return the plans of the two sides of a study."""
    train = [training_plan(study, size)]
    if study.needs_statistics:
        train.append(description_plan(study, size))
    if policy.evaluation == "none":
        return train, []
    return train, [evaluation_plan(study, size, exact=policy.evaluation == "exact")]


def _share(plans: Collection[Plan], granted: Limits) -> str:
    """Say which part of a new account plans take; over 100 %: nobody has so much."""
    order, charges = best_order(granted), [Charge(plan, plan.uses) for plan in plans]
    if bare(charges):
        return "no noise, so no guarantee,"
    return f"{part_of(divergence(charges, order), allowance(granted, order)):.0%}"


def _room(
    ledger: Ledger, plans: Collection[Plan], patients: Collection[str], granted: Limits, who: str
) -> str:
    """Say how many of some patients could join all of these plans, now."""
    here = frozenset(patients) - ledger.opted_out()
    out = _without_room(ledger, plans, here, granted)
    if not here or not plans:
        return ""
    if patients == {NEWCOMER}:
        return f"For {who} there is {'no ' if out else ''}room."
    rest = f"; {len(patients) - len(here)} have opted out" if len(here) < len(patients) else ""
    return (
        f"Of {len(patients)} {who}, {len(here - out)} have room for it, {len(out)} have not{rest}."
    )


def _without_room(
    ledger: Ledger, plans: Collection[Plan], patients: frozenset[str], granted: Limits
) -> frozenset[str]:
    """Return those of some patients who could not join all of these plans, now."""
    wanted = [Wanted(plan, patients) for plan in plans]
    decisions = decide(ledger.entries(), ledger.members(), wanted, granted)
    return frozenset[str]().union(*(d.patients for d in decisions if not d.joins))
