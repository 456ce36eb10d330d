"""Builders of DICOM files and of sites that hold them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from client.site import Compute, DataSource, Policy, Server, Site, SiteConfig
from shared.study import Input, Study, Task

DX = "1.2.840.10008.5.1.4.1.1.1.1"


def build_dicom(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """Return a DICOM file of [rows, columns] or [rows, columns, 3] or [frames, ...] pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DX
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = "DX"
    frames = tags.pop("frames", None)
    rows, columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    colour = pixels.ndim == (4 if frames else 3)
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = frames
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


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
        return Site(tmp_path / "home", config)

    return make


@pytest.fixture
def study() -> Study:
    return Study(
        name="s",
        task=Task(classes=("healthy", "ill")),
        input=Input(size=28, window="full"),
    )
