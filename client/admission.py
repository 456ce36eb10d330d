"""Getting a node admitted by the server, and saying why it is not: each cause has its own words."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from client.vault import write_atomic
from shared.errors import SiteError

if TYPE_CHECKING:
    from shared.flower.admission import Gate

ONLINE_SECONDS = 90.0
"""How long a server may count a node as online that was killed: a minute, and some."""

CONTACT = "contact"
"""File of the home whose age is that of the last contact with the server."""

AGAIN_SECONDS = 3.0
"""Between two attempts to be admitted."""


@contextmanager
def only_node(home: Path) -> Iterator[None]:
    """Hold the home for one node; the lock ends with the process, however that ends.

    Raises:
        SiteError: Another node runs on this home.
    """
    path = home / "node.lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise SiteError(
            f"cannot write into the home: {error.strerror}",
            str(path),
            "The home and all in it must belong to the node's user",
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SiteError(
                "another node runs on this home", str(home), "Stop it first; one node a home"
            ) from None
        yield


def wait_to_enter(
    gate: Gate,
    server: str,
    known: Path,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once the server admits the node.

    Args:
        gate: The server as the node sees it.
        server: Its address, for messages.
        known: File with the time the server last admitted this key; written here.
        say: Told when there is something to wait for.
        sleep: Waits for seconds.

    Raises:
        SiteError: It does not, and waiting would not help.
    """
    waited = 0.0
    while (answer := gate.try_to_enter()).verdict == "online" and waited < ONLINE_SECONDS:
        if not waited:
            say(
                "the server still counts a node with this key as online, as it does for a minute "
                "after one was killed; waiting"
            )
        sleep(AGAIN_SECONDS)
        waited += AGAIN_SECONDS
    if answer.verdict == "admitted":
        stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        write_atomic(known, stamp.encode())
        return
    raise why_not(gate, answer.verdict, server, known)


def why_not(gate: Gate, verdict: str, server: str, known: Path) -> SiteError:
    """Return the error of a node that the server does not admit, with what to do."""
    match verdict:
        case "clock":
            return SiteError(
                f"the server refuses this machine's time: {_clock(gate)}",
                server,
                "Set the clock (NTP): it may be 5 s ahead and 300 s behind at most",
            )
        case "online":
            return SiteError(
                "another node with this key is online",
                server,
                "A copy of this home runs elsewhere. Stop one for good: each spends what the "
                "other does not count",
            )
        case "unknown" if known.exists():
            return SiteError(
                f"the server no longer knows this node's key; it did at {known.read_text()}",
                server,
                "The enrolment was revoked, or the server was set up anew: ask the coordinator",
            )
        case "unknown":
            return SiteError(
                "the server does not know this node's key",
                server,
                "It is not enrolled yet: send node.pub to the coordinator",
            )
    return SiteError(
        "the server was reached over TLS but does not answer as one (gRPC)",
        server,
        "A firewall or proxy between may not let HTTP/2 through; else ask the coordinator",
    )


def _clock(gate: Gate) -> str:
    ahead = gate.seconds_ahead()
    if ahead is None:
        return "its clock and the server's are more than 14 hours apart"
    side = "ahead of" if ahead > 0 else "behind"
    return f"its clock is {abs(ahead):.0f} s {side} the server's"
