"""A node writes into its home only, and runs no code but the installed release's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from system_kit import Federation, small_study

from client.node import free_port
from client.site import Site
from server.link import control

pytestmark = pytest.mark.system


@contextmanager
def node_started_in(folder: Path, site: Site) -> Iterator[None]:
    """Run a site's node from a folder, as a service without a home directory of its own would."""
    environment = {k: v for k, v in os.environ.items() if k != "FLWR_HOME"}
    with (site.home / "node.log").open("ab") as log:
        node = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("consilium")), "site", "start"),
                *("--home", str(site.home), "--port", str(free_port())),
            ],
            cwd=folder,
            env={**environment, "HOME": "/proc/none"},  # nobody can make a folder there
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            node.terminate()
            node.wait()


def test_round_needs_no_home_directory_and_ignores_packages_where_it_was_started(
    federation: Federation, tmp_path: Path
) -> None:
    planted, ran = tmp_path / "planted", tmp_path / "foreign-code-ran"
    for package in ("client", "server", "shared", "simulations", "flwr", "torch"):
        (planted / package).mkdir(parents=True)
        (planted / package / "__init__.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    site, study = federation.add_site(start=False), small_study()
    federation.approve(study)
    with node_started_in(planted, site):
        federation.home.create_run("round", study)
        control(federation.home).start_run("round")
        federation.wait_for_event("round", "run-finished")
    assert not ran.exists(), "a package of the working directory was run"
    assert (site.home / "flower").is_dir()
