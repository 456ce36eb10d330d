"""The straight line of a round at a hospital: from a request to an answer that may leave."""

from __future__ import annotations

import logging
import traceback

import torch
from torch import nn

from client.audit import Event, Left
from client.describe import describe, keep_statistics, own_statistics
from client.evaluation import evaluate
from client.gate import check_update, load_model
from client.hospital import Hospital, open_hospital
from client.outbox import Kept, Parcel, digest
from client.policy import check_day, check_study, limits
from client.privacy.ledger import Ledger, Reservation
from client.site import Site
from client.spending import study_epsilon
from client.training import pick_device, train_round
from client.work import Work, plan_work
from shared.errors import (
    ConsiliumError,
    DataError,
    LedgerError,
    PolicyRefusal,
    ProtocolError,
    SiteError,
    StudyError,
)
from shared.heads import verify_head
from shared.models import get_weights
from shared.protocol import LedgerHead, Refusal, Reply, Request, ScoreHistogram, Spending
from shared.study import Study
from shared.transport import Weights

__all__ = ["Hospital", "handle", "open_hospital"]

log = logging.getLogger(__name__)


def handle(hospital: Hospital, request: Request, weights: Weights) -> tuple[Reply, Weights]:
    """Answer one request; whatever goes wrong, the answer is a typed refusal without details.

    Args:
        hospital: The site and what it may use.
        request: As validated from the wire.
        weights: The global model, float32 arrays by parameter name.

    Returns:
        The reply and the update (new minus global weights); the update is empty unless the
        reply's outcome is "update".
    """
    try:
        return _answer(hospital, request, weights)
    except ConsiliumError as error:
        log.warning("refused: %s", error)
        return _refuse(hospital, request, _code(error), error), {}
    except Exception as error:  # noqa: BLE001
        # Whatever it is, its text may name files or patients, and must not reach the server.
        traceback.print_exc()
        return _refuse(hospital, request, "internal-error", error), {}


def _answer(hospital: Hospital, request: Request, weights: Weights) -> tuple[Reply, Weights]:
    study = _approved_study(hospital, request)
    check_study(hospital.site.config.policy, study)
    with hospital.ledger() as ledger, ledger.locked():
        ledger.check_head(_known_head(hospital.site, request))
        hospital.outbox.confirm(request)
        parcel = hospital.outbox.find(request, weights)
        resent = parcel is not None
        if parcel is None:
            parcel = _compute(hospital, ledger, study, request, weights)
            hospital.outbox.put(parcel)
        ledger.commit(parcel.kept.reservations)
        update = {"head": ledger.head(), "resent": resent}
        reply = parcel.kept.reply.model_copy(update=update)
        hospital.log(_sent_event(request, reply, parcel.update))
    return reply, parcel.update


def _approved_study(hospital: Hospital, request: Request) -> Study:
    """Return the site's own copy of the study; keep an unknown one for a person to read."""
    approvals = hospital.approvals
    if not approvals.is_approved(request.study_digest) and approvals.offer(
        request.study_digest, request.study
    ):
        hospital.log(Event(event="study-offered", study=request.study_digest))
    return approvals.require(request.study_digest, hospital.now().date())


def _known_head(site: Site, request: Request) -> LedgerHead | None:
    """Return the head the server knows, after checking that the server signed it."""
    head = request.known_head
    key = site.resolve(site.config.server.signing_key)
    if head is not None:
        if not key.exists():
            raise SiteError(
                "the key the server signs ledger heads with is missing",
                str(key),
                "Put the coordinator's server.pub there; it is in the invitation",
            )
        signature = request.countersignature
        if not verify_head(key.read_bytes(), site.config.name, head, signature):
            raise ProtocolError(
                "the ledger head in the request is not signed by the server",
                str(key),
                "Check that this is the coordinator's key, and that both ends call the site "
                f"{site.config.name}",
            )
    return head


def _compute(
    hospital: Hospital, ledger: Ledger, study: Study, request: Request, weights: Weights
) -> Parcel:
    """Do what a request asks; nothing is computed before it is allowed and paid for."""
    site, policy = hospital.site, hospital.site.config.policy
    _check_round(study, request)
    if request.task == "train":
        check_day(policy, ledger.rounds_today())
    if request.task == "describe":
        return _describe(hospital, ledger, study, request, weights)
    device, model = _device(site), load_model(study, weights, request.statistics)
    work = plan_work(ledger, study, request.task, policy, hospital.load_cohort(site, study))
    reservations = _reserve(hospital, ledger, request, work, weights)
    evaluation, update = _run(hospital, study, request, work, model, weights, device)
    reply = Reply(
        study_digest=study.digest,
        run=request.run,
        round=request.round,
        outcome="update" if request.task == "train" else "evaluated",
        patients=len(work.train),
        spending=_spending(ledger, study),
        evaluation=evaluation,
    )
    return Parcel(_kept(reply, weights, reservations), update)


def _describe(
    hospital: Hospital, ledger: Ledger, study: Study, request: Request, weights: Weights
) -> Parcel:
    """Release the study's statistics once; whoever asks again gets the same numbers."""
    site, policy = hospital.site, hospital.site.config.policy
    work = plan_work(ledger, study, "describe", policy, hospital.load_cohort(site, study))
    statistics, reservations = own_statistics(hospital, study), tuple[Reservation, ...]()
    if statistics is None and work.description:
        reservations = _reserve(hospital, ledger, request, work, weights)
        statistics = describe(
            work.train,
            study,
            noise_multiplier=work.description.noise_multiplier,
            stream=hospital.make_stream(request),
        )
        keep_statistics(hospital, study, statistics)
    reply = Reply(
        study_digest=study.digest,
        run=request.run,
        round=request.round,
        outcome="described",
        patients=len(work.train),
        spending=_spending(ledger, study),
        statistics=statistics,
    )
    return Parcel(_kept(reply, weights, reservations), {})


