"""What a person decides on a site's cohort before approving a study; never judged in a round.

A round that was refused for want of patients would tell whether one patient is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from client.approvals import Exact
from client.data.patients import Cohort, PatientSet
from client.data.reasons import EXPLANATIONS, Reason
from client.data.report import DataReport, describe_labels
from client.data.targets import count_labels
from client.site import Policy
from shared.errors import DataError, StudyError
from shared.study import Study

ConditionName = Literal["min-patients", "min-patients-per-class", "set-aside", "values", "room"]


@dataclass(frozen=True)
class Doubt:
    """A condition of the policy that a cohort does not meet.

    Attributes:
        condition: Which one; a person may accept it by this name.
        what: What was found.
    """

    condition: ConditionName
    what: str


def doubts(cohort: Cohort, study: Study, policy: Policy) -> list[Doubt]:
    """Return what speaks against approving a study with a cohort."""
    report = cohort.report
    return [*_few(report, study, policy), *_set_aside(report, policy), *_values(report, policy)]


def check_accepted(
    found: Sequence[Doubt], study: Study, accept: Sequence[str]
) -> list[ConditionName]:
    """Refuse to approve a study with a cohort unless a person accepts what speaks against it.

    Args:
        found: What does.
        study: The plan.
        accept: Conditions that may go unmet.

    Returns:
        Those that do go unmet, for the audit log.

    Raises:
        DataError: There are others.
    """
    names = list(dict.fromkeys(doubt.condition for doubt in found))
    left = [doubt for doubt in found if doubt.condition not in accept]
    if not left:
        return names
    options = " ".join(f"--accept {name}" for name in names)
    raise DataError(
        "; ".join(doubt.what for doubt in left),
        f"study {study.digest[:12]}",
        f"Repair what the data report names, add patients, or approve with {options} all the same",
    )


def check_size(study: Study, patients: int, cohort: Cohort) -> None:
    """Refuse to declare a size that is far from the truth, or that the study cannot bear.

    Args:
        study: The plan.
        patients: The declared size, as rounded.
        cohort: The patients there are.

    Raises:
        DataError: The size is more than ten times off, or there is nobody.
        StudyError: At this size delta or the lots are out of range.
    """
    size, found = study.training_size(patients), cohort.patients
    if not found:
        main = next(iter(cohort.report.counts), None)
        why = f"; most often: {main.value}, {EXPLANATIONS[main]}" if main else ""
        if main == Reason.CLASS_NOT_IN_STUDY:
            why += f"; {describe_labels(cohort.report)}"
        raise DataError(
            f"no {_one(cohort.report)} can be used{why}", todo="The data report names each"
        )
    if not (patients <= 10 * found and found <= 10 * patients):
        raise DataError(
            f"{patients} patients are declared, and {found} are here",
            "--patients, or data.patients in site.toml",
            "Declare the size of the cohort; `consilium site data` says what was set aside",
        )
    if study.privacy.delta is not None and study.privacy.delta > 1 / (10 * size):
        raise StudyError(
            f"privacy.delta = {study.privacy.delta:g} is more than a tenth of one patient in "
            f"{size}",
            f"study {study.digest[:12]}",
            f"Ask for a study whose delta is at most {1 / (10 * size):.1g}",
        )
    if study.training.sampling_rate * size < 1:
        raise StudyError(
            f"a lot has {study.training.sampling_rate * size:.2g} patients on average, of {size} "
            "to train on",
            f"study {study.digest[:12]}",
            f"Ask for a study whose training.sampling_rate is at least {1 / size:.1g}",
        )


def exact_scores(policy: Policy, study: Study, held_out: PatientSet) -> Exact:
    """Tell what exact counts of these held-out patients' scores may leave in a study.

    Without noise the count of one patient is that patient's score and class, so exact counts
    need as many patients as training does, in all and of each class, and in each subgroup that
    has any.
    """
    if policy.evaluation != "exact" or not _are_many(held_out, study, policy):
        return "none"
    subgroups = (
        held_out.only(cells == cell)
        for cells in held_out.groups.values()
        for cell in set(cells.tolist())
    )
    return "subgroups" if all(_are_many(each, study, policy) for each in subgroups) else "all"


def _few(report: DataReport, study: Study, policy: Policy) -> Iterator[Doubt]:
    """Yield where a crowd is too small to hide in; a finding nobody is known for has no crowd."""
    if report.train_patients < policy.min_patients:
        yield Doubt(
            "min-patients",
            f"{report.train_patients} patients to train on; policy.min_patients is "
            f"{policy.min_patients}",
        )
    rare = _rare(report.train, study, policy)
    if rare:
        yield Doubt(
            "min-patients-per-class",
            f"{', '.join(rare)} to train on; policy.min_patients_per_class is "
            f"{policy.min_patients_per_class}",
        )


def _set_aside(report: DataReport, policy: Policy) -> Iterator[Doubt]:
    if report.lost > policy.max_set_aside * report.labelled:
        yield Doubt(
            "set-aside",
            f"{report.lost} of {report.labelled} labelled {_one(report)}s are set aside; "
            f"policy.max_set_aside is {policy.max_set_aside:.0%}",
        )


def _values(report: DataReport, policy: Policy) -> Iterator[Doubt]:
    """Yield columns most of whose values say nothing, as of a wrong unit or spelling."""
    for column in (*report.columns, *report.findings):
        strange = column.unclear + column.outside
        if strange > policy.max_set_aside * report.labelled:
            yield Doubt(
                "values",
                f"{strange} of {report.labelled} rows of column {column.name} are not understood "
                f"or outside the study's range; policy.max_set_aside is "
                f"{policy.max_set_aside:.0%}",
            )


def _are_many(patients: PatientSet, study: Study, policy: Policy) -> bool:
    counts = count_labels(patients.labels, study.task)
    return len(patients) >= policy.min_patients and not _rare(counts, study, policy)


def _rare(counts: dict[str, int], study: Study, policy: Policy) -> list[str]:
    """Return the classes of which there are too few patients, and how many there are."""
    return [
        f"{count} patients of class {name!r}"
        for name, count in counts.items()
        if count < policy.min_patients_per_class and (count or not study.task.findings)
    ]


def _one(report: DataReport) -> str:
    return "row" if report.columns else "image"
