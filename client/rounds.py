"""The straight line of a round at a hospital: from a request to an answer that may leave."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from client.audit import Event, Left
from client.data.cohort import Cohort, PatientSet
from client.evaluation import evaluate
from client.hospital import Hospital, open_hospital
from client.outbox import Kept, Parcel, digest
from client.policy import check_day, check_patients, check_study, limits
from client.privacy.budget import Wanted
from client.privacy.ledger import Ledger, Reservation
from client.privacy.plans import Plan, evaluation_plan, training_plan
from client.site import Policy, Site
from client.spending import study_epsilon
from client.training import pick_device, train_round
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
from shared.models import build_model, get_weights, set_weights
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
    if head is not None and key.exists():
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
    device, model = _device(site), _model(study, weights)
    work = _plan_work(ledger, study, request, policy, hospital.load_cohort(site, study))
    reservations = ledger.reserve(
        work.uses(),
        limits(policy),
        run=request.run,
        round_number=request.round,
        attempt=request.attempt,
    )
    hospital.log(_started_event(request, len(work.train)))
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


@dataclass(frozen=True)
class _Work:
    """The patients of a round and the plans they are charged by; no plan: nothing is done."""

    train: PatientSet
    held_out: PatientSet
    training: Plan | None
    evaluation: Plan | None

    def uses(self) -> list[Wanted]:
        """Return what to reserve."""
        pairs = ((self.evaluation, self.held_out), (self.training, self.train))
        return [Wanted(plan, frozenset(ps.patients)) for plan, ps in pairs if plan]


def _plan_work(
    ledger: Ledger, study: Study, request: Request, policy: Policy, cohort: Cohort
) -> _Work:
    """Choose the patients who may take part and the plans that apply to them.

    Raises:
        PolicyRefusal: Too few patients are left, or their number asks for a larger delta.
    """
    train, held_out = cohort.train, cohort.held_out
    training = evaluation = None
    if request.task == "train":
        check_patients(policy, study, train.labels)
        training = ledger.plan(study.digest, "train") or training_plan(study, len(train))
        train = _eligible(ledger, training, train, policy)
        check_patients(policy, study, train.labels)
    if policy.evaluation != "none" and len(held_out):
        exact = policy.evaluation == "exact"
        stored = ledger.plan(study.digest, "exact-evaluation" if exact else "evaluate")
        evaluation = stored or evaluation_plan(study, len(cohort.train), exact=exact)
        held_out = _eligible(ledger, evaluation, held_out, policy)
    return _Work(train, held_out, training, evaluation if len(held_out) else None)


def _run(
    hospital: Hospital,
    study: Study,
    request: Request,
    work: _Work,
    model: nn.Module,
    weights: Weights,
    device: torch.device,
) -> tuple[ScoreHistogram | None, Weights]:
    """Evaluate the global model, then train it; return the histogram and the update."""
    stream, batch = hospital.make_stream(), hospital.site.config.compute.physical_batch
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
    _check_arrays(update, weights, SiteError, "the update is not fit to leave")
    return histogram, update


def _check_round(study: Study, request: Request) -> None:
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


def _model(study: Study, weights: Weights) -> nn.Module:
    """Return the study's model with the global weights, which must be its own and finite."""
    model = build_model(study)
    _check_arrays(weights, get_weights(model), ProtocolError, "the global weights are refused")
    set_weights(model, weights)
    return model


def _check_arrays(arrays: Weights, like: Weights, error: type[ConsiliumError], what: str) -> None:
    """Compare arrays with the declared ones; the same gate stands at the way in and out."""
    if arrays.keys() != like.keys():
        raise error(f"{what}: names differ from the study's model")
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != like[name].shape:
            raise error(f"{what}: shape or type differs", name)
        if not np.isfinite(array).all():
            raise error(f"{what}: values are not finite", name)


def _eligible(ledger: Ledger, plan: Plan, patients: PatientSet, policy: Policy) -> PatientSet:
    """Return the patients without those who opted out or have no budget left."""
    wanted = Wanted(plan, frozenset(patients.patients))
    allowed = ledger.eligible(wanted, limits(policy))
    stays = torch.tensor([p in allowed for p in patients.patients], dtype=torch.bool)
    if bool(stays.all()):
        return patients
    images = stays[patients.image_patient]
    position = stays.cumsum(0) - 1
    return replace(
        patients,
        images=patients.images[images],
        image_patient=position[patients.image_patient[images]],
        labels=patients.labels[stays],
        patients=tuple(p for p in patients.patients if p in allowed),
    )


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
