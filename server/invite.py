"""Invitations: the public facts a hospital needs to join."""

from __future__ import annotations

from server.home import ServerHome
from shared.invitation import Invitation


def invitation(home: ServerHome, address: str = "") -> Invitation:
    """Return the invitation of a server.

    Args:
        home: The server's home.
        address: host:port hospitals reach it at; default: the address it listens on.
    """
    return Invitation(
        server=address or home.settings.fleet,
        ca=(home.path / "ca.pem").read_text(),
        signing_key=(home.path / "server.pub").read_text(),
    )
