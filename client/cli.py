"""Commands of a hospital: set up a node, read and approve studies, check data, run the node."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client import care_cli, privacy_cli
from client.care_cli import note
from client.privacy_cli import By, Home, whole_digest
from client.site import Site, load_site
from shared import logs
from shared.errors import SiteError
from shared.study import Study

if TYPE_CHECKING:
    from client.approvals import Approvals
    from client.data.cohort import Cohort

app = typer.Typer(help="Run a hospital's node.", no_args_is_help=True)
app.add_typer(privacy_cli.app)
app.add_typer(care_cli.split_app, name="split-key")
app.add_typer(care_cli.attention_app, name="attention")

Digest = Annotated[str, typer.Argument(help="the study's digest, or its first digits")]
Patients = Annotated[
    int | None,
    typer.Option(min=1, help="size of the cohort to declare, training and held-out patients"),
]


ABOUT = 1000
"""Patients a study is explained for where the site has not said how many it has."""


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
    json_log: Annotated[bool, typer.Option("--json-log", help="log JSON objects")] = False,
) -> None:
    """Run the node until it is stopped; it only ever connects outward."""
    from client.node import start_node

    os.environ[logs.FORMAT] = "json" if json_log else "text"
    start_node(load_site(home), port)


@app.command()
def doctor(
    home: Home,
    data: Annotated[
        bool, typer.Option(help="read the data of each approved study, as a round would")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check all that a round needs, with a remedy for each problem; exit 0 if one would work."""
    from client.doctor import examine

    verdict = examine(load_site(home), data=data)
    if as_json:
        typer.echo(verdict.model_dump_json(indent=1))
    else:
        for it in verdict.findings:
            typer.echo(f"{it.level:<8} {it.check}: {it.found}")
            if it.remedy:
                typer.echo(f"         -> {it.remedy}")
        typer.echo("A round would work." if verdict.ready else "No round would work yet.")
    raise typer.Exit(0 if verdict.ready else 1)


