"""Starting a hospital's node: check the way to the server first, then run the guarded SuperNode."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from client.process import forbid_core_dumps
from client.site import Site
from shared.errors import SiteError

TIMEOUT = 10.0
"""Seconds to wait for the server to answer the connection check."""


def start_node(site: Site, port: int = 0) -> None:
    """Run the site's node until it is stopped.

    Args:
        site: The configured site.
        port: Loopback port of the node's own runtime API; 0 takes a free one.

    Raises:
        SiteError: The server cannot be reached, is not the coordinator's, or does not know
            this node's key.
    """
    from client.audit import AuditLog, Event
    from client.vault import Vault
    from shared.flower.node import NodeSettings, run_node

    forbid_core_dumps()
    ca = site.resolve(site.config.server.ca)
    check_server(site.config.server.address, ca)
    audit = AuditLog(site.audit_log, Vault.open(site.vault_key))
    settings = NodeSettings(
        home=site.home,
        server=site.config.server.address,
        ca=ca,
        key=site.node_key,
        port=port or free_port(),
        executor="client.executor",
    )

    def refused(run: int, reason: str) -> None:
        event = Event(event="round-refused", run=str(run), code="bundle-refused", outcome=reason)
        audit.write(event, datetime.now(UTC))

    run_node(settings, refused)


def check_server(address: str, ca: Path) -> None:
    """Make one TLS handshake with the server and say exactly what is wrong if it fails.

    Args:
        address: host:port of the server.
        ca: PEM file of the coordinator's certificate authority.

    Raises:
        SiteError: Unreachable, not speaking TLS, or a certificate of another authority.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError):
        raise SiteError(
            "cannot read the certificate authority",
            str(ca),
            "Ask the coordinator for ca.pem and put it there",
        ) from None
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout=TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise SiteError(
            f"the server's certificate is refused: {error.verify_message}",
            address,
            "Either this is not the coordinator's server, or ca.pem is not the coordinator's; "
            "compare fingerprints by telephone",
        ) from None
    except ssl.SSLError:
        raise SiteError(
            "the server does not speak TLS on this port",
            address,
            "Check host and port with the coordinator; plain text is never used",
        ) from None
    except TimeoutError:
        raise SiteError(
            f"the server did not answer within {TIMEOUT:.0f} s",
            address,
            "Check the address, and that the firewall allows outbound TCP to it",
        ) from None
    except OSError as error:
        raise SiteError(
            f"cannot connect to the server: {error.strerror or error}",
            address,
            "Check the address, and that the firewall allows outbound TCP to it",
        ) from None


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
