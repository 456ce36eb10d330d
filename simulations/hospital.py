"""Simulated hospitals: real ones in all but their patients, their randomness and their folders."""

from __future__ import annotations

import hashlib
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from client.data.patients import Cohort, trainable
from client.data.report import DataReport
from client.hospital import Hospital
from client.site import Site, SiteConfig
from client.vault import Vault, write_atomic
from shared.protocol import Request
from shared.study import Study
from simulations.seeded import SeededStream
from simulations.stage import Sides, Stage

SCENE = "scene.json"
"""File that says what a simulation's folder holds; written when all the rest is there."""

SITES_LOG = "sites.log"
"""File in a simulation's folder with what hospitals would write to their own logs."""


def site_id(number: int) -> str:
    """Return what a run calls its `number`th hospital, from 0.

    Real names may be anything ("St Mary's", "80+"); settings, folders and files have ids, and
    the names are in the results. As the sites of a partition are called like their ids, most
    runs show no difference.
    """
    return f"site-{number + 1}"


class SimulatedSite(BaseModel):
    """One simulated hospital.

    Attributes:
        name: Its name, which its randomness follows from.
        patients: The size it declares: what those it trains on follow from.
        sides: Its patients.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    patients: int
    sides: Sides


class Scene(BaseModel):
    """All that a worker must know to open a simulation's hospitals.

    Attributes:
        study: The plan, approved everywhere.
        seed: Of lots, noise and everything else the hospitals draw.
        data: Folder of the stage.
        homes: Folder of the hospitals' own folders.
        server_key: Public key the server countersigns ledger heads with.
        device: Where to compute.
        sites: The hospitals; partition n of a node is the nth from 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: Study
    seed: int
    data: Path
    homes: Path
    server_key: Path
    device: Literal["cpu", "cuda"]
    sites: tuple[SimulatedSite, ...]


class Cast:
    """The hospitals of a simulation.

    Everything a hospital keeps (ledger, outbox, approvals, its share of control variates) is in
    a folder for each round, made from the one of the round before when it is first asked
    something in that round. So a simulation that was killed does a round again from exactly
    what there was before it, and nothing that came of the broken attempt counts.

    Args:
        scene: What there is.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene, self._stage = scene, Stage(scene.data)
        self._cohorts: dict[int, Cohort] = {}

    def hospital(self, number: int, request: Request) -> Hospital:
        """Open the `number`th hospital as it is when it gets a request."""
        folder = self._scene.homes / f"{number:05d}"
        home = folder / _round_name(request.round)
        if home.exists() and request.attempt:
            return self._open(number, home)
        for stale in (path for path in _rounds(folder) if path.name >= home.name):
            shutil.rmtree(stale)
        before = _rounds(folder)
        if not before:
            return self._found(number, home)
        shutil.copytree(before[-1], home)
        for old in before[:-1]:
            shutil.rmtree(old)
        return self._open(number, home)

    def at_the_end(self) -> dict[str, Hospital]:
        """Return the hospitals that were asked anything, by id, as they are now."""
        folders = {
            number: _rounds(self._scene.homes / f"{number:05d}")
            for number in range(len(self._scene.sites))
        }
        return {
            site_id(number): self._open(number, homes[-1])
            for number, homes in folders.items()
            if homes
        }

    def _found(self, number: int, home: Path) -> Hospital:
        """Make a hospital that has approved the study."""
        hospital = self._open(number, home)
        site = self._scene.sites[number]
        drawn = hashlib.sha256(f"split {self._scene.seed} {site.name}".encode()).digest()
        write_atomic(hospital.site.split_key, drawn)
        hospital.approvals.approve_study(
            self._scene.study, "simulation", site.patients, exact="subgroups"
        )
        return hospital

    def _open(self, number: int, home: Path) -> Hospital:
        scene, name = self._scene, self._scene.sites[number].name
        return Hospital(
            Site(home, _settings(scene, number)),
            Vault.open(home / "vault.key"),
            load_cohort=lambda site, study: self._cohort(number),
            # The run's id is random, and must not decide what is drawn.
            make_stream=lambda request: SeededStream(
                scene.seed, name, request.task, request.round, request.attempt
            ),
        )

    def _cohort(self, number: int) -> Cohort:
        if number not in self._cohorts:
            study, sides = self._scene.study, self._scene.sites[number].sides
            report = DataReport(
                study=study.name,
                digest=study.digest,
                images_folder="",
                labels_table="",
                used_images=sides.train.images + sides.held_out.images,
                train={},
                held_out={},
                set_aside=(),
                other_files=0,
            )
            train, held_out = map(self._stage.patients, (sides.train, sides.held_out))
            self._cohorts[number] = Cohort(trainable(train, study), held_out, report)
        return self._cohorts[number]


@lru_cache(maxsize=1)
def open_cast(folder: Path, stamp: str) -> Cast:
    """Return the cast of a simulation's folder, kept open in this process until the next one.

    Args:
        folder: Holds the scene.
        stamp: Tells simulations in the same folder apart.
    """
    return Cast(Scene.model_validate_json((folder / SCENE).read_bytes()))


def _settings(scene: Scene, number: int) -> SiteConfig:
    """Return settings that allow whatever the study asks for, on one thread."""
    private = scene.study.privacy.enabled
    return SiteConfig.model_validate(
        {
            "name": site_id(number),
            "server": {"address": "localhost:1", "signing_key": scene.server_key},
            "data": {"images": "images", "labels": "labels.csv"},
            "policy": {
                "max_epsilon_per_study": 1e6,
                "max_epsilon_per_patient": 1e6,
                "max_delta": 1e-3,
                "allow_without_privacy": not private,
                "min_patients": 1,
                "min_patients_per_class": 0,
                "evaluation": "noised" if private else "exact",
                "max_rounds_per_day": 10**9,
            },
            # With more threads sums are split differently, and the last bits differ.
            "compute": {"device": scene.device, "threads": 1},
        }
    )


def _rounds(folder: Path) -> list[Path]:
    """Return a hospital's folders of rounds, oldest first."""
    return sorted(folder.glob("round-*"))


def _round_name(number: int) -> str:
    return f"round-{number:05d}"
