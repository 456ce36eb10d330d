"""Invitations: the public facts a hospital needs to join."""

from __future__ import annotations

from server.home import ServerHome
from shared.errors import CoordinatorError
from shared.invitation import Invitation
from shared.pki import certificate_hosts


def invitation(home: ServerHome, address: str = "") -> Invitation:
    """Return the invitation of a server.

    Args:
        home: The server's home.
        address: host:port hospitals reach it at; default: the address it listens on.

    Raises:
        CoordinatorError: The server's certificate is not for this address.
    """
    address = address or home.settings.fleet
    host = address.rpartition(":")[0].strip("[]")
    hosts = certificate_hosts((home.path / "server.pem").read_bytes())
    if host.lower() not in (known.lower() for known in hosts):
        raise CoordinatorError(
            "the server's certificate is not for this address; every hospital would refuse it",
            f"{address}; it is for {', '.join(hosts)}",
            "Give one of these, or make a new certificate: `consilium server renew --host`",
        )
    return Invitation(
        server=address,
        ca=(home.path / "ca.pem").read_text(),
        signing_key=(home.path / "server.pub").read_text(),
    )
