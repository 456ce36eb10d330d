"""The server's memory of the sites' ledger heads, and its signature under each."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from server.files import write_atomically
from shared.errors import CoordinatorError
from shared.heads import head_bytes
from shared.protocol import Digest, LedgerHead


class Known(BaseModel):
    """What the server knows of a site's ledger.

    Attributes:
        head: The newest that is confirmed.
        studies: Digests of the studies the site has answered in, sorted: the ledger that is
            lost may be all that says so at the site.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: LedgerHead
    studies: tuple[Digest, ...]


_BOOK = TypeAdapter(dict[str, Known])


class Countersigner:
    """Signs ledger heads with the server's Ed25519 key.

    Args:
        key: The private key; hospitals hold the public one (`server.pub`).
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def open(cls, home: Path) -> Countersigner:
        """Load `countersign.key` (0600), or make it with `server.pub` if there is none.

        Raises:
            CoordinatorError: The key file is not an Ed25519 key, or cannot be read or made.
        """
        path = home / "countersign.key"
        try:
            if not path.exists():
                _create_key(path)
            key = load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise CoordinatorError(
                f"cannot use the countersigning key: {error.strerror}", str(path)
            ) from None
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise CoordinatorError(
                "the countersigning key is not an Ed25519 key",
                str(path),
                "Restore it from a backup; with a new key every hospital must be told",
            )
        signer = cls(key)
        if not (home / "server.pub").exists():
            write_atomically(home / "server.pub", signer.public_key)
        return signer

    @property
    def public_key(self) -> bytes:
        """The public key as PEM bytes."""
        public = self._key.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, site: str, known: Known) -> str:
        """Return the signature of what is known of a site's ledger, base64."""
        return base64.b64encode(
            self._key.sign(head_bytes(site, known.head, known.studies))
        ).decode()


class HeadBook:
    """The newest ledger head of each site, kept across runs.

    A head is confirmed when what came with it is safe in a checkpoint, or the run has failed. So
    a site that is told its head in a later round may drop the update it kept for sending again,
    and a server that crashed in the middle of a round asks again for updates the sites still have.

    Runs are processes of their own and share the book, so it is read anew for every question,
    and changed under a lock.

    Args:
        path: `heads.json`; missing at first.
        signer: Signs what sites are told.

    Raises:
        CoordinatorError: The file is not a book of heads, now or at any later question.
    """

    def __init__(self, path: Path, signer: Countersigner) -> None:
        self._path, self._signer = path, signer
        self._read()

    def known(self, site: str) -> tuple[Known | None, str]:
        """Return what is confirmed of a site's ledger and the server's signature of it."""
        known = self._read().get(site)
        return (known, self._signer.sign(site, known)) if known else (None, "")

    def objection(self, site: str, head: LedgerHead) -> str:
        """Return why a head cannot follow the confirmed one, or an empty text."""
        return _objection(self._read().get(site), head)

    def confirm(self, heads: Mapping[str, LedgerHead], study: str) -> None:
        """Remember heads that follow what is known, and that their sites answered in the study.

        A head that does not follow is left out; the study counts all the same.
        """
        with _locked(self._path.with_suffix(".lock")):
            before = self._read()
            after = before | {s: _after(before.get(s), head, study) for s, head in heads.items()}
            if after != before:
                write_atomically(self._path, _BOOK.dump_json(after, indent=1))

    def rename(self, old: str, new: str) -> None:
        """Keep what is known of a site under another name from now on."""
        with _locked(self._path.with_suffix(".lock")):
            before = self._read()
            if old in before:
                after = {(new if site == old else site): known for site, known in before.items()}
                write_atomically(self._path, _BOOK.dump_json(after, indent=1))

    def _read(self) -> dict[str, Known]:
        """Return the book as it is now; it is replaced whole, so reading needs no lock."""
        try:
            return _BOOK.validate_json(self._path.read_bytes()) if self._path.exists() else {}
        except (OSError, ValidationError):
            raise CoordinatorError(
                "the record of the sites' ledger heads cannot be read",
                str(self._path),
                "Restore it from a backup; without it a restored ledger goes unnoticed once",
            ) from None


def fork_head(head: LedgerHead, other: str) -> LedgerHead:
    """Return a head that neither of two forked ledgers has or will reach.

    A ledger that takes it for lost entries goes on behind it; see `Ledger.adopt`.

    Args:
        head: One ledger's head.
        other: Hash of the other's, of as many entries.
    """
    both = "".join(sorted([head.hash, other]))
    # Far enough for answers that are still under way.
    return LedgerHead(entries=head.entries + 1000, hash=hashlib.sha256(both.encode()).hexdigest())


def _after(known: Known | None, head: LedgerHead, study: str) -> Known:
    if known is None:
        return Known(head=head, studies=(study,))
    newest = known.head if _objection(known, head) else head
    return Known(head=newest, studies=tuple(sorted({*known.studies, study})))


def _objection(known: Known | None, head: LedgerHead) -> str:
    if known is None or head.entries > known.head.entries or head == known.head:
        return ""
    if head.entries < known.head.entries:
        return f"its ledger has {head.entries} entries; {known.head.entries} were seen before"
    return "its ledger has another last entry than the one seen before"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for the lock of the book, and hold it; it ends with the process, however that ends."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise CoordinatorError(
            f"cannot lock the record of the sites' ledger heads: {error.strerror}",
            str(path),
            "Correct the folder's rights",
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _create_key(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    os.makedirs(path.parent, mode=0o700, exist_ok=True)
    write_atomically(path, pem, mode=0o600)
