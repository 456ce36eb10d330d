"""The SuperLink's process: Flower's own, quieter, and it ends with whoever started it."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import shared.flower  # noqa: F401  (silences Flower before its first import)
from shared.flower.quiet import log_quietly


def main() -> None:
    """Run a SuperLink with the options behind the parent's process id."""
    from flwr.supercore.app_utils import start_parent_process_monitor

    superlink: Any = import_module("flwr.superlink.cli.flower_superlink")
    parent, options = int(sys.argv[1]), sys.argv[2:]
    log_quietly("superlink")
    # Uvicorn then logs as everything else does, and not each request.
    superlink.get_uvicorn_log_config = lambda level: None
    start_parent_process_monitor(parent)
    sys.argv = ["flower-superlink", *options]
    superlink.flower_superlink()


if __name__ == "__main__":
    main()
