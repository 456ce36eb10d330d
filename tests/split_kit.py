"""A split key that every run of the tests has, so that the same patients are held out each time."""

from __future__ import annotations

from pathlib import Path

KEY = bytes(range(32))


def fix_split(home: Path) -> Path:
    """Give a home this split key; return the home."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / "split.key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return home
