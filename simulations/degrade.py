"""What sites' data lack: labels, images, table values, a class or a column."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.study_parts import Plan
from simulations.parts import Which


class MissingLabels(Plan):
    """Labels nobody wrote down."""

    kind: Literal["missing-labels"]
    sites: Which = "all"
    part: float = Field(default=1.0, gt=0, le=1, description="chance of each label to be missing")
    classes: tuple[str, ...] = Field(default=(), description="only of these classes or findings")
    only: Literal["any", "positives", "negatives"] = Field(
        default="any", description="of findings: which labels are lost"
    )


class LabelNoise(Plan):
    """Labels that are wrong."""

    kind: Literal["label-noise"]
    sites: Which = "all"
    part: float = Field(gt=0, le=1, description="chance of each label to be another")
    classes: tuple[str, ...] = Field(default=(), description="only of these classes or findings")


class MissingImages(Plan):
    """Images that are not there, or whose files are broken."""

    kind: Literal["missing-images", "broken-files"]
    sites: Which = "all"
    part: float = Field(gt=0, le=1, description="chance of each image to be lost")


class MissingValues(Plan):
    """Values missing from columns of a table, or from groups of patients such as the age."""

    kind: Literal["missing-values"]
    sites: Which = "all"
    part: float = Field(gt=0, lt=1, description="chance of each value to be missing, on average")
    columns: tuple[str, ...] = Field(default=(), description="columns or groups; default: all")
    mechanism: Literal["mcar", "mar", "mnar"] = Field(
        default="mcar", description="at random; dependent on `by`; dependent on the value itself"
    )
    by: str = Field(default="", description="of mar: the column or group it depends on")
    strength: float = Field(default=2.0, description="of mar and mnar: log odds a deviation")

    @model_validator(mode="after")
    def _by_with_mar(self) -> MissingValues:
        if (self.mechanism == "mar") != bool(self.by):
            raise ValueError("by is needed with mechanism = 'mar', and only there")
        return self


class AbsentClass(Plan):
    """A class no one at these sites has ever recorded: its patients are not there.

    A finding becomes unknown in every patient.
    """

    kind: Literal["absent-class"]
    sites: Which = "all"
    name: str


class AbsentColumn(Plan):
    """A column no one at these sites has ever recorded."""

    kind: Literal["absent-column"]
    sites: Which = "all"
    name: str


Degrade = Annotated[
    MissingLabels | LabelNoise | MissingImages | MissingValues | AbsentClass | AbsentColumn,
    Field(discriminator="kind"),
]
