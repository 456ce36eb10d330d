"""Commands that keep a server: set it up, start it, invite, enrol and revoke hospitals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.home import ServerHome
from server.invite import invitation
from shared import logs
from shared.errors import CoordinatorError

app = typer.Typer()

Home = Annotated[Path, typer.Option("--home", help="the server's home folder")]


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
def start(
    home: Home,
    resume: Annotated[bool, typer.Option(help="take up runs that were left open")] = True,
    json_log: Annotated[bool, typer.Option("--json-log", help="log JSON objects")] = False,
) -> None:
    """Run the server until Ctrl-C or SIGTERM; what ends in between is started again."""
    from server.link import LOG
    from server.supervise import run_server

    server = ServerHome(home)
    os.environ[logs.FORMAT] = "json" if json_log else "text"
    # Otherwise SIGTERM would end this process alone and leave the SuperLink on its ports.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.echo(f"Starting on {server.settings.fleet}; log: {home / LOG}")
    try:
        run_server(server, take_up=resume, show=typer.echo)
    except KeyboardInterrupt:
        typer.echo("Stopped. Runs that are open go on when the server is started again.")


@app.command()
def renew(
    home: Home,
    host: Annotated[
        list[str] | None, typer.Option(help="name or address to add; repeatable")
    ] = None,
    ca_key: Annotated[
        Path | None, typer.Option(help="the authority's key, if it is not in the home")
    ] = None,
) -> None:
    """Make the server a new certificate; a running server takes it, and no hospital is touched."""
    from shared.pki import certificate_end, renew_server_certificate

    path = ServerHome(home).path
    hosts = renew_server_certificate(path, host or [], ca_key or path / "ca.key")
    end = certificate_end((path / "server.pem").read_bytes())
    typer.echo(f"New certificate for {', '.join(hosts)}, valid until {end:%Y-%m-%d}.")


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
    """Let a hospital's node connect, also one that was revoked before."""
    from server import enrolment

    site = enrolment.enrol(ServerHome(home), name, key)
    typer.echo(f"Enrolled {site.name} as node {site.node}.")


@app.command()
def revoke(home: Home, name: Annotated[str, typer.Argument(help="the hospital's name")]) -> None:
    """Take a hospital's node off; the others are not touched."""
    from server import enrolment

    enrolment.revoke(ServerHome(home), name)
    typer.echo(f"{name} can no longer connect.")


@app.command()
def rename(
    home: Home,
    old: Annotated[str, typer.Argument(help="the hospital's name now")],
    new: Annotated[str, typer.Argument(help="its name from now on")],
) -> None:
    """Give a hospital another name; its site.toml must have the same."""
    from server import enrolment

    enrolment.rename(ServerHome(home), old, new)
    typer.echo(f"{old} is {new} from now on, and must be so in its site.toml.")


@app.command("new-key")
def new_key(
    home: Home,
    name: Annotated[str, typer.Argument(help="the hospital's name")],
    key: Annotated[Path, typer.Argument(help="the new node.pub the hospital sent")],
) -> None:
    """Let a hospital connect with another key, and with the old one no longer."""
    from server import enrolment

    site = enrolment.renew_key(ServerHome(home), name, key)
    typer.echo(f"{site.name} connects with its new key, as node {site.node}.")


@app.command()
def sites(home: Home) -> None:
    """List the enrolled hospitals."""
    table = Table("name", "node", "enrolled")
    for site in ServerHome(home).sites():
        table.add_row(Text(site.name), str(site.node), site.since)
    Console().print(table)
