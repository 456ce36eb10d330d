"""The Flower ServerApp: load the run's plan and hand the grid to the round loop."""

from __future__ import annotations

import json
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import shared.flower  # noqa: F401  (silences Flower before its first import)
from server.federation import run_federation
from server.home import HOME, ServerHome
from shared.flower.wire import GridTransport
from shared.study import study_from_json

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one study from its first round, or from its last checkpoint, to the release."""
    home = ServerHome(Path(os.environ[HOME]))
    folder = home.run_folder(str(context.run_config["run"]))
    study = study_from_json((folder / "study.json").read_text(), str(folder / "study.json"))
    sites = {
        int(node): name for node, name in json.loads((folder / "sites.json").read_text()).items()
    }
    run_federation(folder, study, sites, GridTransport(grid), server_home=home.path)
