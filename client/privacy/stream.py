"""Randomness nobody can replay: ChaCha20 keyed by the operating system, at full width."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms

from client.privacy.rounded_gaussian import rounded_gaussian

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class RandomStream(ABC):
    """A source of uniform bytes, and the draws private training makes from it.

    Everything that decides what noise hides comes from one such stream: lots, choices of
    images, augmentation and noise. It can be neither copied nor pickled, for a copy would
    repeat its draws.
    """

    @abstractmethod
    def read(self, size: int) -> bytes:
        """Return the next `size` uniform bytes."""

    def uniform(self, n: int) -> torch.Tensor:
        """Return `n` uniform numbers in [0, 1), float64 of 53 random bits, shape [n]."""
        return torch.from_numpy(self._uniform(n))

    def choose(self, n: int, k: int) -> torch.Tensor:
        """Return `k` distinct indices below `n` in random order, int64, shape [k].

        Raises:
            ValueError: `k` is negative or exceeds `n`.
        """
        if not 0 <= k <= n:
            raise ValueError(f"cannot choose {k} of {n}")
        return torch.from_numpy(np.argsort(self._uniform(n))[:k].copy())

    def rounded_gaussian(self, shape: Sequence[int], s: float) -> torch.Tensor:
        """Return independent whole numbers floor(s Z + 1/2), Z standard normal, int64.

        Their distribution is exactly that, given uniform bytes; see
        `client.privacy.rounded_gaussian`.

        Args:
            shape: Of the tensor.
            s: Standard deviation before rounding, in (0, 2^50].

        Raises:
            ValueError: `s` is out of range.
        """
        drawn = rounded_gaussian(math.prod(shape), s, self.read)
        return torch.from_numpy(drawn).reshape(tuple(shape))

    def _uniform(self, n: int) -> Floats:
        words = np.frombuffer(self.read(8 * n), dtype="<u8")
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a random stream cannot be copied or pickled: it would repeat itself")


class OsStream(RandomStream):
    """ChaCha20 keyed by `os.urandom`; the key is neither kept nor shown.

    A forked child gets a key of its own, so that parent and child do not draw the same numbers.
    """

    def __init__(self) -> None:
        self._rekey()

    def read(self, size: int) -> bytes:
        """Return the next `size` uniform bytes."""
        if os.getpid() != self._process:
            self._rekey()
        return self._cipher.update(bytes(size))

    def __repr__(self) -> str:
        return "OsStream()"

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._cipher = chacha20(os.urandom(32))


def chacha20(key: bytes) -> CipherContext:
    """Return a ChaCha20 key stream that starts at block 0.

    The block counter has 64 bits, so it does not come round again.

    Args:
        key: 32 bytes that are used for no other stream.
    """
    return Cipher(algorithms.ChaCha20(key, nonce=bytes(16)), mode=None).encryptor()
