"""Whether a CUDA device computes what the guarantee needs, and how fast.

    python benchmarks/gpu_check.py --out gpu_check.json

Rows keep their bits in any company, for all models and many sizes of batch; a round's sum agrees
with the CPU's; the tests that need a CUDA device pass; and the time of a private step. Less than
five minutes on one device. Needs no network and no data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from client.company import check_company
from client.data.patients import PatientSet
from client.privacy.dpsgd import Grid, clipped_sum, per_image_gradients
from client.privacy.sampler import draw_lot
from client.training import lot_batches, predict
from shared.errors import PolicyRefusal
from shared.models import build_model
from shared.study import Study
from simulations.seeded import SeededStream

ROOT = Path(__file__).resolve().parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COLUMNS = [
    {"name": "age", "low": 0, "high": 100},
    {"name": "stage", "categories": ["one", "two", "three"]},
]
VIEWS = {"views": 2, "shift": 0.1, "rotate": 9, "scale": 0.1, "intensity": 0.2, "flip": True}
MODELS: dict[str, dict[str, Any]] = {
    "cnn 28": {"model": {"name": "cnn"}},
    "cnn 64": {"model": {"name": "cnn"}, "input": {"size": 64}},
    "cnn 224, three stages": {
        "model": {"name": "cnn", "widths": [16, 32, 64]},
        "input": {"size": 224, "channels": 3},
    },
    "attention 28": {"model": {"name": "attention"}},
    "attention 64, patch 4": {
        "model": {"name": "attention", "patch": 4, "depth": 2},
        "input": {"size": 64},
    },
    "attention 63, patch 7": {"model": {"name": "attention"}, "input": {"size": 63}},
    "attention 231, patch 7, an odd number of tokens": {
        "model": {"name": "attention"},
        "input": {"size": 231},
    },
    "linear 28": {"model": {"name": "linear"}},
    "table indicator": {"model": {"name": "table"}, "table": {"columns": COLUMNS}},
    "table embedding": {
        "model": {"name": "table", "layers": [32, 32]},
        "table": {"columns": COLUMNS, "missing": "embedding"},
    },
}
BATCHES = (1, 2, 3, 5, 8, 16, 31, 64, 128, 256)
TESTS = (
    "tests/client/privacy/test_company.py",
    "tests/client/privacy/test_patient_gradients.py",
    "tests/client/test_training.py",
)


def make_study(name: str, *, findings: bool = False, clip: float = 1.0) -> Study:
    """Return a study of one of the models; images in two views."""
    values = {
        "name": "gpu",
        "task": {"classes": ["a", "b", "c"], "findings": findings},
        "input": {"size": 28},
        "training": {"local_steps": 1} if "table" in name else {"augment": VIEWS},
        "privacy": {"clip": clip, "images_per_patient": 2},
    }
    values |= MODELS[name]
    if "table" in values:
        values["table"] = {"missing": "indicator"} | values["table"]
    return Study.model_validate(values)


def check_rows() -> dict[str, Any]:
    """Return what is not the same bits in other company, by model and batch; empty: nothing."""
    wrong, tried = {}, 0
    for name in MODELS:
        for findings in (False, True):
            for batch in BATCHES if not findings else BATCHES[3:5]:
                if ("224" in name or "231" in name) and batch > 64:
                    continue
                tried += 1
                try:
                    check_company(make_study(name, findings=findings), CUDA, batch)
                except (PolicyRefusal, RuntimeError) as error:
                    wrong[f"{name}, findings {findings}, batch {batch}"] = str(error)[:300]
    return {"tried": tried, "wrong": wrong}


def make_patients(study: Study, n: int) -> PatientSet:
    """Return random patients with two images each."""
    generator = torch.Generator().manual_seed(3)
    owner = torch.arange(n).repeat_interleave(2)
    if study.table is None:
        shape = (2 * n, study.input.channels, study.input.size, study.input.size)
        images = torch.rand(shape, generator=generator) * 2 - 1
    else:
        images = torch.rand(2 * n, len(study.table.columns), generator=generator) * 2 - 1
        images[:, -1] = torch.randint(0, 3, (2 * n,), generator=generator).float()
    labels = torch.randint(0, 3, (n,), generator=generator)
    return PatientSet(images, owner, labels, tuple(f"{i:064x}" for i in range(n)))


def step(
    name: str,
    device: torch.device,
    patients: int,
    batch: int,
    width: torch.dtype = torch.float32,
) -> Callable[[], torch.Tensor]:
    """Return the private part of a step on all patients, up to the noise."""
    study = make_study(name, clip=0.1)
    model, everyone = build_model(study), make_patients(study, patients)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.to(device, width).train()
    lot = draw_lot(SeededStream(1), everyone.image_patient, patients, 1.0, 2)

    def run() -> torch.Tensor:
        with per_image_gradients(model) as watched:
            batches = lot_batches(everyone, lot, study, SeededStream(2), watched, batch)
            total = clipped_sum(watched, batches, Grid.of(study.privacy.clip))
        return torch.cat([t.flatten() for t in total]).double().cpu()

    return run


def compare() -> dict[str, float]:
    """Return how far the sum on CUDA is from the CPU's, relative to its length.

    In float64: in float32 two maxima of a pooling may change places, which moves a whole gradient.
    """
    apart = {}
    for name in MODELS:
        mine, theirs = (step(name, at, 12, 8, torch.float64)() for at in (CUDA, CPU))
        apart[name] = float((mine - theirs).norm() / theirs.norm())
    return apart


def seconds(run: Callable[[], Any]) -> float:
    """Return the shortest of three times, after one for warming up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def throughput() -> list[dict[str, Any]]:
    """Return rows (images times views) a second in a step, and images a second in scoring."""
    rows = []
    for name in ("cnn 28", "cnn 64", "attention 28", "linear 28"):
        for device, batches in ((CUDA, (32, 64, 256, 1024)), (CPU, (64,))):
            for batch in batches:
                patients = 256 if device == CUDA else 32
                took = seconds(step(name, device, patients, batch))
                study = make_study(name)
                model, images = build_model(study), make_patients(study, patients).images
                scored = seconds(lambda: predict(model, images, device, batch))  # noqa: B023
                rows.append(
                    {
                        "model": name,
                        "device": device.type,
                        "batch": batch,
                        "rows_per_second": round(4 * patients / took),
                        "scores_per_second": round(len(images) / scored),
                    }
                )
    return rows


def run_tests() -> dict[str, Any]:
    """Run the tests that need a CUDA device."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    return {"passed": done.returncode == 0, "output": (done.stdout + done.stderr)[-4000:]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device here.")
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    for name, part in (
        ("rows", check_rows),
        ("apart", compare),
        ("tests", run_tests),
        ("throughput", throughput),
    ):
        start = time.perf_counter()
        record[name] = part()
        record[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
        out.write_text(json.dumps(record, indent=1) + "\n")  # what there is, if time runs out
        print(name, json.dumps(record[name])[:2000], flush=True)
    sound = not record["rows"]["wrong"] and record["tests"]["passed"]
    sys.exit(0 if sound and max(record["apart"].values()) < 1e-5 else 1)


if __name__ == "__main__":
    main()
