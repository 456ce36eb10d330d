"""What a site says: replies and refusals to the server, and the audit line of each."""

from __future__ import annotations

import logging
from typing import Any, Literal

from client.audit import Event, Left
from client.hospital import Hospital
from client.outbox import Kept, Parcel, digest
from client.privacy.ledger import Ledger
from client.session import Session
from client.spending import study_budget, study_epsilon
from shared.errors import (
    ConsiliumError,
    LedgerError,
    PolicyRefusal,
    ProtocolError,
    SiteError,
    StudyError,
)
from shared.protocol import PROTOCOL_VERSION, Question, Refusal, Reply, Request, Spending
from shared.study import Study
from shared.transport import Weights

log = logging.getLogger(__name__)


def answer(
    session: Session,
    outcome: Literal["described", "update", "evaluated"],
    paid: tuple[int, ...],
    update: Weights,
    **found: Any,
) -> Parcel:
    """Return a reply with its update, ready to be kept and sent.

    Args:
        session: The request.
        outcome: What was done.
        paid: Ledger entries that paid for it.
        update: What travels beside the reply.
        **found: Fields of `Reply` that tell what was found.
    """
    reply = Reply(
        study_digest=session.study.digest,
        run=session.request.run,
        round=session.request.round,
        outcome=outcome,
        patients=session.plans.size,
        spending=_spending(session.ledger, session.study),
        **found,
    )
    return Parcel(Kept(reply=reply, incoming=session.incoming, reservations=paid), update)


def refuse(hospital: Hospital, request: Request, error: Exception) -> Reply:
    """Return a refusal, after noting it locally; see `refusal`."""
    note_refusal(hospital, request, error)
    return refusal(request, error)


def note_refusal(hospital: Hospital, asked: Request | Question | None, error: Exception) -> None:
    """Note a refusal in the audit log, also of a message that does not say what it asks."""
    fields = {"outcome": "refused", "code": _code(error), "error": type(error).__name__}
    try:
        hospital.log(event(asked, "round-refused", **fields))
    except SiteError as problem:
        log.error("%s", problem)  # nothing leaves but the code, so the refusal stands


def refusal(asked: Request | Question, error: Exception) -> Reply:
    """Return a refusal, in the asker's version if known.

    It tells its code, and nothing else that no person has decided to tell.
    """
    return Reply(
        version=1 if asked.version == 1 else PROTOCOL_VERSION,
        study_digest=asked.study_digest,
        run=asked.run,
        round=asked.round,
        outcome="refused",
        refusal=Refusal.model_validate({"code": _code(error), "text": _told(error)}),
    )


def sent_event(request: Request, reply: Reply, update: Weights) -> Event:
    """Describe what is about to leave the building."""
    filled = reply.model_dump(exclude_defaults=True, exclude_none=True)
    left = Left(
        fields=tuple(filled) + (("update",) if update else ()),
        parameters=sum(array.size for array in update.values()),
        bytes=sum(array.nbytes for array in update.values()),
        sha256=digest(update) if update else "",
    )
    return event(
        request,
        "reply-sent",
        outcome=reply.outcome,
        patients=reply.patients,
        epsilon=reply.spending.epsilon if reply.spending else None,
        delta=reply.spending.delta if reply.spending else None,
        head=reply.head,
        left=left,
    )


def event(asked: Request | Question | None, name: str, **fields: object) -> Event:
    """Return the audit log's line on a request, or on what could be read of one."""
    told: dict[str, object] = {"event": name}
    if asked is not None:
        told["study"] = asked.study_digest
        told |= asked.model_dump(include={"task", "run", "round", "attempt"})
    return Event.model_validate(told | fields)


def _spending(ledger: Ledger, study: Study) -> Spending | None:
    """Return what the study has used of its plan; None without privacy."""
    plan = ledger.plan(study.digest, "train")
    if plan is None or not study.privacy.enabled:
        return None
    entries = ledger.entries()
    return Spending(
        epsilon=study_epsilon(entries, plan),
        budget=study_budget(entries, study.digest),
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        steps=sum(
            e.steps
            for e in entries
            if (e.kind, e.study, e.purpose) == ("reserve", study.digest, "train")
        ),
    )


def _told(error: Exception) -> str:
    return error.told if isinstance(error, PolicyRefusal) else ""


def _code(error: Exception) -> str:
    """Return the reason code that may travel for an error; of others than ours nothing does."""
    if isinstance(error, PolicyRefusal):
        return error.code
    codes: dict[type[ConsiliumError], str] = {
        StudyError: "study-invalid",
        LedgerError: "ledger-invalid",
        ProtocolError: "message-invalid",
        SiteError: "site-unready",
    }
    return next((code for kind, code in codes.items() if type(error) is kind), "internal-error")
