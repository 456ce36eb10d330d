"""What sites do over the rounds of a scenario: drop out, join late, leave, lag, send nonsense."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.study_parts import Plan
from simulations.parts import Which

Round = Annotated[int, Field(ge=1)]


class Dropout(Plan):
    """Sites that are away for single rounds: with a probability, every so many, or in a list."""

    sites: Which = "all"
    probability: float | None = Field(default=None, gt=0, le=1, description="each site and round")
    every: int | None = Field(default=None, ge=1, description="rounds n, 2n, 3n, ...")
    rounds: tuple[Round, ...] = Field(default=(), description="these rounds, from 1")
    count: int | None = Field(
        default=None,
        ge=1,
        description="of every and rounds: how many of the sites, chosen by the seed; default: all",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Dropout:
        if (self.probability is not None) + (self.every is not None) + bool(self.rounds) != 1:
            raise ValueError("give one of probability, every and rounds")
        if self.count is not None and self.probability is not None:
            raise ValueError("count belongs to every and rounds")
        return self


class Stay(Plan):
    """Sites that join late or leave for good."""

    sites: Which
    joins: Round = Field(default=1, description="first round the site is there")
    leaves: Round | None = Field(default=None, description="first round it is gone")

    @model_validator(mode="after")
    def _joins_first(self) -> Stay:
        if self.leaves is not None and self.leaves <= self.joins:
            raise ValueError("leaves must be after joins")
        return self


class Slow(Plan):
    """Sites whose answers take long; longer than the round's deadline, they are late."""

    sites: Which
    seconds: float = Field(gt=0, description="added to an answer")
    probability: float = Field(default=1.0, gt=0, le=1, description="each round")


class Nonsense(Plan):
    """Sites that send nonsense in place of their update."""

    sites: Which
    kind: Literal["nan", "scaled", "sign-flipped"]
    factor: float = Field(default=100.0, gt=0, description="of scaled: times the update")
    from_round: Round = 1


class Behaviour(Plan):
    """All that sites do over the rounds."""

    dropouts: tuple[Dropout, ...] = ()
    stays: tuple[Stay, ...] = ()
    slow: tuple[Slow, ...] = ()
    nonsense: tuple[Nonsense, ...] = ()
