"""Starting a hospital's node: check the way to the server first, then run the guarded SuperNode."""

from __future__ import annotations

import logging
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from client.admission import CONTACT, only_node, wait_to_enter, why_not
from client.keys import keep_name_with_key
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
        SiteError: Another node runs here; the server cannot be reached, is not the
            coordinator's, or does not admit the node, at its start or any more.
    """
    forbid_core_dumps()
    with only_node(site.home):
        _run(site, port)


def _run(site: Site, port: int) -> None:
    from client.audit import AuditLog, Event
    from client.vault import Vault
    from shared.flower.admission import Gate
    from shared.flower.node import NodeSettings, read_node_key, run_node
    from shared.flower.quiet import log_quietly

    log_quietly("node")
    if keep_name_with_key(site):
        logging.getLogger("consilium").warning(
            "the name in site.toml is new; the coordinator must know it: server rename"
        )
    server, ca = site.config.server.address, site.resolve(site.config.server.ca)
    check_server(server, ca)
    audit = AuditLog(site.audit_log, Vault.open(site.vault_key))
    settings = NodeSettings(
        home=site.home,
        server=server,
        ca=ca,
        key=site.node_key,
        port=port or free_port(),
        executor="client.executor",
        on_contact=(site.home / CONTACT).touch,
    )

    def refused(run: int, reason: str) -> None:
        event = Event(event="round-refused", run=str(run), code="bundle-refused", outcome=reason)
        audit.write(event, datetime.now(UTC))

    known = site.home / "admitted"
    with Gate(server, ca.read_bytes(), read_node_key(site.node_key)) as gate:
        wait_to_enter(gate, server, known, logging.getLogger("consilium").warning)
        try:
            run_node(settings, refused)
        except SystemExit:
            # Flower ends alike whether a person stops it or the server turns it away.
            if (now := gate.knock().verdict) in ("unknown", "clock"):
                raise why_not(gate, now, server, known) from None
            raise


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
