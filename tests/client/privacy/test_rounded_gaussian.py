"""Rounded Gaussians have exactly the law stated: every bound and every hard case, in more bits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf
from scipy import stats

from client.privacy import rounded_gaussian as fast
from client.privacy.exact_draw import exact_draw, exp_minus, thresholds
from client.privacy.rounded_gaussian import at_least, rounded_gaussian
from client.privacy.stream import OsStream
from simulations.seeded import SeededStream

WORD, ONES = 2**64, 2**64 - 1
TAIL = 0x9E3779B97F4A7C15
SIZES = [0.5, 1.0, 3.3, 2.0**26 * 1.1, 2.0**45, fast.LARGEST]


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    with mp.workprec(1200):
        yield


class Script:
    """The words of one batch of proposals; all words drawn later are the same one.

    Args:
        proposals: Of each: sign and w, x, v, 64 bits each.
        later: Every further word.
    """

    def __init__(self, proposals: list[tuple[int, int, int]], later: int = TAIL) -> None:
        self.words = np.array(proposals, dtype=np.uint64).T
        self.later = later
        self.further = 0

    def read(self, size: int) -> bytes:
        if size != 8:
            assert size == 8 * self.words.size, "one batch only"
            return self.words.astype("<u8").tobytes()
        self.further += 1
        return self.later.to_bytes(8, "little")


def share(k: int) -> mpf:
    """F(k): the share of 0, ..., k among all whole numbers j, by exp(-j^2 / 2)."""
    weights = [mpmath.exp(-mpf(j * j) / 2) for j in range(60)]
    return mpmath.fsum(weights[: k + 1]) / mpmath.fsum(weights)


def real(word: int, later: int, bits: int = 64) -> mpf:
    """The real number in [0, 1) that starts with these bits and goes on with a word repeated."""
    value = word
    for _ in range(12):
        value = value * WORD + later
    return mpf(value) / mpf(2) ** (bits + 12 * 64)


def by_definition(proposal: tuple[int, int, int], s: float, later: int = TAIL) -> int | None:
    """The rounded number, or None if it is rejected, from 800 bits of each number."""
    negative, first = divmod(proposal[0], 2**63)
    w, x, v = real(first, later, 63), real(proposal[1], later), real(proposal[2], later)
    k = next(k for k in range(60) if w < share(k))
    if v >= mpmath.exp(-x * (2 * k + x) / 2):
        return None
    y = int(mpmath.floor(mpf(s) * (k + x) + mpf(1) / 2))
    return -y if negative else y


def drawn(proposals: list[tuple[int, int, int]], s: float, later: int = TAIL) -> list[int]:
    """What the product makes of one batch of proposals."""
    return fast._accepted(len(proposals), s, Script(proposals, later).read).tolist()


def random_proposals(n: int, seed: int) -> list[tuple[int, int, int]]:
    words = np.frombuffer(SeededStream(seed).read(24 * n), dtype="<u8").reshape(n, 3)
    return [(int(a), int(b), int(c)) for a, b, c in words]


@pytest.mark.parametrize("bits", [1, 63, 129, 300])
@pytest.mark.parametrize("a", [0.0, 1e-9, 0.3, 1.0, 1.5, 9.4, 45.0, 700.0])
def test_the_exponential_is_enclosed_closely(a: float, bits: int) -> None:
    whole = int(mpf(a) * mpf(2) ** bits)
    low, high = exp_minus(whole, bits)
    true = mpmath.exp(-mpf(whole) / mpf(2) ** bits) * mpf(2) ** bits
    assert low <= true <= high
    assert high - low <= 3


@pytest.mark.parametrize("bits", [63, 127, 255])
def test_the_thresholds_are_enclosed_closely(bits: int) -> None:
    found = thresholds(bits)
    for k, (low, high) in enumerate(found):
        assert low <= share(k) * mpf(2) ** bits <= high
        assert high - low <= 2
    assert 1 - share(len(found) - 1) < mpf(2) ** -bits


def test_the_table_of_thresholds_is_that_of_63_bits() -> None:
    true = [int(mpmath.floor(share(k) * mpf(2) ** 63)) for k in range(10)]
    assert fast._THRESHOLDS.tolist() == true
    assert true[-1] == 2**63 - 1


def test_the_float_exponential_errs_by_less_than_stated() -> None:
    middles = np.arange(1, 609) / 64 - 1 / 128  # where it is worst
    points = [0.0, 9.5, *middles, *np.nextafter(middles, 0), *np.linspace(0, 9.5, 2000)]
    found = fast._exp_minus(np.array(points))
    errors = [
        abs(mpf(float(f)) - mpmath.exp(-mpf(float(a)))) for f, a in zip(found, points, strict=True)
    ]
    assert mpf(2) ** -24 < max(errors) < mpf(2) ** -23


@pytest.mark.parametrize("s", SIZES)
def test_floats_decide_as_whole_numbers_of_more_bits_do(s: float) -> None:
    proposals = random_proposals(2000, 1)
    script = Script([])
    each = [exact_draw(p, s, script.read) for p in proposals]
    assert drawn(proposals, s) == [y for y in each if y is not None]
    assert 0.6 < sum(y is not None for y in each) / len(each) < 0.8


@pytest.mark.parametrize("s", SIZES)
def test_what_is_drawn_is_what_the_definition_says(s: float) -> None:
    proposals = random_proposals(60, 2)
    each = [by_definition(p, s) for p in proposals]
    assert drawn(proposals, s) == [y for y in each if y is not None]


@pytest.mark.parametrize("later", [0, 1, TAIL, ONES - 1])
@pytest.mark.parametrize("k", range(10))
def test_a_word_on_a_threshold_is_decided_by_more_bits(k: int, later: int) -> None:
    on = int(mpmath.floor(share(k) * mpf(2) ** 63))
    words = [on - 1, on, min(on + 1, 2**63 - 1)]
    proposals = [(sign | w, ONES // 3, 0) for w in words for sign in (0, 2**63)]
    each = [by_definition(p, 7.7, later) for p in proposals]
    assert drawn(proposals, 7.7, later) == [y for y in each if y is not None]


@pytest.mark.parametrize("later", [0, TAIL, ONES])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_a_proposal_on_the_border_of_acceptance_is_decided_by_more_bits(k: int, later: int) -> None:
    w = int(share(k) * mpf(2) ** 63) - 1000
    proposals = []
    for x in (0, 1, WORD // 7, WORD // 2, WORD - 2**30):
        fraction = real(x, later)
        border = int(mpmath.exp(-fraction * (2 * k + fraction) / 2) * WORD)
        proposals += [
            (w, x, min(max(0, border + off), ONES))
            for off in (-(2**44), -(2**43), -1, 0, 1, 2**43, 2**44)
        ]
    each = [by_definition(p, 2.0**30, later) for p in proposals]
    if later != ONES:  # an endless row of ones is the next number, of probability 0
        assert None in each
    script = Script(proposals, later)
    assert fast._accepted(len(proposals), 2.0**30, script.read).tolist() == [
        y for y in each if y is not None
    ]
    assert script.further > 0, "more bits were needed"


@pytest.mark.parametrize("s", [0.6, 1.7, 2.0**27 * 1.3, 2.0**44 * 1.1])
@pytest.mark.parametrize("later", [0, TAIL, ONES - 1])
def test_a_number_on_the_border_of_two_is_decided_by_more_bits(s: float, later: int) -> None:
    proposals = []
    for whole in (1, 2, int(s * 0.8), int(s * 1.9)):
        z = (mpf(whole) - mpf(1) / 2) / mpf(s)  # here floor(s z + 1/2) steps up
        k = int(z)
        if whole < 1 or k > 3:
            continue
        w = int(share(k) * mpf(2) ** 63) - 1000
        x = int((z - k) * WORD)
        proposals += [(w, max(0, x + off), 0) for off in (-1, 0, 1)]
        proposals += [(w | 2**63, max(0, x + off), 0) for off in (-1, 0, 1)]
    script = Script(proposals, later)
    expected = [by_definition(p, s, later) for p in proposals]
    assert fast._accepted(len(proposals), s, script.read).tolist() == expected
    assert len(set(map(abs, filter(None, expected)))) > 1
    assert script.further > 0, "more bits were needed"


@pytest.mark.parametrize("ones", [1, 2, 3, 8])
def test_far_tails_are_drawn_with_as_many_bits_as_they_take(ones: int) -> None:
    # w, x and v get a word each in turn; those of w are ones for a while.
    words = iter(([ONES, TAIL, TAIL] * ones) + [0, TAIL, TAIL] * 9)
    y = exact_draw(
        (2**63 - 1, 12345, 0), 2.0**26, lambda size: next(words).to_bytes(size, "little")
    )
    w = 1 - mpf(2) ** -(63 + 64 * ones)
    k = next(k for k in range(60) if w < share(k))
    assert k >= 12
    assert y is not None
    assert y // 2**26 == k


def test_a_number_beyond_whole_numbers_of_64_bits_is_refused_not_wrapped() -> None:
    with pytest.raises(OverflowError):
        exact_draw((ONES // 2 - 1, 0, 0), 2.0**62, Script([]).read)


@pytest.mark.parametrize("s", [0.5, 0.77, 1.0, 2.5])
def test_every_whole_number_has_the_chance_of_its_cell(s: float) -> None:
    n, far = 400_000, math.ceil(4 * s)
    y = rounded_gaussian(n, s, SeededStream(5, "cells").read)

    def below(t: float) -> float:
        return float(mpmath.ncdf(mpf(t) / mpf(s)))

    inner = np.arange(-far, far + 1)
    edges = [below(i - 0.5) for i in inner] + [below(far + 0.5)]
    chances = np.array([edges[0], *np.diff(edges), 1 - edges[-1]])
    counts = np.array([(y < -far).sum(), *((y == i).sum() for i in inner), (y > far).sum()])
    assert stats.chisquare(counts, n * chances).pvalue > 1e-3


def test_large_ones_follow_the_normal_distribution() -> None:
    n, s = 400_000, 2.0**26 * 1.3
    z = rounded_gaussian(n, s, SeededStream(6).read) / s
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(z)) < 4 * (24 / n) ** 0.5
    assert 4 < np.abs(z).max() < 7
    low_bits = rounded_gaussian(n, s, SeededStream(7).read) % 8
    assert stats.chisquare(np.bincount(low_bits)).pvalue > 1e-3


def test_numbers_do_not_depend_on_those_before() -> None:
    z = rounded_gaussian(400_000, 1000.0, SeededStream(8).read).astype(float)
    for lag in (1, 2, fast.CHUNK):
        for x in (z, z**2):
            assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 4 / (len(z) - lag) ** 0.5


@pytest.mark.parametrize("n", [0, 1, 2, 100, 30_000])
def test_as_many_come_as_were_asked_for(n: int) -> None:
    y = rounded_gaussian(n, 5.0, SeededStream(9).read)
    assert y.shape == (n,)
    assert y.dtype == np.int64


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 5), (0,)])
def test_a_stream_gives_them_in_the_shape_asked_for(shape: tuple[int, ...]) -> None:
    assert OsStream().rounded_gaussian(shape, 1.0).shape == shape


@pytest.mark.parametrize("s", [0.0, -1.0, math.nan, math.inf, 2.0**51])
def test_a_meaningless_standard_deviation_is_refused(s: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        rounded_gaussian(3, s, OsStream().read)


def test_rounding_on_the_way_to_the_standard_deviation_is_covered() -> None:
    rng = np.random.default_rng(0)
    for sigma, clip, root in rng.uniform(0.1, 100, (1000, 3)):
        assert at_least(sigma * clip) >= mpf(sigma) * mpf(clip)
        assert at_least(64 * (sigma * math.sqrt(root))) >= 64 * mpf(sigma) * mpmath.sqrt(root)
