"""Going on after ledger entries were lost: everything that may have been spent is charged."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from client.audit import Event
from client.hospital import Hospital
from client.privacy.anchor import Anchor, anchor_path, read_anchor, write_anchor
from client.privacy.ledger import Ledger
from client.privacy.ledger_store import hold
from client.privacy.plans import Plan, description_plan, evaluation_plan, training_plan
from client.salvage import salvage
from client.vault import sync_folder
from shared.errors import LedgerError, SiteError, StudyError
from shared.protocol import LedgerHead
from shared.study import Study


@dataclass(frozen=True)
class Recovery:
    """What was done.

    Attributes:
        outcome: "nothing-lost", "adopted" (an older ledger goes on, the rest was charged) or
            "replaced" (a new ledger began, everything approved was charged).
        opted_out: How many patients are opted out now.
        set_aside: Where the ledger that could not be used is kept.
    """

    outcome: Literal["nothing-lost", "adopted", "replaced"]
    opted_out: int
    set_aside: Path | None = None


@dataclass(frozen=True)
class Told:
    """What only a person can say of entries that are lost.

    Attributes:
        by: Who says so, for the audit log.
        opt_outs: Ids of all patients who have opted out; None: not said. What the ledger knew
            of them may be lost, so nothing is recovered without this list, be it empty.
        exact: Whether exact evaluations were allowed at any time since; None: not said. The
            policy of today does not tell.
        plans: Studies the server may have had answers in and the site no longer knows; those
            it does not ask for are left alone.
    """

    by: str
    opt_outs: Collection[str] | None = None
    exact: bool | None = None
    plans: Sequence[Study] = ()


def recover(hospital: Hospital, told: Told) -> Recovery:
    """Make the site able to train again after its ledger was restored, edited, copied or lost.

    All uses that are left of studies open in the ledger, studies ever approved and studies the
    server has had answers in are used up, so these studies get no further round from this site;
    others go on with the budget that remains. Who joined in the lost entries cannot be known, so
    everyone pays, now and later. No data is read.

    Args:
        hospital: The site.
        told: What a person says.

    Raises:
        LedgerError: Something a person must say is missing, or the list of opt-outs is too
            short; the ledger is in use, or cannot be written.
        SiteError: The audit log was edited, so that it cannot tell what was sent.
        StudyError: A study of an earlier format has settings that cannot be charged any more.
    """
    with hold(hospital.site.ledger):
        if not _is_sound(hospital):
            return _replace(hospital, told)
        with hospital.ledger() as ledger:
            opted_out, lost = ledger.opted_out(), ledger.lost_studies()
            heads = ledger.lost_heads(hospital.newest_sent())
            if not heads and not lost:
                return Recovery("nothing-lost", len(opted_out))
            again = _pseudonyms(hospital, told, opted_out, least=len(opted_out))
            plans = _charged(hospital, told, lost)
            for patient in sorted(again):
                ledger.opt_out(patient)
            ledger.adopt(plans, heads)
        hospital.log(Event(event="ledger-adopted", by=told.by))
        return Recovery("adopted", len(again))


def _is_sound(hospital: Hospital) -> bool:
    """Tell whether the ledger is whole, be it an older copy."""
    try:
        with hospital.ledger() as ledger:
            ledger.members()
    except LedgerError:
        return False
    return True


def _replace(hospital: Hospital, told: Told) -> Recovery:
    """Begin a new ledger that has everything charged, and swap it in.

    Killed at any point, the site either still refuses to train or has the new ledger.
    """
    path, vault = hospital.site.ledger, hospital.vault
    olds = (*path.parent.glob(f"{path.name}.set-aside-*[0-9]"), path)
    saved = [salvage(old, vault) for old in olds]
    opted_out = _pseudonyms(
        hospital,
        told,
        frozenset[str]().union(*(old.opted_out for old in saved)),
        least=max(old.opt_outs for old in saved),
    )
    plans = [plan for old in saved for plan in old.plans]
    known = _known_anchor(hospital)
    plans += _charged(hospital, told, set(known.studies) - {plan.study for plan in plans})
    sent = _newest_sent(hospital)
    write_anchor(path, vault, known)
    new = path.with_name("recovered.sqlite")
    for file in _files(new):
        file.unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.set-aside-{hospital.now():%Y%m%dT%H%M%S%f}")
    with Ledger(new, vault, hospital.now) as ledger:
        ledger.claim(known.claimed, known.studies)
        ledger.adopt(plans, ledger.lost_heads(sent))
        for patient in sorted(opted_out):
            ledger.opt_out(patient)
    # The log files first: a new database must not find an old one's.
    for end in ("-shm", "-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    new.rename(path)
    anchor_path(new).rename(anchor_path(path))
    sync_folder(path.parent)
    hospital.log(Event(event="ledger-replaced", by=told.by))
    return Recovery("replaced", len(opted_out), aside if aside.exists() else None)


def _pseudonyms(
    hospital: Hospital, told: Told, known: frozenset[str], least: int
) -> frozenset[str]:
    """Return the pseudonyms of all who have opted out: those listed and those known.

    Args:
        hospital: The site.
        told: What a person says.
        known: Pseudonyms the ledger still vouches for.
        least: How many there were, recognised or not.

    Raises:
        LedgerError: There is no list, or there were more.
    """
    listed = told.opt_outs
    opted_out = known | {hospital.vault.pseudonym(patient) for patient in listed or ()}
    if listed is not None and len(opted_out) >= least:
        return opted_out
    found = f"{least} patients had opted out, {len(opted_out)} of them are known"
    raise LedgerError(
        f"opt-outs may be lost with the ledger's entries: {found}",
        str(hospital.site.ledger),
        "Write the ids of all patients who have opted out into a file, one a line (nobody: an "
        "empty file), and give it with --opt-outs",
    )


def _known_anchor(hospital: Hospital) -> Anchor:
    """Return an anchor that names no ledger, with all that is known of the lost one."""
    anchor = None
    with contextlib.suppress(LedgerError):
        anchor = read_anchor(hospital.site.ledger, hospital.vault)
    heads = [head for head in (anchor.claimed, anchor.confirmed) if head] if anchor else []
    newest = max(heads, key=lambda head: head.entries, default=None)
    studies = anchor.studies if anchor else ()
    return Anchor(instance="(lost)", claimed=newest, studies=studies)


def _charged(hospital: Hospital, told: Told, lost: Collection[str]) -> list[Plan]:
    """Return the plans of lost studies and of every study that is approved or was.

    Raises:
        LedgerError: A plan is missing, or it is not said whether evaluations may be exact.
    """
    exact = told.exact or hospital.site.config.policy.evaluation == "exact"
    if not exact and told.exact is None:
        raise LedgerError(
            "it must be said whether exact evaluations were allowed since (policy.evaluation)",
            str(hospital.site.ledger),
            "Give --exact if they may have been, at any time, and else --no-exact",
        )
    approvals = hospital.approvals
    studies = _find(hospital, lost, told.plans)
    for approval in (*approvals.approved(), *approvals.revoked()):
        studies[approval.digest] = approval.study
    for outdated in approvals.outdated():
        if outdated.state != "offered":
            studies[outdated.digest] = outdated.of_same_cost()
    return [
        replace(plan, study=digest)  # its own, where a study of an earlier format is charged
        for digest, study in studies.items()
        for plan in _plans(study, exact=exact)
    ]


def _find(hospital: Hospital, digests: Collection[str], given: Sequence[Study]) -> dict[str, Study]:
    """Return the studies of these digests, from what a person gave and what the site holds.

    Raises:
        LedgerError: A plan is missing; names the digests.
    """
    known = hospital.approvals.plans() | {study.digest: study for study in given}
    known |= {
        outdated.digest: outdated.of_same_cost() for outdated in hospital.approvals.outdated()
    }
    if missing := sorted(set(digests) - known.keys()):
        raise LedgerError(
            "the server has had answers in studies whose plan is not here, so it cannot be charged",
            f"studies {', '.join(missing)}",
            "Ask the coordinator for study.json in the folder of the run, and give it with --plan",
        )
    return {digest: known[digest] for digest in sorted(digests)}


def _plans(study: Study, *, exact: bool) -> list[Plan]:
    """Return the plans of a study, which cost no less than they did here."""
    # Of how many patients cannot be known; the fewer, the larger the default delta and the
    # smaller the noise.
    patients = 1
    try:
        plans = [training_plan(study, patients)]
    except StudyError:  # no noise keeps its budget, so that it never got a round
        return []
    if study.needs_statistics:
        plans.append(description_plan(study, patients))
    kinds = (False, True) if exact else (False,)
    return plans + [evaluation_plan(study, patients, exact=each) for each in kinds]


def _newest_sent(hospital: Hospital) -> LedgerHead | None:
    """Return the newest head the audit log says was sent; None if it cannot say."""
    with contextlib.suppress(SiteError):
        return hospital.newest_sent()
    return None


def _files(path: Path) -> list[Path]:
    return [path, anchor_path(path), *(path.with_name(path.name + e) for e in ("-wal", "-shm"))]
