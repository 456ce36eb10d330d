"""What the parts of a scenario share: how a part says which sites it is about."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator

from shared.errors import SimulationError

Indices = npt.NDArray[np.int64]


def _which(value: Any) -> Any:
    """Refuse at once, in one line, what no member of the union below would take."""
    numbers = isinstance(value, list | tuple) and all(
        isinstance(number, int) and number >= 1 for number in value
    )
    some = isinstance(value, float) and 0 < value < 1
    if value != "all" and not some and not (numbers and value):
        raise ValueError("must be 'all', a part between 0 and 1, or numbers of sites from 1")
    return value


Which = Annotated[Literal["all"] | float | tuple[int, ...], BeforeValidator(_which)]
"""Sites: all of them, a part of them (chosen by the seed), or their numbers from 1."""


def choose_sites(which: Which, sites: int, rng: np.random.Generator) -> Indices:
    """Return the chosen sites as ascending indices from 0.

    Args:
        which: All, a part (rounded, at least one site), or numbers from 1.
        sites: Number of sites.
        rng: Chooses where only a part is asked for.

    Raises:
        SimulationError: A number is larger than the number of sites.
    """
    if which == "all":
        return np.arange(sites, dtype=np.int64)
    if isinstance(which, float):
        count = max(1, round(which * sites))
        return np.sort(rng.choice(sites, count, replace=False)).astype(np.int64)
    check_sites(which, sites)
    return np.array(sorted({int(number) - 1 for number in which}), dtype=np.int64)


def check_sites(which: Which, sites: int) -> None:
    """Refuse numbers of sites that are not there.

    Raises:
        SimulationError: A number is larger than the number of sites.
    """
    if isinstance(which, tuple) and (beyond := [number for number in which if number > sites]):
        raise SimulationError(
            f"there is no site {beyond[0]}, only {sites}", "sites", "Count the sites from 1"
        )
