"""Builders of DICOM files and of sites that hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_kit import build_dicom
from split_kit import fix_split

from client.site import Compute, DataSource, Policy, Server, Site, SiteConfig
from shared.study import Input, Study, Task


@pytest.fixture(scope="session")
def dicom() -> Callable[..., bytes]:
    return build_dicom


@pytest.fixture
def ramp() -> np.ndarray:
    """A 28x28 image of 784 different 16-bit values."""
    return np.arange(784, dtype=np.uint16).reshape(28, 28)


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Site]:
    """Return a builder of a site: its images by file name and its labels table's text."""

    def make(files: dict[str, bytes], table: str, **settings: Any) -> Site:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (tmp_path / "labels.csv").write_text(table)
        policy = settings.pop(
            "policy", Policy(min_patients=1, min_patients_per_class=0, max_set_aside=1)
        )
        compute = settings.pop("compute", Compute())
        source = {"images": folder, "labels": tmp_path / "labels.csv", **settings}
        config = SiteConfig(
            name="A",
            server=Server(address="localhost:1"),
            data=DataSource.model_validate(source),
            policy=policy,
            compute=compute,
        )
        return Site(fix_split(tmp_path / "home"), config)

    return make


@pytest.fixture
def study() -> Study:
    return Study(
        name="s",
        task=Task(classes=("healthy", "ill")),
        input=Input(size=28, window="full"),
    )
