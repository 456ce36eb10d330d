"""How the server reaches the sites, in the server's own words; `shared.flower` implements it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.protocol import Reply, Request

Weights = dict[str, NDArray[np.float32]]
"""Arrays by parameter name, as they travel."""


@dataclass(frozen=True)
class Received:
    """One answer of a node.

    Attributes:
        message: Id of the message it answers.
        node: The node that answered.
        reply: The validated reply; None when the node could not give one.
        update: New minus global weights; empty unless `reply.outcome` is "update".
        error: Why there is no reply (bundle refused, app crashed, message malformed).
        offline: Whether that is only that the node is not online now: it may come back.
    """

    message: str
    node: int
    reply: Reply | None
    update: Weights = field(default_factory=dict)
    error: str = ""
    offline: bool = False


class Transport(Protocol):
    """What the round loop needs of the network."""

    def nodes(self) -> Mapping[int, str]:
        """Return the registered nodes that are online now, each with the time it connected.

        A node that has connected anew since it was asked may have lost the message.
        """

    def send(self, node: int, request: Request, weights: Weights, ttl: float) -> str:
        """Send a request with the global weights; return the message id. `ttl` is in seconds."""

    def receive(self, ids: Collection[str]) -> Iterator[Received]:
        """Yield answers that have arrived for these messages, pulling one at a time."""
