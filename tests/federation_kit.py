"""A small federation of made-up hospitals and a study for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.study import Study
from simulations.build import Federation, SiteData
from simulations.datasets import Facts
from simulations.engine import Resources
from simulations.patients import Patients

LOCAL = Resources(engine="local")
ROUNDS = 3


def patients(count: int, rng: np.random.Generator) -> Patients:
    labels = np.arange(count) % 2
    images = rng.uniform(-1, 0, (count, 1, 28, 28)).astype(np.float32)
    images += labels[:, None, None, None].astype(np.float32) * 0.5
    return Patients(images, np.arange(count), labels)


def federation(sites: int = 3) -> Federation:
    rng = np.random.default_rng(0)
    hospitals = tuple(
        SiteData(f"site-{n + 1}", patients(12 + 4 * n, rng), patients(6, rng)) for n in range(sites)
    )
    return Federation(hospitals, patients(6, rng), Facts("made up", ("no", "yes"), size=28))


def study(sites: int = 3, **federation_keys: Any) -> Study:
    plan = {"rounds": ROUNDS, "sites": sites, "min_sites": 1}
    return Study.model_validate(
        {
            "name": "tiny",
            "task": {"classes": ("no", "yes")},
            "input": {"size": 28},
            "model": {"name": "cnn", "widths": (4, 4), "hidden": 0},
            "training": {"local_steps": 2, "sampling_rate": 0.5},
            "privacy": {"delta": 1e-5},
            "federation": plan | federation_keys,
        }
    )
