"""A study in plain words, for data-protection officers and coordinators."""

from __future__ import annotations

import math
from contextlib import suppress

from shared.errors import StudyError
from shared.explain_noise import score_targets, site_noise
from shared.explain_remedies import remedies, subgroups_price
from shared.statistics import statistics_layout
from shared.study import Study
from shared.subgroups import subgroup_keys


def explain_study(study: Study) -> list[str]:
    """Return the study in plain words, one topic an entry, as `Topic: text`."""
    return [f"{topic}: {text}" for topic, text in study_topics(study)]


def study_topics(study: Study) -> list[tuple[str, str]]:
    """Return the study in plain words as pairs of topic and text."""
    privacy = _privacy(study) if study.privacy.enabled else _no_privacy(study)
    switched_on = [(f"Remedy ({remedy.name})", remedy.text) for remedy in remedies(study)]
    return [*_task(study), *_course(study), *switched_on, *_traffic(study), *privacy]


def certainty(epsilon: float, delta: float) -> float:
    """Return how often the best guess whether a patient was in the data can be right.

    (e^epsilon + delta) / (e^epsilon + 1): the most (epsilon, delta) allows when both answers
    are equally likely beforehand (Kairouz, Oh and Viswanath 2015, theorem 2.1). In [1/2, 1].
    """
    return (1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon))


def parameters(study: Study) -> int:
    """Return the number of parameters of the study's model."""
    from shared.models import build_model

    return sum(p.numel() for p in build_model(study).parameters())


def _task(study: Study) -> list[tuple[str, str]]:
    classes = study.task.classes
    told = " and ".join(classes) if len(classes) == 2 else ", ".join(classes)
    source = "images" if study.table is None else "rows of a table"
    if study.task.findings:
        learned = (
            f"to find {told} on {source}. A patient may have any number of these, and each has a "
            "probability of its own."
        )
    elif len(classes) == 2:
        scored = classes[study.task.positive_index]
        learned = f"to tell {told} apart on {source}. The score is the probability of {scored}."
    else:
        learned = f"to tell {told} apart on {source}. Each class is scored against all others."
    count = parameters(study)
    name = {
        "cnn": "a convolutional network (cnn)",
        "attention": "an attention network over image patches (attention)",
        "linear": "a linear model on fixed wavelets (linear)",
        "table": "a perceptron (table)",
    }[study.model.name]
    return [
        ("What is learned", learned),
        _input(study),
        (
            "Model",
            f"{name} with {count:,} parameters, {_size(4 * count)}. Its first weights follow "
            "from this plan, so everybody can check them.",
        ),
    ]


def _input(study: Study) -> tuple[str, str]:
    if study.table is not None:
        numbers = [column.name for column in study.table.columns if not column.categories]
        others = [column.name for column in study.table.columns if column.categories]
        kinds = [
            f"{_many(len(names), kind)} ({', '.join(names)})"
            for names, kind in (
                (numbers, "number"),
                (
                    others,
                    "category",
                ),
            )
            if names
        ]
        return (
            "Table",
            f"{' and '.join(kinds)} a patient. The range of each number is part of the plan, and "
            "values outside count as its end.",
        )
    image = study.input
    colour = "grey" if image.channels == 1 else "colour"
    origin = f"of {' and '.join(image.modalities)}" if image.modalities else "of any modality"
    read = f"brought to {image.size} by {image.size} pixels in {colour}."
    if image.kinds == ("image",):
        aside = "Nothing computed from images, such as segmentations or dose, is read."
        return "Images", f"plain DICOM images {origin}, {read} {aside}"
    asked = " or ".join(image.kinds)
    return "Images", f"DICOM files that hold an object of kind {asked}, {origin}, {read}"


def _course(study: Study) -> list[tuple[str, str]]:
    plan, training = study.federation, study.training
    return [
        (
            "Course",
            f"{_many(plan.rounds, 'round')}. In each, every hospital takes "
            f"{_many(training.local_steps, 'training step')} on its own patients; each patient "
            f"takes part in a step with a chance of {100 * training.sampling_rate:.3g} %. "
            f"{_many(plan.sites, 'hospital')} {'is' if plan.sites == 1 else 'are'} expected; "
            f"a round counts if at least {plan.min_sites} of them deliver, and may take "
            f"{plan.round_deadline:g} seconds.",
        ),
        (
            "Data",
            f"About {100 * study.data.held_out:.3g} % of each hospital's patients are held out: "
            f"the model is evaluated on them and never trained on them. {_split(study)} A label "
            "belongs to a patient, and a patient whose labels differ is set aside. Whether a "
            "hospital has patients enough to take part, its own policy says.",
        ),
    ]


def _split(study: Study) -> str:
    if key := study.data.split_key:
        return (
            f"Which ones follows from a key the hospitals share by hand (fingerprint {key}), so "
            "that a patient of two hospitals is on the same side in both."
        )
    return (
        "Which ones follows from a secret key of each hospital, so that a patient of two hospitals "
        "may be trained on in one and held out in the other."
    )


