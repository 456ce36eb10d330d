"""The server's signature holds for one ledger head only."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.countersign import head_is_signed, sign_head
from shared.protocol import LedgerHead

HEAD = LedgerHead(entries=7, hash="ab" * 32)


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_the_signature_holds_for_its_head_and_key_only() -> None:
    key = Ed25519PrivateKey.generate()
    signature = sign_head(HEAD, key)
    assert head_is_signed(HEAD, signature, public_pem(key))
    assert not head_is_signed(LedgerHead(entries=8, hash=HEAD.hash), signature, public_pem(key))
    assert not head_is_signed(LedgerHead(entries=7, hash="cd" * 32), signature, public_pem(key))
    assert not head_is_signed(HEAD, signature, public_pem(Ed25519PrivateKey.generate()))


@pytest.mark.parametrize("signature", ["", "!!!", "AAAA", "é"])
def test_what_is_not_a_signature_does_not_hold(signature: str) -> None:
    assert not head_is_signed(HEAD, signature, public_pem(Ed25519PrivateKey.generate()))


def test_another_kind_of_key_is_an_error_of_setup() -> None:
    other = generate_private_key(SECP384R1()).public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="Ed25519"):
        head_is_signed(HEAD, "AAAA", pem)
