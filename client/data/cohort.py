"""The cohort of a study at a site: patients to train on and patients held out, as tensors."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from client.data.attributes import patient_cell
from client.data.folder import Folder, list_folder
from client.data.images import (
    Images,
    Job,
    cache_key,
    decode_images,
    read_cache,
    write_cache,
)
from client.data.index import Entry, match, unlabelled, without_contradictions
from client.data.labels import read_labels
from client.data.reasons import EXPLANATIONS
from client.data.report import DataReport, SetAside, printable, write_report
from client.data.split import is_held_out
from client.site import Policy, Site
from client.vault import Vault
from shared.errors import DataError, PolicyRefusal, SiteError
from shared.study import Study


@dataclass(frozen=True)
class PatientSet:
    """Patients with their images, or rows of a table; `len` is the number of patients.

    Args:
        images: float32 [n_images, channels, size, size] in [-1, 1]. In studies of a table the
            rows [n_rows, columns]: numbers scaled from their range to [-1, 1], categories as
            their index, NaN where a value is missing.
        image_patient: int64 [n_images], ascending: each image's index into the patients.
        labels: int64 [n_patients]: each patient's class index in the study. In studies of
            findings [n_patients, findings]: 0 or 1, and -1 where nobody knows.
        patients: Each patient's pseudonym (keyed hash, 64 hex digits), ascending.
        groups: In studies that ask for subgroups, for each grouping int64 [n_patients]: each
            patient's index into the grouping's cells, `shared.subgroups.CELLS`.
    """

    images: torch.Tensor
    image_patient: torch.Tensor
    labels: torch.Tensor
    patients: tuple[str, ...]
    groups: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.patients)

    def only(self, stays: torch.Tensor) -> PatientSet:
        """Return the patients that stay, with all that belongs to them.

        Args:
            stays: Whether each patient does, bool [n_patients].
        """
        images = stays[self.image_patient]
        return PatientSet(
            images=self.images[images],
            image_patient=(stays.cumsum(0) - 1)[self.image_patient[images]],
            labels=self.labels[stays],
            patients=tuple(itertools.compress(self.patients, stays.tolist())),
            groups={name: cells[stays] for name, cells in self.groups.items()},
        )


@dataclass(frozen=True)
class Cohort:
    """A study's patients at a site, each on one side only."""

    train: PatientSet
    held_out: PatientSet
    report: DataReport

    def __post_init__(self) -> None:
        if not set(self.train.patients).isdisjoint(self.held_out.patients):
            raise ValueError("a patient is both trained on and held out")


def load_cohort(site: Site, study: Study, *, use_cache: bool = True) -> Cohort:
    """Read, check, decode and split a site's data for a study.

    What cannot be used is set aside, and a report in the site's `reports` folder says why.
    Which patients are held out follows from each patient's id alone.

    Args:
        site: The hospital's settings and folders.
        study: The plan; its input, classes and data rules apply.
        use_cache: Whether decoded images may come from, and are kept in, the encrypted cache.

    Raises:
        DataError: Folder or table cannot be read, no image can be used, or fewer than the study
            needs.
        PolicyRefusal: `policy-cohort`: fewer patients than the site's policy asks for.
        SiteError: The site's own files (vault, reports) or the decoding process fail.
    """
    source = site.config.data
    rows = read_labels(site.resolve(source.labels), source.columns)
    folder = list_folder(site.resolve(source.images))
    matched = match(rows, folder, source.values, study.task.classes)
    vault = Vault.open(site.vault_key)
    images, notes = _images(site, study, vault, matched, use_cache=use_cache)
    entries = without_contradictions(_with_images(matched, images))
    train, held_out = _split(entries, study.data.held_out)
    report = _report(site, study, folder, entries, (train, held_out), notes)
    where = str(write_report(report, site.reports))
    _check_study(report, study, where)
    _check_policy(report, site.config.policy, where)
    return Cohort(
        train=_patient_set(train, images, vault, study),
        held_out=_patient_set(held_out, images, vault, study),
        report=report,
    )


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
    if use_cache and (cached := read_cache(path, vault, key)):
        return cached, []
    images = decode_images(jobs, study.input, site.config, groupings)
    notes = []
    if use_cache:
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


def _split(entries: Iterable[Entry], held_out: float) -> tuple[Side, Side]:
    train: Side = {}
    kept: Side = {}
    for entry in entries:
        if entry.usable:
            side = kept if is_held_out(entry.patient, held_out) else train
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
        labels=torch.tensor([entries[0].target for _, entries in patients], dtype=torch.int64),
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


def _report(
    site: Site,
    study: Study,
    folder: Folder,
    entries: Sequence[Entry],
    sides: tuple[Side, Side],
    notes: Sequence[str],
) -> DataReport:
    rejected = [
        SetAside(file=printable(entry.row.file), line=entry.row.line, reason=entry.reason)
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
    train, held_out = (_by_class(side, study.task.classes) for side in sides)
    return DataReport(
        study=study.name,
        digest=study.digest,
        images_folder=str(site.resolve(site.config.data.images)),
        labels_table=str(site.resolve(site.config.data.labels)),
        used_images=sum(entry.usable for entry in entries),
        train=train,
        held_out=held_out,
        set_aside=(*rejected, *images_without_row),
        other_files=others,
        notes=(*found, *notes),
    )


def _by_class(side: Side, classes: Sequence[str]) -> dict[str, int]:
    counts = Counter(entries[0].target for entries in side.values())
    return {name: counts[target] for target, name in enumerate(classes)}


def _check_study(report: DataReport, study: Study, where: str) -> None:
    """Refuse data that is not good enough for the study."""
    if not report.used_images:
        main = next(iter(report.counts), None)
        why = f"; most often: {main.value}, {EXPLANATIONS[main]}" if main else ""
        raise DataError(f"no image can be used{why}", where, "The report names every file")
    part = report.lost / report.labelled
    if part > study.data.max_set_aside:
        raise DataError(
            f"{report.lost} of {report.labelled} labelled images are set aside ({part:.0%}); "
            f"the study allows {study.data.max_set_aside:.0%}",
            where,
            "Repair what the report names",
        )
    patients = sum(report.train.values())
    if patients < study.data.min_patients:
        raise DataError(
            f"{patients} patients to train on; the study needs {study.data.min_patients}",
            where,
            "Repair what the report names, or add patients",
        )


def _check_policy(report: DataReport, policy: Policy, where: str) -> None:
    """Refuse a crowd too small to hide in."""
    patients = sum(report.train.values())
    if patients < policy.min_patients:
        raise PolicyRefusal(
            "policy-cohort",
            f"{patients} patients to train on; policy.min_patients is {policy.min_patients}",
            where,
            "Repair what the report names, add patients, or change the policy",
        )
    name, count = min(report.train.items(), key=lambda item: item[1])
    if count < policy.min_patients_per_class:
        raise PolicyRefusal(
            "policy-cohort",
            f"{count} patients of class {name!r} to train on; policy.min_patients_per_class is "
            f"{policy.min_patients_per_class}",
            where,
            "Repair what the report names, add patients, or change the policy",
        )
