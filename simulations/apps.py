"""The ClientApp of simulations: the deployment's own, with simulated hospitals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import make_app
from client.hospital import Hospital
from shared.protocol import Request
from simulations.hospital import SITES_LOG, open_cast


def load_app() -> ClientApp:
    """Return the ClientApp; a worker process calls this by name."""
    return _app


def _find(context: Context, request: Request) -> Hospital:
    cast = open_cast(Path(str(context.run_config["folder"])), str(context.run_config["stamp"]))
    return cast.hospital(int(context.node_config["partition-id"]), request)


def _into_log(
    message: Message, context: Context, handle: Callable[[Message, Context], Message]
) -> Message:
    """Write what a hospital has to say to the simulation's log, not to the terminal."""
    path = Path(str(context.run_config["folder"])) / SITES_LOG
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        return handle(message, context)


_app = make_app(_find, mods=[_into_log])
