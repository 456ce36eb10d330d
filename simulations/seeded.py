"""Reproducible randomness for simulated sites; no hospital can load it."""

from __future__ import annotations

import hashlib
import os

from client.privacy.stream import RandomStream, chacha20


class SeededStream(RandomStream):
    """ChaCha20 with a key derived from a seed and labels: the same draws every time.

    Whoever knows the seed knows every lot and all the noise, so nothing it made is private.

    Args:
        seed: Any integer.
        labels: What the stream is for (site, round, ...); different labels, other draws.
    """

    def __init__(self, seed: int, *labels: str | int) -> None:
        self._name = repr((seed, *labels))
        self._process = os.getpid()
        self._cipher = chacha20(hashlib.sha256(f"consilium:{self._name}".encode()).digest())

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            RuntimeError: The process has forked; both sides would draw the same.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a seeded stream cannot be used across a fork; make another")
        return self._cipher.update(bytes(size))

    def __repr__(self) -> str:
        return f"SeededStream{self._name}"
