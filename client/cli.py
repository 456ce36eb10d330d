"""Commands of a hospital: set up a node, read and approve studies, check data, run the node."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client import privacy_cli
from client.privacy_cli import By, Home
from client.site import Site, load_site
from shared.errors import SiteError
from shared.study import Study

if TYPE_CHECKING:
    from client.approvals import Approvals

app = typer.Typer(help="Run a hospital's node.", no_args_is_help=True)
app.add_typer(privacy_cli.app)

Digest = Annotated[str, typer.Argument(help="the study's digest, or its first digits")]


@app.command()
def init(
    home: Home,
    name: Annotated[str, typer.Option(help="the hospital's name as others see it")],
    invitation: Annotated[Path, typer.Option(help="the coordinator's invitation.json")],
    images: Annotated[Path | None, typer.Option(help="folder of DICOM files")] = None,
    labels: Annotated[Path | None, typer.Option(help="labels table of the images (CSV)")] = None,
    table: Annotated[Path | None, typer.Option(help="table of patients (CSV)")] = None,
) -> None:
    """Make the node's home: its keys, and a site.toml to read and adapt."""
    from client.setup import create_site
    from shared.invitation import load_invitation

    _need(images, Path.is_dir, "a folder")
    for file in (labels, table):
        _need(file, Path.is_file, "a file")
    letter = load_invitation(invitation)
    create_site(home, name, letter, images, labels, table=table)
    typer.echo(f"Fingerprint of the invitation: {letter.fingerprint}")
    typer.echo("Compare it with the coordinator by telephone before you go on.")
    typer.echo(f"Send {home / 'node.pub'} to the coordinator; node.key never leaves this machine.")
    typer.echo(f"Then read {home / 'site.toml'}: columns, label values, and your policy.")


@app.command()
def start(
    home: Home,
    port: Annotated[int, typer.Option(help="loopback port of the node; 0: a free one")] = 0,
) -> None:
    """Run the node until it is stopped; it only ever connects outward."""
    from client.node import start_node

    start_node(load_site(home), port)


@app.command()
def check(home: Home) -> None:
    """Check the settings, the keys and the way to the server."""
    from client.node import check_server
    from client.vault import Vault

    site = load_site(home)
    Vault.open(site.vault_key)
    typer.echo("site.toml: valid; vault key: present and private")
    address = site.config.server.address
    check_server(address, site.resolve(site.config.server.ca))
    typer.echo(f"server {address}: reached over TLS, certificate of the coordinator's authority")


@app.command("renew-key")
def renew_key(home: Home) -> None:
    """Make the node a new key; it connects with it once the coordinator has taken it."""
    from client.keys import renew_key

    public = renew_key(load_site(home))
    typer.echo(f"Send {public} to the coordinator, for `consilium server new-key`.")
    typer.echo("The old pair is kept beside it: older statements are checked with node.pub.old.")


@app.command()
def studies(home: Home) -> None:
    """List the studies that were offered, approved and revoked."""
    from client.approvals import Approvals

    approvals = Approvals(load_site(home))
    for study in approvals.offered():
        typer.echo(f"offered   {study.digest[:12]}  {study.name}")
    for state, decided in (("approved", approvals.approved()), ("revoked ", approvals.revoked())):
        for approval in decided:
            typer.echo(
                f"{state}  {approval.digest[:12]}  {approval.study.name}  "
                f"approved by {approval.by}, {approval.time}"
            )
    for old in approvals.outdated():
        told = f"{old.state:<8}  {old.digest[:12]}  {old.name}"
        typer.echo(f"{told}  of format {old.values['format']}, which no longer runs")


@app.command()
def show(home: Home, digest: Digest) -> None:
    """Explain a study in plain words, before anybody approves it."""
    from client.approvals import Approvals
    from shared.explain import explain_study

    site = load_site(home)
    study = _known(Approvals(site), digest)
    for line in explain_study(study):
        typer.echo(line)
    _warn(site, study)


@app.command()
def approve(home: Home, digest: Digest, by: By) -> None:
    """Approve an offered study: from now on the node takes part."""
    from client.approvals import Approvals

    site = load_site(home)
    approvals = Approvals(site)
    outdated = [study.digest for study in approvals.outdated()]
    whole = _whole(digest, [study.digest for study in approvals.offered()] + outdated)
    approvals.refuse_outdated(whole)
    _log(site, "study-approved", whole, by)
    study = approvals.approve(whole, by)
    typer.echo(f"Approved {study.name} ({whole}).")
    _warn(site, study)


