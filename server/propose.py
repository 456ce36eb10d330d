"""A study proposed from a few answers: plain rules, each with its reason."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared.errors import StudyError
from shared.explain_noise import BEARABLE, training_noise, verdict
from shared.study import FORMAT, Study, parse_study

Kind = Literal["xray", "ct", "mri", "ultrasound", "colour", "other"]
Wish = Literal["strong", "medium", "light", "none"]
Hardware = Literal["cpu", "gpu"]
Network = Literal["auto", "cnn", "linear", "attention"]


@dataclass(frozen=True)
class Wishes:
    """The coordinator's answers.

    Attributes:
        name: Name of the study.
        classes: What is to be told apart; the last is the one to find.
        kind: Kind of images.
        patients: Labelled patients of the smallest site, held-out ones included.
        sites: Number of sites.
        hardware: What the sites compute on.
        privacy: How strong the guarantee should be.
        size: Side of the images in pixels; None: by kind and hardware.
        model: Kind of model; "auto": by how much noise the patients must bear.
    """

    name: str
    classes: tuple[str, ...]
    kind: Kind = "xray"
    patients: int = 500
    sites: int = 3
    hardware: Hardware = "cpu"
    privacy: Wish = "medium"
    size: int | None = None
    model: Network = "auto"


@dataclass(frozen=True)
class Choice:
    """Keys of one section of the study, and why they have these values."""

    section: str
    values: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Proposal:
    """A valid study, and the choices it is made of."""

    study: Study
    choices: tuple[Choice, ...]

    def to_toml(self) -> str:
        """Return the study as TOML, each choice under a comment with its reason."""
        first, *rest = self.choices
        sections = {choice.section for choice in rest}
        order = sorted(sections, key=[c.section for c in rest].index)
        lines = [*_comment(first.reason), *_keys(first)]
        for section in order:
            lines += ["", f"[{section}]"]
            for choice in [c for c in rest if c.section == section]:
                lines += [*_comment(choice.reason), *_keys(choice)]
        return "\n".join(lines) + "\n"


def propose(wishes: Wishes) -> Proposal:
    """Return a study for these wishes.

    Raises:
        StudyError: An answer is out of range, such as a name with spaces.
    """
    if wishes.patients < FEWEST or wishes.sites < 1:
        raise StudyError(
            f"a study needs at least one site and {FEWEST} patients at each",
            todo="Ask for more patients, or leave the smallest site out",
        )
    size = image_size(wishes)
    choices = [
        Choice("", {"format": FORMAT, "name": wishes.name}, OPENING),
        Choice("task", {"classes": list(wishes.classes)}, "The last class is the one to find."),
        size,
        image_kind(wishes),
        privacy(wishes),
        federation(wishes),
        cohort(wishes),
    ]
    noise, found = schedule(wishes, choices)
    # The round count belongs to the federation, the rest to the training.
    choices[4:4] = [model(wishes, size.values["size"], noise), *found]
    return Proposal(_study(choices), tuple(choices))


FEWEST = 10
"""Fewest patients of a site a study is proposed for."""

HELD_OUT = 0.15
"""Part of the patients kept for evaluation, as in the study's default."""

PATCHES = range(8, 3, -1)
"""Patches to a side for attention, the best first; four is what it was measured with."""

SMALLEST_PATCH = 7
"""Smallest side of a patch for attention, in pixels; as it was measured."""

EPSILONS: dict[Wish, float] = {"strong": 1.0, "medium": 3.0, "light": 8.0}

PLANS = ((20, 0.02), (20, 0.05), (20, 0.1), (20, 0.2), (10, 0.2), (10, 0.4))
"""Rounds and sampling rates to try; each has less noise over signal than the one before."""

WORTH = 1.15
"""Noise over signal is not lowered by less than this factor at the price of larger lots."""

OPENING = (
    "A proposed study. Read every choice and its reason, change what you know better, then see "
    "what it means with `consilium server check`."
)


