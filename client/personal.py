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

from client.describe import own_statistics
from client.hospital import Hospital
from client.outbox import digest
from client.policy import check_day
from client.session import Session
from shared.errors import SiteError
from shared.losses import make_loss
from shared.models import build_model, get_weights, set_weights
from shared.protocol import Statistics
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
        PolicyRefusal: `policy-rounds`, before the first round, if the day has no room for all;
            `budget-exhausted`, before the round concerned; `out-of-order` if the loss needs
            counts the site has not released.
        SiteError: The model cannot be kept.
    """
    hospital, study, rounds = session.hospital, session.study, session.study.federation.rounds
    start, own = digest(get_weights(model)), copy.deepcopy(model)
    kept = _read(hospital, study)
    if kept is None or kept.header.start != start:
        kept = _keep(session, start, 0, own)
    set_weights(own, kept.weights)
    left = range(kept.header.rounds + 1, study.training.personal_rounds + 1)
    if left:
        # A limit that is met half way would leave rounds charged and no answer to send.
        check_day(hospital.site.config.policy, session.ledger.rounds_today(), len(left))
    for number in left:
        loss = make_loss(study, own_statistics(hospital, study))
        paid = session.reserve(session.work.tuning(), round_number=rounds + number)
        session.train(own, rounds + number, loss)
        _keep(session, start, number, own)
        session.ledger.commit(paid)
    return own


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
