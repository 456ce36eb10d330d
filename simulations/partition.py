"""Who gets which patients: sizes of the sites, and the mix of classes at each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.study_parts import Plan
from simulations.parts import Which


class EqualSizes(Plan):
    """Every site has as many patients as any other."""

    kind: Literal["equal"] = "equal"


class Shares(Plan):
    """Each site has a stated share of the patients."""

    kind: Literal["shares"]
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Shares:
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares must sum to 1; they sum to {sum(self.shares):.6g}")
        return self


class PowerLaw(Plan):
    """Sizes fall as a power of the site's rank, the largest `ratio` times the smallest."""

    kind: Literal["power-law"]
    ratio: float = Field(default=20.0, ge=1, le=10_000, description="largest site : smallest")


class Dirichlet(Plan):
    """Each site's mix of classes is drawn from a Dirichlet distribution."""

    kind: Literal["dirichlet"]
    alpha: float = Field(gt=0, le=1e6, description="small: sites with nearly one class each")
    minimum: int = Field(default=2, ge=0, description="fewest patients per site and class")


class ClassesPerSite(Plan):
    """Each site has seen only so many of the classes."""

    kind: Literal["classes-per-site"]
    classes: int = Field(ge=1)


class Prevalence(Plan):
    """Each site has a stated part of patients of the positive class."""

    kind: Literal["prevalence"]
    prevalence: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        min_length=1, description="one a site, or repeated in turn"
    )


class ManyImages(Plan):
    """The patients with the most images are at these sites."""

    kind: Literal["many-images"]
    sites: Which


class ByGroup(Plan):
    """Every cell of a group is a site: real hospitals, scanners."""

    kind: Literal["by-group"]
    group: str = "hospital"


class LeaveOut(Plan):
    """A cell of a group is at no site: all of its patients are the common test set."""

    kind: Literal["leave-out"]
    group: str = "hospital"
    cell: str


Partition = Annotated[
    EqualSizes
    | Shares
    | PowerLaw
    | Dirichlet
    | ClassesPerSite
    | Prevalence
    | ManyImages
    | ByGroup
    | LeaveOut,
    Field(discriminator="kind"),
]
