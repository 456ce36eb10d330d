"""Going on after ledger entries were lost: everything that may have been spent is charged."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.audit import Event
from client.hospital import Hospital
from client.privacy.anchor import Anchor, anchor_path, read_anchor, write_anchor
from client.privacy.budget import Wanted
from client.privacy.groups import EVERYONE
from client.privacy.ledger import Ledger
from client.privacy.ledger_store import hold
from client.privacy.plans import Plan, description_plan, evaluation_plan, training_plan
from client.salvage import salvage
from client.vault import sync_folder
from shared.errors import DataError, LedgerError, StudyError
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


def recover(
    hospital: Hospital,
    by: str,
    opt_outs: Collection[str] | None = None,
    plans: Sequence[Study] = (),
) -> Recovery:
    """Make the site able to train again after its ledger was restored, edited, copied or lost.

    All uses that the plans of studies in the ledger, studies ever approved and studies the
    server has had answers in had left are charged, so these studies get no further round from
    this site; others go on with the budget that remains. Who pays is everyone, now and later,
    unless the ledger can vouch for the patients of then.

    Args:
        hospital: The site.
        by: Who decided, for the audit log.
        opt_outs: Ids of all patients who have opted out. What the ledger knew of them may be
            lost, so nothing is recovered without this list, be it empty.
        plans: Studies the server may have had answers in and the site no longer knows; those
            it does not ask for are left alone.

    Raises:
        LedgerError: The list of opt-outs is missing or too short, or a plan is; the ledger is
            in use, or cannot be written.
        DataError: The patients of an approved study cannot be read, so not be charged.
    """
    with hold(hospital.site.ledger):
        if not _is_sound(hospital):
            return _replace(hospital, by, opt_outs, plans)
        with hospital.ledger() as ledger:
            opted_out = ledger.opted_out()
            lost = ledger.lost_studies()
            if ledger.lost_head() is None and not lost:
                return Recovery("nothing-lost", len(opted_out))
            again = _pseudonyms(hospital, opt_outs, opted_out, least=len(opted_out))
            unknown = _find(hospital, lost, plans)
            uses = _of_everyone(hospital, unknown) + _ever_approved(hospital)
            for patient in sorted(again):
                ledger.opt_out(patient)
            ledger.adopt(uses)
        hospital.log(Event(event="ledger-adopted", by=by))
        return Recovery("adopted", len(again))


def _is_sound(hospital: Hospital) -> bool:
    """Tell whether the ledger is whole, be it an older copy."""
    try:
        with hospital.ledger() as ledger:
            ledger.members()
    except LedgerError:
        return False
    return True


def _replace(
    hospital: Hospital, by: str, opt_outs: Collection[str] | None, plans: Sequence[Study]
) -> Recovery:
    """Begin a new ledger that has everything charged, and swap it in.

    Killed at any point, the site either still refuses to train or has the new ledger.
    """
    path, vault = hospital.site.ledger, hospital.vault
    olds = (*path.parent.glob(f"{path.name}.set-aside-*[0-9]"), path)
    saved = [salvage(old, vault) for old in olds]
    opted_out = _pseudonyms(
        hospital,
        opt_outs,
        frozenset[str]().union(*(old.opted_out for old in saved)),
        least=max(old.opt_outs for old in saved),
    )
    uses = [use for old in saved for use in old.uses]
    known = _known_anchor(hospital)
    lost = set(known.studies) - {use.plan.study for use in uses}
    uses += _of_everyone(hospital, _find(hospital, lost, plans))
    uses += _ever_approved(hospital, vouched=saved[-1].vouched)
    write_anchor(path, vault, known)
    new = path.with_name("recovered.sqlite")
    for file in _files(new):
        file.unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.set-aside-{hospital.now():%Y%m%dT%H%M%S%f}")
    with Ledger(new, vault, hospital.now) as ledger:
        ledger.claim(known.claimed, known.studies)
        ledger.adopt(uses)
        for patient in sorted(opted_out):
            ledger.opt_out(patient)
    # The log files first: a new database must not find an old one's.
    for end in ("-shm", "-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    new.rename(path)
    anchor_path(new).rename(anchor_path(path))
    sync_folder(path.parent)
    hospital.log(Event(event="ledger-replaced", by=by))
    return Recovery("replaced", len(opted_out), aside if aside.exists() else None)


def _pseudonyms(
    hospital: Hospital, ids: Collection[str] | None, known: frozenset[str], least: int
) -> frozenset[str]:
    """Return the pseudonyms of all who have opted out: those listed and those known.

    Args:
        hospital: The site.
        ids: Patients as a person listed them.
        known: Pseudonyms the ledger still vouches for.
        least: How many there were, recognised or not.

    Raises:
        LedgerError: There is no list, or there were more.
    """
    opted_out = known | {hospital.vault.pseudonym(patient) for patient in ids or ()}
    if ids is not None and len(opted_out) >= least:
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


def _find(hospital: Hospital, digests: Collection[str], given: Sequence[Study]) -> list[Study]:
    """Return the studies of these digests, from what a person gave and what the site holds.

    Raises:
        LedgerError: A plan is missing; names the digests.
    """
    known = hospital.approvals.plans() | {study.digest: study for study in given}
    if missing := sorted(set(digests) - known.keys()):
        raise LedgerError(
            "the server has had answers in studies whose plan is not here, so it cannot be charged",
            f"studies {', '.join(missing)}",
            "Ask the coordinator for study.json in the folder of the run, and give it with --plan",
        )
    return [known[digest] for digest in sorted(digests)]


def _ever_approved(hospital: Hospital, *, vouched: bool = True) -> list[Wanted]:
    """Return the plans of every study that is approved or was, and who is charged for it.

    Args:
        hospital: The site.
        vouched: Whether the ledger knows the patients of then; if so, those of today pay too.
    """
    approved = [approval.study for approval in hospital.approvals.approved()]
    revoked = [approval.study for approval in hospital.approvals.revoked()]
    if not vouched:
        return _of_everyone(hospital, [*approved, *revoked])
    uses = [use for study in approved for use in _of_today(hospital, study)]
    for study in revoked:
        try:
            uses += _of_today(hospital, study)
        except DataError:  # its data may be gone for good
            uses += _of_everyone(hospital, [study])
    return uses


def _of_today(hospital: Hospital, study: Study) -> list[Wanted]:
    """Return the plans of a study with the patients it would have today."""
    cohort = hospital.load_cohort(hospital.site, study)
    train, held_out = frozenset(cohort.train.patients), frozenset(cohort.held_out.patients)
    return [
        Wanted(plan, train if plan.purpose in ("describe", "train") else held_out)
        for plan in _plans(hospital, study)
    ]


def _of_everyone(hospital: Hospital, studies: Iterable[Study]) -> list[Wanted]:
    """Return the plans of studies with all patients there are or will be."""
    return [
        Wanted(plan, frozenset({EVERYONE})) for study in studies for plan in _plans(hospital, study)
    ]


def _plans(hospital: Hospital, study: Study) -> list[Plan]:
    """Return the plans of a study, which cost no less than they did here."""
    # Of how many patients cannot be known; the fewer, the larger the default delta and the
    # smaller the noise.
    patients = 1
    policy = hospital.site.config.policy.evaluation
    kinds = {"none": (False,), "noised": (False,), "exact": (False, True)}[policy]
    try:
        plans = [training_plan(study, patients)]
    except StudyError:  # no noise keeps its budget, so that it never got a round
        return []
    if study.needs_statistics:
        plans.append(description_plan(study, patients))
    return plans + [evaluation_plan(study, patients, exact=exact) for exact in kinds]


def _files(path: Path) -> list[Path]:
    return [path, anchor_path(path), *(path.with_name(path.name + e) for e in ("-wal", "-shm"))]
