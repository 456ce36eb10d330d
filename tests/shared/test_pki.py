"""Certificates do what TLS and Flower need, and nothing overwrites a key."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from shared import pki
from shared.errors import CoordinatorError, SiteError


def test_server_certificate_verifies_against_its_authority_only(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        pki.create_authority(tmp_path / name)
    pki.issue_server_certificate(tmp_path / "ours", ["localhost", "127.0.0.1"])

    def verify(authority: str) -> int:
        return subprocess.run(
            [
                *("openssl", "verify", "-purpose", "sslserver", "-verify_hostname", "localhost"),
                *("-CAfile", str(tmp_path / authority / "ca.pem")),
                str(tmp_path / "ours" / "server.pem"),
            ],
            capture_output=True,
            check=False,
        ).returncode

    assert verify("ours") == 0
    assert verify("theirs") != 0


def test_names_and_addresses_are_in_the_certificate(tmp_path: Path) -> None:
    pki.create_authority(tmp_path)
    pki.issue_server_certificate(tmp_path, ["fed.example.org", "10.1.2.3"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3"]


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    pki.create_authority(tmp_path)
    pki.issue_server_certificate(tmp_path, ["localhost"])
    pki.create_node_key(tmp_path)
    for name in ("ca.key", "server.key", "node.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_node_key_is_openssh_p384_and_matches_its_public_half(tmp_path: Path) -> None:
    pki.create_node_key(tmp_path)
    private = load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "node.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    pki.create_authority(tmp_path)
    pki.create_node_key(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CoordinatorError, match="exists already"):
        pki.create_authority(tmp_path)
    with pytest.raises(SiteError, match="has a key already"):
        pki.create_node_key(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_renewed_certificate_is_of_the_same_authority_and_for_more_hosts(tmp_path: Path) -> None:
    pki.create_authority(tmp_path)
    pki.issue_server_certificate(tmp_path, ["fl.example.org", "127.0.0.1"])
    before, offline = (tmp_path / "server.pem").read_bytes(), tmp_path / "offline"
    offline.mkdir()
    (tmp_path / "ca.key").rename(offline / "ca.key")
    with pytest.raises(CoordinatorError, match="cannot read the authority's key"):
        pki.renew_server_certificate(tmp_path, [], tmp_path / "ca.key")
    hosts = pki.renew_server_certificate(tmp_path, ["new.example.org"], offline / "ca.key")
    after = (tmp_path / "server.pem").read_bytes()
    assert set(hosts) == set(pki.certificate_hosts(after))
    assert set(hosts) == {"fl.example.org", "127.0.0.1", "new.example.org"}
    assert after != before
    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(after)
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    )
    assert not (tmp_path / "ca.key").exists(), "what is kept offline must not come back unasked"
    (tmp_path / "other").mkdir()
    pki.create_authority(tmp_path / "other")
    with pytest.raises(CoordinatorError, match="another authority's key"):
        pki.renew_server_certificate(tmp_path, [], tmp_path / "other" / "ca.key")
