"""The study plan: everything hospitals approve, as one validated, digestible file."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from shared.errors import StudyError
from shared.refused import why_refused
from shared.study_parts import (
    AttentionModel,
    Augment,
    CnnModel,
    Column,
    Data,
    Evaluation,
    Input,
    LinearModel,
    Loss,
    Plan,
    Table,
    TableModel,
    Task,
    Training,
)

__all__ = [
    "AttentionModel",
    "Augment",
    "CnnModel",
    "Column",
    "Data",
    "Evaluation",
    "Federation",
    "Input",
    "LinearModel",
    "Loss",
    "Privacy",
    "ServerOptimiser",
    "Study",
    "Table",
    "TableModel",
    "Task",
    "Training",
    "explain_validation",
    "load_study",
    "parse_study",
    "study_from_json",
    "trimmed_sites",
]


FORMAT = 2
"""Of the study. Within a format no default changes, and a setting that is added is `later`."""


class Privacy(Plan):
    """The guarantee each site gives its patients over the whole study."""

    enabled: bool = True
    epsilon: float = Field(default=8.0, ge=0.01, le=50)
    delta: float | None = Field(
        default=None, gt=0, le=1e-3, description="default: min(1e-5, 1/(10 N)) at each site"
    )
    clip: float = Field(default=1.0, ge=1e-3, le=1000, description="norm C of a patient's gradient")
    images_per_patient: int = Field(
        default=4, ge=1, le=64, description="K: most images of a patient in a step"
    )
    spare_rounds: int = Field(
        default=1, ge=0, le=1000, description="rounds a site may have to repeat after a crash"
    )
    score_bins: int = Field(default=16, ge=4, le=256, description="bins of the score histograms")
    subgroups: tuple[Literal["sex", "age", "scanner"], ...] = Field(
        default=(), description="groups of patients that are also evaluated by themselves"
    )
    statistics_noise: float = Field(
        default=10.0, ge=1, le=1000, description="noise multiplier of the counts that are released"
    )

    @model_validator(mode="after")
    def _distinct_subgroups(self) -> Privacy:
        if len(set(self.subgroups)) != len(self.subgroups):
            raise ValueError("subgroups must differ from each other")
        return self


class ServerOptimiser(Plan):
    """What the server does with the averaged update (Reddi et al. 2021); none: adds it."""

    name: Literal["none", "momentum", "adam", "yogi"] = "none"
    learning_rate: float = Field(default=1.0, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of updates")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="of adam and yogi: their squares'")
    tau: float = Field(default=1e-3, gt=0, le=1, description="of adam and yogi: adaptivity")

    @model_validator(mode="after")
    def _rate_is_chosen(self) -> ServerOptimiser:
        if self.name in ("adam", "yogi") and "learning_rate" not in self.model_fields_set:
            raise ValueError(
                f"{self.name} moves each weight by about learning_rate a round: give one, such as "
                "0.01"
            )
        return self


def trimmed_sites(trim: float, sites: int) -> int:
    """Return how many of the sites a trimmed mean leaves out at each end: floor(trim * sites)."""
    # The product of a decimal fraction, such as .29 * 100, may fall short of a whole number.
    return math.floor(trim * sites + 1e-9)


class Federation(Plan):
    """Rounds, sites and deadlines."""

    rounds: int = Field(default=16, ge=1, le=10_000)
    sites: int = Field(default=3, ge=1, le=10_000, description="sites expected to take part")
    min_sites: int = Field(default=2, ge=1, description="fewest sites for a round to count")
    round_deadline: float = Field(default=3600, gt=0, description="seconds a round may take")
    start_deadline: float = Field(default=600, gt=0, description="seconds to wait for min_sites")
    aggregator: Literal["mean", "median", "trimmed-mean"] = "mean"
    trim: float = Field(
        default=0.2, gt=0, lt=0.5, description="of trimmed-mean: part cut off at each end"
    )
    optimiser: ServerOptimiser = ServerOptimiser()
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the running mean of global models; 0: off"
    )

    @model_validator(mode="after")
    def _enough_sites(self) -> Federation:
        if self.min_sites > self.sites:
            raise ValueError("min_sites must not exceed sites")
        return self

    @model_validator(mode="after")
    def _sites_to_leave_out(self) -> Federation:
        if self.aggregator == "median" and self.min_sites < 3:
            raise ValueError("the median of fewer than 3 sites is their mean; raise min_sites to 3")
        if self.aggregator == "trimmed-mean" and not trimmed_sites(self.trim, self.min_sites):
            raise ValueError(
                f"trim = {self.trim:g} cuts off nobody of min_sites = {self.min_sites}; it takes "
                f"min_sites = {math.ceil(1 / self.trim - 1e-9)}"
            )
        return self


class Study(Plan):
    """One study, as its author writes it and every hospital approves it."""

    format: Literal[2] = 2
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    description: str = Field(default="", max_length=2000)
    task: Task
    input: Input = Input()
    table: Table | None = None
    model: Annotated[
        CnnModel | AttentionModel | LinearModel | TableModel, Field(discriminator="name")
    ] = CnnModel()
    training: Training = Training()
    privacy: Privacy = Privacy()
    data: Data = Data()
    evaluation: Evaluation = Evaluation()
    federation: Federation = Federation()

    @model_validator(mode="after")
    def _model_fits_input(self) -> Study:
        if isinstance(self.model, AttentionModel) and self.input.size % self.model.patch:
            raise ValueError(
                f"model.patch must divide input.size; {self.model.patch} does not divide "
                f"{self.input.size}"
            )
        return self

    @model_validator(mode="after")
    def _model_fits_data(self) -> Study:
        if (self.table is not None) != isinstance(self.model, TableModel):
            raise ValueError("a study with a table, and no other, has the model named 'table'")
        if self.table is not None and self.privacy.subgroups:
            raise ValueError("privacy.subgroups are read from images; a table has none")
        if self.table is not None and self.training.augment != Augment():
            raise ValueError("training.augment changes images; a table has none")
        if isinstance(self.model, LinearModel | TableModel) and self.training.local_norms:
            raise ValueError(
                f"training.local_norms: the model '{self.model.name}' has no normalisation layers"
            )
        return self

    @model_validator(mode="after")
    def _remedies_fit(self) -> Study:
        plan = self.training
        if plan.control and (plan.optimiser != "sgd" or plan.momentum):
            raise ValueError("training.control is defined for sgd without momentum")
        if plan.local_norms and self.federation.aggregator != "mean":
            raise ValueError("training.local_norms needs federation.aggregator = 'mean'")
        if plan.control and self.federation.aggregator != "mean":
            raise ValueError("training.control needs federation.aggregator = 'mean'")
        return self

    def canonical(self) -> str:
        """Return the plan as canonical JSON: keys sorted, no white space; see `Plan`."""
        return _canonical(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, 64 hex digits: what hospitals approve."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def model_digest(self) -> str:
        """SHA-256 of the canonical form of what defines the model, 64 hex digits.

        The first weights follow from it, so what else a plan says does not move them.
        """
        defines = self.model_dump(mode="json", include={"task", "input", "table", "model"})
        return hashlib.sha256(_canonical(defines).encode()).hexdigest()

    def training_size(self, size: int) -> int:
        """Return how many of a site's patients train, as everybody computes it.

        Args:
            size: Declared size of the site's cohort: patients of both sides, at least 1.

        Returns:
            max(1, round(size * (1 - held_out))).
        """
        return max(1, round(size * (1 - self.data.held_out)))

    @property
    def total_steps(self) -> int:
        """Steps each site's noise is calibrated for: all rounds, personal and spare ones too."""
        return self.training.local_steps * self.training_uses

    @property
    def training_uses(self) -> int:
        """Rounds each site's training is calibrated for."""
        rounds = self.federation.rounds + self.training.personal_rounds
        return rounds + self.privacy.spare_rounds

    @property
    def needs_statistics(self) -> bool:
        """Whether the sites are asked for noised statistics before the first round."""
        fills = self.table is not None and self.table.fills_in
        return fills or self.training.loss.needs_counts

    @property
    def closing_evaluations(self) -> int:
        """Evaluations of the closing round: of the released model, and of the site's own."""
        return 1 + (self.training.personal_rounds > 0)

    @property
    def spare_evaluations(self) -> int:
        """Evaluations kept for repeats; any spare round may turn out to be the closing one."""
        return self.privacy.spare_rounds * self.closing_evaluations

    @property
    def evaluates_rounds(self) -> bool:
        """Whether each round evaluates the model it starts from."""
        return self.evaluation.when == "every-round"

    @property
    def evaluations(self) -> int:
        """Evaluations charged to held-out patients: of the rounds, of the closing, spares."""
        rounds = self.federation.rounds * self.evaluates_rounds
        return rounds + self.closing_evaluations + self.spare_evaluations


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def check_format(values: Mapping[str, Any], where: str) -> None:
    """Refuse a plan of another format, which may mean something else by the same keys.

    Args:
        values: The plan, not validated yet; without a format it is taken to be of this one.
        where: Named in the error.

    Raises:
        StudyError: Saying how to go on.
    """
    given = values.get("format", FORMAT)
    number = given if type(given) is int else 0
    if number == FORMAT:
        return
    if 0 < number < FORMAT:
        raise StudyError(
            f"the study is of format {given}, which releases before 0.2 wrote and ran",
            where,
            f"Let its author write it anew in format {FORMAT} (docs/coordinator.md says what "
            "changed); it is then another study, which every hospital approves anew",
        )
    raise StudyError(
        f"the study is of format {given!r}; this release reads format {FORMAT}",
        where,
        "Install the release its author uses, or a newer one",
    )


