"""All that touches Flower's internals: the bundle, messages, the guarded node, the SuperLink.

Written against flwr 1.39; `tests/shared/test_flower_contract.py` holds the contract. Importing
this package sets the variables that silence Flower's telemetry and update check, which Flower
reads when it is first imported, and drops those that name a proxy.
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

PROXIES = tuple(sorted(name for name in os.environ if name.lower().endswith("_proxy")))
"""Variables that named a proxy. A node connects to the one address a person wrote down, and
processes of one machine to each other: never by way of whatever the environment names."""

for _name in PROXIES:
    del os.environ[_name]
