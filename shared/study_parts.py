"""Parts of the study plan: what is asked, of which inputs, with which model, trained how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

LATER = {"later": True}
"""`json_schema_extra` of a setting that was added after the first release of its format.

Its default means what plans meant before, and is left out when the plan is written: so a release
that adds a setting changes no digest, and no hospital has to approve a plan anew.
"""


class Plan(BaseModel):
    """Base of every part of the plan: frozen, and unknown keys are refused.

    Written, it has every setting but the `LATER` ones that have their default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == LATER and getattr(self, name) == field.default:
                values.pop(name, None)
        return values


class Task(Plan):
    """What is to be told apart."""

    findings: bool = Field(
        default=False,
        description="true: a patient may have any number of the classes, each of which is told "
        "by a head of its own, and a label may be absent",
    )
    classes: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        min_length=1, max_length=20
    )
    positive: str = Field(default="", description="class scored as positive; default: the last")

    @field_validator("classes")
    @classmethod
    def _two_classes(cls, classes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(classes) < 2 and not info.data.get("findings"):
            raise ValueError("classes must be at least two, unless they are findings")
        return classes

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        if self.positive and self.findings:
            raise ValueError("positive has no meaning where every class is a finding")
        if self.positive and self.positive not in self.classes:
            raise ValueError(f"positive must be one of {list(self.classes)}")
        return self

    @property
    def positive_index(self) -> int:
        """Index of the positive class in `classes`."""
        return self.classes.index(self.positive) if self.positive else len(self.classes) - 1


Kind = Literal["image", "segmentation", "dose", "whole-slide", "screen-capture"]
"""What a DICOM file with pixels can be."""


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
    kinds: tuple[Kind, ...] = Field(
        default=("image",), min_length=1, description="kinds of objects that are read"
    )

    @model_validator(mode="after")
    def _window_and_kinds(self) -> Input:
        if isinstance(self.window, tuple) and self.window[1] < 1:
            raise ValueError("window width must be at least 1")
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError("kinds must differ from each other")
        return self


class Column(Plan):
    """One column of a table: a number with a public range, or one of some categories.

    The range is part of the plan, not found in the data: exact extremes would tell of a patient.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")
    low: float | None = Field(default=None, description="of a number: values below count as it")
    high: float | None = Field(default=None, description="of a number: values above count as it")
    categories: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        default=(), max_length=64, description="of a category: every value it may have"
    )

    @model_validator(mode="after")
    def _number_or_category(self) -> Column:
        number = self.low is not None and self.high is not None
        if number == bool(self.categories) or (self.low is None) != (self.high is None):
            raise ValueError("a column has either low and high, or categories")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("categories must differ from each other")
        return self


Missing = Literal["drop", "mean", "median", "indicator", "embedding"]


class Table(Plan):
    """Patient data in columns instead of images, and what is done where a value is missing.

    `drop` trains on complete patients only; `mean` and `median` fill in from the sites' noised
    statistics; `indicator` tells the model that a value is missing beside a constant;
    `embedding` learns what to put there.
    """

    columns: tuple[Column, ...] = Field(min_length=1, max_length=256)
    missing: Missing = "indicator"
    bins: int = Field(default=16, ge=2, le=256, description="of a number's noised histogram")

    @model_validator(mode="after")
    def _distinct(self) -> Table:
        if len({column.name for column in self.columns}) != len(self.columns):
            raise ValueError("columns must differ in name")
        return self

    @property
    def fills_in(self) -> bool:
        """Whether missing values are filled in from the sites' statistics."""
        return self.missing in ("mean", "median")


HELD_OUT = (0.05, 0.1, 0.15, 0.2, 0.3)
"""What part of the patients may be held out; few choices, so that plans cannot probe one by one."""


class Data(Plan):
    """Rules on the sites' data."""

    held_out: float = Field(default=0.15, description="part of the patients kept for evaluation")
    split_key: str = Field(
        default="",
        pattern=r"^([0-9a-f]{16})?$",
        description="fingerprint of the key that sites with the same patients split them by; "
        "empty: each site has its own",
    )
    label_of: Literal["patient"] = Field(default="patient", description="what a label belongs to")
    label_rule: Literal["agree"] = Field(
        default="agree", description="'agree': a patient whose labels differ is set aside"
    )

    @field_validator("held_out")
    @classmethod
    def _one_of_few(cls, held_out: float) -> float:
        if held_out not in HELD_OUT:
            raise ValueError(f"must be one of {', '.join(map(str, HELD_OUT))}")
        return held_out


class Evaluation(Plan):
    """When the global model is evaluated on held-out patients, and what is told of it."""

    when: Literal["every-round", "closing"] = Field(
        default="every-round", description="'closing': only once the last round is over"
    )
    form: Literal["histogram"] = Field(
        default="histogram", description="'histogram': noised counts of the scores"
    )


class CnnModel(Plan):
    """Fixed wavelets, stages of convolution and pooling with group norm, and a dense head."""

    name: Literal["cnn"] = "cnn"
    widths: tuple[Annotated[int, Field(ge=4, le=256, multiple_of=4)], ...] = Field(
        default=(32, 32), min_length=2, max_length=3, description="channels of each stage"
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


class LinearModel(Plan):
    """A linear model on fixed wavelets: the least to learn, so the least that noise can spoil."""

    name: Literal["linear"] = "linear"
    grid: int = Field(default=7, ge=1, le=14, description="places a side that are told apart")


class TableModel(Plan):
    """A perceptron on a table's columns; without hidden units, logistic regression."""

    name: Literal["table"] = "table"
    layers: tuple[Annotated[int, Field(ge=1, le=512)], ...] = Field(
        default=(32,), max_length=3, description="units of the hidden layers; none: linear"
    )


class Loss(Plan):
    """What training minimises.

    Those that weigh by class use the site's own class counts, which are noised and accounted.
    """

    name: Literal["cross-entropy", "focal", "class-balanced", "logit-adjustment"] = "cross-entropy"
    gamma: float = Field(default=2.0, ge=0, le=10, description="of focal: stress on hard cases")
    beta: float = Field(default=0.999, ge=0, lt=1, description="of class-balanced")
    tau: float = Field(default=1.0, ge=0, le=4, description="of logit-adjustment: its strength")

    @property
    def needs_counts(self) -> bool:
        """Whether the loss depends on how many patients of each class the site has."""
        return self.name in ("class-balanced", "logit-adjustment")


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
        default=0.15, ge=1e-4, le=1, description="chance of each patient to be in a step's lot"
    )
    augment: Augment = Augment()
    loss: Loss = Loss()
    proximal: float = Field(
        default=0.0, ge=0, le=10, description="FedProx: pull towards the global model"
    )
    control: bool = Field(default=False, description="SCAFFOLD: control variates against drift")
    local_norms: bool = Field(
        default=False, description="FedBN's idea: each site keeps its own normalisation layers"
    )
    personal_rounds: int = Field(
        default=0, ge=0, le=1000, description="rounds of fine-tuning that never leave the site"
    )
