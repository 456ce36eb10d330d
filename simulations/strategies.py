"""Strategies that come with the harness: a study with a few keys changed, each with its source."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from shared.study_parts import Plan

CHANGEABLE = ("model", "table", "training", "privacy", "federation")
"""Parts of a study that a strategy may change; the rest would make it another question."""


class Strategy(Plan):
    """One way to learn from the sites, as changes to the scenario's study."""

    description: str = Field(default="", max_length=200)
    setting: Literal["federated", "alone", "pooled"] = Field(
        default="federated", description="who learns together: sites, nobody, or one big site"
    )
    study: dict[str, Any] = Field(default_factory=dict, description="keys of study.toml")
    often: int = Field(
        default=1, ge=1, le=1000, description="so many times the rounds, of so much fewer steps"
    )

    @field_validator("study")
    @classmethod
    def _same_question(cls, study: dict[str, Any]) -> dict[str, Any]:
        if wrong := [key for key in study if key not in CHANGEABLE]:
            raise ValueError(f"a strategy may not change {wrong[0]!r}, only {list(CHANGEABLE)}")
        return study


def _federated(description: str, **study: dict[str, Any]) -> Strategy:
    return Strategy(description=description, study=study)


REFERENCES = ("alone", "pooled", "fedavg")
"""What everything is compared with: lower bound, upper bound, and the plain way."""

BUILT_IN: dict[str, Strategy] = {
    "alone": Strategy(description="each site by itself", setting="alone"),
    "pooled": Strategy(description="all patients at one site: the upper bound", setting="pooled"),
    "fedavg": _federated("the mean of the updates (McMahan et al. 2017)"),
    "fedprox": _federated(
        "a pull towards the global model (Li et al. 2020)", training={"proximal": 0.1}
    ),
    "scaffold": _federated(
        "control variates against drift (Karimireddy et al. 2020)", training={"control": True}
    ),
    "local-norms": _federated(
        "normalisation layers stay at the site (FedBN, Li et al. 2021)",
        training={"local_norms": True},
    ),
    "class-balanced": _federated(
        "classes weighed by their effective number (Cui et al. 2019)",
        training={"loss": {"name": "class-balanced"}},
    ),
    "focal": _federated(
        "stress on hard patients (Lin et al. 2017)", training={"loss": {"name": "focal"}}
    ),
    "logit-adjustment": _federated(
        "logits moved by the site's class prior (Menon et al. 2021)",
        training={"loss": {"name": "logit-adjustment"}},
    ),
    "server-momentum": _federated(
        "momentum at the server (Hsu et al. 2019)",
        federation={"optimiser": {"name": "momentum", "momentum": 0.7, "learning_rate": 3.0}},
    ),
    "fedadam": _federated(
        "Adam at the server (Reddi et al. 2021)",
        federation={"optimiser": {"name": "adam", "learning_rate": 0.02}},
    ),
    "fedyogi": _federated(
        "Yogi at the server (Reddi et al. 2021)",
        federation={"optimiser": {"name": "yogi", "learning_rate": 0.02}},
    ),
    "median": _federated(
        "the median of the updates, by coordinate (Yin et al. 2018)",
        federation={"aggregator": "median", "min_sites": 3},
    ),
    "trimmed-mean": _federated(
        "the mean without the extremes, by coordinate (Yin et al. 2018)",
        federation={"aggregator": "trimmed-mean", "trim": 0.25, "min_sites": 4},
    ),
    "often": Strategy(
        description="updates averaged twice as often, with as many steps in all", often=2
    ),
    "often-scaffold": Strategy(
        description="averaged twice as often, with control variates",
        often=2,
        study={"training": {"control": True}},
    ),
    "personal": _federated(
        "fine-tuned at each site, never leaving it (Wang et al. 2019)",
        training={"personal_rounds": 2},
    ),
}
