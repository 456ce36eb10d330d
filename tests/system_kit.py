"""A small real federation on loopback for tests: SuperLink, nodes, TLS, phantoms."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.approvals import Approvals
from client.node import free_port
from client.setup import create_site
from client.site import Site
from server.home import ServerHome
from server.invite import invitation
from server.link import control
from shared.flower.link import process_environment
from shared.study import Study, parse_study
from simulations.hospitals import HospitalFolder
from simulations.processes import Processes


def small_study(**sections: dict[str, Any]) -> Study:
    """A study that small phantoms can run in seconds."""
    plan: dict[str, Any] = {
        "name": "small",
        "task": {"classes": ["normal", "opacity"]},
        "input": {"size": 28},
        "model": {"name": "cnn", "widths": [4, 4], "hidden": 0},
        "training": {"local_steps": 2, "sampling_rate": 0.2},
        "federation": {"rounds": 1, "sites": 1, "min_sites": 1, "start_deadline": 60},
    }
    return parse_study({**plan, **{k: {**plan.get(k, {}), **v} for k, v in sections.items()}}, "t")


def study_toml(study: Study) -> str:
    """Return a study as the file its author would write."""
    sections = study.model_dump(mode="json", exclude_unset=True)
    lines = [f"{key} = {json.dumps(v)}" for key, v in sections.items() if not isinstance(v, dict)]
    for name, section in sections.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in section.items())]
    return "\n".join(lines)


@dataclass
class Federation:
    """A running server and the means to add hospitals to it."""

    folder: Path
    processes: Processes
    home: ServerHome
    images: list[HospitalFolder]
    nodes: list[Site] = field(default_factory=list)

    def add_site(self, *, enrol: bool = True, start: bool = True) -> Site:
        """Set up the next hospital; enrol it and start its node."""
        number = len(self.nodes)
        folder = self.images[number]
        site = create_site(
            self.folder / folder.name,
            folder.name,
            invitation(self.home),
            folder.images,
            folder.labels,
            values={"normal": "normal", "opacity": "opacity"},
            # Few steps with little noise take more of a lifetime account than of a study.
            policy={
                "min_patients": 5,
                "min_patients_per_class": 1,
                "max_epsilon_per_patient": 100,
            },
        )
        self.nodes.append(site)
        if enrol:
            node = control(self.home).register((site.home / "node.pub").read_bytes(), folder.name)
            self.home.add_site(folder.name, node, (site.home / "node.pub").read_text().strip())
        if start:
            self.start_node(site)
        return site

    def start_node(self, site: Site) -> None:
        """Start (or start again) a hospital's node."""
        self.processes.start(
            site.config.name,
            [
                *(str(Path(sys.executable).with_name("consilium")), "site", "start"),
                *("--home", str(site.home), "--port", str(free_port())),
            ],
            process_environment(site.home, OMP_NUM_THREADS="1"),
            site.home / "node.log",
        )

    def approve(self, study: Study) -> None:
        """Let every hospital approve the study."""
        for site, folder in zip(self.nodes, self.images, strict=False):
            Approvals(site).approve_study(study, "the test", folder.patients)

    def events(self, run: str) -> list[dict[str, Any]]:
        """Return what the server recorded of a run so far."""
        path = self.home.run_folder(run) / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait(self, what: str, found: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait until `found` gives something, and return it."""
        deadline = time.monotonic() + seconds
        while not (result := found()):
            assert time.monotonic() < deadline, f"no {what} within {seconds} s: {self.logs()}"
            time.sleep(0.1)
        return result

    def wait_for_event(self, run: str, name: str) -> dict[str, Any]:
        """Wait for an event of a run."""
        event: dict[str, Any] = self.wait(
            f"event {name}", lambda: [e for e in self.events(run) if e["event"] == name]
        )[0]
        return event

    def logs(self) -> str:
        """Return the ends of all logs, for a failing test's message."""
        files = [self.home.path / "server.log", *(s.home / "node.log" for s in self.nodes)]
        return "\n".join(f"{f}:\n{f.read_text()[-2000:]}" for f in files if f.exists())
