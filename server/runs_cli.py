"""Commands that conduct runs: publish a study, take a run up again, watch it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.home import ServerHome
from server.link import LOG
from server.operate import Home
from shared.errors import CoordinatorError

app = typer.Typer()

Run = Annotated[str, typer.Argument(help="name of the run")]

ASK_SECONDS = 2.0
"""Between two questions whether a run's process still lives."""

START_SECONDS = 60.0
"""Longest wait for a run's process to begin."""


@app.command()
def run(
    home: Home,
    study: Annotated[Path, typer.Argument(help="the study.toml to publish")],
    name: Annotated[str, typer.Option(help="name of the run; default: study and time")] = "",
    follow: Annotated[bool, typer.Option(help="watch it until it ends")] = True,
) -> None:
    """Publish a study and start its rounds; sites that have not approved are asked again."""
    from server.standing import start_run
    from shared.study import load_study

    plan = load_study(study)
    server = ServerHome(home)
    name = name or f"{plan.name[:40]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    server.create_run(name, plan)
    started = time.time()
    start_run(server, name)
    typer.echo(f"Run {name} started; study digest {plan.digest}")
    if follow:
        _follow(server, name, started)


@app.command()
def resume(home: Home, name: Run) -> None:
    """Continue a run from its last checkpoint, for instance after a crash of the server."""
    from server.standing import release, start_run

    server = ServerHome(home)
    release(server, name)
    started = time.time()
    start_run(server, name)
    _follow(server, name, started)


@app.command()
def pause(home: Home, name: Run) -> None:
    """Halt a run until `resume`; the round in progress is asked for again then."""
    from server.standing import halt

    halt(ServerHome(home), name, "paused")
    typer.echo(f"Run {name} is paused. Go on with: consilium server resume {name}")


@app.command()
def stop(home: Home, name: Run) -> None:
    """End a run for good; what it has so far stays in its folder."""
    from server.standing import halt

    halt(ServerHome(home), name, "stopped")
    typer.echo(f"Run {name} is stopped. What its hospitals have spent stays spent.")


@app.command()
def runs(
    home: Home, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False
) -> None:
    """List all runs and how each stands."""
    from server.standing import all_runs

    found = all_runs(ServerHome(home))
    if as_json:
        typer.echo(json.dumps([{"run": n, **asdict(it)} for n, it in found.items()], indent=1))
        return
    table = Table("run", "stands", "rounds done", "last event")
    for name, it in found.items():
        table.add_row(Text(name), it.state, str(it.round), it.time[:19])
    Console().print(table)


@app.command()
def watch(home: Home, name: Run) -> None:
    """Follow a run: rounds, AUC, each hospital's state and privacy."""
    _follow(ServerHome(home), name)


def _follow(server: ServerHome, name: str, since: float = 0.0) -> None:
    """Show a run until it ends; exit with 1 if it fails.

    Args:
        server: The server's home.
        name: The run.
        since: When it was started, if it was just now (seconds since 1970); failures before that
            are of earlier attempts.

    Raises:
        CoordinatorError: There is no such run, or nothing works on it for a minute.
    """
    from server.live import LiveView
    from server.standing import existing, standing
    from shared.study import study_from_json

    folder = existing(server, name)
    study = study_from_json((folder / "study.json").read_text(), str(folder / "study.json"))
    names = list(json.loads((folder / "sites.json").read_text()).values())
    now = time.monotonic()
    next_ask, give_up, idle = now + ASK_SECONDS, now + START_SECONDS, ""
    try:
        with LiveView(folder, study, names, Console(highlight=False), since=since) as view:
            while not (view.state.finished or view.state.error):
                now = time.monotonic()
                if since and now > next_ask:
                    idle, next_ask = _why_idle(server, name), now + ASK_SECONDS
                    give_up = give_up if idle else now + START_SECONDS
                if idle and (state := standing(folder).state) in ("paused", "stopped"):
                    typer.echo(f"The run is {state}.")
                    return
                if now > give_up:
                    raise CoordinatorError(
                        f"nothing works on the run: {idle}",
                        str(server.path / LOG),
                        "Read this log and what `consilium server start` says, then resume",
                    )
                time.sleep(0.25)
                view.refresh()
    except KeyboardInterrupt:
        typer.echo(f"The run goes on. See it again: consilium server watch {name}")
        return
    if view.state.error:
        typer.echo(view.state.error, err=True)
        sys.exit(1)


def _why_idle(server: ServerHome, name: str) -> str:
    """Return why no process works on a run now; empty if one does."""
    from server.link import control
    from server.standing import process_of

    process = process_of(server.run_folder(name))
    if process is None:
        return "it was never started"
    try:
        status = control(server).run_status(process)
    except CoordinatorError as error:
        return str(error)
    if status.finished:
        return f"its process ended: {status.details or status.outcome}"
    return "no process has taken it" if status.waits else ""
