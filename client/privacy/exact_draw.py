"""One draw of the rounded Gaussian in whole numbers, with as many random bits as it takes.

`client.privacy.rounded_gaussian` explains the method; here every step is decided by enclosures
computed with directed rounding, so that nothing is decided wrongly, only later.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isqrt

Read = Callable[[int], bytes]
Enclosure = tuple[int, int]

WORD = 64
GUARD = 64
"""Bits beyond those asked for with which an enclosure is computed; they only keep it narrow."""
MOST = 2**62
"""No number drawn is as large, so that int64 holds it added to a sum below 2^62."""


def exact_draw(words: tuple[int, int, int], s: float, read: Read) -> int | None:
    """Decide one proposal, drawing more bits of its three numbers until all of it is certain.

    Args:
        words: The first 64 bits of sign and uniform number w, of the fraction x, and of the
            uniform number v. They stay; further bits are appended.
        s: The standard deviation, taken exactly, above 0.
        read: Returns that many further uniform bytes.

    Returns:
        The rounded number; None: the proposal is rejected.

    Raises:
        OverflowError: The number is `MOST` or more: for s up to 2^50 the chance of it is below
            exp(-8,000,000).
    """
    negative, w = divmod(words[0], 2 ** (WORD - 1))
    x, v = words[1:]
    bits = WORD
    while True:
        k = whole_part(w, bits - 1)
        accepted = None if k is None else is_accepted(k, x, v, bits)
        if accepted is False:
            return None
        if accepted and k is not None and (y := rounded(k, x, bits, s)) is not None:
            if y >= MOST:
                raise OverflowError("a Gaussian is too large for whole numbers of 64 bits")
            return -y if negative else y
        w, x, v = ((u << WORD) | int.from_bytes(read(WORD // 8), "little") for u in (w, x, v))
        bits += WORD


def whole_part(w: int, bits: int) -> int | None:
    """Return k with F(k - 1) <= u < F(k) for all u in [w, w + 1) 2^-bits; None: not decided."""
    for k, (low, high) in enumerate(thresholds(bits)):
        if w + 1 <= low:
            return k
        if w < high:
            return None
    return None


@lru_cache(maxsize=8)
def thresholds(bits: int) -> tuple[Enclosure, ...]:
    """Enclose 2^bits F(k) for k = 0, 1, ..., where F(k) is the share of all j <= k.

    j has probability proportional to exp(-j^2 / 2). The last k enclosed has 1 - F(k) < 2^-bits.
    """
    fine = bits + GUARD

    def share(j: int) -> Enclosure:
        return exp_minus(j * j << (fine - 1), fine)

    last = isqrt(2 * bits) + 1
    shares = [share(j) for j in range(last + 1)]
    # Each further share is less than half of the one before.
    least = sum(low for low, _ in shares)
    most = sum(high for _, high in shares) + 2 * share(last + 1)[1]
    below, above, found = 0, 0, []
    for low, high in shares:
        below, above = below + low, above + high
        found.append(((below << bits) // most, -((-above << bits) // least)))
    return tuple(found)


def is_accepted(k: int, x: int, v: int, bits: int) -> bool | None:
    """Tell whether v < exp(-x (2 k + x) / 2) for all x, v in [., . + 1) 2^-bits; None: unsure."""
    fine = 2 * bits + 1  # x (2 k + x) / 2 is a whole number of 2^-fine
    double = k << (bits + 1)
    least = exp_minus((x + 1) * (double + x + 1), fine)[0]
    if (v + 1) << (bits + 1) <= least:
        return True
    most = exp_minus(x * (double + x), fine)[1]
    return False if v << (bits + 1) >= most else None


def rounded(k: int, x: int, bits: int, s: float) -> int | None:
    """Return floor(s (k + x) + 1/2) if it is one number for all x in [., . + 1) 2^-bits."""
    numerator, denominator = s.as_integer_ratio()
    unit = denominator << (bits + 1)
    z = (k << bits) + x
    least = (2 * numerator * z + unit // 2) // unit
    most = (2 * numerator * (z + 1) + unit // 2 - 1) // unit
    return least if least == most else None


def exp_minus(a: int, bits: int) -> Enclosure:
    """Enclose 2^bits exp(-a 2^-bits) between two whole numbers.

    a is halved until it is below 1, where the terms of the exponential series alternate and
    fall; the result is squared as often. A term, rounded down at each step, is less than 2 too
    small (its error e obeys e' <= e / n + 1), and all terms left out are together less than
    the first of them, which is below 2.

    Args:
        a: At least 0.
        bits: Position of the binary point, at least 1.
    """
    halvings = max(0, a.bit_length() - bits)
    fine = bits + halvings + GUARD
    part = a << GUARD
    n, sum_, term = 0, 1 << fine, 1 << fine
    while term:
        n += 1
        term = term * part // (n << fine)
        sum_ += -term if n % 2 else term
    low, high = sum_ - 2 * (n + 1), sum_ + 2 * (n + 1)
    for _ in range(halvings):
        low, high = low * low >> fine, (high * high >> fine) + 1
    return low >> (fine - bits), -(-high >> (fine - bits))
