"""Commands on what privacy was spent: the report, the signed statement, opt-out and recovery."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.table import Table

from shared.errors import SiteError

if TYPE_CHECKING:
    from client.hospital import Hospital
    from client.spending import SpendingReport
    from shared.study import Study

app = typer.Typer()
ledger_app = typer.Typer(help="Look after the privacy ledger.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")


def _person(by: str) -> str:
    """Check who decides before anything is done in that name."""
    from client.audit import MAX_BY

    if not by.strip() or not by.isprintable() or len(by) > MAX_BY:
        raise SiteError(
            f"who decides must be named in 1 to {MAX_BY} printable characters",
            "--by",
            "Give a name and, if you like, the office held",
        )
    return by


def _patient(patient: str) -> str:
    """Check a patient's id before anything is noted of it."""
    if not patient.strip() or not patient.isprintable():
        raise SiteError(
            "a patient's id must be printable characters, in UTF-8",
            "PATIENT",
            "Give the id as in the table",
        )
    return patient


def whole_digest(digest: str, known: Collection[str]) -> str:
    """Return the one known digest that begins like this.

    Raises:
        SiteError: There is none, or there are several.
    """
    found = [each for each in known if digest and each.startswith(digest)]
    if len(found) != 1:
        raise SiteError(
            "no such study" if not found else "several studies begin like this",
            digest,
            "`consilium site studies` lists them",
        )
    return found[0]


Home = Annotated[Path, typer.Option("--home", help="the node's home folder")]
By = Annotated[str, typer.Option(callback=_person, help="who decides, for the audit log")]


@app.command()
def privacy(
    home: Home,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    statement: Annotated[
        Path | None, typer.Option(help="write a signed page for the data-protection officer")
    ] = None,
) -> None:
    """Print what is charged and what is left, per group of patients and study."""
    from client.hospital import open_hospital
    from client.statement import IMAGES_AS_PATIENTS, make_statement, sign_statement

    hospital = open_hospital(home)
    report = _report(hospital)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        _print(report, Console(soft_wrap=True), _names(hospital))
        if hospital.site.config.data.without_patient_id == "image-is-patient":
            typer.echo(IMAGES_AS_PATIENTS)
    if statement:
        page = make_statement(hospital.site, report, _names(hospital), hospital.now())
        _write(statement, sign_statement(page, hospital.site.node_key))
        typer.echo(f"Wrote {statement}, signed with this node's key.", err=True)


@app.command("verify-statement")
def verify(
    page: Annotated[Path, typer.Argument(help="the statement (HTML)")],
    key: Annotated[Path, typer.Argument(help="the hospital's node.pub")],
) -> None:
    """Check that a statement was signed by a node and was not changed."""
    from client.statement import verify_statement

    try:
        checked = verify_statement(page.read_text(encoding="utf-8"), key.read_bytes())
    except OSError as error:
        raise SiteError(f"cannot read a file: {error.strerror}", str(error.filename)) from None
    typer.echo(f"Signed by the node of {checked.site} at {checked.time}, and unchanged.")


@app.command("opt-out")
def opt_out(
    home: Home,
    patient: Annotated[
        str, typer.Argument(help="the patient's id as in the table", callback=_patient)
    ],
    by: By,
) -> None:
    """Take a patient out of every round from the next on; what was spent stays charged."""
    from client.audit import Event
    from client.data.labels import names_patient
    from client.hospital import open_hospital

    hospital = open_hospital(home)
    with hospital.ledger() as ledger, ledger.locked():
        # The line comes first here and below: no act of a person takes effect without one.
        hospital.log(Event(event="patient-opted-out", by=by))
        ledger.opt_out(hospital.vault.pseudonym(patient))
    typer.echo("The patient takes part in no further round.")
    if not names_patient(hospital.site, patient):
        typer.echo("But no table here has such a patient: check the spelling.", err=True)


@ledger_app.callback()
def ledger_home(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option("--home", help="the node's home folder")] = None,
) -> None:
    """Take the home before the command's name too."""
    if home is not None and isinstance(context.command, click.Group):
        context.default_map = {name: {"home": str(home)} for name in context.command.commands}


@ledger_app.command("verify")
def verify_chain(home: Home) -> None:
    """Check that no entry of the ledger was edited, and print its head."""
    from client.hospital import open_hospital

    with open_hospital(home).ledger() as ledger:
        ledger.members()  # checks the cohorts too
        head = ledger.head()
    typer.echo(f"{head.entries} entries, the chain is whole; head {head.hash}")


@ledger_app.command()
def recover(
    home: Home,
    by: By,
    opt_outs: Annotated[
        Path | None,
        typer.Option(help="file with the ids of all patients who have opted out, one a line"),
    ] = None,
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="study.json or study.toml of a study the site no longer knows"),
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(help="whether policy.evaluation was ever 'exact' since what was lost"),
    ] = None,
) -> None:
    """Go on after the ledger was restored, edited or lost: all that may be spent is charged."""
    from client.hospital import open_hospital
    from client.recovery import Told
    from client.recovery import recover as recover_ledger

    hospital = open_hospital(home)
    ids = _ids(opt_outs) if opt_outs else None
    told = Told(by, ids, exact, [_plan(path) for path in plan or ()])
    done = recover_ledger(hospital, told)
    said = {
        "nothing-lost": "The ledger is whole and the newest the server knows; nothing to do.",
        "adopted": "The ledger goes on; what the missing entries may have spent was charged.",
        "replaced": "A new ledger began; everything approved studies may have spent was charged.",
    }
    typer.echo(said[done.outcome])
    if done.set_aside:
        typer.echo(f"The old one is kept in {done.set_aside}.")
    typer.echo(f"{done.opted_out} patients are opted out.")
    if unknown := _unknown(hospital, ids or frozenset()):
        typer.echo(
            f"But no table here has {unknown} of those listed: check the spelling.", err=True
        )


