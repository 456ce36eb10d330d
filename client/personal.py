"""The model as a site uses it: the released one, fine-tuned on its own patients; it never leaves.

Fine-tuning is private training like any round's and is charged like it, although the model stays:
who sees its evaluation, or is shown the model one day, learns no more than the budget allows.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from client.hospital import Hospital
from client.outbox import digest
from client.policy import check_day
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.session import Session
from shared.errors import SiteError
from shared.models import build_model, get_weights, set_weights
from shared.protocol import Request, Statistics
from shared.study import Study
from shared.transport import Weights


def makes_personal(study: Study) -> bool:
    """Tell whether a study leaves each site with a model of its own."""
    return study.training.personal_rounds > 0 or study.training.local_norms


def fine_tune(session: Session, model: nn.Module) -> nn.Module:
    """Return the site's own model, and keep it, encrypted.

    Each round is reserved, trained, kept and committed before the next, so that a crash costs
    the one it was in: the rest goes on from what was kept, under another reservation for that
    round. Terms against drift have no part in it, since drifting is its purpose. What is kept
    of an earlier run, or from other weights, is replaced.

    Args:
        session: The closing evaluation.
        model: The released weights with the site's own norms; it stays as it is.

    Raises:
        SiteError: The model cannot be kept.
    """
    hospital, study = session.hospital, session.study
    start, own = digest(get_weights(model)), copy.deepcopy(model)
    kept = _begun(hospital, study, start) or _keep(session, start, 0, own)
    set_weights(own, kept.weights)
    for number in range(kept.header.rounds + 1, study.training.personal_rounds + 1):
        paid = session.reserve(
            [(session.plans.training, 1)], round_number=study.federation.rounds + number
        )
        session.train(own, study.federation.rounds + number)
        _keep(session, start, number, own)
        session.ledger.commit(paid)
    return own


def check_tuning(
    hospital: Hospital, ledger: Ledger, plan: Plan, request: Request, study: Study, model: nn.Module
) -> None:
    """Refuse fine-tuning that could not be brought to its end, before the first round.

    A limit that is met half way would leave rounds charged and no answer to send.

    Args:
        hospital: The site.
        ledger: Its ledger.
        plan: The study's, for training.
        request: The closing evaluation.
        study: The study.
        model: What `fine_tune` is to begin with.

    Raises:
        PolicyRefusal: `policy-rounds`: the day has no room for all rounds; `budget-exhausted`:
            the study has not so many left.
    """
    kept = _begun(hospital, study, digest(get_weights(model)))
    done, rounds = kept.header.rounds if kept else 0, study.training.personal_rounds
    if done == rounds:
        return
    check_day(hospital.site.config.policy, ledger.rounds_today(), rounds - done)
    first = study.federation.rounds + done + 1
    ledger.check_uses([(plan, 1)], run=request.run, round_number=first)
    ledger.check_uses(
        [(plan, rounds - done)], run=request.run, round_number=study.federation.rounds + rounds
    )


def personal_weights(hospital: Hospital, study: Study) -> Weights:
    """Return the weights of the site's own model after the study's closing evaluation.

    Raises:
        SiteError: The study leaves none, has not closed here, or the file is lost.
    """
    return _finished(hospital, study).weights


def personal_model(hospital: Hospital, study: Study) -> nn.Module:
    """Return the site's own model, ready to predict.

    Raises:
        SiteError: As `personal_weights`.
    """
    kept = _finished(hospital, study)
    model = build_model(study, kept.header.statistics)
    set_weights(model, kept.weights)
    return model.eval()


class _Header(BaseModel):
    """What is known of a kept model beside its weights.

    Attributes:
        start: Digest of the weights fine-tuning began with.
        rounds: Rounds of fine-tuning done.
        statistics: Of all sites, for models that fill in from them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: str
    rounds: int
    statistics: Statistics | None


@dataclass(frozen=True)
class _Kept:
    header: _Header
    weights: Weights


def _keep(session: Session, start: str, rounds: int, model: nn.Module) -> _Kept:
    study, hospital = session.study, session.hospital
    header = _Header(start=start, rounds=rounds, statistics=session.request.statistics)
    kept = _Kept(header, get_weights(model))
    text = header.model_dump_json().encode()
    path = hospital.site.local / _name(study)
    plain = struct.pack("<I", len(text)) + text + save(kept.weights)
    hospital.vault.write(path, plain, f"local/{path.name}")
    return kept


def _read(hospital: Hospital, study: Study) -> _Kept | None:
    """Return what is kept; a file that was damaged counts as lost."""
    path = hospital.site.local / _name(study)
    try:
        plain = hospital.vault.read(path, f"local/{path.name}")
        (length,) = struct.unpack_from("<I", plain)
        header = _Header.model_validate_json(plain[4 : 4 + length])
        return _Kept(header, load(plain[4 + length :]))
    except (SiteError, ValidationError, SafetensorError, struct.error):
        return None


def _begun(hospital: Hospital, study: Study, start: str) -> _Kept | None:
    """Return what is kept of fine-tuning that began with the weights of this digest."""
    kept = _read(hospital, study)
    return kept if kept and kept.header.start == start else None


def _finished(hospital: Hospital, study: Study) -> _Kept:
    kept = _read(hospital, study)
    if kept is None or kept.header.rounds < study.training.personal_rounds:
        raise SiteError(
            "the site has no finished model of its own",
            f"study {study.digest[:12]}",
            "It is made at the closing evaluation of studies with training.personal_rounds or "
            "training.local_norms",
        )
    return kept


def _name(study: Study) -> str:
    return f"personal-{study.digest}.sealed"
