"""Lots are Poisson samples of patients with at most K of their images."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client.privacy.sampler import choose_images, draw_lot, poisson_lot
from simulations.seeded import SeededStream

DRAWS, N, RATE = 4000, 50, 0.3


@pytest.fixture(scope="module")
def inclusion() -> np.ndarray:
    """Which of N patients were in each of many lots, bool [draws, N]."""
    stream = SeededStream(5, "lots")
    table = np.zeros((DRAWS, N), dtype=bool)
    for row in table:
        row[poisson_lot(stream, N, RATE).numpy()] = True
    return table


def test_every_patient_is_included_at_the_rate(inclusion: np.ndarray) -> None:
    counts = inclusion.sum(axis=0)
    tails = [stats.binomtest(int(c), DRAWS, RATE).pvalue for c in counts]
    assert min(tails) > 1e-3 / N
    assert stats.binomtest(int(counts.sum()), DRAWS * N, RATE).pvalue > 1e-3


def test_the_size_of_lots_is_binomial(inclusion: np.ndarray) -> None:
    sizes = inclusion.sum(axis=1)
    # A sampler that fixed the size, or shuffled and cut, would have no or another variance.
    expected = N * RATE * (1 - RATE)
    assert abs(sizes.var() / expected - 1) < 4 * (2 / DRAWS) ** 0.5
    bins = np.arange(8, 24)
    observed = [np.sum(sizes < 8), *(np.sum(sizes == b) for b in bins), np.sum(sizes > 23)]
    binomial = stats.binom(N, RATE)
    chances = [binomial.cdf(7), *binomial.pmf(bins), binomial.sf(23)]
    assert stats.chisquare(observed, np.array(chances) * DRAWS).pvalue > 1e-3


def test_patients_are_included_independently_of_each_other(inclusion: np.ndarray) -> None:
    correlation = np.corrcoef(inclusion.T)[np.triu_indices(N, 1)]
    assert np.abs(correlation).max() < 5 / DRAWS**0.5
    lagged = np.corrcoef(inclusion[:-1].ravel(), inclusion[1:].ravel())[0, 1]
    assert abs(lagged) < 4 / (DRAWS * N) ** 0.5


def test_rate_one_takes_everybody() -> None:
    assert poisson_lot(SeededStream(1), 9, 1.0).tolist() == list(range(9))


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    k=st.integers(1, 7),
    seed=st.integers(0, 2**32),
)
def test_a_lot_holds_at_most_k_images_of_its_own_patients(
    counts: list[int], k: int, seed: int
) -> None:
    image_patient = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    lot = draw_lot(SeededStream(seed), image_patient, len(counts), 0.6, k)
    assert torch.equal(image_patient[lot.images], lot.patients[lot.owner])
    assert len(set(lot.images.tolist())) == len(lot.images)
    for position, patient in enumerate(lot.patients.tolist()):
        assert int((lot.owner == position).sum()) == min(k, counts[patient])
    assert torch.equal(lot.owner, lot.owner.sort().values)


def test_every_pair_of_a_patients_images_is_as_likely() -> None:
    stream = SeededStream(6)
    image_patient = torch.tensor([0, 0, 1, 1, 1, 1, 2])
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(3000):
        images, owner = choose_images(stream, image_patient, torch.tensor([1, 2]), 2)
        assert owner.tolist() == [0, 0, 1]
        pair = tuple(sorted(images[:2].tolist()))
        seen[pair] = seen.get(pair, 0) + 1
    assert sorted(seen) == [(2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 5)]
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("rate", [1e-4, 0.1, 0.15, 1 / 3, 0.5, 1.0])
def test_nobody_is_sampled_with_more_than_the_rate(rate: float) -> None:
    exact = Fraction(rate) * 2**53  # of 2^53 equally likely numbers
    around = [w for w in range(int(exact) - 2, int(exact) + 3) if 0 <= w < 2**53]

    class Words(SeededStream):
        def read(self, size: int) -> bytes:
            return b"".join((w << 11).to_bytes(8, "little") for w in around)

    chosen = poisson_lot(Words(0), len(around), rate)
    # All numbers up to the largest chosen one are: as many of them as the rate allows.
    assert around[int(chosen[-1])] + 1 == int(exact)
    assert len(chosen) == sum(w < int(exact) for w in around)
