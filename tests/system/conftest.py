"""Starts the server every system test needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from system_kit import Federation

from client.node import free_port
from server.home import ServerHome
from server.link import start_server
from simulations.phantoms import make_phantoms
from simulations.processes import Processes


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A started server without hospitals."""
    images = make_phantoms(tmp_path / "images", sites=2, patients=80, test_patients=10)
    with Processes() as processes:
        home = ServerHome.create(
            tmp_path / "server", f"127.0.0.1:{free_port()}", free_port(), ["localhost"]
        )
        start_server(home, processes.start)
        yield Federation(tmp_path, processes, home, images)
