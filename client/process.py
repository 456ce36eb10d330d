"""What every process of a node that holds keys or images forbids itself at its start."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """Let this process leave no core dump, nor those it starts: it would hold keys and images."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
