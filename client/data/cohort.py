"""The cohort of a study at a site: patients to train on and patients held out, as tensors."""

from __future__ import annotations

from client.data.image_cohort import image_cohort
from client.data.patients import Cohort, PatientSet
from client.data.report import write_report
from client.data.table_cohort import table_cohort
from client.site import Site
from shared.study import Study

__all__ = ["Cohort", "PatientSet", "load_cohort"]


def load_cohort(site: Site, study: Study, *, use_cache: bool = True) -> Cohort:
    """Read, check, decode and split a site's data for a study.

    What cannot be used is set aside, and a report in the site's `reports` folder says why.
    Which patients are held out follows from each patient's id and the site's split key. However
    few patients there are, they are returned: a person judges them (`client.judge`).

    Args:
        site: The hospital's settings and folders.
        study: The plan; its input or table, classes and data rules apply.
        use_cache: Whether decoded images may come from, and are kept in, the encrypted cache.

    Raises:
        DataError: The site has no data of the study's kind, or it cannot be read.
        SiteError: The site's own files (keys, reports) or the decoding process fail.
    """
    if study.table is not None:
        cohort = table_cohort(site, study)
    else:
        cohort = image_cohort(site, study, use_cache=use_cache)
    write_report(cohort.report, site.reports)
    return cohort
