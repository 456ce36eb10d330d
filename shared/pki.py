"""Keys and certificates: the coordinator's authority, its server certificate, the nodes' keys."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import CoordinatorError, SiteError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397


def create_authority(folder: Path, name: str = "Consilium") -> None:
    """Make a certificate authority: `ca.key` (0600) and `ca.pem`, EC P-384.

    Raises:
        CoordinatorError: One exists already; replacing it would lock every hospital out.
    """
    if (folder / "ca.key").exists():
        raise CoordinatorError(
            "a certificate authority exists already", str(folder), "Keep it, or use a new folder"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} certificate authority")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_private(folder / "ca.key", _pem(key))
    (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


def issue_server_certificate(folder: Path, hosts: list[str]) -> None:
    """Issue `server.pem` and `server.key` (0600) from the folder's authority.

    Args:
        folder: Where `ca.key` and `ca.pem` are.
        hosts: DNS names and IP addresses the server is reached at.
    """
    authority_key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise CoordinatorError("the authority's key is not an EC key", str(folder / "ca.key"))
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(h) for h in hosts]), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False
        )
        .sign(authority_key, hashes.SHA384())
    )
    _write_private(folder / "server.key", _pem(key))
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


def create_node_key(home: Path, name: str = "") -> None:
    """Make a node's key pair: `node.key` (OpenSSH EC P-384, 0600) and `node.pub`.

    Args:
        home: The folder.
        name: The hospital's, which travels with the public key, as its comment.

    Raises:
        SiteError: A key exists already.
    """
    if (home / "node.key").exists():
        raise SiteError("the node has a key already", str(home / "node.key"), "Keep using it")
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(
        home / "node.key",
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
    )
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (home / "node.pub").write_bytes(public + f" {name}".rstrip().encode() + b"\n")


def name_of_key(public: bytes) -> str:
    """Return the name that travels with a node's public key; empty if there is none."""
    parts = public.decode(errors="replace").strip().split(maxsplit=2)
    return parts[2] if len(parts) == 3 else ""


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # An hour back: hospital clocks drift.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise CoordinatorError(
            "this is neither a host name nor an address", host, "Give it without port and scheme"
        )
    return x509.DNSName(host)


def renew_server_certificate(folder: Path, more: Sequence[str], authority: Path) -> list[str]:
    """Replace `server.pem` and `server.key` by new ones of the same authority.

    Hospitals trust the authority, so nothing changes for them.

    Args:
        folder: The server's home, with `ca.pem` and the old certificate.
        more: Names and addresses to add to those of the old one.
        authority: File of the authority's private key.

    Returns:
        What the new one is for.

    Raises:
        CoordinatorError: The authority's key is not there, or is not the authority's.
    """
    hosts = list(dict.fromkeys([*certificate_hosts((folder / "server.pem").read_bytes()), *more]))
    try:
        key = load_pem_private_key(authority.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise CoordinatorError(
            f"cannot read the authority's key: {getattr(error, 'strerror', None) or error}",
            str(authority),
            "Bring ca.key back from where you keep it: --ca-key FILE",
        ) from None
    trusted = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    if key.public_key() != trusted.public_key():
        raise CoordinatorError("this is another authority's key", str(authority), "Take ca.key")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as name:
        draft = Path(name)
        shutil.copy(authority, draft / "ca.key")
        shutil.copy(folder / "ca.pem", draft / "ca.pem")
        issue_server_certificate(draft, hosts)
        # The certificate last: it is what a running server looks at.
        for file in ("server.key", "server.pem"):
            (draft / file).replace(folder / file)
    return hosts


def certificate_end(certificate: bytes) -> datetime:
    """Return until when a certificate (PEM) is valid, in UTC."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def certificate_hosts(certificate: bytes) -> list[str]:
    """Return the names and addresses a server certificate (PEM) is for."""
    found = x509.load_pem_x509_certificate(certificate).extensions
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
