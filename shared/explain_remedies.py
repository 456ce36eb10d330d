"""The remedies a study switches on, in plain words: what each does, under privacy, and its cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.study import Study, trimmed_sites


@dataclass(frozen=True)
class Remedy:
    """One remedy that is on.

    Attributes:
        name: What it is called.
        does: What it does.
        sound: Why it keeps, or has no part in, the privacy of patients; empty without privacy.
        costs: What it costs.
    """

    name: str
    does: str
    sound: str
    costs: str

    @property
    def text(self) -> str:
        """Everything about it in sentences."""
        return " ".join(filter(None, (self.does, self.sound, self.costs)))


def remedies(study: Study) -> tuple[Remedy, ...]:
    """Return the remedies of a study, those at the hospitals first; empty for plain averaging."""
    found = (*_losses(study), *_local(study), *_missing(study), *_server(study))
    if study.privacy.enabled:
        return found
    return tuple(Remedy(it.name, it.does, "", it.costs) for it in found)


ALONE = "Sound under privacy: a patient's part depends on this patient and on constants alone."
AFTER_NOISE = (
    "Sound under privacy: it acts after the noise is added, on quantities that were noised before."
)
AT_THE_SERVER = "Sound under privacy: it only processes updates that were noised at the hospitals."
NO_PRICE = "It costs no privacy."


def _losses(study: Study) -> list[Remedy]:
    loss = study.training.loss
    counted = (
        "Sound under privacy: the hospital's class counts are noised and paid for before they "
        "are used."
    )
    price = f"It costs the release of these counts, {_counts_price(study)}"
    match loss.name:
        case "focal":
            return [
                Remedy(
                    "focal loss",
                    f"Patients the model is already sure of count less (gamma {loss.gamma:g}).",
                    ALONE,
                    f"{NO_PRICE} Its probabilities are less well calibrated.",
                )
            ]
        case "class-balanced":
            return [
                Remedy(
                    "class-balanced loss",
                    "Patients of a rare class count more, by how many of the class the hospital "
                    f"has (beta {loss.beta:g}).",
                    counted,
                    f"{price} Probabilities come out as if all classes were as frequent.",
                )
            ]
        case "logit-adjustment":
            return [
                Remedy(
                    "logit adjustment",
                    "In training the model is told how frequent each class is at the hospital, so "
                    f"that it need not learn it (strength {loss.tau:g}).",
                    counted,
                    f"{price} Probabilities come out as if all classes were as frequent.",
                )
            ]
    return []


def _local(study: Study) -> list[Remedy]:
    training = study.training
    found = []
    if training.proximal:
        found.append(
            Remedy(
                "FedProx",
                "Each step is pulled back towards the model the round began with (strength "
                f"{training.proximal:g}), so that hospitals drift apart less.",
                AFTER_NOISE,
                f"{NO_PRICE} Too strong a pull slows learning.",
            )
        )
    if training.control:
        found.append(
            Remedy(
                "SCAFFOLD",
                "Each hospital's steps are corrected by how its direction differs from that of "
                "all, which is worked out from the updates.",
                AFTER_NOISE,
                f"{NO_PRICE} The server sends twice as much, each hospital keeps its correction "
                "encrypted, and the noise of one round's update returns in the next one's steps.",
            )
        )
    if training.local_norms:
        found.append(
            Remedy(
                "local normalisation",
                "Each hospital trains with normalisation layers of its own, for its own scanners.",
                AFTER_NOISE,
                f"{NO_PRICE} The released model has the mean of these layers; a hospital that did "
                "not take part has none of its own.",
            )
        )
    if rounds := training.personal_rounds:
        share = rounds / study.training_uses
        found.append(
            Remedy(
                "personal models",
                f"At the end each hospital fine-tunes the model for {_rounds(rounds)} more and "
                "keeps the result; only the noised counts of its scores leave.",
                "Sound under privacy: these rounds have the same noise, though they never leave, "
                "as their scores do.",
                f"They take {100 * share:.0f} % of the training the budget is spread over, which "
                "means more noise in every round." + (_OWN_NOISE if study.privacy.enabled else ""),
            )
        )
    return found


_OWN_NOISE = (
    " Alone with its noise, a hospital of some tens of patients makes the model worse: simulate "
    "such hospitals first, and use a personal model only where its scores are the better ones."
)


def _missing(study: Study) -> list[Remedy]:
    found = []
    if study.task.findings:
        found.append(
            Remedy(
                "labels may be missing",
                "A patient's loss is the mean over the findings that are known of this patient; "
                "what is unknown is neither learned from nor evaluated.",
                ALONE,
                NO_PRICE,
            )
        )
    if study.table is None:
        return found
    centre = "The model gets the {} of all hospitals instead, found from their histograms."
    filled = (
        "Sound under privacy: the histograms are noised and paid for before they are used.",
        f"It costs the release of the histograms, {_counts_price(study)} That a value is missing "
        "is not told to the model.",
    )
    texts = {
        "drop": (
            "Patients with a missing value are left out of training.",
            "Sound under privacy: a patient's own values decide.",
            f"{NO_PRICE} It costs these patients.",
        ),
        "mean": (centre.format("mean"), *filled),
        "median": (centre.format("median"), *filled),
        "indicator": (
            "The model gets a constant instead, and is told that the value is missing.",
            ALONE,
            f"{NO_PRICE} The model has one more input a column.",
        ),
        "embedding": (
            "The model learns what to put there.",
            ALONE,
            f"{NO_PRICE} The model has one more weight a column.",
        ),
    }
    missing = study.table.missing
    return [*found, Remedy(f"missing values: {missing}", *texts[missing])]


def _server(study: Study) -> list[Remedy]:
    return [*_aggregators(study), *_optimisers(study)]


def _aggregators(study: Study) -> list[Remedy]:
    plan = study.federation
    alike = (
        f"{NO_PRICE} Hospitals count alike, whatever their size, so the noise of the smallest "
        "counts in full, and what only few hospitals have is lost. The server keeps all updates "
        "of a round in memory."
    )
    if plan.aggregator == "median":
        does = (
            "Of each weight's changes the one in the middle is taken. It stays with the honest "
            f"hospitals while fewer than half send nonsense: {(plan.min_sites - 1) // 2} of the "
            f"{plan.min_sites} a round needs."
        )
        return [Remedy("median of the updates", does, AT_THE_SERVER, alike)]
    if plan.aggregator == "trimmed-mean":
        few, all_ = (trimmed_sites(plan.trim, n) for n in (plan.min_sites, plan.sites))
        does = (
            f"Of each weight's changes the largest and smallest {100 * plan.trim:g} % are left "
            f"out, rounded down: {all_} at each end of {plan.sites} hospitals, {few} of the "
            f"{plan.min_sites} a round needs. It withstands as many that send nonsense."
        )
        return [Remedy("trimmed mean of the updates", does, AT_THE_SERVER, alike)]
    return []


def _optimisers(study: Study) -> list[Remedy]:
    plan, average = study.federation.optimiser, study.federation.average
    found = []
    rate = f"{plan.learning_rate:g}"
    if plan.name == "momentum":
        does = (
            f"The model moves by {rate} times the running mean of the rounds' changes (decay "
            f"{plan.momentum:g}), which evens out rounds that pull different ways."
        )
        costs = f"{NO_PRICE} The first rounds move less."
        found.append(Remedy("server momentum", does, AT_THE_SERVER, costs))
    elif plan.name in ("adam", "yogi"):
        does = (
            "Each weight moves by the running mean of its changes over the root of their mean "
            f"square, so by about {rate} a round at most, rare features as far as frequent ones."
        )
        costs = f"{NO_PRICE} Noise counts as change: weights of which little is learned move too."
        found.append(Remedy(f"server {plan.name}", does, AT_THE_SERVER, costs))
    elif plan.learning_rate != 1:
        does = f"The model moves by {rate} times the mean change."
        found.append(Remedy("server learning rate", does, AT_THE_SERVER, NO_PRICE))
    if average:
        does = (
            "The released model is a running mean of the rounds' models (decay "
            f"{average:g}), which averages noise out."
        )
        found.append(Remedy("mean of the rounds' models", does, AT_THE_SERVER, NO_PRICE))
    return found


def subgroups_price(study: Study) -> float:
    """Return how many times as much noise the closing evaluation has because of subgroups."""
    return math.sqrt(1 + len(study.privacy.subgroups))


def _counts_price(study: Study) -> str:
    if not study.privacy.enabled:
        return "which carry no noise here."
    return f"{study.privacy.statistics_noise:g} times as noisy as one patient's part in them."


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"
