"""The cohort of a study of images: a folder of DICOM files and a table of labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.approvals import Approvals
from client.data.attributes import patient_cell
from client.data.folder import Folder, list_folder
from client.data.images import (
    Images,
    Job,
    cache_key,
    decode_images,
    read_cache,
    try_again,
    write_cache,
)
from client.data.index import Entry, match, settle, unlabelled
from client.data.labels import read_labels
from client.data.patients import Cohort, PatientSet
from client.data.report import DataReport, SetAside, foreign_label, printable
from client.data.split import is_held_out
from client.data.targets import count_labels, to_labels
from client.site import Site
from client.vault import Vault
from shared.errors import DataError, SiteError
from shared.study import Study


def image_cohort(site: Site, study: Study, *, use_cache: bool) -> Cohort:
    """Read, decode and split a site's images; see `client.data.cohort.load_cohort`."""
    source = site.config.data
    if source.images is None or source.labels is None:
        raise DataError(
            "the study is of images, and this site names none",
            "data.images and data.labels in site.toml",
            "Name the folder of images and the labels table there, or leave the study",
        )
    findings = study.task.classes if study.task.findings else ()
    labels = read_labels(site.resolve(source.labels), source, findings)
    folder = list_folder(site.resolve(source.images))
    matched = match(labels.rows, folder, source.values, study.task)
    vault = Vault.open(site.vault_key)
    images, notes = _images(site, study, vault, matched, use_cache=use_cache)
    entries = settle(_with_images(matched, images))
    sides = _split(entries, Approvals(site).open_split_key(), study.data.held_out)
    train, held_out = (_patient_set(side, images, vault, study) for side in sides)
    report = DataReport(
        study=study.name,
        digest=study.digest,
        images_folder=str(site.resolve(source.images)),
        labels_table=str(site.resolve(source.labels)),
        used_images=len(train.images) + len(held_out.images),
        train=count_labels(train.labels, study.task),
        held_out=count_labels(held_out.labels, study.task),
        train_patients=len(train),
        held_out_patients=len(held_out),
        findings=labels.findings,
        **_found(folder, entries, notes),
    )
    names = {vault.pseudonym(patient): patient for side in sides for patient in side}
    return Cohort(train, held_out, report, names)


Side = dict[str, list[Entry]]
"""The usable entries of each patient, by the patient's id, on one side of the split."""


def _images(
    site: Site, study: Study, vault: Vault, entries: Sequence[Entry], *, use_cache: bool
) -> tuple[Images, list[str]]:
    """Return the images of all entries with a file and a class, and notes for the report."""
    jobs = [Job(entry.file, not entry.patient) for entry in entries if entry.file and entry.usable]
    groupings = study.privacy.subgroups
    key = cache_key(jobs, study.input, site.config, groupings)
    path = site.cache / f"{study.digest}.images"
    cached = read_cache(path, vault, key) if use_cache else None
    if cached is None:
        images = decode_images(jobs, study.input, site.config, groupings)
    else:
        images = try_again(cached, jobs, study.input, site.config, groupings)
    notes = []
    if use_cache and images is not cached:
        try:
            write_cache(path, vault, key, images)
        except SiteError as error:
            notes = [f"decoded images could not be kept, each round decodes them again: {error}"]
    return images, notes


def _with_images(entries: Iterable[Entry], images: Images) -> Iterator[Entry]:
    """Add to each decoded entry what decoding found: image and patient, or a reason."""
    found = zip(images.reasons, images.patients, strict=True)
    positions = itertools.count()
    for entry in entries:
        if not entry.usable:
            yield entry
            continue
        reason, patient = next(found)
        image = None if reason else next(positions)
        yield replace(entry, reason=reason, patient=entry.patient or patient, image=image)


def _split(entries: Iterable[Entry], key: bytes, held_out: float) -> tuple[Side, Side]:
    train: Side = {}
    kept: Side = {}
    for entry in entries:
        if entry.usable:
            side = kept if is_held_out(key, entry.patient, held_out) else train
            side.setdefault(entry.patient, []).append(entry)
    return train, kept


def _patient_set(side: Side, images: Images, vault: Vault, study: Study) -> PatientSet:
    """Put patients in the order of their pseudonyms, which tells nothing, and gather images."""
    patients = sorted((vault.pseudonym(name), entries) for name, entries in side.items())
    positions = [entry.image for _, entries in patients for entry in entries]
    owners = [owner for owner, (_, entries) in enumerate(patients) for _ in entries]
    return PatientSet(
        images=torch.from_numpy(images.pixels[np.array(positions, dtype=np.intp)]),
        image_patient=torch.tensor(owners, dtype=torch.int64),
        labels=to_labels([entries[0].target or () for _, entries in patients], study.task),
        patients=tuple(pseudonym for pseudonym, _ in patients),
        groups={
            name: _cells([entries for _, entries in patients], name, images.cells[:, column])
            for column, name in enumerate(study.privacy.subgroups)
        },
    )


def _cells(
    patients: Sequence[Sequence[Entry]], grouping: str, cells: npt.NDArray[np.uint8]
) -> torch.Tensor:
    """Return each patient's cell, given the cells of all images."""
    own = ((int(cells[entry.image]) for entry in entries) for entries in patients)
    return torch.tensor([patient_cell(grouping, each) for each in own], dtype=torch.int64)


def _found(folder: Folder, entries: Sequence[Entry], notes: Sequence[str]) -> dict[str, Any]:
    """Return the report's fields on what was set aside and what else there is to say."""
    rejected = [
        SetAside(
            file=printable(entry.row.file),
            line=entry.row.line,
            reason=entry.reason,
            label=foreign_label(entry.row.label, entry.reason),
        )
        for entry in entries
        if entry.reason
    ]
    images_without_row, others = unlabelled(folder, entries)
    found = [
        f"subfolder {printable(folder.relative(path))} cannot be read; check its access rights"
        for path in folder.unreadable
    ]
    if unnamed := sum(entry.usable and not entry.row.patient for entry in entries):
        found.append(f"{unnamed} images have no patient in the table: asked the images instead")
    return {
        "set_aside": (*rejected, *images_without_row),
        "other_files": others,
        "notes": (*found, *notes),
    }
