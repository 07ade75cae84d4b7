"Seeds as blocks against ordinary least squares written otherwise, against scipy, and against what was put into the numbers."
import numpy as np
import pytest
from scipy import stats

from kdnb.report.blocks import UNTOLD, between, blocks_of, combined, compare_in_blocks, contrast_of, equal_spreads, level, placed_rows, probability, within
from kdnb.report.cells import summary, flat
from kdnb.report.example import config_of, keyed, plan_of, result_of
from kdnb.report.paired import compare_rows, holm
from test_report_cells import PAIR, layout

RNG = np.random.default_rng(7)


def ols(values, row, other):
    "Difference of two rows, its standard error and degrees of freedom: least squares with an intercept and dummies, by Cholesky, the row compared with left out."
    r, s = np.nonzero(np.isfinite(values))
    rows, seeds = [i for i in sorted({*r}) if i != other], sorted({*s})[1:]
    x = np.column_stack([np.ones(len(r)), *[r == i for i in rows], *[s == j for j in seeds]]).astype(float)
    y, gram = values[r, s], x.T @ x
    root = np.linalg.cholesky(gram)
    b = np.linalg.solve(root.T, np.linalg.solve(root, x.T @ y))
    df = len(y) - x.shape[1]
    variance = ((y - x @ b)**2).sum() / df
    at = 1 + rows.index(row)
    return b[at], (variance * np.linalg.inv(gram)[at, at])**0.5, df


def table(rows, seeds, missing=0.0):
    values = RNG.normal(70, 2, (rows, 1)) + RNG.normal(0, 1, seeds) + RNG.normal(0, 0.4, (rows, seeds))
    values[RNG.random(values.shape) < missing] = np.nan
    return values


def compared(values, groups, to):
    others = np.where(np.arange(len(values)) == to, -1, to)
    return compare_in_blocks(np.where(others[:, None] >= 0, values - values[to], np.nan), placed_rows(values, groups), others)


@pytest.mark.parametrize("rows, seeds", [(3, 2), (3, 5), (6, 3), (9, 5), (15, 3)])
def test_a_full_table_is_that_of_ordinary_least_squares(rows, seeds):
    values = table(rows, seeds)
    found = compared(values, [0] * rows, 1)
    for row in (0, 2):
        value, error, df = ols(values, row, 1)
        half = stats.t.ppf(0.975, df) * error
        assert df == (rows - 1) * (seeds - 1) == found["df"][row] and found["n"][row] == seeds
        assert [found[name][row] for name in ("mean", "low", "high", "p")] == pytest.approx([value, value - half, value + half, 2 * stats.t.sf(abs(value) / error, df)])
        assert value == pytest.approx(values[row].mean() - values[1].mean())
    assert all(np.isnan(found[name][1]) for name in ("mean", "low", "high", "p"))


@pytest.mark.parametrize("seed", range(8))
def test_a_table_that_lacks_runs_is_that_of_ordinary_least_squares(seed):
    rng = np.random.default_rng(seed)
    values = table(6, 5)
    values[rng.integers(6, size=6), rng.integers(5, size=6)] = np.nan
    found = compared(values, [0] * 6, 0)
    for row in range(1, 6):
        value, error, df = ols(values, row, 0)
        assert df == found["df"][row] == np.isfinite(values).sum() - 10
        assert [found["mean"][row], found["p"][row]] == pytest.approx([value, 2 * stats.t.sf(abs(value) / error, df)])
        assert found["n"][row] == np.isfinite(values[row] - values[0]).sum()


def test_one_missing_run_changes_the_estimate_as_the_seed_says():
    values = np.array([[1.0, 2.0, 6.0], [2.0, 3.0, 7.0], [1.5, 2.5, np.nan]])   # no rest at all: the third row is half a point above the first
    assert within(blocks_of(values), 2, 0).value == pytest.approx(0.5) and blocks_of(values).df == 3


