"""Predictions for the hospital's own patients, by the model it may use; they stay at the site.

Nothing of this is part of a round: no server asks for it, nothing is charged and nothing leaves.
Unlike all else here the file names patients, since the hospital asks about them.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import nn

from client.audit import Event
from client.data.cohort import PatientSet, load_cohort
from client.data.folder import list_folder, looks_like_dicom
from client.data.images import Job, decode_images
from client.data.reasons import EXPLANATIONS
from client.evaluation import patient_scores
from client.hospital import Hospital
from client.training import pick_device
from client.vault import write_atomic
from shared.errors import DataError, SiteError
from shared.models import build_model, set_weights
from shared.protocol import Statistics
from shared.study import Study


@dataclass(frozen=True)
class Asked:
    """Patients to predict for.

    Attributes:
        parts: By what the file calls them: `train`, `held-out`, or `folder`.
        names: Each patient's id by pseudonym, as the hospital writes it.
        notes: What there is to say of those left out, in lines that name nobody.
    """

    parts: Mapping[str, PatientSet]
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()


def from_cohort(hospital: Hospital, study: Study) -> Asked:
    """Return the site's own patients of a study, without those who opted out.

    Raises:
        DataError: The site's data cannot be read as the study needs it.
        SiteError: The site's own files or the decoding process fail.
        LedgerError: The ledger cannot say who opted out.
    """
    cohort = load_cohort(hospital.site, study)
    with hospital.ledger() as ledger:
        opted_out = ledger.opted_out()
    parts, absent = {}, 0
    for name, side in (("train", cohort.train), ("held-out", cohort.held_out)):
        stays = torch.tensor([p not in opted_out for p in side.patients], dtype=torch.bool)
        parts[name] = side.only(stays)
        absent += len(side) - len(parts[name])
    report, notes = cohort.report, []
    if absent:
        notes.append(f"left out, since they opted out: {absent}")
    if left := len(report.set_aside) + report.left_out:
        notes.append(f"cannot be used: {left} images or rows; see {hospital.site.reports}")
    return Asked(parts, cohort.names, tuple(notes))


def from_folder(hospital: Hospital, study: Study, folder: Path) -> Asked:
    """Return the patients of a folder's DICOM files, as the files name them.

    Raises:
        DataError: The study is of a table, or the folder cannot be read.
        SiteError: The decoding process fails.
    """
    if study.table is not None:
        raise DataError("the study is of a table", str(folder), "Leave --images out")
    files = list_folder(folder).files
    jobs = [Job(file, True) for path, file in sorted(files.items()) if looks_like_dicom(path)]
    images = decode_images(jobs, study.input, hospital.site.config)
    decoded = [p for p, r in zip(images.patients, images.reasons, strict=True) if r is None]
    names = {hospital.vault.pseudonym(patient): patient for patient in decoded}
    owners = {patient: owner for owner, patient in enumerate(names.values())}
    order = sorted(range(len(decoded)), key=lambda image: owners[decoded[image]])
    patients = PatientSet(
        images=torch.from_numpy(images.pixels[order]),
        image_patient=torch.tensor([owners[decoded[image]] for image in order], dtype=torch.int64),
        labels=torch.full((len(names),), -1),
        patients=tuple(names),
    )
    aside = Counter(reason for reason in images.reasons if reason)
    notes = tuple(f"files set aside: {n}; {EXPLANATIONS[why]}" for why, n in aside.most_common())
    return Asked({"folder": patients}, names, notes)


def released_model(path: Path, study: Study) -> nn.Module:
    """Return the model the coordinator released, if it is the one of its card and the study.

    Args:
        path: `model.safetensors`, with `model-card.json` beside it.
        study: The plan.

    Raises:
        SiteError: A file is missing, or the model is not that of the card.
        StudyError: The card is of another study.
    """
    where, card_file = str(path), path.with_name("model-card.json")
    try:
        content, card = path.read_bytes(), _Card.model_validate_json(card_file.read_bytes())
    except OSError as error:
        raise SiteError(
            f"cannot read the released model: {error.strerror}",
            str(error.filename),
            "Ask the coordinator for both model.safetensors and model-card.json",
        ) from None
    except ValidationError:
        raise SiteError("this is not a model card", str(card_file), "Ask for it again") from None
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise SiteError("the model is not that of its card", where, "Ask the coordinator again")
    if card.study_digest != study.digest:
        raise SiteError(
            f"the model is of study {card.study_digest[:12]}", where, "Name that one in --study"
        )
    model = build_model(study, card.statistics)
    try:
        set_weights(model, load(content))
    except SafetensorError:
        raise SiteError("this is not a model", where, "Ask the coordinator again") from None
    return model.eval()


def predict_patients(
    hospital: Hospital, study: Study, model: nn.Module, asked: Asked, out: Path
) -> int:
    """Write each patient's probabilities to a CSV file (mode 0600), and return how many patients.

    That it was done is in the audit log first.

    Args:
        hospital: The site.
        study: The plan.
        model: Of that study.
        asked: The patients.
        out: The file: `patient`, `part`, `images`, and the probability of each class as `p_CLASS`.

    Raises:
        DataError: There is no patient to predict for.
        SiteError: The audit log or the file cannot be written.
    """
    compute = hospital.site.config.compute
    if compute.threads:
        torch.set_num_threads(compute.threads)
    device, rows = pick_device(compute.device), list[tuple[str, ...]]()
    for part, patients in asked.parts.items():
        if not len(patients):
            continue
        scores = patient_scores(
            model, patients, device, compute.physical_batch, findings=study.task.findings
        )
        images = torch.bincount(patients.image_patient, minlength=len(patients)).tolist()
        for pseudonym, count, probabilities in zip(patients.patients, images, scores, strict=True):
            shown = (f"{probability:.6f}" for probability in probabilities)
            rows.append((asked.names[pseudonym], part, str(count), *shown))
    if not rows:
        raise DataError("there is no patient to predict for", todo="; ".join(asked.notes))
    hospital.log(Event(event="predictions-made", study=study.digest, patients=len(rows)))
    text = io.StringIO()
    header = ("patient", "part", "images", *(f"p_{name}" for name in study.task.classes))
    csv.writer(text, lineterminator="\n").writerows([header, *sorted(rows)])
    write_atomic(out, text.getvalue().encode())
    return len(rows)


class _Card(BaseModel):
    """What of the coordinator's model card is needed to use its model."""

    model_config = ConfigDict(frozen=True)

    study_digest: str
    weights_sha256: str
    statistics: Statistics | None = None
