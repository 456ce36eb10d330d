"""The Flower ClientApp: unpack a request, hand it to the round, pack the reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import shared.flower  # noqa: F401  (silences Flower before its first import)
from shared.flower.wire import from_content, to_content
from shared.protocol import Refusal, Reply, Request
from shared.transport import Weights

if TYPE_CHECKING:
    from flwr.clientapp.typing import Mod

    from client.hospital import Hospital


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


def _hospital_at_home(context: Context, request: Request) -> Hospital:
    from client.rounds import open_hospital

    return open_hospital(Path(str(context.node_config["home"])))


app = make_app(_hospital_at_home)


def _answer(
    find: Callable[[], Hospital], request: Request, weights: Weights
) -> tuple[Reply, Weights]:
    from client.rounds import handle

    try:
        return handle(find(), request, weights)
    except Exception:  # noqa: BLE001
        # Flower would send the exception's text to the server; it may name files or patients.
        import traceback

        traceback.print_exc()
        refusal = Refusal(code="internal-error")
        reply = Reply(
            study_digest=request.study_digest,
            run=request.run,
            round=request.round,
            outcome="refused",
            refusal=refusal,
        )
        return reply, {}
