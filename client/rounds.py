"""The straight line of a round at a hospital: from a request to an answer that may leave."""

from __future__ import annotations

import logging
import traceback

import torch
from torch import nn

from client.answers import answer, event, refuse, sent_event
from client.approvals import Approval
from client.audit import Event
from client.company import check_company
from client.describe import describe, keep_statistics, own_statistics
from client.gate import check_update, load_model, split_control
from client.hospital import Hospital, open_hospital
from client.local_state import wear
from client.outbox import Parcel, digest
from client.personal import check_tuning, fine_tune, makes_personal
from client.policy import allowed, check_day, check_study
from client.privacy.ledger import Ledger
from client.session import Job, Session
from client.site import Policy, Site
from client.terms import make_terms
from client.training import pick_device, rows_at_once
from client.work import make_plans, take_part
from shared.errors import ConsiliumError, PolicyRefusal, ProtocolError, SiteError
from shared.heads import verify_head
from shared.losses import make_loss
from shared.models import get_weights
from shared.protocol import LedgerHead, Reply, Request
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
        return refuse(hospital, request, error), {}
    except Exception as error:  # noqa: BLE001
        # Whatever it is, its text may name files or patients, and must not reach the server.
        traceback.print_exc()
        return refuse(hospital, request, error), {}


def _answer(hospital: Hospital, request: Request, weights: Weights) -> tuple[Reply, Weights]:
    approval = _approval(hospital, request)
    study, policy = approval.study, hospital.site.config.policy
    hospital.attention.check(study.digest)
    check_study(policy, study, approval.training_size)
    with hospital.ledger() as ledger, ledger.locked():
        ledger.check_head(*_known(hospital.site, request), sent=hospital.newest_sent())
        hospital.drop_answers()
        hospital.outbox.confirm(request)
        parcel = hospital.outbox.find(request, weights)
        # What paid for it may be gone with a restored ledger; it is computed, and paid, anew.
        if parcel and ledger.has_reserved(parcel.kept.reservations, request.run, request.round):
            return _send(hospital, ledger, study, request, weights, parcel, resent=True)
        job = _accept(hospital, ledger, approval, request, weights)
        # From here on patients have a part in what goes wrong, so it is one code and stays.
        with hospital.attention.watch(study.digest):
            parcel = _compute(job)
            hospital.outbox.put(parcel)
            return _send(hospital, ledger, study, request, weights, parcel, resent=False)


def _send(
    hospital: Hospital,
    ledger: Ledger,
    study: Study,
    request: Request,
    weights: Weights,
    parcel: Parcel,
    *,
    resent: bool,
) -> tuple[Reply, Weights]:
    """Settle what a kept answer leaves at the site, and return it as it goes out."""
    _keep_local(hospital, study, request, weights, parcel.update)
    ledger.commit(parcel.kept.reservations)
    # A head tells the server that the study was charged here; see `Request.known_studies`.
    head = ledger.head() if study.digest in ledger.studies() else None
    update = {"head": head, "resent": resent}
    reply = allowed(hospital.site.config.policy, parcel.kept.reply).model_copy(update=update)
    hospital.log(sent_event(request, reply, parcel.update))
    return reply, parcel.update


def _approval(hospital: Hospital, request: Request) -> Approval:
    """Return the site's own copy of what a person approved; keep an unknown study for one."""
    approvals = hospital.approvals
    if not approvals.is_approved(request.study_digest) and approvals.offer(
        request.study_digest, request.study
    ):
        hospital.log(Event(event="study-offered", study=request.study_digest))
    return approvals.require(request.study_digest, hospital.now().date())


def _known(site: Site, request: Request) -> tuple[LedgerHead | None, tuple[str, ...]]:
    """Return the head and the studies the server knows, after checking that it signed them."""
    head, studies = request.known_head, request.known_studies
    key = site.resolve(site.config.server.signing_key)
    if head is not None:
        if not key.exists():
            raise SiteError(
                "the key the server signs ledger heads with is missing",
                str(key),
                "Put the coordinator's server.pub there; it is in the invitation",
            )
        signature = request.countersignature
        if not verify_head(key.read_bytes(), site.config.name, head, studies, signature):
            raise ProtocolError(
                "the ledger head in the request is not signed by the server",
                str(key),
                "Check that this is the coordinator's key, and that both ends call the site "
                f"{site.config.name}",
            )
    return head, studies if head else ()