@app.command()
def status(
    home: Home,
    watch: Annotated[bool, typer.Option("--watch", help="show it until Ctrl-C")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what the node does, what waits for a person, and what went wrong last."""
    import time

    from client.status import describe_status, read_status

    site = load_site(home)
    while True:
        now = read_status(site)
        if watch:
            typer.clear()
        typer.echo(now.model_dump_json(indent=1) if as_json else "\n".join(describe_status(now)))
        if not watch:
            return
        time.sleep(2)


@app.command()
def decline(home: Home, digest: Digest, by: By) -> None:
    """Say no to an offered study: it leaves the list, and the coordinator is told so."""
    from client.approvals import Approvals

    site = load_site(home)
    approvals = Approvals(site)
    whole = whole_digest(digest, [study.digest for study in approvals.offered()])
    note(site, "study-declined", by, whole)
    approvals.decline(whole)
    typer.echo(f"Declined {whole}. To take that back, approve it.")


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
    for study in approvals.declined():
        typer.echo(f"declined  {study.digest[:12]}  {study.name}")
    for state, decided in (("approved", approvals.approved()), ("revoked ", approvals.revoked())):
        for approval in decided:
            typer.echo(
                f"{state}  {approval.digest[:12]}  {approval.study.name}  "
                f"{approval.patients} patients declared, approved by {approval.by}, {approval.time}"
            )
    for old in approvals.outdated():
        told = f"{old.state:<8}  {old.digest[:12]}  {old.name}"
        typer.echo(f"{told}  of format {old.values['format']}, which no longer runs")


@app.command()
def show(home: Home, digest: Digest) -> None:
    """Explain a study in plain words, before anybody approves it."""
    from client.approvals import Approvals
    from client.hospital import open_hospital
    from client.outlook import outlook
    from shared.explain import explain_study

    site = load_site(home)
    study = _known(Approvals(site), digest)
    for line in explain_study(study):
        typer.echo(line)
    for line in outlook(open_hospital(home), study, site.config.data.patients or ABOUT):
        typer.echo(line)
    _warn(site, study, site.config.data.patients)


@app.command()
def approve(
    home: Home,
    digest: Digest,
    by: By,
    patients: Patients = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(help="a condition of your policy that may go unmet in this study; repeatable"),
    ] = None,
) -> None:
    """Approve an offered study: from now on the node takes part.

    It reads the data first, as the study would, and asks your policy. The number of patients is
    what everybody is told of the site's size, rounded to two digits; it stays as it is for the
    whole study.
    """
    from client.approvals import Approvals, declared_size
    from client.data.cohort import load_cohort
    from client.hospital import open_hospital
    from client.judge import check_accepted, check_size, doubts, exact_scores
    from client.outlook import doubt_of_room, outlook

    site = load_site(home)
    approvals, policy = Approvals(site), site.config.policy
    outdated = [study.digest for study in approvals.outdated()]
    offers = [*approvals.offered(), *approvals.declined()]
    whole = whole_digest(digest, [each.digest for each in offers] + outdated)
    approvals.refuse_outdated(whole)
    study = approvals.find_offer(whole)
    cohort = load_cohort(site, study)
    size = declared_size(_patients(site, cohort, patients))
    check_size(study, size, cohort)
    approvals.check(study, size)
    hospital = open_hospital(home)
    found = doubts(cohort, study, policy) + doubt_of_room(hospital, study, size, cohort)
    accepted = check_accepted(found, study, accept or [])
    exact = exact_scores(policy, study, cohort.held_out)
    for line in outlook(hospital, study, size, cohort):
        typer.echo(line)
    note(site, "study-approved", by, study.digest, patients=size, accepted=accepted)
    approvals.approve_study(study, by, size, exact=exact)
    typer.echo(f"Approved {study.name} ({study.digest}), declaring {size} patients.")
    if policy.evaluation == "exact" and exact == "none":
        typer.echo("Too few held-out patients for exact counts: no scores leave in this study.")
    _warn(site, study, size)


@app.command()
def revoke(home: Home, digest: Digest, by: By) -> None:
    """Take an approval back: the node refuses the study from its next message on."""
    from client.approvals import Approvals

    site = load_site(home)
    approvals = Approvals(site)
    outdated = [study.digest for study in approvals.outdated() if study.state == "approved"]
    whole = whole_digest(digest, [approval.digest for approval in approvals.approved()] + outdated)
    note(site, "study-revoked", by, whole)
    approvals.revoke(whole)
    typer.echo(f"Revoked {whole}.")


@app.command()
def data(
    home: Home,
    study: Annotated[Path, typer.Argument(help="a study.toml")],
) -> None:
    """Read the images and labels as the study would, and say what can be used and what not."""
    from client.approvals import Approvals, declared_size
    from client.data.cohort import load_cohort
    from client.data.report import describe_report
    from client.hospital import open_hospital
    from client.judge import doubts
    from client.outlook import doubt_of_room, outlook
    from shared.study import load_study

    site, plan = load_site(home), load_study(study)
    cohort = load_cohort(site, plan)
    for line in describe_report(cohort.report):
        typer.echo(line)
    hospital, size = open_hospital(home), declared_size(max(1, cohort.patients))
    found = doubts(cohort, plan, site.config.policy) + doubt_of_room(hospital, plan, size, cohort)
    for doubt in found:
        typer.echo(f"Your policy asks for more ({doubt.condition}): {doubt.what}.")
    if cohort.patients:
        for line in outlook(hospital, plan, size, cohort):
            typer.echo(line)
        proposed = Approvals(site).propose_size(cohort.patients)
        typer.echo(f"To approve it, declare about {proposed} patients.")


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
    for line in asked.notes:
        typer.echo(line, err=True)
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
    whole = whole_digest(digest, [*known, *(study.digest for study in approvals.outdated())])
    approvals.refuse_outdated(whole)
    return known[whole]


def _patients(site: Site, cohort: Cohort, given: int | None) -> int:
    """Return the number of patients to declare: as given, as set, or as a person answers.

    Raises:
        SiteError: Nobody named it, and nobody can be asked.
    """
    from client.approvals import Approvals

    if number := given or site.config.data.patients:
        return number
    found = Approvals(site).propose_size(max(1, cohort.patients))
    if not sys.stdin.isatty():
        raise SiteError(
            "the size of the cohort must be declared, and --patients does not say it",
            "--patients, or data.patients in site.toml",
            f"About {found} patients are here: approve with --patients {found} if that is so",
        )
    return typer.prompt("Patients to declare, training and held-out", found, type=int)


def _warn(site: Site, study: Study, patients: int | None) -> None:
    """Say now what the policy will refuse later, whoever approved the study."""
    from client.policy import check_study
    from shared.errors import PolicyRefusal

    try:
        check_study(site.config.policy, study, study.training_size(patients or 1))
    except PolicyRefusal as refusal:
        typer.echo(f"As site.toml stands, the node will refuse this study: {refusal}")
