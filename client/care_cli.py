"""Commands on what a person must see to: the split key, and studies that wait for someone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.privacy_cli import By, Home
from client.site import Site, load_site
from shared.errors import SiteError

if TYPE_CHECKING:
    from client.attention import Attention, AttentionBook

attention_app = typer.Typer(help="Studies that wait for a person here.", no_args_is_help=True)
split_app = typer.Typer(help="The key that decides who is held out.", no_args_is_help=True)

Waiting = Annotated[str, typer.Argument(help="the study's digest, or its first digits")]
KeyFile = Annotated[Path, typer.Argument(help="file with the key; delete it when it has served")]


@split_app.command("show")
def show_key(home: Home) -> None:
    """Print the fingerprint of the site's split key; the key does not follow from it."""
    from client.approvals import Approvals
    from client.split_key import fingerprint

    typer.echo(fingerprint(Approvals(load_site(home)).open_split_key()))


@split_app.command("export")
def export_key(home: Home, file: KeyFile, by: By) -> None:
    """Write the site's split key for a hospital that has some of the same patients."""
    from client.approvals import Approvals
    from client.split_key import fingerprint
    from client.vault import write_atomic

    if file.exists():
        raise SiteError("the file is there already", str(file), "Give another name")
    site = load_site(home)
    key = Approvals(site).open_split_key()
    note(site, "split-key-exported", by)
    write_atomic(file, key.hex().encode() + b"\n")
    typer.echo(f"Wrote {file}. Hand it over yourself, not through the coordinator.")
    typer.echo(f"Fingerprint to compare by telephone: {fingerprint(key)}")


@split_app.command("import")
def import_key(home: Home, file: KeyFile, by: By) -> None:
    """Take another hospital's split key, so that patients of both are on one side at both.

    Only before the first study is approved: afterwards the key stays.
    """
    from client.approvals import Approvals
    from client.split_key import fingerprint, read_split_key

    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise SiteError(f"cannot read the key: {error.strerror}", str(file)) from None
    key = read_split_key(text, str(file))
    site = load_site(home)
    approvals = Approvals(site)
    approvals.check_import(key)
    note(site, "split-key-imported", by)
    approvals.import_split_key(key)
    typer.echo(f"Fingerprint to compare by telephone: {fingerprint(key)}")


@attention_app.command("list")
def list_waiting(home: Home) -> None:
    """List the studies that wait and why; this stays here and may name files or patients."""
    from client.hospital import open_hospital

    for each in open_hospital(home).attention.waiting():
        typer.echo(f"{each.study[:12]}  {each.time}  {each.reason}")
        if each.told:
            typer.echo(f"    the coordinator is told: {each.told}")


@attention_app.command("clear")
def clear(home: Home, digest: Waiting, by: By) -> None:
    """Let a study go on, after you have looked and put right what was wrong."""
    from client.hospital import open_hospital

    hospital = open_hospital(home)
    waiting = _find(hospital.attention, digest)
    note(hospital.site, "attention-cleared", by, waiting.study)
    hospital.attention.clear(waiting.study)
    typer.echo("The node takes part again from the next message on.")


@attention_app.command("tell")
def tell(
    home: Home,
    digest: Waiting,
    by: By,
    text: Annotated[
        str | None, typer.Option(help="in your own words; the reason as listed if left out")
    ] = None,
) -> None:
    """Send the coordinator the reason with every refusal until it is cleared.

    Nothing protects what you write: leave out whatever could tell of a patient.
    """
    from client.data.report import printable
    from client.hospital import open_hospital
    from shared.protocol import MAX_TOLD

    hospital = open_hospital(home)
    waiting = _find(hospital.attention, digest)
    told = printable(waiting.reason if text is None else text)[:MAX_TOLD]
    note(hospital.site, "attention-told", by, waiting.study)
    hospital.attention.keep(waiting.model_copy(update={"told": told}))
    typer.echo(f"The coordinator is told: {told}")


def _find(book: AttentionBook, digest: str) -> Attention:
    found = [each for each in book.waiting() if digest and each.study.startswith(digest)]
    if len(found) != 1:
        raise SiteError(
            "no such study waits" if not found else "several studies begin like this",
            digest,
            "`consilium site attention list` lists them",
        )
    return found[0]


def note(site: Site, event: str, by: str, study: str = "", **more: object) -> None:
    """Note what a person decides, before it takes effect: nothing may hold without a line."""
    from client.audit import AuditLog, Event
    from client.vault import Vault

    log = AuditLog(site.audit_log, Vault.open(site.vault_key))
    act = {"event": event, "study": study, "by": by, **more}
    log.write(Event.model_validate(act), datetime.now(UTC))
