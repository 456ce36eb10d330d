"""The cohort of a study at a site: patients to train on and patients held out, as tensors."""

from __future__ import annotations

from client.data.image_cohort import image_cohort
from client.data.patients import Cohort, PatientSet
from client.data.reasons import EXPLANATIONS, Reason
from client.data.report import DataReport, describe_labels, write_report
from client.data.table_cohort import table_cohort
from client.site import Policy, Site
from shared.errors import DataError, PolicyRefusal
from shared.study import Study

__all__ = ["Cohort", "PatientSet", "load_cohort", "read_cohort"]


def load_cohort(site: Site, study: Study, *, use_cache: bool = True) -> Cohort:
    """Read, check, decode and split a site's data for a study.

    What cannot be used is set aside, and a report in the site's `reports` folder says why.
    Which patients are held out follows from each patient's id alone.

    Args:
        site: The hospital's settings and folders.
        study: The plan; its input or table, classes and data rules apply.
        use_cache: Whether decoded images may come from, and are kept in, the encrypted cache.

    Raises:
        DataError: The site has no data of the study's kind, it cannot be read, nothing in it
            can be used, or less than the policy asks for.
        PolicyRefusal: `policy-cohort`: fewer patients than the site's policy asks for.
        SiteError: The site's own files (vault, reports) or the decoding process fail.
    """
    cohort, where = _read(site, study, use_cache=use_cache)
    _check_usable(cohort.report, site.config.policy, where)
    _check_crowd(cohort.report, study, site.config.policy, where)
    return cohort


def read_cohort(site: Site, study: Study) -> Cohort:
    """Return a cohort for the hospital's own use, be it too small to train on.

    Raises:
        DataError: The site has no data of the study's kind, or it cannot be read.
        SiteError: As `load_cohort`.
    """
    cohort, _ = _read(site, study, use_cache=True)
    return cohort


def _read(site: Site, study: Study, *, use_cache: bool) -> tuple[Cohort, str]:
    """Return the cohort, and where its report is."""
    if study.table is not None:
        cohort = table_cohort(site, study)
    else:
        cohort = image_cohort(site, study, use_cache=use_cache)
    return cohort, str(write_report(cohort.report, site.reports))


def _check_usable(report: DataReport, policy: Policy, where: str) -> None:
    """Refuse data of which too much cannot be used."""
    one = "row" if report.columns else "image"
    if not report.used_images:
        main = next(iter(report.counts), None)
        why = f"; most often: {main.value}, {EXPLANATIONS[main]}" if main else ""
        why += f"; {describe_labels(report)}" if main == Reason.CLASS_NOT_IN_STUDY else ""
        raise DataError(f"no {one} can be used{why}", where, "The report names each")
    part = report.lost / report.labelled
    if part > policy.max_set_aside:
        raise DataError(
            f"{report.lost} of {report.labelled} labelled {one}s are set aside ({part:.0%}); "
            f"policy.max_set_aside is {policy.max_set_aside:.0%}",
            where,
            "Repair what the report names, or change the policy",
        )


def _check_crowd(report: DataReport, study: Study, policy: Policy, where: str) -> None:
    """Refuse a crowd too small to hide in; a finding no patient is known for has no crowd."""
    patients = report.train_patients
    if patients < policy.min_patients:
        raise PolicyRefusal(
            "policy-cohort",
            f"{patients} patients to train on; policy.min_patients is {policy.min_patients}",
            where,
            "Repair what the report names, add patients, or change the policy",
        )
    counts = {name: n for name, n in report.train.items() if n or not study.task.findings}
    name, count = min(counts.items(), key=lambda item: item[1])
    if count < policy.min_patients_per_class:
        raise PolicyRefusal(
            "policy-cohort",
            f"{count} patients of class {name!r} to train on; policy.min_patients_per_class is "
            f"{policy.min_patients_per_class}",
            where,
            "Repair what the report names, add patients, or change the policy",
        )
