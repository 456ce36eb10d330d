"""What a round has come to, in figures: its line of metrics and each site's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from server.exchange import Answer
from server.history import PERSONAL
from server.release import SiteRecord
from shared.metrics import merge, scored_classes, summarise, to_record
from shared.protocol import Reply, ScoreHistogram, Spending
from shared.study import Study
from shared.subgroups import subgroup_keys

Measures = dict[str, float | int | None]
"""Metrics by name, each with the ends of its interval."""


def metrics_line(
    study: Study, number: int, seconds: float, answers: Mapping[str, Answer]
) -> dict[str, Any]:
    """Return a round's line of `metrics.jsonl`: overall metrics, and every site with its state.

    A closing evaluation also has `personal_*`, of the models fine-tuned at the sites, and
    `subgroups`, where sites have sent these.

    Args:
        study: The plan.
        number: The round.
        seconds: How long it took.
        answers: What came of asking each site, by name.
    """
    subgroups = subgroup_metrics(study, answers)
    return {
        "round": number,
        "seconds": round(seconds, 3),
        **overall_metrics(study, answers),
        **({"subgroups": subgroups} if subgroups else {}),
        "sites": {site: _site_entry(answer) for site, answer in sorted(answers.items())},
    }


def overall_metrics(study: Study, answers: Mapping[str, Answer]) -> Measures:
    """Return the metrics of all sites' held-out patients together, as `shared.metrics.Summary`.

    Those of the models fine-tuned at the sites, if there are any, are named `personal_*`. They
    are of all patients together too, each scored by the model of its own site.
    """
    replies = _evaluated(answers)
    personal = [reply.personal for reply in replies if reply.personal]
    fine_tuned = _measures(study, personal) if personal else {}
    return {
        **_measures(study, [reply.evaluation for reply in replies if reply.evaluation]),
        **{f"{PERSONAL}{name}": value for name, value in fine_tuned.items()},
    }


def subgroup_metrics(study: Study, answers: Mapping[str, Answer]) -> dict[str, Measures]:
    """Return the metrics of each subgroup over all sites that sent them; empty without any.

    One that cannot be told from noise has the value None and the interval [0, 1].
    """
    sent = [reply.subgroups for reply in _evaluated(answers) if reply.subgroups]
    keys = subgroup_keys(study) if sent else ()
    return {key: _measures(study, [cells[key] for cells in sent]) for key in keys}


def site_records(
    before: Mapping[str, SiteRecord], answers: Mapping[str, Answer]
) -> dict[str, SiteRecord]:
    """Return each site's record after a round; sites that did not deliver keep theirs."""
    after = dict(before)
    for site, answer in answers.items():
        if answer.delivered and answer.reply is not None:
            record = before.get(site, SiteRecord())
            changes: dict[str, Any] = _figures(answer.reply.spending)
            if answer.state == "update":
                changes |= {
                    "rounds": record.rounds + 1,
                    "last_round": answer.reply.round,
                    "patients": answer.reply.patients,
                }
            after[site] = record.model_copy(update=changes)
    return after


def _site_entry(answer: Answer) -> dict[str, Any]:
    entry: dict[str, Any] = {"state": answer.state, "reason": answer.reason}
    if answer.reply is not None and answer.reply.patients:
        entry["patients"] = answer.reply.patients
    if answer.reply is not None:
        entry |= _figures(answer.reply.spending)
    reply = answer.reply if answer.delivered else None
    if reply and reply.evaluation:
        entry |= _auc(reply.evaluation, "auc")
    if reply and reply.personal:
        entry |= _auc(reply.personal, f"{PERSONAL}auc")
    return entry


def _auc(histogram: ScoreHistogram, name: str) -> Measures:
    it = summarise(histogram)
    return {name: it.auc, f"{name}_low": it.auc_low, f"{name}_high": it.auc_high}


def _figures(spending: Spending | None) -> dict[str, float]:
    return spending.model_dump(exclude={"version", "steps"}) if spending else {}


def _evaluated(answers: Mapping[str, Answer]) -> list[Reply]:
    """Return the replies of the sites that did what was asked, by the sites' names."""
    return [a.reply for _, a in sorted(answers.items()) if a.delivered and a.reply]


def _measures(study: Study, histograms: Sequence[ScoreHistogram]) -> Measures:
    nothing = np.zeros((len(scored_classes(study)), 2, study.privacy.score_bins))
    return asdict(summarise(merge([to_record(nothing, 0.0), *histograms])))
