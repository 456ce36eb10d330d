"""What a site's node does now, read from its home; the node itself need not answer."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from client.admission import CONTACT
from client.audit import AuditLog, Line
from client.hospital import Hospital, open_hospital
from client.policy import limits
from client.site import Site
from client.spending import SpendingReport, spending_report
from client.vault import Vault


class Part(BaseModel):
    """Base of the status: frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Trouble(Part):
    """The newest refusal, if nothing has worked since.

    Attributes:
        time: UTC, ISO 8601.
        what: The study and the code the coordinator was told.
        remedy: What to do.
    """

    time: str
    what: str
    remedy: str


class StudyStatus(Part):
    """An approved study.

    Attributes:
        name: Its name.
        digest: Its digest.
        rounds: Rounds of training it may take here, repeats included; None before the first.
        used: Those that were begun.
        last_round: The newest round that was answered; 0 for none.
    """

    name: str
    digest: str
    rounds: int | None
    used: int
    last_round: int


class Status(Part):
    """What there is to know of a site at a glance.

    Attributes:
        name: The hospital's name.
        running: Whether a node runs on this home.
        contact: Last contact with the server, UTC, ISO 8601; None if there never was any.
        doing: What the node does, in words.
        waiting: What waits for a person.
        studies: Those approved.
        trouble: What went wrong last.
    """

    name: str
    running: bool
    contact: str | None
    doing: str
    waiting: tuple[str, ...]
    studies: tuple[StudyStatus, ...]
    trouble: Trouble | None


def read_status(site: Site) -> Status:
    """Return the status of a site.

    Raises:
        ConsiliumError: Its ledger, audit log or approvals cannot be read; the doctor says more.
    """
    return status_of(open_hospital(site.home))


def status_of(hospital: Hospital) -> Status:
    """Return the status of a hospital's site; see `read_status`."""
    site = hospital.site
    lines = AuditLog(site.audit_log, Vault.open(site.vault_key)).lines()
    names = {digest: study.name for digest, study in hospital.approvals.plans().items()}
    with hospital.ledger() as ledger:
        report = spending_report(ledger, limits(site.config.policy))
    running = is_running(site.home)
    return Status(
        name=site.config.name,
        running=running,
        contact=_moment(site.home / CONTACT),
        doing=_doing(lines, names) if running else "the node does not run",
        waiting=_waiting(hospital),
        studies=tuple(
            _study(approval.digest, approval.study.name, report, lines)
            for approval in hospital.approvals.approved()
        ),
        trouble=_trouble(lines, names),
    )


def describe_status(status: Status) -> list[str]:
    """Return the status in lines for a person."""
    lines = [
        f"{status.name}: {status.doing}",
        f"last contact with the server: {status.contact or 'never'}",
    ]
    for study in status.studies:
        of = "no round yet" if study.rounds is None else f"{study.used} of {study.rounds} rounds"
        lines.append(f"study {study.name} ({study.digest[:12]}): {of} used of its budget")
    lines += [f"waits for a person: {what}" for what in status.waiting]
    if status.trouble:
        lines.append(f"last error, {status.trouble.time}: {status.trouble.what}")
        lines.append(f"    -> {status.trouble.remedy}")
    return lines


def is_running(home: Path) -> bool:
    """Tell whether a node holds the home."""
    try:
        with (home / "node.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _doing(lines: list[Line], names: dict[str, str]) -> str:
    rounds = [e for e in lines if e.event in ("round-started", "reply-sent", "round-refused")]
    if not rounds or rounds[-1].event != "round-started":
        return "waits for the server"
    it = rounds[-1]
    what = "the description of the data" if it.task == "describe" else f"round {it.round}"
    return f"computes {what} of {names.get(it.study, it.study[:12])} since {it.time[:19]}"


def _waiting(hospital: Hospital) -> tuple[str, ...]:
    offers = [
        f"{study.name} ({study.digest[:12]}) is offered: approve or decline it"
        for study in hospital.approvals.offered()
    ]
    attention = [
        f"{it.study[:12]} stands still: {it.reason}" for it in hospital.attention.waiting()
    ]
    return (*offers, *attention)


def _study(digest: str, name: str, report: SpendingReport, lines: list[Line]) -> StudyStatus:
    plan = next((p for p in report.plans if (p.study, p.purpose) == (digest, "train")), None)
    answered = [e.round for e in lines if (e.study, e.event) == (digest, "reply-sent")]
    return StudyStatus(
        name=name,
        digest=digest,
        rounds=plan.uses if plan else None,
        used=plan.used if plan else 0,
        last_round=max(answered, default=0),
    )


def _trouble(lines: list[Line], names: dict[str, str]) -> Trouble | None:
    ends = [line for line in lines if line.event in ("reply-sent", "round-refused")]
    if not ends or ends[-1].event != "round-refused":
        return None
    last = ends[-1]
    code = last.code or "internal-error"
    remedy = {
        "study-not-approved": "`consilium site studies`, then approve or decline it",
        "bundle-refused": "Compare what `consilium version` prints here and at the server",
        "site-attention": "`consilium site attention list` says what is the matter",
    }.get(code, "`consilium site doctor` looks for the cause; the node's log has the message")
    study = names.get(last.study, last.study[:12]) or "a message"
    return Trouble(time=last.time[:19], what=f"{study}: {code}", remedy=remedy)


def _moment(path: Path) -> str | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError:
        return None
