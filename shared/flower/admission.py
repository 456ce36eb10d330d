"""Whether the server admits a node, asked before Flower does, whose own answer is one for all.

Flower answers three things only: a time stamp outside (-5 s, 305 s) of its own clock, a key that
is registered, and a node that may be activated. An activation with a heartbeat of 0 s is always
refused, but for a registered key with another code than for an unknown one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

Verdict = Literal["admitted", "registered", "online", "unknown", "clock", "silent"]
"""`online`: the server counts a node with this key as online; `silent`: no answer by gRPC."""

AHEAD_SECONDS = 5.0
"""How far ahead of the server's clock Flower lets a node's be."""

BEHIND_SECONDS = 305.0
"""How far behind of it."""

STEP_SECONDS = 300.0
MOST_SECONDS = 14 * 3600.0
"""Clocks are compared in steps of this size, and no further than this, a wrong time zone."""

CALL_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    """What the server said.

    Attributes:
        verdict: Whether the node may connect, or why not.
        node: Its id, if it was activated.
    """

    verdict: Verdict
    node: int = 0


class Gate:
    """The server's Fleet API as a node sees it before it connects.

    Args:
        server: host:port.
        ca: PEM of the coordinator's certificate authority.
        key: The node's private key.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        server: str,
        ca: bytes,
        key: EllipticCurvePrivateKey,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from flwr.proto.fleet_pb2_grpc import FleetStub
        from flwr.supercore.grpc import create_channel

        self._key, self._clock = key, clock
        self._channel = create_channel(server, False, ca)
        self._stub: Any = FleetStub(self._channel)

    def __enter__(self) -> Gate:
        """Return the gate; it is closed at the end of the block."""
        return self

    def __exit__(self, *unused: object) -> None:
        self._channel.close()

    def try_to_enter(self) -> Answer:
        """Activate the node and deactivate it again: what Flower's connection will do next."""
        from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
        from flwr.proto.fleet_pb2 import DeactivateNodeRequest

        answer = self._activate(HEARTBEAT_DEFAULT_INTERVAL)
        if answer.node:
            self._call(self._stub.DeactivateNode, DeactivateNodeRequest(node_id=answer.node))
        # Refused alike are a key nobody has registered and a node that is online.
        if answer.verdict == "unknown" and self.knock().verdict == "registered":
            return Answer("online")
        return answer

    def knock(self) -> Answer:
        """Ask what the server makes of this key, and change nothing."""
        return self._activate(0)

    def seconds_ahead(self) -> float | None:
        """Return how far this machine's clock is ahead of the server's, to about half a second.

        Found with time stamps that are put forward or back until the server takes them; None if
        it takes none.
        """
        steps = int(MOST_SECONDS / STEP_SECONDS)
        shifts = (sign * n * STEP_SECONDS for n in range(steps + 1) for sign in (1, -1))
        low = next((shift for shift in shifts if self._takes(shift)), None)
        if low is None:
            return None
        high = low + AHEAD_SECONDS + BEHIND_SECONDS
        while high - low > 0.5:
            middle = (low + high) / 2
            low, high = (middle, high) if self._takes(middle) else (low, middle)
        return AHEAD_SECONDS - low

    def _takes(self, shift: float) -> bool:
        return self._activate(0, shift).verdict not in ("clock", "silent")

    def _activate(self, heartbeat: float, shift: float = 0.0) -> Answer:
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        public = public_key_to_bytes(self._key.public_key())
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=heartbeat)
        reply = self._call(self._stub.ActivateNode, request, shift)
        return reply if isinstance(reply, Answer) else Answer("admitted", reply.node_id)

    def _call(self, method: Any, request: Any, shift: float = 0.0) -> Any:
        from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

        grpc: Any = import_module("grpc")
        moment = datetime.fromtimestamp(self._clock(), UTC) + timedelta(seconds=shift)
        stamp = moment.isoformat()
        metadata = [
            (PUBLIC_KEY_HEADER, public_key_to_bytes(self._key.public_key())),
            (TIMESTAMP_HEADER, stamp),
            (SIGNATURE_HEADER, sign_message(self._key, stamp.encode())),
        ]
        try:
            return method(request, metadata=metadata, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            return _reading(error)


def _reading(error: Any) -> Answer:
    """Return what a refusal of Flower means."""
    from flwr.supercore.error import ApiErrorCode, FlowerError

    if error.details() == "Invalid timestamp":
        return Answer("clock")
    known = FlowerError.from_json(error.details())
    if known is not None and known.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return Answer("registered")
    if known is not None and known.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return Answer("unknown")
    return Answer("silent")