def _traffic(study: Study) -> list[tuple[str, str]]:
    targets, bins = score_targets(study), study.privacy.score_bins
    noised = "noised " if study.privacy.enabled else ""
    change = f"the {noised}change of the model's weights"
    counts = targets * 2 * bins
    scores = (
        f"how many held-out patients got which score, as {counts} counts "
        f"({_many(targets, 'class', 'classes')}, with and without it, {bins} bins of the score), "
        "with noise added, unless the hospital's own policy shares exact counts or none; "
    )
    closing = "the final model is evaluated once more"
    if not study.evaluates_rounds:
        closing = f"the final model is evaluated, once: {scores.removesuffix('; ')}"
    return [
        (
            "What leaves a hospital",
            f"each round: {change}; {scores if study.evaluates_rounds else ''}the size of its "
            "cohort, as a person there declared it; the privacy spent; and a hash that stands for "
            f"its ledger. A refusal is a code without numbers. After the last round {closing}."
            + _before(study)
            + _after(study, counts),
        ),
        (
            "What never leaves",
            "images, labels, patient ids, file names, DICOM tags, values of the table, scores of "
            "single patients, and the training loss.",
        ),
    ]


def _before(study: Study) -> str:
    """Return what leaves before the first round, if anything does."""
    if not study.needs_statistics:
        return ""
    classes, columns = statistics_layout(study)
    noise = "" if study.privacy.enabled else ", without noise"
    described = f" and {sum(columns)} counts of who has which value in a column" if columns else ""
    return (
        f" Before the first round, once: {classes} counts of training patients by class"
        f"{described}{noise}."
    )


def _after(study: Study, counts: int) -> str:
    """Return what leaves with the closing evaluation beside its own counts."""
    text = ""
    if study.training.personal_rounds:
        text += " Then as many counts of the scores of the hospital's own fine-tuned model leave."
    if names := study.privacy.subgroups:
        cells = len(subgroup_keys(study))
        text += (
            f" Then the counts are also split by {' and by '.join(names)}, {cells} groups of "
            f"{counts}; this makes the noise of that one evaluation "
            f"{subgroups_price(study):.2g} times as large."
        )
    return text


def _privacy(study: Study) -> list[tuple[str, str]]:
    epsilon, delta = study.privacy.epsilon, study.privacy.delta
    chosen = "the smaller of 1e-5 and 1/(10 N) for N patients" if delta is None else f"{delta:g}"
    right = certainty(epsilon, 1e-5 if delta is None else delta)
    spare = study.privacy.spare_rounds
    return [
        (
            "Privacy",
            f"each hospital gives each of its patients differential privacy with epsilon "
            f"{epsilon:g} and delta {chosen}, over the whole study and with all of a patient's "
            "images, against the coordinator and the other hospitals too.",
        ),
        (
            "What epsilon means",
            "what leaves looks almost the same whether or not one patient was among the data. "
            "Someone who knows everything else and guesses whether that patient was is right at "
            f"most {_percent(right)} of the time, where a coin is right 50 %. Smaller is "
            "stronger. Delta is a small chance that this bound does not hold." + _replaced(study),
        ),
        (
            "How it is done",
            f"in each step a patient's influence is cut to a fixed size "
            f"({study.privacy.clip:g}), whatever the number of images, of which at most "
            f"{study.privacy.images_per_patient} are used; then noise is added that blurs what "
            "any one patient can change. The noise is set for all "
            f"{study.total_steps:,} steps of the study"
            + (f", {_many(spare, 'spare round')} for repeats included" if spare else "")
            + ". A ledger at the hospital records what is spent and ends the hospital's part "
            "when the budget is used up.",
        ),
        (
            "What it does not hide",
            "that a hospital takes part, about how many patients it has, as a person there "
            "declared, and what is true of patients in general. It does not protect a patient who "
            "is at two hospitals as one person: what the two spend adds up.",
        ),
    ]


def _replaced(study: Study) -> str:
    """Return epsilon where a patient is replaced; nothing if no noise keeps the budget."""
    with suppress(StudyError):
        found = math.ceil(100 * site_noise(study, 1).replacement_epsilon) / 100
        return f" If other data replaces a patient's, and not nothing, epsilon is {found:g}."
    return ""


def _no_privacy(study: Study) -> list[tuple[str, str]]:
    return [
        ("Privacy", f"NONE. {NO_PRIVACY}"),
        (
            "Evaluation",
            "the counts of held-out patients' scores are noised all the same, where the "
            f"hospital's own policy shares noised ones: these patients give up epsilon "
            f"{study.privacy.epsilon:g} over the whole study.",
        ),
    ]


NO_PRIVACY = (
    "Differential privacy is switched off: the weights each hospital sends are computed from its "
    "images without noise. Whoever sees them can find out who was among the data and may rebuild "
    "images. Hospitals refuse such a study unless their own policy allows it. Do not use it on "
    "real patients without another legal basis."
)
"""What training without differential privacy means."""


def _percent(share: float) -> str:
    """Return a share of at most 1, rounded up, but never up to certainty."""
    for scale in (10, 100, 1000, 10_000):
        percent = math.ceil(100 * share * scale) / scale
        if percent < 100:
            return f"{percent:g} %"
    return "practically 100 %"


def _size(octets: int) -> str:
    return f"{octets / 1000:.0f} kB" if octets < 1_000_000 else f"{octets / 1e6:.1f} MB"


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