@pytest.mark.parametrize("n", [2, 3, 8])
def test_two_rows_are_the_paired_t_test(n):
    values = table(2, n)
    assert probability(within(blocks_of(values), 0, 1)) == pytest.approx(stats.ttest_rel(*values).pvalue)
    wider = np.hstack([values, [[5.0, np.nan, np.nan], [np.nan, 9.0, np.nan]]])
    assert probability(within(blocks_of(wider), 0, 1)) == pytest.approx(stats.ttest_rel(*values).pvalue)
    if n > 2: assert probability(between(blocks_of(values[:1]), 0, blocks_of(values[1:]), 0)) == pytest.approx(stats.ttest_rel(*values).pvalue)


def test_seeds_and_rows_without_a_run_change_nothing():
    values = table(4, 3)
    wider = np.full((6, 7), np.nan)
    wider[np.ix_([0, 2, 3, 5], [1, 2, 6])] = values
    own, other = compared(values, [0] * 4, 0), compared(wider, [0] * 6, 0)
    for name in own: assert other[name][[2, 3, 5]] == pytest.approx(own[name][1:])
    assert other["n"][[1, 4]].tolist() == [0, 0] and np.isnan(other["mean"][[1, 4]]).all()


def test_whether_the_runs_tell_a_difference_is_asked_of_the_difference():
    values = table(4, 4)
    values[:2, 2:] = values[2:, :2] = np.nan   # two tables that have nothing in common
    made = blocks_of(values)
    assert within(made, 0, 2) == UNTOLD and np.isfinite(within(made, 0, 1).value) and made.df == 2
    assert within(made, 0, 1).value == pytest.approx((values[0] - values[1])[:2].mean())
    bridged = values.copy()
    bridged[1, 3] = 71.0
    assert np.isfinite(within(blocks_of(bridged), 0, 2).value) and within(blocks_of(bridged), 0, 2).value == pytest.approx(ols(bridged, 0, 2)[0])
    found = compared(values, [0] * 4, 0)
    assert found["n"].tolist() == [0, 2, 0, 0] and np.isnan(found["mean"][2])   # no pair, no number


def test_one_seed_has_no_rest_and_an_unbounded_interval():
    values = table(5, 1)
    made, found = blocks_of(values), compared(values, [0] * 5, 0)
    assert made.df == 0 and np.isnan(made.sd) and within(made, 1, 0) == UNTOLD
    assert found["mean"][1] == pytest.approx(values[1, 0] - values[0, 0]) and found["low"][1] == -np.inf and found["high"][1] == np.inf
    assert np.isnan(found["p"][1]) and np.isnan(found["df"][1])


def test_rows_that_never_differ_are_taken_to_spread_by_a_step():
    values = np.array([[1.0, 2.0, 3.0]] * 3) + np.array([[0.0], [0.5], [0.5]])
    found, paired = compared(values, [0] * 3, 0), compare_rows(values[1:2] - values[0])
    half = stats.t.ppf(0.975, 4) * 0.01 / 3**0.5
    assert found["high"][1] - 0.5 == pytest.approx(half) and paired["high"][0] - 0.5 == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / 3**0.5)
    other = compared(values, [0, 1, 1], 0)
    assert other["high"][1] - 0.5 == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / 3**0.5)


def test_a_row_of_another_table_is_compared_by_three_errors():
    values, others = table(4, 5), table(3, 5)
    one = contrast_of(*[placed_rows(np.vstack([values, others]), [0] * 4 + [1] * 3)[i] for i in (2, 5)])
    def rest(x): return ((x - x.mean(1, keepdims=True) - x.mean(0) + x.mean())**2).sum() / ((len(x) - 1) * 4)
    gaps = values.mean(0) - others.mean(0)
    parts = np.array([rest(values) * (1 - 1 / 4) / 5, rest(others) * (1 - 1 / 3) / 5, gaps.var(ddof=1) / 5])
    assert one.value == pytest.approx(values[2].mean() - others[1].mean()) and one.error == pytest.approx(parts.sum()**0.5)
    assert one.df == pytest.approx(parts.sum()**2 / (parts**2 / [12, 8, 4]).sum())
    assert level(blocks_of(values)) == pytest.approx(values.mean(0)) and combined([(4.0, 3), (0.0, 0)]) == (2.0, 3)


