"""What a coordinator sees of an answer beside the noise: for neighbours it must be the same.

Two data sets are neighbours if one has one patient that the other lacks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.protocol import Reply

Update = dict[str, np.ndarray]

NOISED = ("counts", "classes", "columns")
"""Fields whose values carry noise; what shows of them here is their length and their type."""

KEYED = ("hash",)
"""Values of a keyed function, which look like chance to whoever lacks the key."""


def beside_the_noise(reply: Reply, update: Update) -> dict[str, Any]:
    """Return all that a reply and its update show, but for the values that carry noise.

    Fields that are left out of the message are left out here, those that are there are named,
    and of noised values the number and the type is told.
    """
    seen = _without_values(reply.model_dump(mode="json", exclude_unset=True))
    # On the wire they are in the order of their names.
    arrays = {name: (array.shape, str(array.dtype)) for name, array in sorted(update.items())}
    return {"reply": seen, "update": arrays}


def assert_alike(one: tuple[Reply, Update], other: tuple[Reply, Update]) -> None:
    """Fail unless two answers show the same beside the noise."""
    left, right = beside_the_noise(*one), beside_the_noise(*other)
    differing = {
        field: (left["reply"].get(field), right["reply"].get(field))
        for field in left["reply"].keys() | right["reply"].keys()
        if left["reply"].get(field) != right["reply"].get(field)
    }
    assert not differing, differing
    assert left == right


def _without_values(value: Any, name: str = "") -> Any:
    if name in KEYED:
        return len(value)
    if isinstance(value, dict):
        return {key: _without_values(own, key) for key, own in value.items()}
    if isinstance(value, list):
        return [_without_values(each, name) for each in value]
    return type(value).__name__ if name in NOISED else value
