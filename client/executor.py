"""The process a node's tasks are forked from: it has loaded all that a round needs."""

from __future__ import annotations

import sys

import shared.flower  # noqa: F401  (silences Flower before its first import)
from client.process import forbid_core_dumps
from shared.flower.quiet import log_quietly


def main() -> None:
    """Load everything, then serve the node at the address given on the command line."""
    forbid_core_dumps()
    import opacus.grad_sample
    import scipy.stats
    import torch._dynamo  # torch.optim imports it at its first use

    import client.app
    import client.data.cohort
    import client.rounds
    import client.training  # noqa: F401
    from shared.flower.executor import serve_node

    del opacus, scipy, torch
    log_quietly("training")
    serve_node(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    main()
