"The statistics of paired differences against scipy's, against simulation, and against numbers from books."
import numpy as np
import pytest
from scipy import stats

from kdnb.report.paired import STEP, compare_rows, detectable, holm, interval, p_value, power, seeds_needed, spreads

VALUES = [0.3, 1.1, 0.2, 0.9, -0.4]


@pytest.mark.parametrize("values", [VALUES, [-v for v in VALUES], [1.0, 2.0], [0.5, 0.1, 0.7, 0.9]])
def test_interval_and_probability_are_scipys(values):
    found = stats.ttest_1samp(values, 0.0)
    for confidence in (0.95, 0.8):
        wanted = found.confidence_interval(confidence)
        assert interval(values, confidence) == pytest.approx((wanted.low, wanted.high))
    assert interval(values) == interval(values, 0.95) and p_value(values) == pytest.approx(found.pvalue)


def test_equal_differences_are_taken_to_spread_by_one_hundredth():
    half = stats.t.ppf(0.975, 2) * 0.01 / 3**0.5
    assert STEP == 0.01 and interval([0.5] * 3) == pytest.approx((0.5 - half, 0.5 + half))
    assert p_value([0.02] * 3) == pytest.approx(2 * stats.t.sf(0.02 / (0.01 / 3**0.5), 2)) and p_value([0.0, 0.0]) == pytest.approx(1.0)


def test_one_value_or_a_divergence_says_nothing():
    for values in ([1.0], [], [1.0, np.nan], [1.0, np.inf, 2.0], [np.inf, -np.inf], [np.nan, np.inf]):
        assert interval(values) == (-np.inf, np.inf) and np.isnan(p_value(values))
    assert interval([np.inf, np.inf]) == (np.inf, np.inf) and interval([-np.inf] * 3) == (-np.inf, -np.inf)
    assert np.isnan(p_value([np.inf, np.inf]))


def test_spreads_are_the_middles_of_equally_likely_parts():
    for n in (2, 5, 30):
        found = spreads(n)
        assert len(found) == 4000 and (np.diff(found) > 0).all()
        shares = stats.chi2.cdf(found**2 * (n - 1), n - 1)
        np.testing.assert_allclose(shares, (np.arange(4000) + 0.5) / 4000, atol=1e-9)


@pytest.mark.parametrize("gap,sd,n", [(0.5, 1.0, 5), (1.0, 1.0, 5), (0.2, 0.1, 3), (0.0, 1.0, 4), (0.3, 0.2, 10), (-0.5, 1.0, 20)])
def test_power_is_that_of_the_noncentral_t(gap, sd, n):
    shift, limit = gap / sd * n**0.5, stats.t.ppf(0.975, n - 1)
    wanted = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
    assert power(gap, sd, n) == pytest.approx(wanted, abs=2e-3)


def test_power_of_a_textbook():
    "Cohen: an effect of half a deviation needs 34 pairs to be found in four of five studies."
    assert seeds_needed(0.5, 1.0) == 34 and seeds_needed(0.2, 1.0) == 199 and seeds_needed(0.8, 1.0) == 15


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_detectable_gap_is_found_as_often_as_wanted(n):
    for sd in (0.5, 2.0):
        for wanted in (0.8, 0.5): assert power(detectable(sd, n, wanted), sd, n) == pytest.approx(wanted, abs=1e-6)
    assert detectable(0.5, n) == detectable(0.5, n, 0.8) and detectable(0.0, n) == detectable(0.01, n)
    assert np.isnan(detectable(1.0, 1)) and not np.isnan(detectable(1.0, 2))


@pytest.mark.parametrize("gap,sd", [(0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (10.0, 1.0), (0.3, 0.2)])
def test_seeds_needed_are_the_fewest(gap, sd):
    n = seeds_needed(gap, sd)
    assert n >= 2 and power(gap, sd, n) >= 0.8 and (n == 2 or power(gap, sd, n - 1) < 0.8)
    assert seeds_needed(gap, sd, 0.9) >= n


def test_seeds_needed_for_nothing_are_none():
    for gap, sd in ((0.0, 1.0), (-1.0, 1.0), (np.nan, 1.0), (1.0, np.nan), (1.0, np.inf)): assert np.isnan(seeds_needed(gap, sd))
    assert seeds_needed(0.05, 0.0) == seeds_needed(0.05, 0.01)
    assert seeds_needed(0.005, 0.01) == 34, "a gap below one is a gap"


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9, 0.5]) == pytest.approx([1, 1, 1]) and holm([0.2]) == pytest.approx([0.2]) and len(holm([])) == 0
    np.testing.assert_allclose(holm([np.nan, 0.02, np.nan, 0.01]), [np.nan, 0.02, np.nan, 0.02])
    assert np.isnan(holm([np.nan, np.nan])).all()


def test_rows_are_compared_as_each_alone():
    rows = np.array([VALUES, [np.nan, 1.0, 2.0, np.nan, 0.5], [0.5] * 5, [np.nan] * 5, [np.nan, np.nan, 3.0, np.nan, np.nan],
                     [np.inf, 1.0, 2.0, -np.inf, 2.5]])
    found = compare_rows(rows)
    for i, row in enumerate(rows):
        own = row[np.isfinite(row)]
        assert found["n"][i] == len(own)
        if not len(own):
            assert all(np.isnan(found[name][i]) for name in ("mean", "low", "high", "p"))
            continue
        assert found["mean"][i] == pytest.approx(own.mean())
        assert (found["low"][i], found["high"][i]) == pytest.approx(interval(own) if len(own) > 1 else (-np.inf, np.inf))
        assert found["p"][i] == pytest.approx(p_value(own), nan_ok=True)


@pytest.mark.parametrize("sd", [20.0, 150.0])
def test_the_detectable_gap_grows_with_the_spread(sd):
    assert detectable(sd, 3) == pytest.approx(sd * detectable(1.0, 3), rel=1e-6)
