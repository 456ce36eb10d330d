"""The study plan: everything hospitals approve, as one validated, digestible file."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import StudyError


class Plan(BaseModel):
    """Base of every part of the plan: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Task(Plan):
    """What is to be told apart."""

    classes: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        min_length=2, max_length=20
    )
    positive: str = Field(default="", description="class scored as positive; default: the last")

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        if self.positive and self.positive not in self.classes:
            raise ValueError(f"positive must be one of {list(self.classes)}")
        return self

    @property
    def positive_index(self) -> int:
        """Index of the positive class in `classes`."""
        return self.classes.index(self.positive) if self.positive else len(self.classes) - 1


class Input(Plan):
    """How a DICOM image becomes a tensor of shape [channels, size, size] in [-1, 1]."""

    size: int = Field(default=64, ge=28, le=256, description="side length in pixels")
    channels: Literal[1, 3] = 1
    window: Literal["file", "full"] | tuple[float, float] = Field(
        default="file",
        description="'file': the file's own window; 'full': its full range; [center, width]",
    )
    frame: Literal["middle"] | Annotated[int, Field(ge=1)] = Field(
        default="middle", description="which frame of a multi-frame image, counted from 1"
    )
    modalities: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")], ...] = Field(
        default=(), description="accepted DICOM modalities; empty: any"
    )

    @model_validator(mode="after")
    def _window_width(self) -> Input:
        if isinstance(self.window, tuple) and self.window[1] < 1:
            raise ValueError("window width must be at least 1")
        return self


class CnnModel(Plan):
    """Convolution and pooling stages with group norm and weight standardisation, dense head."""

    name: Literal["cnn"] = "cnn"
    widths: tuple[Annotated[int, Field(ge=4, le=256, multiple_of=4)], ...] = Field(
        default=(16, 32, 32), min_length=2, max_length=3, description="channels of each stage"
    )
    hidden: int = Field(default=32, ge=0, le=512, description="units of the dense layer; 0: none")


class AttentionModel(Plan):
    """Patches, learned positions and multi-head self-attention."""

    name: Literal["attention"] = "attention"
    patch: int = Field(default=7, ge=2, le=64, description="patch side in pixels; divides size")
    width: int = Field(default=48, ge=8, le=256)
    depth: int = Field(default=1, ge=1, le=8)
    heads: int = Field(default=4, ge=1, le=16)

    @model_validator(mode="after")
    def _divisible(self) -> AttentionModel:
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self


class Augment(Plan):
    """Random views of an image; `views` of them are averaged before clipping."""

    views: int = Field(default=1, ge=1, le=16, description="views of an image per step")
    shift: float = Field(default=0.0, ge=0, le=0.25, description="largest shift, part of the side")
    rotate: float = Field(default=0.0, ge=0, le=45, description="largest rotation in degrees")
    scale: float = Field(default=0.0, ge=0, le=0.5, description="largest relative zoom")
    flip: bool = Field(default=False, description="mirror left and right at random")
    intensity: float = Field(default=0.0, ge=0, le=0.5, description="largest gain/offset change")


class Training(Plan):
    """The local optimisation at each site."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=1.0, gt=0, le=100)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    schedule: Literal["constant", "cosine"] = "constant"
    local_steps: int = Field(default=6, ge=1, le=10_000, description="steps per round")
    sampling_rate: float = Field(
        default=0.15, gt=0, le=1, description="chance of each patient to be in a step's lot"
    )
    augment: Augment = Augment()


class Privacy(Plan):
    """The guarantee each site gives its patients over the whole study."""

    enabled: bool = True
    epsilon: float = Field(default=8.0, gt=0, le=50)
    delta: float | None = Field(
        default=None, gt=0, le=1e-3, description="default: min(1e-5, 1/(10 N)) at each site"
    )
    clip: float = Field(default=1.0, gt=0, le=1000, description="norm C of a patient's gradient")
    images_per_patient: int = Field(
        default=4, ge=1, le=64, description="K: most images of a patient in a step"
    )
    spare_rounds: int = Field(
        default=1, ge=0, le=1000, description="rounds a site may have to repeat after a crash"
    )
    score_bins: int = Field(default=16, ge=4, le=256, description="bins of the score histograms")


class Data(Plan):
    """Rules on the sites' data."""

    held_out: float = Field(default=0.15, gt=0, lt=0.5, description="patients kept for evaluation")
    min_patients: int = Field(default=20, ge=1, description="fewest training patients of a site")
    max_set_aside: float = Field(
        default=0.5, ge=0, le=1, description="largest part of the files that may be set aside"
    )


class Federation(Plan):
    """Rounds, sites and deadlines."""

    rounds: int = Field(default=16, ge=1, le=10_000)
    sites: int = Field(default=3, ge=1, le=10_000, description="sites expected to take part")
    min_sites: int = Field(default=2, ge=1, description="fewest sites for a round to count")
    round_deadline: float = Field(default=3600, gt=0, description="seconds a round may take")
    start_deadline: float = Field(default=600, gt=0, description="seconds to wait for min_sites")
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the running mean of global models; 0: off"
    )

    @model_validator(mode="after")
    def _enough_sites(self) -> Federation:
        if self.min_sites > self.sites:
            raise ValueError("min_sites must not exceed sites")
        return self


class Study(Plan):
    """One study, as its author writes it and every hospital approves it."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    description: str = Field(default="", max_length=2000)
    task: Task
    input: Input = Input()
    model: Annotated[CnnModel | AttentionModel, Field(discriminator="name")] = CnnModel()
    training: Training = Training()
    privacy: Privacy = Privacy()
    data: Data = Data()
    federation: Federation = Federation()

    @model_validator(mode="after")
    def _model_fits_input(self) -> Study:
        if isinstance(self.model, AttentionModel) and self.input.size % self.model.patch:
            raise ValueError(
                f"model.patch must divide input.size; {self.model.patch} does not divide "
                f"{self.input.size}"
            )
        return self

    def canonical(self) -> str:
        """Return the plan as canonical JSON: every field, keys sorted, no white space."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, 64 hex digits: what hospitals approve."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def total_steps(self) -> int:
        """Steps each site's noise is calibrated for: all rounds and the spare ones."""
        return self.training.local_steps * (self.federation.rounds + self.privacy.spare_rounds)

    @property
    def evaluations(self) -> int:
        """Evaluations charged to held-out patients: one a round, spares, and the closing one."""
        return self.federation.rounds + self.privacy.spare_rounds + 1


def parse_study(values: dict[str, Any], where: str) -> Study:
    """Validate a study given as nested values.

    Args:
        values: What the file held.
        where: Named in the error.

    Raises:
        StudyError: Naming each wrong key and the allowed range.
    """
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise StudyError(
            f"the study is not valid: {explain_validation(error)}",
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


def explain_validation(error: ValidationError) -> str:
    """Return pydantic's findings as one line: `key: what is allowed (given: value)`."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "study"
        given = "" if isinstance(item.get("input"), dict) else f" (given: {item.get('input')!r})"
        message = {"extra_forbidden": "unknown key"}.get(
            item["type"], item["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{key}: {message}{given}")
    return "; ".join(lines)
