"""Commands that run a federation: set up, invite, enrol, start, publish, watch."""

from __future__ import annotations

import json
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from server.home import EnrolledSite, ServerHome
from server.invite import invitation
from shared.errors import CoordinatorError

app = typer.Typer()

Home = Annotated[Path, typer.Option("--home", help="the server's home folder")]

ASK_SECONDS = 2.0
"""Between two questions whether a run's process still lives."""


@app.command()
def init(
    home: Home,
    host: Annotated[
        list[str], typer.Option(help="name or address hospitals reach the server by; repeatable")
    ],
    listen: Annotated[str, typer.Option(help="host:port to listen on")] = "0.0.0.0:9092",
    control_port: Annotated[int, typer.Option(help="loopback port of the control API")] = 8000,
) -> None:
    """Make a server's home: authority, certificate, signing key, settings."""
    try:
        ServerHome.create(home, listen, control_port, host)
    except OSError as error:
        raise CoordinatorError(
            f"cannot make the server's home: {error.strerror}", str(home), "Give another --home"
        ) from None
    typer.echo(f"Made {home}. Keep ca.key offline after this; back up the folder encrypted.")
    typer.echo(f"Next: consilium server start --home {home}")


@app.command()
def start(home: Home) -> None:
    """Run the server until Ctrl-C or SIGTERM."""
    from server.link import run_in_foreground

    server = ServerHome(home)
    # Otherwise SIGTERM would end this process alone and leave the SuperLink on its ports.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.echo(f"Starting on {server.settings.fleet}; log: {home / 'superlink.log'}")
    raise typer.Exit(run_in_foreground(server))


@app.command()
def invite(
    home: Home,
    address: Annotated[str, typer.Option(help="host:port hospitals connect to")],
    out: Annotated[Path, typer.Option(help="file to write")] = Path("invitation.json"),
) -> None:
    """Write the invitation a hospital needs; it holds public facts only."""
    letter = invitation(ServerHome(home), address)
    try:
        out.write_text(letter.model_dump_json(indent=1))
    except OSError as error:
        raise CoordinatorError(
            f"cannot write the invitation: {error.strerror}", str(out), "Give another --out"
        ) from None
    typer.echo(f"Wrote {out}. Fingerprint to compare by telephone: {letter.fingerprint}")


@app.command()
def enrol(
    home: Home,
    name: Annotated[str, typer.Argument(help="the hospital's name, as in its site.toml")],
    key: Annotated[Path, typer.Argument(help="the node.pub the hospital sent")],
) -> None:
    """Let a hospital's node connect."""
    from server.link import control

    server = ServerHome(home)
    public = _public_key(key)
    try:
        EnrolledSite(name=name, node=0, public_key="", since="")
    except ValidationError:
        raise CoordinatorError(
            "this cannot be a hospital's name", name, "Take the one of its site.toml"
        ) from None
    if any(site.name == name for site in server.sites()):
        raise CoordinatorError("a site of this name is enrolled already", name)
    node = control(server).register(public, name)
    server.add_site(name, node, public.decode().strip())
    typer.echo(f"Enrolled {name} as node {node}.")


@app.command()
def revoke(home: Home, name: Annotated[str, typer.Argument(help="the hospital's name")]) -> None:
    """Take a hospital's node off; the others are not touched."""
    from server.link import control

    server = ServerHome(home)
    site = server.site(name)
    control(server).unregister(site.node)
    server.remove_site(name)
    typer.echo(f"{name} can no longer connect.")


@app.command()
def sites(home: Home) -> None:
    """List the enrolled hospitals."""
    table = Table("name", "node", "enrolled")
    for site in ServerHome(home).sites():
        table.add_row(site.name, str(site.node), site.since)
    Console().print(table)


@app.command()
def run(
    home: Home,
    study: Annotated[Path, typer.Argument(help="the study.toml to publish")],
    name: Annotated[str, typer.Option(help="name of the run; default: study and time")] = "",
    follow: Annotated[bool, typer.Option(help="watch it until it ends")] = True,
) -> None:
    """Publish a study and start its rounds; sites that have not approved are asked again."""
    from server.link import control
    from shared.study import load_study

    plan = load_study(study)
    server = ServerHome(home)
    name = name or f"{plan.name[:40]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    server.create_run(name, plan)
    run_id = control(server).start_run(name)
    typer.echo(f"Run {name} started; study digest {plan.digest}")
    if follow:
        _follow(server, name, run_id)


@app.command()
def resume(home: Home, name: Annotated[str, typer.Argument(help="name of the run")]) -> None:
    """Continue a run from its last checkpoint, for instance after a crash of the server."""
    from server.link import control

    server = ServerHome(home)
    if not (server.run_folder(name) / "study.json").exists():
        raise CoordinatorError("there is no such run", name, "See the folder runs/")
    started = time.time()
    run_id = control(server).start_run(name)
    _follow(server, name, run_id, started)


@app.command()
def watch(home: Home, name: Annotated[str, typer.Argument(help="name of the run")]) -> None:
    """Follow a run: rounds, AUC, each hospital's state and privacy."""
    _follow(ServerHome(home), name)


def _follow(server: ServerHome, name: str, run_id: int | None = None, since: float = 0.0) -> None:
    """Show a run until it ends; exit with 1 if it fails.

    Args:
        server: The server's home.
        name: The run.
        run_id: Flower's id of it, if it was started just now.
        since: When that was (seconds since 1970); failures before it are of earlier attempts.

    Raises:
        CoordinatorError: There is no such run, or its process ended without a word.
    """
    from server.live import LiveView
    from shared.study import study_from_json

    folder = server.run_folder(name)
    if not folder.is_dir():
        raise CoordinatorError("there is no such run", name, "See the folder runs/")
    study = study_from_json((folder / "study.json").read_text(), str(folder / "study.json"))
    names = list(json.loads((folder / "sites.json").read_text()).values())
    next_ask, ended = time.monotonic() + ASK_SECONDS, ""
    with LiveView(folder, study, names, Console(highlight=False), since=since) as view:
        while not (view.state.finished or view.state.error):
            if ended:
                log = str(server.path / "superlink.log")
                raise CoordinatorError(f"the run's process ended: {ended}", log, "Read its log")
            if run_id is not None and time.monotonic() > next_ask:
                ended, next_ask = _how_it_ended(server, run_id), time.monotonic() + ASK_SECONDS
            time.sleep(0.25)
            # After the question, so that a run's last events are seen before its end is judged.
            view.refresh()
    if view.state.error:
        typer.echo(view.state.error, err=True)
        sys.exit(1)


def _how_it_ended(server: ServerHome, run_id: int) -> str:
    """Return how Flower says a run ended, or an empty text while it goes on."""
    from server.link import control

    status = control(server).run_status(run_id)
    return (status.details or status.outcome) if status.finished else ""


def _public_key(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        load_ssh_public_key(content)
    except OSError as error:
        raise CoordinatorError(f"cannot read the key: {error.strerror}", str(path)) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CoordinatorError(
            "this is not a node's public key", str(path), "Ask the hospital for its node.pub"
        ) from None
    return content