def test_two_seeds_are_too_few_for_a_row_of_another_table():
    values = table(5, 2)
    found = compared(values, [0, 1, 1, 1, 1], 0)
    for row in range(1, 5): assert found["p"][row] == pytest.approx(stats.ttest_rel(values[row], values[0]).pvalue)


@pytest.mark.parametrize("sizes", [[30, 30, 30], [12, 9, 15, 20]])
def test_equal_spreads_are_scipys(sizes):
    rows = [RNG.normal(0, sd, n) for sd, n in zip((1.0, 1.3, 0.7, 1.0), sizes)]
    rest = np.full((len(rows), max(sizes)), np.nan)
    for i, row in enumerate(rows): rest[i, :len(row)] = row - row.mean()
    assert equal_spreads(rest) == pytest.approx(stats.bartlett(*rows).pvalue)
    assert np.isnan(equal_spreads(rest[:1])) and np.isnan(equal_spreads(np.zeros((3, 4))))


# in a report

SEEDS = 4


def cells_of(rows, own_teacher):
    "Cells of a pair, with one teacher for each seed or one for all."
    cells = []
    for row, values in rows.items():
        for seed, last in enumerate(values):
            if last is None: continue
            teacher = config_of("resnet14", seed if own_teacher else 0)
            config = config_of("resnet8", seed) if row == "student" else config_of("resnet8", seed, row, teacher)
            cells.append((result_of(config, last), "student" if row == "student" else "distilled", row, *PAIR))
    return cells


def scores(rows=("student", "kd", "gram", "at", "crd")): return {row: [*values] for row, values in zip(rows, table(len(rows), SEEDS))}


def reported(cells): return summary(flat([plan_of(cells)], keyed(cells)), layout()).set_index("row")


def test_students_of_one_teacher_are_one_table_with_the_student_alone():
    rows = scores()
    found, values = reported(cells_of(rows, own_teacher=False)), np.array([*rows.values()])
    p = {row: 2 * stats.t.sf(abs(value) / error, df) for row, (value, error, df) in ((row, ols(values, i, 0)) for i, row in enumerate(rows) if i)}
    for row, corrected in zip(p, holm([*p.values()])):
        assert found.loc[row, "over student alone p"] == pytest.approx(corrected) and found.loc[row, "over student alone df"] == 4 * (SEEDS - 1)
    assert (found["block rows"] == 5).all() and (found["block df"] == 12).all() and np.allclose(found["block sd"], blocks_of(values).sd)


def test_students_of_a_teacher_for_each_seed_are_a_table_of_their_own():
    rows = scores()
    found, values = reported(cells_of(rows, own_teacher=True)), np.array([*rows.values()])
    assert found.loc["kd":, "block rows"].tolist() == [4] * 4 and np.isnan(found.loc["student", "block rows"])
    assert found.loc["gram", "over kd df"] == 3 * (SEEDS - 1)
    one = between(blocks_of(values[1:]), 1, blocks_of(values[:1]), 0)
    assert found.loc["gram", "over student alone df"] == pytest.approx(one.df) and 3 < one.df < 12
    assert found.loc["gram", "over student alone"] == pytest.approx(one.value)


def test_a_row_that_diverged_takes_no_part_in_the_blocks():
    rows = scores()
    cells = cells_of(rows, own_teacher=False)
    lost = [(record | {"outcome": "NaN", "scores": {}, "history": []} if rest[1] == "at" and record["config"]["seed"] == 1 else record, *rest) for record, *rest in cells]
    without = reported([cell for cell in cells if cell[2] != "at"])
    found = reported(lost)
    assert np.isnan(found.loc["at", "over kd"]) and np.isnan(found.loc["at", "block sd"])
    for name in ("over kd p", "over student alone low", "block sd"): assert found.loc["gram", name] == pytest.approx(without.loc["gram", name])


def test_a_table_of_two_rows_has_no_blocks_to_speak_of():
    found = reported(cells_of(scores(("student", "kd")), own_teacher=False))
    assert found["block rows"].isna().all() and found.loc["kd", "over student alone df"] == SEEDS - 1
