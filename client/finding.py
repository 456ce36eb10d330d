"""One thing the doctor found: what is wrong, and what to do about it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """What a check came to.

    Attributes:
        check: What was looked at.
        level: "problem": no round would work; "warning": rounds work, but see to it.
        found: What was found.
        remedy: What to do; empty where nothing is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    level: Literal["good", "warning", "problem"]
    found: str
    remedy: str = ""

    @classmethod
    def good(cls, check: str, found: str) -> Finding:
        """Return that all is well."""
        return cls(check=check, level="good", found=found)

    @classmethod
    def warning(cls, check: str, found: str, remedy: str) -> Finding:
        """Return something to see to that stops no round."""
        return cls(check=check, level="warning", found=found, remedy=remedy)

    @classmethod
    def bad(cls, check: str, found: str, remedy: str) -> Finding:
        """Return something that stops every round, or those of a study."""
        return cls(check=check, level="problem", found=found, remedy=remedy)
