"""Where the data a scenario names is found."""

from __future__ import annotations

import os
from pathlib import Path

from shared.errors import SimulationError

BESIDE = Path(__file__).parents[2] / "shared" / "data"
"""Data beside a checkout of this program."""


def find_data(name: str, base: Path | None = None) -> str:
    """Return the absolute path of a data file or folder.

    A relative name is looked for in the scenario's folder, the working folder, the folder that
    the environment variable CONSILIUM_DATA names, and beside the program's checkout.

    Args:
        name: As the scenario gives it.
        base: The scenario's folder.

    Raises:
        SimulationError: It is in none of these places.
    """
    set_by_user = os.environ.get("CONSILIUM_DATA")
    folders = [base, Path.cwd(), Path(set_by_user) if set_by_user else None, BESIDE]
    for folder in folders:
        path = (folder or Path()) / Path(name).expanduser()
        if path.exists():
            return str(path.resolve())
    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders) if folder)
    raise SimulationError(
        f"there is no data {name!r}",
        name if Path(name).is_absolute() else f"looked in {looked}",
        "Give the path of the file or folder, or set CONSILIUM_DATA to its folder",
    )
