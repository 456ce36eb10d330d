"""Before a node starts, the way to the server is checked, and the message says what is wrong."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.node import check_server, free_port
from shared import pki
from shared.errors import SiteError


@contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A one-shot TCP server on loopback that gives its connection to `handle`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                handle(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


def tls(folder: Path) -> Callable[[socket.socket], None]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    def handle(connection: socket.socket) -> None:
        try:
            context.wrap_socket(connection, server_side=True).close()
        except (ssl.SSLError, OSError):
            return

    return handle


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    folder = tmp_path / "authority"
    folder.mkdir()
    pki.create_authority(folder)
    pki.issue_server_certificate(folder, ["127.0.0.1"])
    return folder


def test_the_coordinators_server_passes(authority: Path) -> None:
    with listening(tls(authority)) as address:
        check_server(address, authority / "ca.pem")


def test_another_authority_is_refused(authority: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pki.create_authority(other)
    with listening(tls(authority)) as address, pytest.raises(SiteError, match="certificate is ref"):
        check_server(address, other / "ca.pem")


def test_another_host_name_is_refused(tmp_path: Path) -> None:
    pki.create_authority(tmp_path)
    pki.issue_server_certificate(tmp_path, ["fed.example.org"])
    with listening(tls(tmp_path)) as address, pytest.raises(SiteError, match="mismatch"):
        check_server(address, tmp_path / "ca.pem")


def test_plain_text_on_the_port_is_named(authority: Path) -> None:
    def plain(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listening(plain) as address, pytest.raises(SiteError, match="does not speak TLS"):
        check_server(address, authority / "ca.pem")


def test_nobody_listens(authority: Path) -> None:
    with pytest.raises(SiteError, match="cannot connect to the server: Connection refused"):
        check_server(f"127.0.0.1:{free_port()}", authority / "ca.pem")


def test_missing_authority_file(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot read the certificate authority"):
        check_server("127.0.0.1:1", tmp_path / "ca.pem")
