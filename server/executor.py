"""The process runs are forked from: it has loaded all that the round loop needs."""

from __future__ import annotations

import sys
from pathlib import Path

import shared.flower  # noqa: F401  (silences Flower before its first import)
from shared.flower.quiet import log_quietly


def main() -> None:
    """Load everything, then serve the SuperLink at the address given on the command line."""
    import server.app
    import server.federation  # noqa: F401
    from shared.flower.executor import serve_link

    log_quietly("runs")
    serve_link(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))


if __name__ == "__main__":
    main()
