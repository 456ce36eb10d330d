"""What a patient is labelled with: one class, or for each finding with, without or unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from client.data.text import ABSENT
from shared.study import Task

Target = tuple[int, ...]
"""The class index; in studies of findings one number each: 1 with, 0 without, -1 unknown."""

UNKNOWN = -1

PRESENCE = {"1": 1, "1.0": 1, "0": 0, "0.0": 0}
"""What is written for a finding, after `data.values` of `site.toml`; all else is unknown."""


def read_target(
    label: str, findings: Sequence[str], values: Mapping[str, str], task: Task
) -> Target | None:
    """Return what a row says; None if its label is not one of the study's classes.

    Args:
        label: The cell of the label.
        findings: Those of the findings; empty in studies of classes.
        values: The table's values -> the study's classes, or `1` and `0` for findings; others
            are taken as they are.
        task: The study's.
    """
    if task.findings:
        return tuple(PRESENCE.get(values.get(cell, cell), UNKNOWN) for cell in findings)
    name = values.get(label, label)
    return (task.classes.index(name),) if name in task.classes else None


def is_unclear(cell: str, values: Mapping[str, str]) -> bool:
    """Tell whether a finding's cell says something, but neither that it is present nor absent."""
    return values.get(cell, cell) not in PRESENCE and cell.lower() not in ABSENT


def is_known(target: Target) -> bool:
    """Tell whether anything is known."""
    return max(target) > UNKNOWN


def merge_targets(targets: Iterable[Target]) -> Target | None:
    """Return what several rows of a patient say together; None if they contradict each other."""
    merged = []
    for said in zip(*targets, strict=True):
        known = {value for value in said if value != UNKNOWN}
        if len(known) > 1:
            return None
        merged.append(known.pop() if known else UNKNOWN)
    return tuple(merged)


def to_labels(targets: Sequence[Target], task: Task) -> torch.Tensor:
    """Return the labels of patients: int64 [n], or for findings [n, findings]."""
    table = torch.tensor(targets, dtype=torch.int64)
    if task.findings:
        return table.reshape(len(targets), len(task.classes))
    return table.reshape(len(targets))


def count_labels(labels: torch.Tensor, task: Task) -> dict[str, int]:
    """Count patients by class; of findings those with and without each, by `name`, `no name`.

    Args:
        labels: As `to_labels` returns them.
        task: The study's.
    """
    if not task.findings:
        counts = torch.bincount(labels, minlength=len(task.classes)).tolist()
        return dict(zip(task.classes, counts, strict=True))
    found = {}
    for column, name in enumerate(task.classes):
        for value, key in ((1, name), (0, f"no {name}")):
            found[key] = int((labels[:, column] == value).sum())
    return found
