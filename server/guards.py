"""Rules an answer must pass before it may change the global model; each returns its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from server.aggregate import LARGEST_VALUE
from server.exchange import DONE
from shared.metrics import scored_classes
from shared.protocol import Reply, Request, ScoreHistogram
from shared.statistics import statistics_layout, statistics_sensitivity
from shared.study import Study
from shared.subgroups import subgroup_keys
from shared.transport import Weights


@dataclass(frozen=True)
class Submission:
    """One site's answer beside what was asked of it.

    Attributes:
        study: The plan of the run.
        request: What the site was asked.
        reply: What it answered.
        update: New minus global weights.
        reference: The global weights that were sent.
    """

    study: Study
    request: Request
    reply: Reply
    update: Weights
    reference: Weights


Rule = Callable[[Submission], str]
"""Returns why a submission is refused, or an empty text."""

MOST_PATIENTS = 10_000_000
"""Largest number of patients one site is believed to have; more would drown the others."""

MOST_IN_A_BIN = 1e9
"""Largest noised count believed, far above any cohort with any useful noise."""


def first_objection(rules: Sequence[Rule], submission: Submission) -> str:
    """Return the first rule's reason to refuse the submission, or an empty text."""
    return next((reason for rule in rules if (reason := rule(submission))), "")


def for_this_round(it: Submission) -> str:
    """Refuse an answer to another study, run or round."""
    for field in ("study_digest", "run", "round"):
        if getattr(it.reply, field) != getattr(it.request, field):
            return f"its {field.replace('_', ' ')} is not the one asked for"
    return ""


def answers_the_task(it: Submission) -> str:
    """Refuse an update where an evaluation was asked for, and the reverse."""
    return "" if it.reply.outcome == DONE[it.request.task] else f"it did not {it.request.task}"


def believable_patients(it: Submission) -> str:
    """Refuse an update from no patient, or from more than any hospital has."""
    believable = 1 <= it.reply.patients <= MOST_PATIENTS
    return "" if believable else f"its number of patients is not between 1 and {MOST_PATIENTS}"


def right_names(it: Submission) -> str:
    """Refuse an update whose arrays are not the model's."""
    wrong = it.update.keys() ^ it.reference.keys()
    return f"{len(wrong)} of its arrays are missing or not the model's" if wrong else ""


def right_shapes(it: Submission) -> str:
    """Refuse an update with an array of another shape; names must have been checked."""
    for name, array in it.reference.items():
        if it.update[name].shape != array.shape:
            return f"{name} has shape {it.update[name].shape} instead of {array.shape}"
    return ""


def right_dtypes(it: Submission) -> str:
    """Refuse an update that is not float32 throughout."""
    for name, array in it.update.items():
        if array.dtype != np.float32:
            return f"{name} is {array.dtype} instead of float32"
    return ""


def finite(it: Submission) -> str:
    """Refuse NaN and infinity."""
    for name, array in it.update.items():
        if not np.all(np.isfinite(array)):
            return f"{name} has values that are not finite"
    return ""


def summable(it: Submission) -> str:
    """Refuse values beyond the range of the exact sum."""
    for name, array in it.update.items():
        if np.any(np.abs(array) > LARGEST_VALUE):
            return f"{name} has a value beyond {LARGEST_VALUE:g}"
    return ""


@dataclass(frozen=True)
class NormBelow:
    """Refuse an update out of proportion to the model it changes.

    Noise makes honest private updates of small sites large, so this is a bound on the absurd
    (a broken optimiser, a wrong scale), not a defence against a subtle attack.

    Attributes:
        factor: Largest L2 norm of an update, in units of the global weights' norm (at least 1).
    """

    factor: float = 100.0

    def __call__(self, it: Submission) -> str:
        """Compare the two norms."""
        norm, limit = _norm(it.update), self.factor * max(1.0, _norm(it.reference))
        return "" if norm <= limit else f"its norm of {norm:.3g} exceeds {limit:.3g}"


def believable_evaluation(it: Submission) -> str:
    """Refuse score histograms that are not the study's; none at all is the site's right."""
    cells = it.reply.subgroups
    if cells and set(cells) != set(subgroup_keys(it.study)):
        return "its subgroups are not the study's"
    if it.reply.personal and not it.study.training.personal_rounds:
        return "it evaluated a personal model, which the study does not have"
    histograms = (it.reply.evaluation, it.reply.personal, *cells.values())
    reasons = (_objection_to_scores(it.study, each) for each in histograms if each is not None)
    return next(filter(None, reasons), "")


def believable_statistics(it: Submission) -> str:
    """Refuse counts that are not laid out as the study's, or with other noise than its own."""
    statistics, study = it.reply.statistics, it.study
    if statistics is None:
        return "it sent no statistics"
    classes, columns = statistics_layout(study)
    if (len(statistics.classes), tuple(map(len, statistics.columns))) != (classes, columns):
        return "its counts are not of the study's classes and columns"
    private = study.privacy.enabled
    noise = study.privacy.statistics_noise * statistics_sensitivity(study) if private else 0.0
    if not math.isclose(statistics.noise, noise, rel_tol=1e-6):
        return f"the noise of its counts is {statistics.noise:.4g}; the study asks for {noise:.4g}"
    if max(map(abs, (*statistics.classes, *sum(statistics.columns, ())))) > MOST_IN_A_BIN:
        return "it counts more patients than there can be"
    return ""


DESCRIPTION_RULES: tuple[Rule, ...] = (for_this_round, answers_the_task, believable_statistics)
"""What the answer to the question for statistics must pass."""

EVALUATION_RULES: tuple[Rule, ...] = (for_this_round, answers_the_task, believable_evaluation)
"""What the answer to the closing evaluation must pass."""

UPDATE_RULES: tuple[Rule, ...] = (
    *EVALUATION_RULES,
    believable_patients,
    right_names,
    right_shapes,
    right_dtypes,
    finite,
    summable,
    NormBelow(),
)
"""What an update must pass, in this order: later rules rely on the earlier ones."""


def _objection_to_scores(study: Study, histogram: ScoreHistogram) -> str:
    if histogram.targets != len(scored_classes(study)):
        return "its score histograms are not of the study's classes"
    if histogram.bins != study.privacy.score_bins:
        return "its score histograms do not have the study's bins"
    if max(map(abs, (histogram.noise, *histogram.counts))) > MOST_IN_A_BIN:
        return "its score histograms count more patients than there can be"
    return ""


def _norm(weights: Weights) -> float:
    return float(np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in weights.values())))
