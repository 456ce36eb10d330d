"""Whether a round would work here: every check gives its problem and remedy as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict

from client import doctor_machine, doctor_server
from client.finding import Finding
from client.hospital import Hospital, open_hospital
from client.site import Site
from shared.errors import ConsiliumError

Check = Callable[[Site], Iterator[Finding]]


class Verdict(BaseModel):
    """What the doctor found.

    Attributes:
        ready: Whether a round would work.
        findings: One or more a check, in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ready: bool
    findings: tuple[Finding, ...]


def examine(site: Site, *, data: bool = True) -> Verdict:
    """Make all checks; one that fails does not keep the others from being made.

    Args:
        site: The site.
        data: Whether to read the data of each approved study, as a round would.
    """
    checks: dict[str, Check] = {
        "home": doctor_machine.home,
        "keys": _keys,
        "machine": doctor_machine.machine,
        "processes": doctor_machine.neighbours,
        "device": doctor_machine.device,
        "server": doctor_server.server,
        "ledger": _ledger,
        "audit log": _audit,
        "studies": _studies,
        **({"data": _data} if data else {}),
    }
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check(site)
        except ConsiliumError as error:
            found.append(_of(name, error))
        except OSError as error:
            found.append(Finding.bad(name, f"{error.strerror}: {error.filename}", "Check rights"))
    return Verdict(ready=not any(it.level == "problem" for it in found), findings=tuple(found))


def _of(name: str, error: ConsiliumError) -> Finding:
    where = f" ({error.where})" if error.where else ""
    return Finding.bad(name, f"{error.what}{where}", error.todo or "See the message")


def _keys(site: Site) -> Iterator[Finding]:
    from client.approvals import Approvals
    from client.split_key import fingerprint
    from client.vault import Vault
    from shared.flower.node import read_node_key
    from shared.pki import name_of_key

    if not site.vault_key.exists():
        yield Finding.bad("keys", f"there is no {site.vault_key}", "Restore it from the backup")
        return
    Vault.open(site.vault_key)
    read_node_key(site.node_key)
    if site.node_key.stat().st_mode & 0o077:
        yield Finding.bad(
            "keys", "others than its owner may use node.key", f"Run `chmod 600 {site.node_key}`"
        )
    said = name_of_key((site.home / "node.pub").read_bytes())
    if said != site.config.name:
        yield Finding.bad(
            "name",
            f"site.toml says {site.config.name!r}, node.pub {said!r}",
            "If the new name is right, start the node and tell the coordinator: server rename",
        )
    split = fingerprint(Approvals(site).open_split_key())
    yield Finding.good("keys", f"present and private, of {site.config.name}; split key {split}")


def _ledger(site: Site) -> Iterator[Finding]:
    hospital = open_hospital(site.home)
    with hospital.ledger() as ledger:
        ledger.members()
        head = ledger.head()
    yield Finding.good("ledger", f"whole, {head.entries} entries")


def _audit(site: Site) -> Iterator[Finding]:
    from client.audit import AuditLog
    from client.vault import Vault

    lines = AuditLog(site.audit_log, Vault.open(site.vault_key)).lines()
    rounds = [line for line in lines if line.event in ("round-started", "round-refused")]
    if rounds and rounds[-1].code == "bundle-refused":
        yield Finding.bad(
            "release",
            "the last round was refused: the server runs another release",
            "Compare what `consilium version` prints at both ends",
        )
    yield Finding.good("audit log", f"whole, {len(lines)} lines")


def _studies(site: Site) -> Iterator[Finding]:
    from client.policy import check_study

    hospital = open_hospital(site.home)
    approved = hospital.approvals.approved()
    for waiting in hospital.attention.waiting():
        yield Finding.bad(
            "studies",
            f"{waiting.study[:12]} waits for a person: {waiting.reason}",
            "Mend that, then `consilium site attention`",
        )
    for offer in hospital.approvals.offered():
        yield Finding.warning(
            "studies",
            f"{offer.name} ({offer.digest[:12]}) waits for a decision",
            "`consilium site show`, then approve or decline it",
        )
    for approval in approved:
        check_study(site.config.policy, approval.study, approval.training_size)
        hospital.approvals.require(approval.digest, hospital.now().date())
    if not approved:
        yield Finding.warning(
            "studies", "no study is approved", "Nothing is computed before one is"
        )
    else:
        names = ", ".join(approval.study.name for approval in approved)
        yield Finding.good("studies", f"approved: {names}")


def _data(site: Site) -> Iterator[Finding]:
    from client.data.cohort import load_cohort
    from client.judge import doubts

    hospital = open_hospital(site.home)
    for approval in hospital.approvals.approved():
        study = approval.study
        try:
            cohort = load_cohort(site, study)
        except ConsiliumError as error:
            yield _of(f"data of {study.name}", error)
            continue
        for doubt in doubts(cohort, study, site.config.policy):
            yield Finding.warning(
                f"data of {study.name}", doubt.what, f"See the report in {site.reports}"
            )
        report = cohort.report
        if not report.train_patients:
            most = next(iter(report.counts), "the table names none")
            yield Finding.bad(
                f"data of {study.name}",
                f"there is no patient to train on; most often: {most}",
                f"See the report in {site.reports}, and data.columns and data.values in site.toml",
            )
            continue
        yield Finding.good(
            f"data of {study.name}",
            f"{report.train_patients} patients to train on, {report.held_out_patients} held out, "
            f"{approval.patients} declared",
        )
        yield from _budget(hospital, study.digest, study.name)


def _budget(hospital: Hospital, digest: str, name: str) -> Iterator[Finding]:
    """Tell how many of a study's rounds are left, and whether the patients have budget for it."""
    from client.policy import limits
    from client.spending import spending_report

    with hospital.ledger() as ledger:
        report = spending_report(ledger, limits(hospital.site.config.policy))
    plans = [p for p in report.plans if (p.study, p.purpose) == (digest, "train")]
    lifetime = [account for account in report.accounts if not account.study]
    if plans and plans[0].used >= plans[0].uses:
        yield Finding.bad(
            f"budget of {name}",
            f"all {plans[0].uses} rounds it was calibrated for are used",
            "The site sits out the rest of this study; nothing is to be repaired",
        )
    elif not plans and lifetime and all(account.used >= 1 for account in lifetime):
        yield Finding.bad(
            f"budget of {name}",
            "no patient has budget left for another study",
            "Close ended studies: `consilium site ledger close-study`; the budget is meant to end",
        )
    else:
        left = f"{plans[0].uses - plans[0].used} rounds left" if plans else "not begun"
        yield Finding.good(f"budget of {name}", left)