@app.command()
def revoke(home: Home, digest: Digest, by: By) -> None:
    """Take an approval back: the node refuses the study from its next message on."""
    from client.approvals import Approvals

    site = load_site(home)
    approvals = Approvals(site)
    outdated = [study.digest for study in approvals.outdated() if study.state == "approved"]
    whole = _whole(digest, [approval.digest for approval in approvals.approved()] + outdated)
    _log(site, "study-revoked", whole, by)
    approvals.revoke(whole)
    typer.echo(f"Revoked {whole}.")


@app.command()
def data(
    home: Home,
    study: Annotated[Path, typer.Argument(help="a study.toml")],
) -> None:
    """Read the images and labels as the study would, and say what can be used and what not."""
    from client.data.cohort import load_cohort
    from client.data.report import describe_report
    from shared.study import load_study

    cohort = load_cohort(load_site(home), load_study(study))
    for line in describe_report(cohort.report):
        typer.echo(line)


@app.command()
def predict(
    home: Home,
    study: Annotated[str, typer.Option(help="the study's digest, or its first digits")],
    out: Annotated[Path, typer.Option(help="CSV file to write; it names patients")],
    images: Annotated[
        Path | None, typer.Option(help="folder of DICOM files, instead of the site's own patients")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="a released model.safetensors, instead of the site's own")
    ] = None,
) -> None:
    """Predict with the site's own model of a study; the file stays here."""
    from client.hospital import open_hospital
    from client.personal import personal_model
    from client.predict import from_cohort, from_folder, predict_patients, released_model

    hospital = open_hospital(home)
    plan = _known(hospital.approvals, study)
    chosen = released_model(model, plan) if model else personal_model(hospital, plan)
    asked = from_folder(hospital, plan, images) if images else from_cohort(hospital, plan)
    count = predict_patients(hospital, plan, chosen, asked, out)
    for note in asked.notes:
        typer.echo(note, err=True)
    typer.echo(f"Wrote {out}: {count} patients, by the {'released' if model else 'own'} model.")
    typer.echo(
        "This is not a medical device: it may support a decision and never makes one. The file "
        "names patients; it must stay here.",
        err=True,
    )


@app.command()
def audit(
    home: Home,
    last: Annotated[int, typer.Option(min=1, help="how many lines to show")] = 20,
) -> None:
    """Verify the audit log's chain and show its last lines."""
    from client.audit import AuditLog
    from client.vault import Vault

    site = load_site(home)
    lines = AuditLog(site.audit_log, Vault.open(site.vault_key)).lines()
    for line in lines[-last:]:
        shown = line.model_dump(exclude_defaults=True, exclude={"prev", "hash"})
        typer.echo("  ".join(f"{key}={value}" for key, value in shown.items()))
    typer.echo(f"{len(lines)} lines, the chain is whole.")


def _need(path: Path | None, is_one: Callable[[Path], bool], kind: str) -> None:
    if path is not None and not is_one(path):
        raise SiteError(
            f"this is not {kind}, or cannot be seen by this user", str(path), "Check the path"
        )


def _known(approvals: Approvals, digest: str) -> Study:
    """Return the study of a digest's first digits, be it offered, approved or revoked."""
    known = approvals.plans()
    whole = _whole(digest, [*known, *(study.digest for study in approvals.outdated())])
    approvals.refuse_outdated(whole)
    return known[whole]


def _whole(digest: str, known: list[str]) -> str:
    found = [each for each in known if each.startswith(digest)]
    if len(found) != 1:
        raise SiteError(
            "no such study" if not found else "several studies begin like this",
            digest,
            "`consilium site studies` lists them",
        )
    return found[0]


def _warn(site: Site, study: Study) -> None:
    """Say now what the policy will refuse later, whoever approved the study."""
    from client.policy import check_study
    from shared.errors import PolicyRefusal

    try:
        check_study(site.config.policy, study)
    except PolicyRefusal as refusal:
        typer.echo(f"As site.toml stands, the node will refuse this study: {refusal}")


def _log(site: Site, event: str, study: str, by: str) -> None:
    """Note what a person decides, before it takes effect: nothing may hold without a line."""
    from client.audit import AuditLog, Event
    from client.vault import Vault

    log = AuditLog(site.audit_log, Vault.open(site.vault_key))
    log.write(Event.model_validate({"event": event, "study": study, "by": by}), datetime.now(UTC))
