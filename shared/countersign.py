"""The server's signature under the head of a site's ledger, as made and as checked."""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from shared.protocol import LedgerHead


def sign_head(head: LedgerHead, key: Ed25519PrivateKey) -> str:
    """Return the Ed25519 signature of a ledger head as base64."""
    return base64.b64encode(key.sign(_statement(head))).decode()


def head_is_signed(head: LedgerHead, signature: str, public_key: bytes) -> bool:
    """Tell whether a signature of a head is the server's.

    Args:
        head: The head the signature came with.
        signature: Base64, as made by `sign_head`.
        public_key: The server's Ed25519 public key, PEM (`server.pub`).

    Raises:
        ValueError: The public key is not an Ed25519 key in PEM.
    """
    key = load_pem_public_key(public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")
    try:
        key.verify(base64.b64decode(signature, validate=True), _statement(head))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _statement(head: LedgerHead) -> bytes:
    return f"consilium/ledger-head/1\n{head.entries}\n{head.hash}".encode()
