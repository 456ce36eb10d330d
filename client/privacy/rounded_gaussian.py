"""Gaussian noise as whole numbers, drawn without any error in their distribution.

What is drawn is floor(s Z + 1/2), where Z is a standard normal of real arithmetic and s a float64
taken exactly. Method (rejection; von Neumann 1951, Karney 2016): |Z| = k + x, where

1. k = 0, 1, ... is proposed with probability proportional to exp(-k^2 / 2): a uniform number w is
   looked up among the thresholds F(k);
2. x is uniform in [0, 1);
3. the proposal is accepted if v < exp(-x (2 k + x) / 2) for a uniform v, which leaves k + x with
   density proportional to exp(-(k + x)^2 / 2);
4. a fair bit is the sign. Where s |Z| + 1/2 is whole, the sign would change which way it is
   rounded; that has probability 0, so floor(s |Z| + 1/2) with the sign has the law asked for.

w, x and v are real numbers of which 64 bits are drawn first. Almost always these decide
everything, by float64 arithmetic whose errors are bounded below. Otherwise `exact_draw` goes on
with more bits of the same numbers, in whole numbers. Both compute the same function of the same
bits: the distance of the distribution from the one stated is 0, given uniform bits.

**Bounds for the float64 arithmetic** (u = 2^-53; IEEE 754, only + - * and conversions):

- k <= 9, as every w from F(9) on is undecided with 63 bits.
- x is cut to 53 bits: it loses less than u. a = x (2 k + x) / 2 < 9.5 then loses less than 10 u,
  and rounds twice: it is wrong by less than 30 u < 2^-48.
- With r = a - i / 64, |r| < 1/127, exp(-r) is 1 - r (1 - r / 2) but for less than
  |r|^3 / 6 * 1.01 < 2^-23.5, and exp(-i / 64) is a table's, rounded once. All other roundings are
  together below 2^-49, so exp(-a) is wrong by less than 2^-23. v, cut to 53 bits, loses less
  than u. What lies within `DOUBT` = 2^-20 is left to `exact_draw`.
- t = s (k + x) + 1/2 loses less than s u by the cut of x, and rounds three times by at most
  t u (1 + 4 u) each. It is left to `exact_draw` if a whole number lies within
  t 2^-50 + s 2^-52 = 8 t u + 2 s u of it, of which t 2^-51 = 4 t u pays for the roundings of
  these bounds themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.privacy.exact_draw import WORD, Read, exact_draw, exp_minus, thresholds

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

LARGEST = 2.0**50
"""The largest standard deviation: up to it, no whole number is in doubt at t = 1/2."""
DOUBT = 2.0**-20
CHUNK = 2**13
"""Most proposals at once, whose arrays the processor's cache holds."""
STEPS = 64
"""Values of exp in the table, for each 1 of its argument."""
LEAST_ACCEPTED = 0.7
"""A lower bound on the share of proposals that are accepted, which is 0.7148."""


def rounded_gaussian(n: int, s: float, read: Read) -> Integers:
    """Draw n numbers floor(s Z + 1/2), Z standard normal and independent; int64 [n].

    Args:
        n: How many.
        s: Standard deviation before rounding, in (0, `LARGEST`].
        read: Returns that many uniform bytes.

    Raises:
        ValueError: `s` is out of range.
        OverflowError: See `exact_draw`; practically impossible.
    """
    if not 0 < s <= LARGEST:
        raise ValueError(f"a standard deviation must be above 0 and at most 2^50, not {s}")
    drawn = np.empty(n, dtype=np.int64)
    done = 0
    while done < n:
        proposals = min(CHUNK, int((n - done) / LEAST_ACCEPTED) + 16)
        found = _accepted(proposals, s, read)[: n - done]
        drawn[done : done + len(found)] = found
        done += len(found)
    return drawn


def at_least(s: float) -> float:
    """Return a little more than s, to cover the few roundings of float64 by which s was found."""
    return s * (1 + 2.0**-50)


def _accepted(proposals: int, s: float, read: Read) -> Integers:
    """Draw proposals and return the rounded numbers of the accepted ones, in their order."""
    words = np.frombuffer(read(3 * WORD // 8 * proposals), dtype="<u8").reshape(3, proposals)
    w, x, v = words[0] & _MASK, _cut(words[1]), _cut(words[2])
    row = np.zeros(proposals, dtype=np.uint8)
    for threshold in _THRESHOLDS:
        row += w > threshold
    k = row.astype(np.float64)
    excess = v - _exp_minus(x * (2 * k + x) / 2)
    t = s * (k + x) + 0.5
    doubt = t * 2.0**-50 + s * 2.0**-52
    number = (t - doubt).astype(np.int64)  # t - doubt is above 0: this is its floor
    unsure = (number != (t + doubt).astype(np.int64)) | (np.abs(excess) <= DOUBT)
    unsure |= w == _THRESHOLDS[row]
    np.negative(number, out=number, where=words[0] > _MASK)
    accepted = excess < 0
    for i in np.flatnonzero(unsure):
        exact = exact_draw((int(words[0, i]), int(words[1, i]), int(words[2, i])), s, read)
        accepted[i] = exact is not None
        number[i] = exact or 0
    return number[accepted]


def _cut(words: Words) -> Floats:
    """Return the numbers in [0, 1) of which these are the first 64 bits, cut to 53 bits."""
    return (words >> np.uint64(11)).view(np.int64).astype(np.float64) * 2.0**-53


def _exp_minus(a: Floats) -> Floats:
    """Return exp(-a), wrong by less than 2^-23, for a in [0, 9.5]."""
    i = (STEPS * a + 0.5).astype(np.int64)
    r = a - i * (1 / STEPS)
    near: Floats = _EXP[i] * (1 - r * (1 - r / 2))
    return near


def _make_thresholds() -> Words:
    """Return floor(2^63 F(k)) for all k that 63 bits can tell apart, and the first they cannot."""
    found: list[int] = []
    while not found or found[-1] < _MASK:
        found.append(thresholds(2 * WORD)[len(found)][0] >> (WORD + 1))
    return np.array(found, dtype=np.uint64)


_MASK = np.uint64(2 ** (WORD - 1) - 1)
_THRESHOLDS = _make_thresholds()
_EXP = np.array(
    [exp_minus((i << 128) // STEPS, 128)[0] / 2**128 for i in range(STEPS * len(_THRESHOLDS))]
)