def _reserve(
    hospital: Hospital, ledger: Ledger, request: Request, work: Work, weights: Weights
) -> tuple[Reservation, ...]:
    """Charge a request's uses, after noting that it began."""
    # What could stop the answer from being kept or logged must show before anything is spent.
    hospital.outbox.check_room(weights)
    hospital.log(_started_event(request, len(work.train)))
    return ledger.reserve(
        work.uses(),
        limits(hospital.site.config.policy),
        run=request.run,
        round_number=request.round,
        attempt=request.attempt,
        later=work.later(),
    )


def _run(
    hospital: Hospital,
    study: Study,
    request: Request,
    work: Work,
    model: nn.Module,
    weights: Weights,
    device: torch.device,
) -> tuple[ScoreHistogram | None, Weights]:
    """Evaluate the global model, then train it; return the histogram and the update."""
    stream, batch = hospital.make_stream(request), hospital.site.config.compute.physical_batch
    histogram = None
    if work.evaluation:
        histogram = evaluate(
            model,
            work.held_out,
            study,
            noise_multiplier=work.evaluation.noise_multiplier,
            stream=stream,
            device=device,
            physical_batch=batch,
        )
    if not work.training:
        return histogram, {}
    train_round(
        model,
        work.train,
        study,
        noise_multiplier=work.training.noise_multiplier,
        round_number=request.round,
        stream=stream,
        device=device,
        physical_batch=batch,
    )
    update = {name: new - weights[name] for name, new in get_weights(model).items()}
    check_update(update, weights)
    return histogram, update


def _check_round(study: Study, request: Request) -> None:
    if request.task == "describe" and not study.needs_statistics:
        raise ProtocolError(
            "the server asks for statistics the study does not need", f"study {study.digest[:12]}"
        )
    last = study.federation.rounds + (request.task == "evaluate")
    if request.round > last:
        raise PolicyRefusal(
            "out-of-order",
            f"the study ends with round {last}, the server asks for {request.round}",
            f"study {study.digest[:12]}",
        )


def _device(site: Site) -> torch.device:
    if site.config.compute.threads:
        torch.set_num_threads(site.config.compute.threads)
    try:
        return pick_device(site.config.compute.device)
    except SiteError as error:
        raise PolicyRefusal("policy-device", error.what, error.where, error.todo) from None


def _spending(ledger: Ledger, study: Study) -> Spending | None:
    """Return what the study has cost its worst-off patients; None without privacy."""
    plan = ledger.plan(study.digest, "train")
    if plan is None or not study.privacy.enabled:
        return None
    entries = ledger.entries()
    return Spending(
        epsilon=study_epsilon(entries, ledger.members(), plan),
        budget=plan.epsilon,
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        steps=sum(
            e.steps
            for e in entries
            if (e.kind, e.study, e.purpose) == ("reserve", study.digest, "train")
        ),
    )


def _kept(reply: Reply, weights: Weights, reservations: tuple[Reservation, ...]) -> Kept:
    paid = tuple(reservation.seq for reservation in reservations)
    return Kept(reply=reply, incoming=digest(weights), reservations=paid)


def _code(error: ConsiliumError) -> str:
    """Return the reason code that may travel for an error of ours."""
    if isinstance(error, PolicyRefusal):
        return error.code
    codes: dict[type[ConsiliumError], str] = {
        StudyError: "study-invalid",
        DataError: "data-unusable",
        LedgerError: "ledger-invalid",
        ProtocolError: "message-invalid",
    }
    return codes.get(type(error), "internal-error")


def _refuse(hospital: Hospital, request: Request, code: str, error: Exception) -> Reply:
    """Return a refusal, which tells its code and nothing else, after noting it locally."""
    refusal = Refusal.model_validate({"code": code})
    try:
        hospital.log(
            _event(
                request, "round-refused", outcome="refused", code=code, error=type(error).__name__
            )
        )
    except SiteError as problem:
        log.error("%s", problem)  # nothing leaves but the code, so the refusal stands
    return Reply(
        study_digest=request.study_digest,
        run=request.run,
        round=request.round,
        outcome="refused",
        refusal=refusal,
    )


def _started_event(request: Request, patients: int) -> Event:
    return _event(request, "round-started", patients=patients)


def _sent_event(request: Request, reply: Reply, update: Weights) -> Event:
    """Describe what is about to leave the building."""
    filled = reply.model_dump(exclude_defaults=True, exclude_none=True)
    left = Left(
        fields=tuple(filled) + (("update",) if update else ()),
        parameters=sum(array.size for array in update.values()),
        bytes=sum(array.nbytes for array in update.values()),
        sha256=digest(update) if update else "",
    )
    return _event(
        request,
        "reply-sent",
        outcome=reply.outcome,
        patients=reply.patients,
        epsilon=reply.spending.epsilon if reply.spending else None,
        delta=reply.spending.delta if reply.spending else None,
        head=reply.head,
        left=left,
    )


def _event(request: Request, name: str, **fields: object) -> Event:
    return Event.model_validate(
        {
            "event": name,
            "study": request.study_digest,
            "task": request.task,
            "run": request.run,
            "round": request.round,
            "attempt": request.attempt,
            **fields,
        }
    )
