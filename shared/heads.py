"""The server's countersignature of a site's ledger head: its bytes, and how a site checks it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from shared.errors import SiteError
from shared.protocol import LedgerHead

_PURPOSE = "consilium ledger head v2"


def head_bytes(site: str, head: LedgerHead, studies: Sequence[str]) -> bytes:
    """Return the canonical bytes that are signed for one head of one site's ledger.

    The run that asks is left out on purpose: a ledger spans all of them, and its head is
    known to the server by the site's name alone.

    Args:
        site: The site's name, as in its `site.toml` and the server's register.
        head: Number of entries and hash of the last one.
        studies: Digests of the studies the site has answered in, sorted.
    """
    record = {
        "purpose": _PURPOSE,
        "site": site,
        "entries": head.entries,
        "hash": head.hash,
        "studies": list(studies),
    }
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def verify_head(
    public_key: bytes, site: str, head: LedgerHead, studies: Sequence[str], signature: str
) -> bool:
    """Tell whether `signature` (base64, Ed25519) is the server's, of this head of this site.

    Args:
        public_key: The server's public key as PEM bytes (`site.toml`: `server.signing_key`).
        site: This site's name.
        head: The head that came with the request.
        studies: `Request.known_studies`, which came with it.
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
        signed = head_bytes(site, head, studies)
        key.verify(base64.b64decode(signature, validate=True), signed)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
