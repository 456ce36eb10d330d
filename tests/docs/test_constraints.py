"""The constraints for machines without a GPU fit what the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def test_the_constraints_hold_every_dependency_without_cuda() -> None:
    lines = [
        line
        for line in (ROOT / "constraints-cpu.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    pinned = {name: Version(version) for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        wanted = Requirement(text)
        version = pinned[re.sub(r"[-_.]+", "-", wanted.name).lower()]
        assert version in wanted.specifier, text
    assert pinned["torch"].local == "cpu"
    assert not [name for name in pinned if name.startswith(("nvidia", "triton", "cuda"))]
