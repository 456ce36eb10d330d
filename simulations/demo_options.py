"""What a user of the demo can ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for; see `consilium demo --help`."""

    model: str = "cnn"
    images: Path | None = None
    sites: int = 3
    rounds: int | None = None
    epsilon: float = 8.0
    private: bool = True
    device: str = "auto"
    seed: int = 0
    out: Path | None = None
