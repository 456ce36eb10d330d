"""The Flower ClientApp: unpack a request, hand it to the round, pack the reply."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import shared.flower  # noqa: F401  (silences Flower before its first import)
from shared.flower.wire import from_content, to_content
from shared.protocol import Refusal, Reply, Request
from shared.transport import Weights

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one request of the server; nothing but the declared reply ever leaves."""
    request, weights = from_content(Request, message.content, "request of the server")
    reply, update = _answer(Path(str(context.node_config["home"])), request, weights)
    return Message(to_content(reply, update), reply_to=message)


def _answer(home: Path, request: Request, weights: Weights) -> tuple[Reply, Weights]:
    from client.rounds import handle, open_hospital

    try:
        return handle(open_hospital(home), request, weights)
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
