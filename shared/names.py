"""Names of hospitals, in any script, so that two that look alike to a person are one."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

LONGEST = 64
"""Characters of a name at most."""


def valid_name(name: str) -> str:
    """Return a hospital's name in its one form (NFC).

    Raises:
        ValueError: It has control or invisible characters, does not begin with a letter or
            digit, or is too long.
    """
    name = unicodedata.normalize("NFC", name)
    kinds = [unicodedata.category(character) for character in name]
    if not 1 <= len(name) <= LONGEST or name != name.strip():
        raise ValueError(f"must have 1 to {LONGEST} characters, none of them a space at an end")
    if kinds[0][0] not in "LN":
        raise ValueError("must begin with a letter or a digit")
    # Other spaces, line breaks, and signs that change the direction of what follows.
    if any(kind[0] in "CZ" and c != " " for kind, c in zip(kinds, name, strict=True)):
        raise ValueError("must not have control characters, or spaces other than the usual one")
    return name


def same_name(one: str, other: str) -> bool:
    """Tell whether people would take two names for the same."""
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


SiteName = Annotated[str, AfterValidator(valid_name)]
"""A field with a hospital's name."""
