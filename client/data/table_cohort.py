"""The cohort of a study of a table: one CSV file with a row for each patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from client.approvals import Approvals
from client.data.patients import Cohort, PatientSet, trainable
from client.data.report import DataReport, SetAside, foreign_label
from client.data.split import is_held_out
from client.data.table import TableRow, read_table
from client.data.targets import count_labels, to_labels
from client.site import Site
from client.vault import Vault
from shared.errors import DataError
from shared.study import Study


def table_cohort(site: Site, study: Study) -> Cohort:
    """Read and split a site's table of patients; see `client.data.cohort.load_cohort`."""
    source = site.config.data
    if source.table is None:
        raise DataError(
            "the study is of a table, and this site names none",
            "data.table in site.toml",
            "Name the table of patients there, or leave the study",
        )
    path = site.resolve(source.table)
    found = read_table(path, source, study)
    vault = Vault.open(site.vault_key)
    key = Approvals(site).open_split_key()
    sides: dict[bool, list[TableRow]] = {False: [], True: []}
    for row in found.rows:
        if row.reason is None:
            sides[is_held_out(key, row.patient, study.data.held_out)].append(row)
    everybody, held_out = (_patient_set(sides[side], vault, study) for side in (False, True))
    train = trainable(everybody, study)
    report = DataReport(
        study=study.name,
        digest=study.digest,
        images_folder="",
        labels_table=str(path),
        used_images=len(train) + len(held_out),
        train=count_labels(train.labels, study.task),
        held_out=count_labels(held_out.labels, study.task),
        set_aside=tuple(
            SetAside(
                file="",
                line=row.line,
                reason=row.reason,
                label=foreign_label(row.label, row.reason),
            )
            for row in found.rows
            if row.reason
        ),
        other_files=0,
        train_patients=len(train),
        held_out_patients=len(held_out),
        left_out=len(everybody) - len(train),
        columns=found.columns,
        findings=found.findings,
    )
    usable = (row.patient for row in found.rows if row.reason is None)
    return Cohort(train, held_out, report, {vault.pseudonym(name): name for name in usable})


def _patient_set(rows: Sequence[TableRow], vault: Vault, study: Study) -> PatientSet:
    """Put patients in the order of their pseudonyms, which tells nothing."""
    ordered = sorted((vault.pseudonym(row.patient), row) for row in rows)
    columns = len(study.table.columns) if study.table is not None else 0
    values = np.array([row.values for _, row in ordered], dtype=np.float32)
    return PatientSet(
        images=torch.from_numpy(values.reshape(len(ordered), columns)),
        image_patient=torch.arange(len(ordered)),
        labels=to_labels([row.target or () for _, row in ordered], study.task),
        patients=tuple(pseudonym for pseudonym, _ in ordered),
    )
