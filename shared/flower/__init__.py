"""All that touches Flower's internals: the bundle, messages, the guarded node, the SuperLink.

Written against flwr 1.39; `tests/shared/test_flower_contract.py` holds the contract. Importing
this package sets the variables that silence Flower's telemetry and update check, which Flower
reads when it is first imported.
"""

from __future__ import annotations

import os

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""Environment of every Flower process: nothing is reported or fetched; tasks start promptly."""

os.environ.update(QUIET)
