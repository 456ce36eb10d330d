"""Records and weights as Flower messages, and the server's transport over a Flower grid."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from shared.errors import CoordinatorError, ProtocolError
from shared.protocol import Question, Reply, Request, parse
from shared.transport import Received, Weights

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

MAX_WEIGHTS = 512 * 2**20
"""Largest weights message accepted, in bytes."""

MAX_RECORD = 4 * 2**20
"""Longest record that is looked into although it is not valid, in characters."""


def to_content(record: Request | Reply, weights: Weights) -> RecordDict:
    """Return a record and its arrays as the content of a Flower message."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
    from safetensors.numpy import save

    content = RecordDict({"record": ConfigRecord({"json": record.model_dump_json()})})
    if weights:
        blob = save(weights)
        content["weights"] = ArrayRecord(
            {"safetensors": Array("uint8", (len(blob),), "safetensors", blob)}
        )
    return content


def from_content(
    kind: type[Request] | type[Reply], content: RecordDict, where: str
) -> tuple[Any, Weights]:
    """Return the validated record and the arrays of a message's content.

    Raises:
        ProtocolError: The content is not exactly one record and at most one set of weights.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        text = content.config_records["record"]["json"]
        arrays = content.array_records.get("weights")
        blob = b"" if arrays is None else arrays["safetensors"].data
    except KeyError:
        raise ProtocolError("a message without the agreed records", where) from None
    if not isinstance(text, str) or len(blob) > MAX_WEIGHTS:
        raise ProtocolError("a message with a record of the wrong type or size", where)
    try:
        weights = load(blob) if blob else {}
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ProtocolError("a message whose weights are not valid safetensors", where) from None
    return parse(kind, text, where), weights


def read_question(content: RecordDict) -> Question | None:
    """Return which question a message asks, read leniently; None if it does not say."""
    try:
        text = content.config_records["record"]["json"]
        if isinstance(text, str) and len(text) <= MAX_RECORD:
            return Question.model_validate_json(text)
    except (KeyError, ValidationError):
        pass
    return None


class GridTransport:
    """The server's `Transport` over a Flower `Grid`."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> dict[int, str]:
        """Return the registered nodes that are online now, each with the time it connected."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def send(self, node: int, request: Request, weights: Weights, ttl: float) -> str:
        """Send a request with the global weights; return the message id. `ttl` is in seconds."""
        from flwr.app import Message

        message = Message(
            to_content(request, weights),
            dst_node_id=node,
            message_type="train",
            ttl=ttl,
            group_id=str(request.round),
        )
        identifiers = list(self._grid.push_messages([message]))
        if not identifiers or not identifiers[0]:
            raise CoordinatorError(
                "the SuperLink did not take a message", f"node {node}", "See the server's log"
            )
        return identifiers[0]

    def receive(self, ids: Collection[str]) -> Iterator[Received]:
        """Yield answers that have arrived; each is pulled alone, so memory holds one at a time."""
        for identifier in ids:
            for message in self._grid.pull_messages([identifier]):
                yield self._received(identifier, message)

    @staticmethod
    def _received(identifier: str, message: Message) -> Received:
        from flwr.common.constant import ErrorCode

        node = message.metadata.src_node_id
        if message.has_error():
            offline = message.error.code == ErrorCode.NODE_UNAVAILABLE
            return Received(identifier, node, None, error=_plain_error(message), offline=offline)
        try:
            reply, update = from_content(Reply, message.content, f"reply of node {node}")
        except ProtocolError as error:
            return Received(identifier, node, None, error=str(error))
        return Received(identifier, node, reply, update)


def _plain_error(message: Message) -> str:
    from flwr.common.constant import ErrorCode

    known = {
        ErrorCode.INVALID_FAB: "the site runs another release: its node refused this server's "
        "bundle; compare what `consilium version` prints at both ends",
        ErrorCode.MESSAGE_UNAVAILABLE: "the message expired before the node answered",
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "the node's reply was lost",
        ErrorCode.NODE_UNAVAILABLE: "the node is offline",
        ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "the node could not load its installed release",
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "the node's training process failed",
    }
    # The error's own text is not shown: it comes from the other side.
    return known.get(message.error.code, f"the node answered with error {message.error.code}")
