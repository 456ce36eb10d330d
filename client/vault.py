"""The site's vault: encryption at rest, keyed pseudonyms and keyed hashes, from one key file."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import SiteError

KEY_BYTES = 32
NONCE_BYTES = 12  # 96 bits, the length AES-GCM is defined for (NIST SP 800-38D)
HEADER = b"CSV\x01"  # magic and format version, authenticated with everything else


class Vault:
    """Encrypts what rests on the site's disk and names patients by a keyed hash.

    AES-256-GCM with random nonces; every purpose has its own key, derived with HKDF-SHA256
    (RFC 5869) from the key file, so that no key is used in two algorithms.

    Args:
        key: 32 random bytes; use `open` to get them from the key file.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a vault key has {KEY_BYTES} bytes")
        self._key = key
        self._cipher = AESGCM(self._derive("encrypt"))
        self._pseudonym_key = self._derive("pseudonym")

    def __repr__(self) -> str:
        return "Vault()"

    @classmethod
    def open(cls, path: Path) -> Vault:
        """Open the vault of a key file, which is made (mode 0600) if it does not exist.

        Raises:
            SiteError: See `open_key`.
        """
        remedy = "Restore the key file from its backup; without it the ledger cannot be read"
        return cls(open_key(path, "the vault key", remedy))

    def encrypt(self, plain: bytes, context: str) -> bytes:
        """Seal bytes: header, nonce, ciphertext and tag.

        Args:
            plain: What to seal.
            context: What the bytes are and belong to; authenticated, so that a sealed file
                put in another's place is refused.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        return HEADER + nonce + self._cipher.encrypt(nonce, plain, HEADER + context.encode())

    def decrypt(self, sealed: bytes, context: str) -> bytes:
        """Open what `encrypt` sealed with the same key and context.

        Raises:
            SiteError: The bytes were changed, or sealed with another key or context.
        """
        start = len(HEADER) + NONCE_BYTES
        try:
            if sealed[: len(HEADER)] != HEADER:
                raise InvalidTag
            return self._cipher.decrypt(
                sealed[len(HEADER) : start], sealed[start:], HEADER + context.encode()
            )
        except (InvalidTag, ValueError):
            raise SiteError(
                "sealed data was changed, or sealed with another key",
                context,
                "Delete the file it came from, or restore it with its vault key",
            ) from None

    def pseudonym(self, patient_id: str) -> str:
        """Return a patient's keyed hash (HMAC-SHA256, 64 hex digits); the id cannot be got back."""
        return hmac.new(self._pseudonym_key, patient_id.encode(), hashlib.sha256).hexdigest()

    def mac(self, purpose: str, message: bytes) -> str:
        """Return a keyed hash (HMAC-SHA256, 64 hex digits) with a key of its own per purpose."""
        return hmac.digest(self._derive(f"mac/{purpose}"), message, "sha256").hex()

    def write(self, path: Path, plain: bytes, context: str) -> None:
        """Seal bytes into a file (mode 0600): after a crash it is the old file or the new one.

        Raises:
            SiteError: The file cannot be written (rights, full disk); the old one is untouched.
        """
        write_atomic(path, self.encrypt(plain, context))

    def read(self, path: Path, context: str) -> bytes:
        """Open a file written by `write` with the same context.

        Raises:
            SiteError: The file is missing, cannot be read, or was changed.
        """
        try:
            sealed = path.read_bytes()
        except OSError as error:
            raise SiteError(
                f"cannot read a sealed file: {error.strerror}", str(path), "Check path and rights"
            ) from None
        return self.decrypt(sealed, context)

    def _derive(self, purpose: str) -> bytes:
        """Return the 32-byte key of one purpose."""
        info = f"consilium/vault/1/{purpose}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._key)


def open_key(path: Path, name: str, remedy: str) -> bytes:
    """Return the 32 bytes of a key file, which is made (mode 0600) if it does not exist.

    Args:
        path: The file.
        name: What the key is called in errors.
        remedy: What to do about a file that is no key.

    Raises:
        SiteError: The file cannot be read or made, has a wrong length, or others than its owner
            may read or write it.
    """
    try:
        if not path.exists():
            _create_key(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise SiteError(
            f"cannot open {name}: {error.strerror}", str(path), "Check path and rights"
        ) from None
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
        raise SiteError(
            f"others than its owner may use {name}",
            str(path),
            f"Run `chmod 600 {path}`; if others may have read it, treat the key as lost",
        )
    if len(key) != KEY_BYTES:
        raise SiteError(f"{name} does not have {KEY_BYTES} bytes", str(path), remedy)
    return key


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file (mode 0600) so that a crash leaves the old content or the new, durably.

    Raises:
        SiteError: The file cannot be written; nothing half-written stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_durably(temporary, content)
            temporary.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise SiteError(
            f"cannot write a file: {error.strerror}", str(path), "Check disk space and rights"
        ) from None


def sync_folder(folder: Path) -> None:
    """Make a rename or deletion in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_key(path: Path) -> None:
    """Make a key file; of two processes that do so at once, the first wins for both."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_durably(temporary, secrets.token_bytes(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write_durably(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
