"""The Flower ClientApp: unpack a request, hand it to the round, pack the reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import shared.flower  # noqa: F401  (silences Flower before its first import)
from shared.errors import ProtocolError
from shared.flower.wire import from_content, read_question, to_content
from shared.protocol import Question, Reply, Request
from shared.transport import Weights

if TYPE_CHECKING:
    from flwr.clientapp.typing import Mod

    from client.hospital import Hospital

log = logging.getLogger(__name__)


def make_app(find: Callable[[Context, Request], Hospital], mods: Sequence[Mod] = ()) -> ClientApp:
    """Return the ClientApp of a node.

    Args:
        find: Opens the node's hospital, anew for each request.
        mods: Flower's wrappers around each message, outermost first.
    """
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        """Answer one request of the server; nothing but the declared reply ever leaves."""
        request, weights = from_content(Request, message.content, "request of the server")
        reply, update = _answer(lambda: find(context, request), request, weights)
        return Message(to_content(reply, update), reply_to=message)

    return app


def _at_home(context: Context) -> Hospital:
    from client.rounds import open_hospital

    return open_hospital(Path(str(context.node_config["home"])))


def _refuse_unreadable(
    message: Message, context: Context, answer: Callable[[Message, Context], Message]
) -> Message:
    """Refuse a message that is no request of this release, and note it.

    Where it does not even say which question it asks, there is nothing to reply to: Flower then
    answers with the error, which names fields of the message and no more.
    """
    try:
        return answer(message, context)
    except ProtocolError as error:
        question = read_question(message.content)
        reply = _note_unreadable(context, question, error)
        if reply is None:
            raise
        return Message(to_content(reply, {}), reply_to=message)


app = make_app(lambda context, _: _at_home(context), mods=[_refuse_unreadable])


def _note_unreadable(
    context: Context, question: Question | None, error: ProtocolError
) -> Reply | None:
    from client.answers import note_refusal, refusal

    log.warning("refused: %s", error)
    try:
        note_refusal(_at_home(context), question, error)
    except Exception:  # noqa: BLE001  (its text may name files of the site)
        _print_error()
    return refusal(question, error) if question else None


def _answer(
    find: Callable[[], Hospital], request: Request, weights: Weights
) -> tuple[Reply, Weights]:
    from client.answers import refusal
    from client.rounds import handle

    try:
        return handle(find(), request, weights)
    except Exception as error:  # noqa: BLE001
        # Flower would send the exception's text to the server; it may name files or patients.
        _print_error()
        return refusal(request, error), {}


def _print_error() -> None:
    import traceback

    traceback.print_exc()
