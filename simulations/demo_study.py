"""The study the demo runs: the product's default settings, sized for six minutes on two cores."""

from __future__ import annotations

from collections.abc import Sequence

from shared.study import Study, parse_study
from simulations.demo_options import DemoOptions


def demo_study(options: DemoOptions, classes: Sequence[str], size: int, channels: int) -> Study:
    """Return the demo's plan for images of these classes, side in pixels and channels.

    Raises:
        StudyError: An option is out of range, such as an unknown model or a negative epsilon.
    """
    made_up = options.images is None
    return parse_study(
        {
            "name": "demo" if made_up else "demo-images",
            "description": "One study of the demo on this machine.",
            "task": {"classes": list(classes), "positive": classes[-1]},
            "input": {"size": size, "channels": channels},
            "model": {"name": options.model, **model_sizes(options.model, size)},
            "privacy": {
                "enabled": options.private,
                "epsilon": options.epsilon,
                **({"score_bins": 8} if made_up else {}),  # the phantoms are few
            },
            "federation": {
                **({"rounds": options.rounds} if options.rounds else {}),
                "sites": options.sites,
                "min_sites": max(1, options.sites - 1),
                "round_deadline": 600,
                "start_deadline": 120,
            },
        },
        "the demo's options",
    )


def model_sizes(model: str, size: int) -> dict[str, int]:
    """Return sizes that fit the input: the attention model's patch must divide the side."""
    if model != "attention":
        return {}
    return {"patch": next(p for p in (7, 8, 6, 5, 4, size) if size % p == 0)}