@ledger_app.command("accept-clock")
def accept_clock(home: Home, by: By) -> None:
    """Go on although the clock was set back; no charge and no daily limit is undone by it."""
    from client.audit import Event
    from client.hospital import open_hospital

    hospital = open_hospital(home)
    with hospital.ledger() as ledger, ledger.locked():
        hospital.log(Event(event="clock-accepted", by=by))
        ledger.accept_clock()
    typer.echo("Accepted.")


@ledger_app.command("accept-server")
def accept_server(home: Home, by: By) -> None:
    """Go on with a server that no longer says which ledger it knows, such as one set up anew."""
    from client.audit import Event
    from client.hospital import open_hospital

    hospital = open_hospital(home)
    with hospital.ledger() as ledger, ledger.locked():
        hospital.log(Event(event="server-accepted", by=by))
        ledger.accept_server()
    typer.echo("Accepted.")


@ledger_app.command("close-study")
def close_study(
    home: Home,
    digest: Annotated[str, typer.Argument(help="the study's digest, or its first digits")],
    by: By,
) -> None:
    """End a study here for good: its patients are charged what was used, and no more."""
    from client.audit import Event
    from client.hospital import open_hospital

    hospital = open_hospital(home)
    with hospital.ledger() as ledger, ledger.locked():
        whole = whole_digest(digest, ledger.studies().union(_names(hospital)))
        hospital.log(Event(event="study-closed", study=whole, by=by))
        ledger.close_study(whole)
    typer.echo(f"Closed {whole}.")


def _report(hospital: Hospital) -> SpendingReport:
    from client.policy import limits
    from client.spending import spending_report

    with hospital.ledger() as ledger:
        return spending_report(ledger, limits(hospital.site.config.policy))


def _names(hospital: Hospital) -> dict[str, str]:
    approvals = hospital.approvals
    names = {digest: study.name for digest, study in approvals.plans().items()}
    return names | {study.digest: study.name for study in approvals.outdated()}


def _ids(path: Path) -> frozenset[str]:
    """Return the patients a file lists, one a line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SiteError(f"cannot read the list of opt-outs: {reason}", str(path)) from None
    return frozenset(line.strip() for line in lines if line.strip())


def _plan(path: Path) -> Study:
    """Return the study of a `study.toml`, or of a run's `study.json`."""
    from shared.study import load_study, study_from_json

    if path.suffix != ".json":
        return load_study(path)
    try:
        return study_from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        raise SiteError("cannot read the plan", str(path), "Check path and rights") from None


def _unknown(hospital: Hospital, ids: frozenset[str]) -> int:
    """Return how many of these patients no table names."""
    from client.data.labels import names_patient

    return sum(not names_patient(hospital.site, patient) for patient in ids)


def _print(report: SpendingReport, console: Console, names: dict[str, str]) -> None:
    columns = "study", "patients", "epsilon", "replaced", "budget", "charged", "delta", "note"
    accounts = Table(*columns)
    for account in report.accounts:
        accounts.add_row(
            names.get(account.study, account.study[:12]) if account.study else "all, for life",
            account.who,
            f"{account.epsilon:.3f}",
            "" if account.replacement is None else f"{account.replacement:.3f}",
            f"{account.budget:g}",
            f"{account.used:.0%}",
            f"{account.delta:g}",
            "also released without noise" if account.unprotected else "",
        )
    console.print(
        "At most this epsilon per patient, by groups of patients with the same history; who takes "
        "part in a study is charged all of it at once. Replaced: where other data takes the place "
        "of a patient's, and not nothing."
    )
    console.print(accounts)
    plans = Table(
        *("study", "purpose", "mechanism", "used", "of", "spare", "epsilon of all"),
        *("patients", "without budget"),
    )
    for plan in report.plans:
        noise = (
            f"Gaussian, noise {plan.noise_multiplier:.3f} x clip, rate {plan.sampling_rate:g}, "
            f"{plan.steps} steps"
            if plan.noise_multiplier
            else "no noise, no guarantee"
        )
        plans.add_row(
            names.get(plan.study, plan.study[:12]) + (" (closed)" if plan.closed else ""),
            plan.purpose,
            noise,
            f"{plan.used} ({plan.committed} committed)",
            str(plan.uses),
            str(plan.spares),
            f"{plan.epsilon:g}",
            str(plan.joined),
            str(plan.left_out),
        )
    console.print("Mechanisms and rounds:")
    console.print(plans)
    console.print(
        f"{report.patients} patients charged, {report.opted_out} opted out, "
        f"{report.entries} ledger entries, head {report.head[:16]}"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SiteError(f"cannot write the statement: {error.strerror}", str(path)) from None
