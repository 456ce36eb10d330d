"""The SuperLink's process: Flower's own, quieter, and it ends with whoever started it."""

from __future__ import annotations

import os
import sys
import threading
import time
from importlib import import_module
from typing import Any

import shared.flower  # noqa: F401  (silences Flower before its first import)
from shared.flower.quiet import log_quietly

GRACE_SECONDS = 5.0
"""How long it may take to end by itself once its parent is gone."""


def main() -> None:
    """Run a SuperLink with the options behind the parent's process id."""
    from flwr.supercore.app_utils import start_parent_process_monitor

    superlink: Any = import_module("flwr.superlink.cli.flower_superlink")
    parent, options = int(sys.argv[1]), sys.argv[2:]
    log_quietly("superlink")
    # Uvicorn then logs as everything else does, and not each request.
    superlink.get_uvicorn_log_config = lambda level: None
    start_parent_process_monitor(parent)
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    sys.argv = ["flower-superlink", *options]
    superlink.flower_superlink()


def _end_without(parent: int) -> None:
    """End for certain soon after the parent, or the next SuperLink would find the port taken.

    Flower asks its own process to end, which waits for open requests for half a minute.
    """
    while os.getppid() == parent:
        time.sleep(0.2)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
