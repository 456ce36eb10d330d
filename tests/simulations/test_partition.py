"""Who gets whom: every patient once, and the statistics each part promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, chi2_contingency, kstest

from shared.errors import SimulationError
from simulations.partition import (
    ByGroup,
    ClassesPerSite,
    Dealt,
    Dirichlet,
    EqualSizes,
    ManyImages,
    Partition,
    PowerLaw,
    Prevalence,
    Shares,
    deal,
)
from simulations.patients import Facts, Patients
from simulations.proportions import fitted_counts


def patients_with(labels: np.ndarray, images: np.ndarray | None = None) -> Patients:
    owners = np.repeat(np.arange(len(labels)), 1 if images is None else images)
    return Patients(np.zeros((len(owners), 1, 1, 1), np.float32), owners, labels)


def facts_of(classes: int) -> Facts:
    return Facts("some", tuple(f"class-{index}" for index in range(classes)))


def dealt(
    parts: tuple[Partition, ...], labels: np.ndarray, sites: int, seed: int = 0
) -> tuple[Dealt, np.ndarray]:
    """Deal patients with these labels; return who is where, and counts [sites, classes]."""
    classes = int(labels.max()) + 1
    found = deal(
        parts, patients_with(labels), facts_of(classes), sites, np.random.default_rng(seed)
    )
    return found, np.stack([np.bincount(labels[own], minlength=classes) for own in found.patients])


def even_labels(classes: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(classes), each)


DIRICHLET = Dirichlet(kind="dirichlet", alpha=0.1)
POWER_LAW = PowerLaw(kind="power-law", ratio=20)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        [
            (),
            (EqualSizes(),),
            (POWER_LAW,),
            (DIRICHLET,),
            (Dirichlet(kind="dirichlet", alpha=3, minimum=0), PowerLaw(kind="power-law", ratio=3)),
            (DIRICHLET, POWER_LAW, ManyImages(kind="many-images", sites=(1,))),
            (ClassesPerSite(kind="classes-per-site", classes=2),),
            (Prevalence(kind="prevalence", prevalence=(0.2, 0.7)), POWER_LAW),
        ]
    ),
    st.integers(2, 6),
    st.integers(0, 10_000),
)
def test_nobody_is_dealt_twice_and_the_seed_decides(
    parts: tuple[Partition, ...], sites: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(even_labels(3, 150))
    found, counts = dealt(parts, labels, sites, seed)
    everyone = np.concatenate(found.patients)
    assert len(set(everyone)) == len(everyone) == len(labels) - found.unused
    assert found.unused == 0 or any(isinstance(part, Prevalence) for part in parts)
    assert counts.sum(axis=1).min() >= 2
    again, _ = dealt(parts, labels, sites, seed)
    for one, other in zip(found.patients, again.patients, strict=True):
        np.testing.assert_array_equal(one, other)
    other, _ = dealt(parts, labels, sites, seed + 1)
    assert any(
        not np.array_equal(a, b) for a, b in zip(found.patients, other.patients, strict=True)
    )


def test_without_a_skew_site_and_class_are_independent() -> None:
    labels = even_labels(2, 200)
    statistics = [
        chi2_contingency(dealt((), labels, 8, seed)[1], correction=False).statistic
        for seed in range(300)
    ]
    # Sizes are fixed too; the statistic has mean dof * n / (n - 1) and variance near 2 dof.
    assert abs(np.mean(statistics) - 7 * 400 / 399) < 4 * np.sqrt(14 / 300)
    assert np.var(statistics) < 25


def test_sizes_are_equal_as_stated_or_fall_as_a_power_of_the_rank() -> None:
    labels = even_labels(2, 1000)
    assert dealt((EqualSizes(),), labels[:1998], 8)[1].sum(axis=1).tolist() == [250] * 6 + [249] * 2
    shares = Shares(kind="shares", shares=(0.7, 0.2, 0.1))
    assert dealt((shares,), labels, 3)[1].sum(axis=1).tolist() == [1400, 400, 200]
    sizes = dealt((POWER_LAW,), labels, 8)[1].sum(axis=1)
    assert sizes[0] / sizes[-1] == pytest.approx(20, rel=0.02)
    slopes = np.diff(np.log(sizes)) / np.diff(np.log(np.arange(1, 9)))
    np.testing.assert_allclose(slopes, slopes[0], rtol=0.05)


def test_dirichlet_alone_spreads_each_class_as_the_distribution_says() -> None:
    alpha, sites = 0.3, 5
    part = Dirichlet(kind="dirichlet", alpha=alpha, minimum=0)
    totals = np.array([100_000, 70_000])
    rng = np.random.default_rng(0)
    shares = np.stack([part.counts(totals, None, sites, rng) / totals for _ in range(400)])
    marginal = beta(alpha, (sites - 1) * alpha)
    # Counts are whole, so compare where a patient is a small step.
    assert kstest(shares[:, 2, 0], marginal.cdf).pvalue > 0.01
    assert kstest(shares[:, 0, 1], marginal.cdf).pvalue > 0.01
    variance = (sites - 1) / (sites**2 * (sites * alpha + 1))
    assert shares.var(axis=0).mean() == pytest.approx(variance, rel=0.1)
    covariance = np.mean((shares[:, 0, 0] - 1 / sites) * (shares[:, 1, 0] - 1 / sites))
    assert covariance == pytest.approx(-variance / (sites - 1), abs=0.01)
    assert abs(np.corrcoef(shares[:, 0, 0], shares[:, 0, 1])[0, 1]) < 0.15


def test_dirichlet_with_sizes_mixes_classes_at_each_site_as_the_distribution_says() -> None:
    alpha, sites = 0.5, 400
    part = Dirichlet(kind="dirichlet", alpha=alpha, minimum=0)
    totals, sizes = np.array([200_000, 200_000]), np.full(sites, 1000)
    counts = part.counts(totals, sizes, sites, np.random.default_rng(0))
    # With many sites and equal totals the factor that all odds share is near 1.
    assert kstest(counts[:, 0] / 1000, beta(alpha, alpha).cdf).pvalue > 0.01


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.02, 10),
    st.floats(1, 20),
    st.integers(2, 8),
    st.integers(2, 4),
    st.integers(0, 4),
    st.integers(0, 999),
)
def test_dirichlet_and_power_law_keep_sizes_totals_and_minimum(
    alpha: float, ratio: float, sites: int, classes: int, minimum: int, seed: int
) -> None:
    labels = even_labels(classes, 400)
    parts = (
        Dirichlet(kind="dirichlet", alpha=alpha, minimum=minimum),
        PowerLaw(kind="power-law", ratio=ratio),
    )
    found, counts = dealt(parts, labels, sites, seed)
    assert found.unused == 0
    assert counts.min() >= minimum
    assert counts.sum(axis=0).tolist() == [400] * classes
    expected = parts[1].share(sites) * len(labels)
    assert np.abs(counts.sum(axis=1) - expected).max() <= 1


def test_a_smaller_alpha_skews_more_at_the_same_sizes() -> None:
    labels = even_labels(2, 2000)

    def skew(alpha: float) -> float:
        parts = (Dirichlet(kind="dirichlet", alpha=alpha), POWER_LAW)
        return float(
            np.mean(
                [
                    np.abs(counts[:, 0] / counts.sum(axis=1) - 0.5).mean()
                    for counts in (dealt(parts, labels, 8, seed)[1] for seed in range(30))
                ]
            )
        )

    skews = [skew(alpha) for alpha in (100, 0.5, 0.3, 0.1)]
    assert skews == sorted(skews)
    assert skews[0] < 0.05
    assert skews[-1] > 0.4


def test_fitting_keeps_odds_ratios() -> None:
    weights = np.log([[1.0, 4.0], [2.0, 1.0]])
    counts = fitted_counts(weights, np.array([6000, 4000]), np.array([5000, 5000]))
    # With a in the corner: a (a - 1000) / ((6000 - a) (5000 - a)) is the odds ratio 1/8.
    a = np.roots([1 - 1 / 8, -1000 + 11000 / 8, -30_000_000 / 8]).max()
    expected = [[a, 6000 - a], [5000 - a, a - 1000]]
    assert np.abs(counts - expected).max() <= 1


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.floats(0, 30), st.integers(0, 10_000))
def test_fitting_keeps_both_margins(rows: int, columns: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 60, (rows, columns))
    weights = spread * rng.standard_normal((rows, columns))
    counts = fitted_counts(weights, table.sum(axis=1), table.sum(axis=0))
    assert counts.min() >= 0
    np.testing.assert_array_equal(counts.sum(axis=0), table.sum(axis=0))
    np.testing.assert_array_equal(counts.sum(axis=1), table.sum(axis=1))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.integers(2, 9), st.integers(0, 999))
def test_every_site_sees_so_many_classes(kinds: int, each: int, sites: int, seed: int) -> None:
    labels = even_labels(kinds, 300)
    part = ClassesPerSite(kind="classes-per-site", classes=each)
    if each > kinds or each * sites < kinds:
        with pytest.raises(SimulationError):
            dealt((part,), labels, sites, seed)
        return
    _, counts = dealt((part,), labels, sites, seed)
    assert (counts > 0).sum(axis=1).tolist() == [each] * sites
    assert counts.sum(axis=0).tolist() == [300] * kinds
    # A class is evenly spread over the sites that see it.
    for column in counts.T:
        assert np.ptp(column[column > 0]) <= 1


def test_prevalence_is_as_stated_and_sizes_keep_their_shares() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 400])
    part = Prevalence(kind="prevalence", prevalence=(0.0, 0.1, 0.5, 0.9), name="class-1")
    _, counts = dealt((part, PowerLaw(kind="power-law", ratio=4)), labels, 4)
    sizes = counts.sum(axis=1)
    np.testing.assert_allclose(counts[:, 1] / sizes, part.prevalence, atol=0.02)
    np.testing.assert_allclose(counts[:3, 0] / counts[:3, 2], 500 / 400, rtol=0.06)
    np.testing.assert_allclose(sizes / sizes.sum(), [0.48, 0.24, 0.16, 0.12], atol=0.005)
    # As many as can be: one class is used up.
    assert (np.array([500, 300, 400]) - counts.sum(axis=0)).min() <= 4


def test_sites_of_many_images_have_them_and_the_same_classes() -> None:
    rng = np.random.default_rng(0)
    labels, images = rng.integers(0, 2, 600), rng.integers(1, 7, 600)
    patients = patients_with(labels, images)
    parts: tuple[Partition, ...] = (ManyImages(kind="many-images", sites=(2, 5)), POWER_LAW)
    found = deal(parts, patients, facts_of(2), 6, np.random.default_rng(1))
    least = min(images[found.patients[site]].min() for site in (1, 4))
    rest = np.concatenate([images[found.patients[site]] for site in (0, 2, 3, 5)])
    assert rest.max() <= least
    mixed = deal((*parts, DIRICHLET), patients, facts_of(2), 6, np.random.default_rng(1))
    for label in (0, 1):
        own, others = (
            np.concatenate([mixed.patients[site] for site in chosen])
            for chosen in ((1, 4), (0, 2, 3, 5))
        )
        own, others = own[labels[own] == label], others[labels[others] == label]
        assert images[own].min() >= images[others].max()


def test_groups_become_sites_of_the_same_name() -> None:
    labels = even_labels(2, 10)
    hospital = np.array([0, 1, 2, 2, -1] * 4)
    patients = Patients(
        np.zeros((20, 1, 1, 1), np.float32), np.arange(20), labels, {"hospital": hospital}
    )
    facts = Facts("some", ("a", "b"), group_names={"hospital": ("north", "south", "west", "none")})
    found = deal((ByGroup(kind="by-group"),), patients, facts, 4, np.random.default_rng(0))
    assert found.names == ("north", "south", "west")
    for place, own in enumerate(found.patients):
        assert sorted(own) == np.flatnonzero(hospital == place).tolist()
    assert found.unused == 4
    assert found.notes == ("patients whose hospital is not known: 4",)


def by_hospital(cells: list[int]) -> Dealt:
    everyone = patients_with(np.arange(len(cells)) % 2)
    patients = replace(everyone, groups={"hospital": np.array(cells)})
    facts = Facts("some", ("a", "b"), group_names={"hospital": ("alone", "north", "south")})
    part = ByGroup(kind="by-group")
    return deal((part,), patients, facts, 3, np.random.default_rng(0))


def test_a_group_of_one_patient_is_no_site_and_sites_are_numbered_without_it() -> None:
    found = by_hospital([1, 1, 0, 2, 2, 2, -1])
    assert found.names == ("north", "south")
    assert [sorted(own) for own in found.patients] == [[0, 1], [3, 4, 5]]
    assert found.unused == 2
    assert found.notes == (
        "hospital alone has one patient and is no site; sites are numbered without it",
        "patients whose hospital is not known: 1",
    )


def test_groups_nobody_is_known_to_be_of_are_refused() -> None:
    with pytest.raises(SimulationError, match="no hospital has two patients"):
        by_hospital([-1, -1, -1, 2])


def test_sizes_that_the_classes_of_the_sites_do_not_allow_are_told() -> None:
    asked = Shares(kind="shares", shares=(0.9, 0.04, 0.03, 0.03))
    one_class = ClassesPerSite(kind="classes-per-site", classes=1)
    found, counts = dealt((asked, one_class), even_labels(2, 500), 4, seed=1)
    largest = counts[0].sum() / 1000
    assert largest <= 0.5, "a site of one class cannot have more than this class has"
    (note,) = found.notes
    assert f"site-1 has {largest:.0%} of the patients in place of 90%" in note
    assert "the sizes of shares" in note
    every_class = ClassesPerSite(kind="classes-per-site", classes=2)
    assert dealt((asked, every_class), even_labels(2, 500), 4)[0].notes == ()
    assert dealt((POWER_LAW, DIRICHLET), even_labels(2, 400), 8)[0].notes == ()


@pytest.mark.parametrize(("name", "place"), [("a", 0), ("b", 1), ("c", 2), ("", 2)])
def test_a_finding_has_its_prevalence_whatever_else_patients_have(name: str, place: int) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((3000, 3)) < [0.3, 0.5, 0.2]).astype(np.int64)
    facts = Facts("some", ("a", "b", "c"), findings=True)
    part = Prevalence(kind="prevalence", prevalence=(0.1, 0.6), name=name)
    found = deal((part,), patients_with(labels), facts, 2, rng)
    for own, stated in zip(found.patients, part.prevalence, strict=True):
        assert labels[own, place].mean() == pytest.approx(stated, abs=0.005)
    # Of those with the finding as many are dealt as there are: .35 of all places are theirs.
    dealt_with = sum(labels[own, place].sum() for own in found.patients)
    most = min(labels[:, place].sum() / 0.35, (labels[:, place] == 0).sum() / 0.65)
    assert dealt_with == pytest.approx(0.35 * most, abs=2)


@pytest.mark.parametrize(
    ("parts", "count", "sites", "words"),
    [
        ((), 7, 4, "4 sites need at least 8 patients; there are 7"),
        ((DIRICHLET,), 16, 8, "a class of 8 patients cannot have 2 at each of 8 sites"),
        ((DIRICHLET, POWER_LAW), 60, 8, "the smallest site has 2 patients, too few for 2 of each"),
        ((PowerLaw(kind="power-law", ratio=1000),), 60, 4, "site-3 would have fewer than two"),
    ],
)
def test_too_few_patients_are_refused_in_one_line(
    parts: tuple[Partition, ...], count: int, sites: int, words: str
) -> None:
    with pytest.raises(SimulationError, match=words) as caught:
        dealt(parts, np.arange(count) % 2, sites)
    assert "\n" not in str(caught.value)
