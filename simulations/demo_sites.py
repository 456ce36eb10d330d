"""The demo's hospitals: their images, their homes, their enrolment and their node processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from client.setup import create_site
from client.site import Site
from server.home import ServerHome
from server.invite import invitation
from server.link import control
from shared.flower.link import process_environment
from shared.study import Study

if TYPE_CHECKING:
    from simulations.demo_options import DemoOptions
    from simulations.hospitals import HospitalFolder
    from simulations.processes import Processes

CONSILIUM = str(Path(sys.executable).with_name("consilium"))


def make_images(
    options: DemoOptions, folder: Path, console: Console
) -> tuple[list[HospitalFolder], list[str]]:
    """Write every hospital's DICOM folder, the test folder last; return them and notes to print."""
    if options.images is None:
        from simulations.phantoms import make_phantoms

        folders = make_phantoms(folder, sites=options.sites, seed=options.seed)
        notes = ["The images are phantoms made by this program; they show no patient."]
    else:
        from simulations.medmnist import write_medmnist

        folders = write_medmnist(folder, options.images, sites=options.sites, seed=options.seed)
        notes = [
            f"The images come from {options.images.name}, written out as DICOM files. That file "
            "has no patient ids: each image stands in for one patient, so the guarantee shown is "
            "one of images, and two images of one person would count as two."
        ]
    for each in folders:
        console.print(f"Images: {each.name}, {each.patients} patients, {each.path}")
    return folders, notes


def start_hospitals(
    options: DemoOptions,
    folders: list[HospitalFolder],
    work: Path,
    server: ServerHome,
    study: Study,
    processes: Processes,
    console: Console,
) -> list[str]:
    """Set up, enrol and start every hospital; each approves the study. Return their names."""
    from client.approvals import Approvals
    from client.node import free_port

    api = control(server)
    names = []
    for folder in folders[:-1]:
        site = _make_site(options, folder, work / folder.name, server, study)
        node = api.register((site.home / "node.pub").read_bytes(), folder.name)
        server.add_site(folder.name, node, (site.home / "node.pub").read_text().strip())
        Approvals(site).approve_study(study, by="the demo", patients=folder.patients)
        processes.start(
            folder.name,
            [CONSILIUM, "site", "start", "--home", str(site.home), "--port", str(free_port())],
            process_environment(site.home, OMP_NUM_THREADS="1"),
            site.home / "node.log",
        )
        names.append(folder.name)
    console.print(
        f"Hospitals: {len(names)} nodes started; each approved study {study.digest[:12]}."
    )
    return names


def _make_site(
    options: DemoOptions, folder: HospitalFolder, home: Path, server: ServerHome, study: Study
) -> Site:
    classes = {name: name for name in study.task.classes}
    return create_site(
        home,
        folder.name,
        invitation(server),
        folder.images,
        folder.labels,
        values=classes,
        policy={
            "max_epsilon_per_study": study.privacy.epsilon,
            # A lifetime account has room for less than its epsilon: about 0.9 of it in one study.
            "max_epsilon_per_patient": max(10.0, 1.5 * study.privacy.epsilon),
            "max_delta": study.privacy.delta or 1e-5,
            "min_patients": 10,
            "min_patients_per_class": 2,
            "allow_without_privacy": not study.privacy.enabled,
        },
        compute={"device": options.device},
    )
