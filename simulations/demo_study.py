"""The study the demo runs: the product's default settings, sized for six minutes on two cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.study import Study, parse_study

if TYPE_CHECKING:
    from simulations.demo import DemoOptions
    from simulations.hospitals import HospitalFolder


def demo_study(options: DemoOptions, folder: HospitalFolder) -> Study:
    """Return the demo's plan.

    Raises:
        StudyError: An option is out of range, such as an unknown model or a negative epsilon.
    """
    return parse_study(
        {
            "name": "demo" if options.images is None else "demo-images",
            "description": "One study of the demo on this machine.",
            "task": {"classes": list(folder.classes), "positive": folder.classes[-1]},
            "input": {"size": folder.size, "channels": folder.channels},
            "model": {"name": options.model, **model_sizes(options.model, folder.size)},
            "privacy": {"enabled": options.private, "epsilon": options.epsilon},
            "data": {"min_patients": 10},
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
