"""The doctor's checks of the way to the server: connection, certificate, enrolment, clock."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

from client.admission import why_not
from client.finding import Finding
from client.node import TIMEOUT, check_server
from client.site import Site

WARN_DAYS = 30
"""Days before a certificate's end from which on it is warned of."""

WARN_AHEAD, WARN_BEHIND = 2.0, 120.0
"""Seconds of a wrong clock from which on it is warned of; 5 and 300 are refused."""


def server(site: Site) -> Iterator[Finding]:
    """Connect as a node does, and ask what the server makes of this node's key."""
    from shared.flower.admission import Gate
    from shared.flower.node import read_node_key

    address, ca = site.config.server.address, site.resolve(site.config.server.ca)
    check_server(address, ca)
    yield Finding.good("server", f"{address} is reached over TLS, of the coordinator's authority")
    yield _certificate(site)
    with Gate(address, ca.read_bytes(), read_node_key(site.node_key)) as gate:
        verdict = gate.knock().verdict
        if verdict != "registered":
            error = why_not(gate, verdict, address, site.home / "admitted")
            yield Finding.bad("enrolment", error.what, error.todo)
            return
        yield Finding.good("enrolment", "the server knows this node's key")
        ahead = gate.seconds_ahead()
    if ahead is not None and not -WARN_BEHIND < ahead < WARN_AHEAD:
        yield Finding.warning(
            "clock",
            f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's",
            "Set the clock (NTP): the server refuses 5 s ahead and 300 s behind",
        )
    else:
        yield Finding.good("clock", "as the server's")


def _certificate(site: Site) -> Finding:
    """Tell how long the server's certificate is still valid."""
    address = site.config.server.address
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context = ssl.create_default_context(cafile=str(site.resolve(site.config.server.ca)))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        details = secure.getpeercert() or {}
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(details["notAfter"])), UTC)
    days = (end - datetime.now(UTC)).days
    if days < WARN_DAYS:
        return Finding.warning(
            "certificate",
            f"the server's ends in {days} days",
            "Ask the coordinator to renew it (`consilium server renew`); nothing changes here",
        )
    return Finding.good("certificate", f"the server's is valid for {days} days")
