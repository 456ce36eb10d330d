"""Text as people and spreadsheets write it, without what the eye does not see."""

from __future__ import annotations

import re
import unicodedata

FORMULA = re.compile(r'="(.*)"', re.DOTALL)
"""A cell that a spreadsheet is made to keep as text: `="0042"`."""


NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A decimal number with a point."""

ABSENT = frozenset({"", "?", "na", "n/a", "nan", "null"})
"""What stands for a missing value in lower case, unless it is a category of the study."""


def plain(cell: str) -> str:
    """Return a cell without white space around it, invisible characters, or a formula's frame."""
    seen = "".join(char for char in cell if unicodedata.category(char) != "Cf").strip()
    framed = FORMULA.fullmatch(seen)
    return framed.group(1).strip() if framed else seen


def folded(name: str) -> str:
    """Return what names have in common that differ in case or Unicode form only."""
    seen = "".join(char for char in name if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", seen).casefold())
