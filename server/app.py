"""The Flower ServerApp: load the run's plan and hand the grid to the round loop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import shared.flower  # noqa: F401  (silences Flower before its first import)
from server.clock import Clock
from server.exchange import Patience
from server.federation import PATIENT, SYSTEM_CLOCK, run_federation
from server.home import HOME, ServerHome
from shared.flower.wire import GridTransport
from shared.models import initial_weights
from shared.study import Study, study_from_json
from shared.transport import Transport, Weights


@dataclass(frozen=True)
class Desk:
    """Where a run is conducted from, and with what; the defaults are a coordinator's.

    Attributes:
        folder: The run's, with `study.json` and `sites.json` in it.
        home: Holds the countersigning key and the book of ledger heads.
        transport: The network.
        initial: Gives the weights of round 1.
        clock: Time.
        patience: How to wait.
        on_round: Called with a round's number when it begins.
    """

    folder: Path
    home: Path
    transport: Transport
    initial: Callable[[Study], Weights] = initial_weights
    clock: Clock = SYSTEM_CLOCK
    patience: Patience = PATIENT
    on_round: Callable[[int], None] = lambda _: None


def make_app(find: Callable[[Grid, Context], Desk]) -> ServerApp:
    """Return the ServerApp that conducts runs from the desk `find` opens."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Run one study from its first round, or from its last checkpoint, to the release."""
        desk = find(grid, context)
        plan, sites = desk.folder / "study.json", desk.folder / "sites.json"
        run_federation(
            desk.folder,
            study_from_json(plan.read_text(), str(plan)),
            {int(node): name for node, name in json.loads(sites.read_text()).items()},
            desk.transport,
            server_home=desk.home,
            initial=desk.initial,
            clock=desk.clock,
            patience=desk.patience,
            on_round=desk.on_round,
        )

    return app


def _at_home(grid: Grid, context: Context) -> Desk:
    home = ServerHome(Path(os.environ[HOME]))
    folder = home.run_folder(str(context.run_config["run"]))
    return Desk(folder, home.path, GridTransport(grid))


app = make_app(_at_home)
