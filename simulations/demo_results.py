"""The demo's last step: score the model on the test folder, write the report, sum it up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from safetensors.numpy import load_file

from client.data.cohort import load_cohort
from client.data.report import DataReport
from client.setup import create_site
from client.site import Site, load_site
from client.training import pick_device, predict
from server.release import ModelCard, read_card, write_card
from server.report import write_report
from shared.invitation import Invitation
from shared.metrics import roc_auc
from shared.models import build_model, set_weights
from shared.study import Study

if TYPE_CHECKING:
    from simulations.demo_options import DemoOptions
    from simulations.hospitals import HospitalFolder

RESULTS = ("model.safetensors", "metrics.jsonl")


def finish(
    options: DemoOptions,
    out: Path,
    run: Path,
    study: Study,
    folders: list[HospitalFolder],
    work: Path,
    notes: list[str],
    console: Console,
) -> None:
    """Leave model, card, metrics and report in `out`, and print what came of it."""
    test = _test(options, folders[-1], work, study, run)
    card = read_card(run).model_copy(update={"test_auc": test["auc"], "test_metrics": dict(test)})
    write_card(run, card)
    for name in (*RESULTS, "model-card.json"):
        shutil.copyfile(run / name, out / name)
    local = {folder.name: _set_aside(load_site(work / folder.name)) for folder in folders[:-1]}
    write_report(run, out / "report.html", local_reports=local, test=test, notes=notes)
    _summary(card, out, console)


def _test(
    options: DemoOptions, folder: HospitalFolder, work: Path, study: Study, run: Path
) -> dict[str, float | int]:
    """Score the released model on every patient of the test folder, one score a patient."""
    site = _test_site(options, folder, work, study)
    cohort = load_cohort(site, study, use_cache=False)
    model = build_model(study)
    set_weights(model, load_file(run / "model.safetensors"))
    device = pick_device(options.device)
    scores, positive, right = [], [], []
    for side in (cohort.train, cohort.held_out):
        images = predict(model, side.images, device, 256)
        sums = torch.zeros(len(side), images.shape[1]).index_add_(0, side.image_patient, images)
        mean = sums / torch.bincount(side.image_patient, minlength=len(side))[:, None]
        scores.append(mean[:, study.task.positive_index])
        positive.append(side.labels == study.task.positive_index)
        right.append(mean.argmax(dim=1) == side.labels)
    auc = roc_auc(torch.cat(scores).numpy(), torch.cat(positive).numpy())
    accuracy = torch.cat(right).float().mean().item()
    return {"auc": auc, "accuracy": accuracy, "patients": len(torch.cat(right))}


def _test_site(options: DemoOptions, folder: HospitalFolder, work: Path, study: Study) -> Site:
    nobody = Invitation(server="127.0.0.1:1", ca="none", signing_key="none")
    return create_site(
        work / "test",
        "test",
        nobody,
        folder.images,
        folder.labels,
        values={name: name for name in study.task.classes},
        policy={"min_patients": 1, "min_patients_per_class": 0},
        compute={"device": options.device},
    )


def _set_aside(site: Site) -> dict[str, int]:
    """Read a hospital's own data report; only a demo on one machine can."""
    counts: dict[str, int] = {}
    for path in site.reports.glob("data-*.json"):
        report = DataReport.model_validate_json(path.read_text())
        counts.update({reason.value: count for reason, count in report.counts.items()})
    return counts


def _summary(card: ModelCard, out: Path, console: Console) -> None:
    spent = ", ".join(
        f"{name} {site.epsilon:.2f} of {site.budget:g}" if site.noise_multiplier else f"{name} none"
        for name, site in sorted(card.sites.items())
    )
    console.print(f"[bold]Test AUC {card.test_auc:.3f}[/bold] after {card.rounds} rounds.")
    console.print(f"Privacy spent (epsilon, per patient): {spent}", soft_wrap=True)
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)
    console.print(f"Model, card and metrics are beside it in {out}", soft_wrap=True)