def image_size(wishes: Wishes) -> Choice:
    """Choose the side of the images; attention needs one that can be cut into patches."""
    asked = wishes.size
    if asked is not None and wishes.model == "attention" and patch_side(asked) is None:
        side = 8 * round(asked / 8)
        reason = (
            f"{side} pixels: the {asked} asked for cannot be cut into four to eight equal patches "
            "to a side, which attention needs."
        )
        return Choice("input", {"size": side}, reason)
    if asked is not None:
        return Choice("input", {"size": asked}, f"{asked} pixels, as asked for.")
    if wishes.hardware == "cpu":
        return Choice(
            "input",
            {"size": 64},
            "64 pixels: training time grows with the square of the side, and the sites have no "
            "GPU. Raise it if what is to be found is small.",
        )
    return Choice(
        "input", {"size": 128}, "128 pixels: the sites have GPUs; small findings stay visible."
    )


def image_kind(wishes: Wishes) -> Choice:
    """Choose colour, grey window and accepted modalities for a kind of image."""
    channels = 3 if wishes.kind == "colour" else 1
    window, modalities, reason = KINDS[wishes.kind]
    values = {"channels": channels, "window": window, "modalities": modalities}
    return Choice("input", values, reason)


KINDS: dict[Kind, tuple[str | list[float], list[str], str]] = {
    "xray": (
        "file",
        ["CR", "DX"],
        "Radiographs: the grey window stored in each file, since detectors have no common scale.",
    ),
    "ct": (
        [40.0, 400.0],
        ["CT"],
        "CT has a common scale (Hounsfield units), so one fixed window serves all sites: centre "
        "40, width 400 shows soft tissue. For lungs use [-600, 1500], for bone [400, 1800].",
    ),
    "mri": (
        "file",
        ["MR"],
        "MRI has no common scale, so the window stored in each file is used.",
    ),
    "ultrasound": ("full", ["US"], "Ultrasound is made for the screen: its full range is used."),
    "colour": ("full", [], "Photographs: three colours, full range, from any device."),
    "other": ("file", [], "Any modality; the window stored in each file."),
}


