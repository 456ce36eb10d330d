"""The key that decides who is held out at a site; it is made once and stays for good.

With another key, patients who were held out would be trained on, and the other way round: they
would be charged for both sides of each study. So a site that has approved a study goes on with
the key of then, or not at all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from client.vault import KEY_BYTES, open_key
from shared.errors import SiteError


def fingerprint(key: bytes) -> str:
    """Return what a split key is called by, 16 hex digits; the key does not follow from it."""
    return hashlib.sha256(b"consilium/split-key/1\0" + key).hexdigest()[:16]


def open_split_key(path: Path, known: str) -> bytes:
    """Return a site's split key, which is made if there never was one.

    Args:
        path: The key file.
        known: Fingerprint of the key that studies were approved under; empty: none was.

    Raises:
        SiteError: It is gone, is not the one that studies were approved under, or cannot be used.
    """
    restore = (
        f"Restore split.key, fingerprint {known}, from the backup of ledger and vault key: with "
        "another key patients who were held out would be trained on"
    )
    if known and not path.exists():
        raise SiteError("the split key is gone", str(path), restore)
    key = open_key(path, "the split key", "Restore the key file from its backup")
    if known and fingerprint(key) != known:
        raise SiteError(
            f"the split key is {fingerprint(key)}, and studies were approved under {known}",
            str(path),
            restore,
        )
    return key


def read_split_key(text: str, where: str) -> bytes:
    """Return the split key that another site has written out, as 64 hex digits.

    Raises:
        SiteError: It is none.
    """
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SiteError(
            "this is not a split key",
            where,
            "Ask the other hospital for the file that `consilium site split-key export` writes",
        )
    return key
