"""The server's countersignature of a site's ledger head: its bytes, and how a site checks it."""

from __future__ import annotations

import base64
import binascii
import json

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from shared.errors import SiteError
from shared.protocol import LedgerHead

_PURPOSE = "consilium ledger head v1"


def head_bytes(site: str, head: LedgerHead) -> bytes:
    """Return the canonical bytes that are signed for one head of one site's ledger.

    The study and the run are left out on purpose: a ledger spans both, and its head is
    known to the server by the site's name alone.

    Args:
        site: The site's name, as in its `site.toml` and the server's register.
        head: Number of entries and hash of the last one.
    """
    record = {"purpose": _PURPOSE, "site": site, "entries": head.entries, "hash": head.hash}
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def verify_head(public_key: bytes, site: str, head: LedgerHead, signature: str) -> bool:
    """Tell whether `signature` (base64, Ed25519) is the server's, of this head of this site.

    Args:
        public_key: The server's public key as PEM bytes (`site.toml`: `server.signing_key`).
        site: This site's name.
        head: The head that came with the request.
        signature: `Request.countersignature`.

    Raises:
        SiteError: The public key is not an Ed25519 key in PEM form.
    """
    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SiteError(
            "the server's signing key is not an Ed25519 public key in PEM form",
            "site.toml: server.signing_key",
            "Fetch the server's public key from the coordinator again",
        )
    try:
        key.verify(base64.b64decode(signature, validate=True), head_bytes(site, head))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
