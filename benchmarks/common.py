"""What every benchmark needs: the data, the machine, and where results go."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def data_folder() -> Path:
    """Return the folder of real images; without it the benchmark says so and stops."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CONSILIUM_DATA", default))
    if not folder.is_dir():
        sys.exit(f"This benchmark needs real images: {folder} is missing; set CONSILIUM_DATA.")
    return folder


def machine() -> dict[str, Any]:
    """Describe where and with what the numbers were made."""
    names = ("consilium-fl", "flwr", "torch", "opacus", "numpy")
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def write_results(name: str, command: str, results: Any) -> None:
    """Write `results/NAME.json`: the command that made it, when, where, and what came out."""
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "results": results,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