def _accept(
    hospital: Hospital, ledger: Ledger, approval: Approval, request: Request, weights: Weights
) -> Job:
    """Decide whether to do what a request asks, before any patient is looked at.

    Who is refused here is refused whoever the patients are, so the codes tell nothing of them.
    """
    site, policy, study = hospital.site, hospital.site.config.policy, approval.study
    hospital.approvals.open_split_key()
    ledger.members()  # checks that nobody has edited whom it names
    _check_task(policy, study, request)
    if request.task == "train":
        check_day(policy, ledger.rounds_today())
    received, control = split_control(study, request.task, weights)
    device = _device(site)
    model = None if request.task == "describe" else load_model(study, received, request.statistics)
    plans = make_plans(ledger, approval, request.task, policy)
    released = own_statistics(hospital, study)
    # Statistics that were released are sent again and cost nothing.
    if model is not None or released is None:
        ledger.check_uses(plans.uses(), run=request.run, round_number=request.round)
    loss = make_loss(study, released) if plans.trains and model is not None else None
    state = hospital.local_states.before(request)
    if model is not None:
        for rows in set(rows_at_once(study, plans.size, site.config.compute.physical_batch)):
            check_company(study, device, rows)
        wear(model, state.norms)
        if request.task == "evaluate":
            check_tuning(hospital, ledger, plans.training, request, study, model)
    # What could stop the answer from being kept or logged must show before anything is spent.
    ledger.check_clock()
    # Only as much as the plan says: arrays of any size would measure what else is on the disk.
    hospital.outbox.check_room(weights if model is not None else {})
    hospital.log(event(request, "round-started", patients=plans.size))
    return Job(
        hospital=hospital,
        ledger=ledger,
        study=study,
        request=request,
        weights=received,
        control=control,
        incoming=digest(weights),
        model=model,
        state=state,
        loss=loss,
        plans=plans,
        device=device,
        stream=hospital.make_stream(request),
    )


def _compute(job: Job) -> Parcel:
    """Open the cohort and do what was asked; nothing is computed before it is paid for."""
    hospital = job.hospital
    cohort = hospital.load_cohort(hospital.site, job.study)
    work = take_part(job.ledger, job.plans, hospital.site.config.policy, cohort)
    session = Session(**vars(job), work=work)
    if job.model is None:
        return _describe(session)
    return (_train if job.request.task == "train" else _close)(session, job.model)


def _describe(session: Session) -> Parcel:
    """Release the study's statistics once; whoever asks again gets the same numbers."""
    hospital, study, plan = session.hospital, session.study, session.plans.description
    statistics, paid = own_statistics(hospital, study), tuple[int, ...]()
    if statistics is None and plan is not None:
        paid = session.reserve(session.plans.uses())
        statistics = describe(
            session.work.train,
            study,
            noise_multiplier=plan.noise_multiplier,
            stream=session.stream,
        )
        keep_statistics(hospital, study, statistics)
    return answer(session, "described", paid, {}, statistics=statistics)


def _train(session: Session, model: nn.Module) -> Parcel:
    """Evaluate the global model, then train it; the update is new minus global weights.

    Both with the site's own norms, where the study lets it keep them.
    """
    terms = make_terms(session.study, model, session.control, session.state)
    paid = session.reserve(session.plans.uses())
    found = session.evaluate(model)
    session.train(model, session.request.round, terms)
    update = {name: new - session.weights[name] for name, new in get_weights(model).items()}
    check_update(update, session.weights)
    evaluation = found.overall if found else None
    return answer(session, "update", paid, update, evaluation=evaluation)


def _close(session: Session, worn: nn.Module) -> Parcel:
    """Evaluate the model as it is released, and the site's own, which is made now and stays."""
    model = load_model(session.study, session.weights, session.request.statistics)
    own = fine_tune(session, worn) if makes_personal(session.study) else worn
    tuned = session.study.training.personal_rounds > 0
    paid = session.reserve(session.plans.uses())
    found = session.evaluate(model, subgroups=True)
    personal = session.evaluate(own) if tuned else None
    return answer(
        session,
        "evaluated",
        paid,
        {},
        evaluation=found.overall if found else None,
        subgroups=found.subgroups if found else {},
        personal=personal.overall if personal else None,
    )


def _keep_local(
    hospital: Hospital, study: Study, request: Request, weights: Weights, update: Weights
) -> None:
    """Go on with what the site keeps of the run, from the update that is sent, also if again."""
    received, control = split_control(study, request.task, weights)
    if request.task == "train" and (control or study.training.local_norms):
        before = hospital.local_states.before(request)
        after = before.after(study, request.round, received, control, update)
        hospital.local_states.keep(request, after)


def _check_task(policy: Policy, study: Study, request: Request) -> None:
    """Refuse what the study does not have, or what the policy leaves nothing of."""
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
    nothing = policy.evaluation == "none" and not makes_personal(study)
    if request.task == "evaluate" and nothing:
        raise PolicyRefusal(
            "policy-evaluation",
            "the server asks for an evaluation, the policy shares none",
            "policy.evaluation",
            "The study ends without this site's scores; set it to 'noised' to share them",
        )


def _device(site: Site) -> torch.device:
    if site.config.compute.threads:
        torch.set_num_threads(site.config.compute.threads)
    try:
        return pick_device(site.config.compute.device)
    except SiteError as error:
        raise PolicyRefusal("policy-device", error.what, error.where, error.todo) from None
