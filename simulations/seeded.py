"""Reproducible randomness for simulated sites; no hospital can load it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch

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


class QuickStream(SeededStream):
    """A seeded stream whose Gaussians are NumPy's: made quickly, since they hide nothing.

    Args:
        seed: As for `SeededStream`.
        labels: Likewise.
    """

    def __init__(self, seed: int, *labels: str | int) -> None:
        super().__init__(seed, *labels)
        key = int.from_bytes(self.read(16), "little")
        self._normal = np.random.Generator(np.random.Philox(key=key))

    def gaussian(self, shape: Sequence[int], std: float) -> torch.Tensor:
        """Return independent Gaussians of mean 0, float32, of the given shape.

        Raises:
            ValueError: `std` is negative.
        """
        if std < 0:
            raise ValueError(f"a standard deviation must not be negative, as {std} is")
        draws = self._normal.standard_normal(tuple(shape), dtype=np.float32)
        return torch.from_numpy(draws * np.float32(std))
