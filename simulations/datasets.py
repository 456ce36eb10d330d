"""The data sets a scenario may name: phantoms, MedMNIST files, DICOM folders, CSV tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from simulations.dicom_data import DicomData
from simulations.heart_disease import HeartDiseaseData
from simulations.npz_data import NpzData
from simulations.patients import Dataset, Facts, Patients, concatenate
from simulations.phantom_data import PhantomData
from simulations.table_phantoms import MadeUpTable
from simulations.tables import TableData

__all__ = [
    "Data",
    "Dataset",
    "DicomData",
    "Facts",
    "HeartDiseaseData",
    "MadeUpTable",
    "NpzData",
    "Patients",
    "PhantomData",
    "TableData",
    "concatenate",
    "data_at",
    "describe_dataset",
    "load_dataset",
    "outline_dataset",
    "with_data_at",
]

Data = Annotated[
    PhantomData | MadeUpTable | NpzData | DicomData | TableData | HeartDiseaseData,
    Field(discriminator="source"),
]
"""Each has `facts()`, what is known without loading it, and `load(seed)`."""


def describe_dataset(data: Data) -> Facts:
    """Return what is known of a data set before it is loaded.

    Raises:
        SimulationError: A file is missing or not of its layout.
    """
    return data.facts()


def load_dataset(data: Data, seed: int) -> Dataset:
    """Load a data set; the same seed gives the same bits.

    Args:
        data: Which one.
        seed: Of phantoms, and of the choice of test patients where the data has no test part.

    Raises:
        SimulationError: A file is missing or not of its layout.
    """
    return data.load(seed)


def outline_dataset(data: Data, seed: int) -> Dataset:
    """Return the patients of `load_dataset` as cheaply as it goes: who there is, not their looks.

    Images that would have to be read or drawn have no pixels.

    Raises:
        SimulationError: A file is missing or not of its layout.
    """
    return data.outline(seed) if isinstance(data, PhantomData | NpzData) else data.load(seed)


def with_data_at(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a scenario's data section for another path; settings for the same kind stay.

    Args:
        section: As it is.
        path: As `data_at` takes it, or a CSV table.
    """
    other = {"source": "table", "path": path} if path.endswith(".csv") else data_at(path)
    same = other["source"] == section.get("source", "phantoms")
    return {**section, **other} if same else other


def data_at(path: str) -> dict[str, Any]:
    """Return the data section of a scenario for a path, as the command line takes it.

    Args:
        path: A MedMNIST file, the folder of the heart disease files, or a folder of DICOM images
            with a table `labels.csv` in it or beside it; "phantoms" for phantoms.
    """
    if path == "phantoms":
        return {"source": "phantoms"}
    if path.endswith(".npz"):
        return {"source": "npz", "path": path}
    folder = Path(path)
    if folder.name == "heart_disease" or (folder / "processed.va.data").exists():
        return {"source": "heart-disease", "path": path}
    inside = folder / "labels.csv"
    return {
        "source": "dicom",
        "path": path,
        "labels": str(inside if inside.exists() else folder.parent / "labels.csv"),
    }