def parse_study(values: dict[str, Any], where: str) -> Study:
    """Validate a study given as nested values.

    Args:
        values: What the file held.
        where: Named in the error.

    Raises:
        StudyError: Naming each wrong key and the allowed range, or the format.
    """
    check_format(values, where)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise StudyError(
            f"the study is not valid: {explain_validation(error, why_refused)}",
            where,
            "Correct the named keys; `consilium server check` explains a valid study",
        ) from None


def study_from_json(text: str, where: str = "study received from the server") -> Study:
    """Validate a study given as canonical JSON text (at most 64 KiB)."""
    if len(text) > 65_536:
        raise StudyError("the study text is longer than 64 KiB", where)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise StudyError("the study text is not JSON", where) from None
    return parse_study(values if isinstance(values, dict) else {}, where)


def load_study(path: Path) -> Study:
    """Read and validate a `study.toml`.

    Raises:
        StudyError: The file is missing, is not TOML, or a key is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(
            f"cannot read the study file: {error.strerror}", str(path), "Check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"the study file is not valid TOML: {error}", str(path)) from None
    return parse_study(values, str(path))


def explain_validation(
    error: ValidationError, why: Callable[[str, str], str] = lambda section, name: ""
) -> str:
    """Return pydantic's findings as one line: `key: what is allowed (given: value)`.

    Args:
        error: The findings.
        why: Says of a section and an unknown key or value in it why there is no such setting.
    """
    lines = []
    for item in error.errors():
        loc, value = [str(part) for part in item["loc"]] or ["study"], item.get("input")
        given = "" if isinstance(value, dict) else f" (given: {value!r})"
        unknown = item["type"] == "extra_forbidden"
        message = "unknown key" if unknown else item["msg"].removeprefix("Value error, ")
        name = loc[-1] if unknown else value
        known = why(loc[0], name) if isinstance(name, str) else ""
        lines.append(f"{'.'.join(loc)}: {known or message}{given}")
    return "; ".join(lines)
