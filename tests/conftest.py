"""Fixtures every test may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing but how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; its absence is a failure where CONSILIUM_REQUIRE_DATA is set."""
    folder = Path(
        os.environ.get("CONSILIUM_DATA", Path(__file__).parents[2] / "shared" / "data")
    ).resolve()
    if not (folder / "pneumoniamnist.npz").is_file():
        message = f"real images not found in {folder}: set CONSILIUM_DATA"
        if os.environ.get("CONSILIUM_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(autouse=True, scope="module")
def no_workers_are_left() -> Iterator[None]:
    """End a simulation's Ray processes with the module: the next one may need their CPUs.

    Flower's own simulation would wait for them without end.
    """
    yield
    if engine := sys.modules.get("simulations.engine"):
        engine.close_workers()