def patch_side(size: int) -> int | None:
    """Return the side of attention's patches on images of this side; None if none fits."""
    fitting = (size // n for n in PATCHES if size % n == 0 and size // n >= SMALLEST_PATCH)
    return next(fitting, None)


MEASURED = (
    "On the 4.7 thousand chest radiographs of 28 pixels where both were measured at epsilon 8, "
    "the cnn was better than attention (test AUC .972 and .934, five seeds each)"
)


def model(wishes: Wishes, size: int, noise: float) -> Choice:
    """Choose the model: the one wished for, or the one that bears the noise.

    Args:
        wishes: The answers.
        size: Side of the images in pixels.
        noise: Noise over signal at the smallest site; 0 without privacy.
    """
    patch = patch_side(size)
    if is_linear(wishes, noise):
        asked = "as asked for"
        if wishes.model == "auto":
            joint = noise / math.sqrt(wishes.sites)
            asked = f"since noise over signal of all sites together is about {joint:.3f}"
        return Choice(
            "model",
            {"name": "linear"},
            f"A linear model on fixed wavelets, {asked}: it has a tenth of a cnn's weights for the "
            f"noise to spoil. {FEW_PATIENTS}.",
        )
    if wishes.model == "attention" and patch:
        return Choice(
            "model",
            {"name": "attention", "patch": patch},
            f"Attention over {size // patch} by {size // patch} patches of {patch} pixels, as "
            f"asked for; its map shows where it looked. {MEASURED}.",
        )
    instead = f'; to have it, write name = "attention" and patch = {patch}' if patch else ""
    return Choice(
        "model",
        {"name": "cnn"},
        "A convolutional network: it knows from the start that neighbouring pixels belong "
        f"together and that a finding may lie anywhere. {MEASURED}{instead}.",
    )


FEW_PATIENTS = (
    "With noise and few patients it learns more than a cnn; with less noise or more patients the "
    "cnn is better"
)


def is_linear(wishes: Wishes, noise: float) -> bool:
    """Tell whether the linear model is chosen: where the mean of all sites is still noisy.

    Args:
        wishes: The answers.
        noise: Noise over signal at the smallest site; all are taken to be like it.
    """
    noisy = noise / math.sqrt(wishes.sites) >= BEARABLE
    return wishes.model == "linear" or (wishes.model == "auto" and noisy)


def schedule(wishes: Wishes, choices: list[Choice]) -> tuple[float, list[Choice]]:
    """Choose rounds and sampling rate so that the smallest site's noise is bearable.

    The first of `PLANS` is taken whose noise over signal is below the bound of "learns well";
    failing that, the first that comes close to the least noise.

    Returns:
        Noise over signal at the smallest site, 0 without privacy; and the choices.
    """
    train = training_patients(wishes)
    if wishes.privacy == "none":
        rate = next((q for _, q in PLANS if q * train >= 32), PLANS[-1][1])
        reason = f"Lots of about {rate * train:.0f} patients at the smallest site; without noise "
        return 0.0, _as_choices(PLANS[0][0], rate, reason + "they need not be larger.")
    ratios: dict[tuple[int, float], float] = {}
    for rounds, rate in PLANS:
        study = _study([*choices, *_as_choices(rounds, rate, "")])
        ratios[rounds, rate] = training_noise(study, train) / (rate * train)
        if ratios[rounds, rate] < BEARABLE:
            break
    enough = max(BEARABLE, WORTH * min(ratios.values()))
    rounds, rate = next(plan for plan, ratio in ratios.items() if ratio < enough)
    ratio = ratios[rounds, rate]
    network = "linear" if is_linear(wishes, ratio) else "cnn"
    reason = (
        f"The smallest site trains on about {train:,} patients, in lots of about "
        f"{rate * train:.0f}. Noise over signal there is {ratio:.3f}: "
        f"{verdict(ratio, network)}. "
    )
    if ratio < BEARABLE:
        reason += "Smaller lots would save time but add noise."
    else:
        reason += "Larger lots hardly help; more patients or a larger epsilon would."
    return ratio, _as_choices(rounds, rate, reason)


def privacy(wishes: Wishes) -> Choice:
    """Choose epsilon.

    After Ponomareva et al. 2023, "How to DP-fy ML", section 5.2: a strong formal guarantee up
    to 1, a reasonable one up to 10.
    """
    if wishes.privacy == "none":
        return Choice(
            "privacy",
            {"enabled": False},
            "NO PRIVACY, as asked for: updates carry no noise and may give patients away. Sites "
            "refuse unless their own policy allows it.",
        )
    reasons: dict[Wish, str] = {
        "strong": "Epsilon 1 counts as a strong formal guarantee.",
        "medium": "Epsilon 3 lies between a strong guarantee (1) and the most that most sites "
        "allow by default (8).",
        "light": "Epsilon 8 is the most that sites allow by default; the proven bound is weak, "
        "known attacks stay well below it.",
    }
    reason = f"{reasons[wishes.privacy]} It holds per patient, over the whole study."
    return Choice("privacy", {"epsilon": EPSILONS[wishes.privacy]}, reason)


def federation(wishes: Wishes) -> Choice:
    """Choose how many sites a round needs."""
    least = max(1, math.ceil(2 * wishes.sites / 3))
    return Choice(
        "federation",
        {"sites": wishes.sites, "min_sites": least},
        f"A round counts if {least} of {wishes.sites} sites deliver: one that is down "
        + ("does not stop" if least < wishes.sites else "stops")
        + " the study, and the report names whoever was missing.",
    )


def cohort(wishes: Wishes) -> Choice:
    """Choose the part of the patients that is kept for evaluation."""
    train = training_patients(wishes)
    reason = (
        f"The smallest site trains on about {train:,} patients and is evaluated on the others. "
        "Possible are 0.05, 0.1, 0.15, 0.2 and 0.3."
    )
    if train < 20:
        reason += " Its own policy must allow so few: policy.min_patients is 20 by default."
    return Choice("data", {"held_out": HELD_OUT}, reason)


def training_patients(wishes: Wishes) -> int:
    """Return how many patients the smallest site will train on, about."""
    return max(1, round(wishes.patients * (1 - HELD_OUT)))


def study_name(text: str) -> str:
    """Return a text as the name of a study: lower case, no spaces, at most 64 characters."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64] or "study"


def _as_choices(rounds: int, rate: float, reason: str) -> list[Choice]:
    return [
        Choice("training", {"sampling_rate": rate}, reason),
        Choice("federation", {"rounds": rounds}, f"{rounds} rounds of a few steps each."),
    ]


def _study(choices: list[Choice]) -> Study:
    values: dict[str, Any] = {}
    for choice in choices:
        part = values.setdefault(choice.section, {}) if choice.section else values
        part.update(choice.values)
    return parse_study(values, "the proposed study")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 94)]


def _keys(choice: Choice) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in choice.values.items()]


def _toml(value: object) -> str:
    """Return a string, number, truth value or list of these as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{"".join(map(_toml_character, value))}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _toml_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
