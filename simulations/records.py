"""Records of a sweep: a cell, its figures, and what its sites had and did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

MEAN = "(mean)"
"""Measurement.site of a mean over sites."""

WORST = "(worst)"
"""Measurement.site of the worst site."""

FINAL = -1
"""Measurement.round of the released model."""

Metric = Literal["auc", "average_precision", "balanced_accuracy", "accuracy", "ece"]
METRICS: tuple[Metric, ...] = ("auc", "average_precision", "balanced_accuracy", "accuracy", "ece")
LOWER_IS_BETTER = frozenset({"ece"})


@dataclass(frozen=True)
class Measurement:
    """One figure of one cell.

    Attributes:
        scenario: Name of the scenario.
        strategy: Its name.
        seed: Of data, partition, training and noise.
        metric: One of `METRICS`; of several classes or findings the mean over them.
        value: 0 to 1; None where it is not defined, e.g. the AUC without a positive patient.
        low: Lower end of the 95 % bootstrap interval over the scored patients; None: none made.
        high: Its upper end.
        where: "test": the common test set; "own": each site's own held-out patients.
        model: "global"; "local": trained at `site` alone; "personal": fine-tuned at `site`.
        site: Whose model or patients; "": the global model on the test set; `MEAN` and
            `WORST` over all sites.
        subgroup: "": all patients; else "sex:F" and the like.
        round: After how many rounds; `FINAL`: the released model.
        patients: Scored patients; of `MEAN` and `WORST` in all.
        over: Classes or findings the value is a mean over; of `MEAN` and `WORST` the sites
            where it is defined.
        of: How many classes, findings or sites there are.
    """

    scenario: str
    strategy: str
    seed: int
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    where: str = "test"
    model: str = "global"
    site: str = ""
    subgroup: str = ""
    round: int = FINAL
    patients: int = 0
    over: int = 1
    of: int = 1


@dataclass(frozen=True)
class Cell:
    """One scenario x strategy x seed: what it was, what it took, and what became of it.

    Attributes:
        id: 16 hex digits, of everything the figures depend on: scenario, strategy, seed, code.
        scenario: Name of the scenario.
        strategy: Its name.
        seed: The seed.
        scenario_digest: SHA-256 of the resolved scenario without its seeds and strategies, and
            of the files its data comes from.
        strategy_digest: SHA-256 of what the strategy changes.
        setting: Who learns together: "federated", "alone" or "pooled".
        description: What the strategy is, one line.
        code: SHA-256 of the sources that decide the figures.
        code_version: Release, and commit in a checkout.
        machine: Processor, cores, accelerator, versions.
        labels: Where a sweep puts it: axis -> place.
        command: The command line that planned it.
        scenario_text: The resolved scenario as JSON.
        study_text: The study as the sites approve it, as JSON.
        state: "planned", "running", "finished" or "failed".
        reason: Why it failed, one line.
        started: ISO 8601, UTC.
        seconds: Wall time; of a cell that was cut short, of its last part.
        study_digest: Of the study as the sites approve it.
        private: Whether the study has differential privacy.
        seeded_noise: Whether its noise came from the seed, not from the operating system;
            a table of such figures must say so.
        epsilon: Spent by the site that spent most; None without privacy.
        delta: The largest of the sites'.
        rounds: Done.
        bytes_up: Sent by the sites: the updates that arrived.
        bytes_down: Sent to the sites: the weights of every request.
        peak_bytes: Largest memory of this process and its children together.
        dataset: Name of the data.
        classes: Classes or findings.
        findings: Whether the classes are findings.
        test_patients: Size of the common test set.
        notes: What the data has to say about itself.
    """

    id: str
    scenario: str
    strategy: str
    seed: int
    scenario_digest: str
    strategy_digest: str
    code: str
    code_version: str
    machine: str
    setting: str = "federated"
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    command: str = ""
    scenario_text: str = ""
    study_text: str = ""
    state: str = "planned"
    reason: str = ""
    started: str = ""
    seconds: float = 0.0
    study_digest: str = ""
    private: bool = False
    seeded_noise: bool = False
    epsilon: float | None = None
    delta: float | None = None
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    peak_bytes: int = 0
    dataset: str = ""
    classes: tuple[str, ...] = ()
    findings: bool = False
    test_patients: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteRow:
    """What a site had and spent in a cell.

    Attributes:
        cell: Id of the cell.
        site: Its name.
        train_patients: Patients it trained on, without those its study leaves out.
        held_out_patients: Its own, kept for evaluation.
        train_images: Images, or rows of a table.
        counts: Training patients of each class; of findings, those who have it.
        unknown: Of findings: training patients about whom nobody knows, of each.
        epsilon: Spent; None without privacy.
        delta: Of epsilon.
        noise_multiplier: Of its training.
    """

    cell: str
    site: str
    train_patients: int
    held_out_patients: int
    train_images: int
    counts: tuple[int, ...]
    unknown: tuple[int, ...] = ()
    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None


@dataclass(frozen=True)
class Part:
    """What one site did in one round.

    Attributes:
        cell: Id of the cell.
        round: 1 is the first; the closing evaluation has the last plus 1.
        site: Its name.
        state: "update", "evaluated", "refused", "failed", "late" or "absent".
        reason: Why there was no update.
    """

    cell: str
    round: int
    site: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Missing:
    """What a site lacked in a cell.

    Attributes:
        cell: Id of the cell.
        site: Its name.
        what: What it is that is missing or wrong, e.g. "labels", "images", "values".
        name: Of which class, finding or column; empty: no particular one.
        cause: Why, as the scenario says it.
        count: How many are missing or wrong.
        of: Out of how many.
    """

    cell: str
    site: str
    what: str
    name: str
    cause: str
    count: int
    of: int


@dataclass(frozen=True)
class Outcome:
    """Everything a finished cell leaves: written at once, or not at all."""

    cell: Cell
    measurements: Sequence[Measurement] = ()
    sites: Sequence[SiteRow] = ()
    parts: Sequence[Part] = ()
    missing: Sequence[Missing] = ()
