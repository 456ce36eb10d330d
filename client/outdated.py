"""Plans of an earlier format that a site still holds: they never run again, but may have cost."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.study import FORMAT, Study, check_format, parse_study

EARLIER = range(1, FORMAT)


@dataclass(frozen=True)
class Outdated:
    """A plan of an earlier format, as the site keeps it.

    Attributes:
        digest: Of the plan in its own format: what was offered, and perhaps approved.
        state: What was decided: "offered", "approved" or "revoked".
        values: The plan as it was written.
    """

    digest: str
    state: str
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.values["name"])

    def refuse(self) -> None:
        """Say that the plan does not run.

        Raises:
            StudyError: Always, with how to go on.
        """
        check_format(self.values, f"study {self.digest[:12]}")

    def of_same_cost(self) -> Study:
        """Return a study of this format whose rounds cost a patient what those of this one did.

        Raises:
            StudyError: This format has none, as a setting is beyond its limits.
        """
        # Format 1 had other rules on the sites' data, none of which decides what a round costs.
        values = {key: value for key, value in self.values.items() if key != "data"}
        return parse_study(values | {"format": FORMAT}, f"study {self.digest[:12]}")


def read_outdated(path: Path) -> Outdated | None:
    """Return the plan in a file of `studies` if it is of an earlier format and as it was approved.

    Args:
        path: An offer or an approval, named by its digest.
    """
    found = parse_outdated(path, path.parent.name)
    return found if found and found.digest == path.stem else None


def parse_outdated(path: Path, state: str) -> Outdated | None:
    """Return the plan in a file, such as a run's `study.json`, if it is of an earlier format.

    Args:
        path: Holds a plan as JSON, or an approval of one.
        state: What was decided on it.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    plan = values.get("study", values) if isinstance(values, dict) else None
    if not isinstance(plan, dict) or plan.get("format") not in EARLIER:
        return None
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Outdated(hashlib.sha256(text.encode()).hexdigest(), state, plan)
