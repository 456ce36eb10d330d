"""What a round has come to, in figures: its line of metrics and each site's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from server.exchange import Answer
from server.release import SiteRecord
from shared.metrics import merge, scored_classes, summarise, to_record
from shared.protocol import ScoreHistogram, Spending
from shared.study import Study


def metrics_line(
    study: Study, number: int, seconds: float, answers: Mapping[str, Answer]
) -> dict[str, Any]:
    """Return a round's line of `metrics.jsonl`: overall metrics, and every site with its state.

    Args:
        study: The plan.
        number: The round.
        seconds: How long it took.
        answers: What came of asking each site, by name.
    """
    return {
        "round": number,
        "seconds": round(seconds, 3),
        **overall_metrics(study, answers),
        "sites": {site: _site_entry(answer) for site, answer in sorted(answers.items())},
    }


def overall_metrics(study: Study, answers: Mapping[str, Answer]) -> dict[str, float | int | None]:
    """Return the metrics of all sites' held-out patients together, as `shared.metrics.Summary`."""
    nothing = np.zeros((len(scored_classes(study)), 2, study.privacy.score_bins))
    histograms = [h for _, answer in sorted(answers.items()) if (h := _histogram(answer))]
    return asdict(summarise(merge([to_record(nothing, 0.0), *histograms])))


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
                changes |= {"rounds": record.rounds + 1, "patients": answer.reply.patients}
            after[site] = record.model_copy(update=changes)
    return after


def _site_entry(answer: Answer) -> dict[str, Any]:
    entry: dict[str, Any] = {"state": answer.state, "reason": answer.reason}
    if answer.reply is not None and answer.reply.patients:
        entry["patients"] = answer.reply.patients
    if answer.reply is not None:
        entry |= _figures(answer.reply.spending)
    if histogram := _histogram(answer):
        summary = summarise(histogram)
        entry |= {"auc": summary.auc, "auc_low": summary.auc_low, "auc_high": summary.auc_high}
    return entry


def _figures(spending: Spending | None) -> dict[str, float]:
    return spending.model_dump(exclude={"version", "steps"}) if spending else {}


def _histogram(answer: Answer) -> ScoreHistogram | None:
    return answer.reply.evaluation if answer.delivered and answer.reply else None
