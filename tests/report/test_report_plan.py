"Before the runs: what a table can find against scipy's noncentral t and against simulation, and seeds that are added later."
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_report_cells import SCORES, grid, layout

from kdnb.report.cells import flat, laid_out, summary
from kdnb.report.example import keyed, plan_of, two_pairs
from kdnb.report.paired import detectable
from kdnb.report.plan import ASSUMED, added_later, earlier_table, expected_spread, plan_text, table_detects, table_power
from kdnb.report.text import foreseen_text, last_texts, log_text, over_columns, readable, reading
from kdnb.report.write import write_report


@pytest.mark.parametrize("gap, sd, seeds, rows, tests", [(0.5, 0.35, 5, 9, 1), (0.5, 0.35, 5, 9, 8), (1.0, 1.0, 3, 4, 3), (0.0, 0.2, 3, 3, 1), (-0.5, 0.4, 4, 6, 2)])
def test_power_is_that_of_the_noncentral_t(gap, sd, seeds, rows, tests):
    df, shift = (rows - 1) * (seeds - 1), gap / (sd * (2 / seeds)**0.5)
    limit = stats.t.ppf(1 - 0.025 / tests, df)
    assert table_power(gap, sd, seeds, rows, tests) == pytest.approx(stats.nct.sf(limit, df, shift) + stats.nct.cdf(-limit, df, shift), abs=2e-3)


def test_the_detectable_gap_is_found_as_often_as_wanted():
    for sd, seeds, rows, tests in ((0.35, 5, 9, 1), (0.35, 5, 9, 8), (2.0, 2, 3, 2), (0.1, 10, 2, 1)):
        for wanted in (0.8, 0.5): assert table_power(table_detects(sd, seeds, rows, tests, wanted), sd, seeds, rows, tests) == pytest.approx(wanted)
    assert table_detects(0.3, 5, 2) == pytest.approx(detectable(0.3 * 2**0.5, 5), rel=1e-6) and np.isinf(table_detects(1.0, 5, 1)) and np.isinf(table_detects(1.0, 1, 9))
    assert round(table_detects(0.35, 5, 9), 2) == 0.64


def test_what_can_be_found_is_told_before_the_runs():
    said = plan_text(5, 9, (0.35, "assumed"))
    assert said.startswith("5 seeds and 9 rows: 80 of 100 tables find a difference of 0.64 points") and f"of {table_detects(0.35, 5, 9, 8):.2f} after Holm's" in said and "0.35 (assumed)" in said
    assert plan_text(1, 9, (0.35, "assumed")) == "1 seed and 9 rows: no difference can be told from chance." and "no difference" in plan_text(5, 1, (0.35, "assumed"))


def test_the_spread_is_that_of_earlier_reports(tmp_path):
    plans = [plan_of(grid(SCORES))]
    table = write_report(tmp_path, plans, keyed(grid(SCORES)), layout(), figures=False)
    found = expected_spread(earlier_table(tmp_path), "resnet8", "digits")
    assert found[0] == pytest.approx(table["block sd"].dropna().iloc[0], abs=1e-3) and found[1] == "measured, 4 degrees of freedom"
    for other in (expected_spread(earlier_table(tmp_path), "vgg8"), expected_spread(earlier_table(tmp_path/"none")), expected_spread(pd.DataFrame({"a": [1]}))): assert other == (ASSUMED, "assumed")


def test_every_section_tells_what_it_can_find_before_it_is_run():
    plans, _ = two_pairs()
    assert foreseen_text(plans, 3) == plan_text(3, 4, (ASSUMED, "assumed")) and foreseen_text([], 3) == ""
    cells = grid(SCORES)
    several = [plan_of(cells), plan_of([cell for cell in cells if cell[2] in ("student", "kd")], preset="fast")]
    assert foreseen_text(several, 3) == "\n\n".join(plan_text(3, rows, (ASSUMED, "assumed")) for rows in (4, 2))
    earlier = pd.DataFrame({"student": ["resnet8"], "data": ["digits"], "block sd": [0.5], "block df": [12.0]})
    assert foreseen_text([plan_of(cells)], 3, earlier) == plan_text(3, 4, (0.5, "measured, 12 degrees of freedom"))


# seeds that were added

def plans_of(cells, first, recorded=(0, 1)):
    "A plan of the first seeds, and a later one of all."
    few = [cell for cell in cells if cell[0]["config"]["seed"] in first]
    return [plan_of(few, recorded=recorded[0]), plan_of(cells, recorded=recorded[1])]


LONG = {row: [*values, *more] for (row, values), more in zip(SCORES.items(), ([94.9, 95.2], [88.0, 88.5], [88.0, 88.2], [93.0, 95.0], [86.0, 89.0]))}


@pytest.mark.parametrize("turned", [False, True])
def test_differences_are_judged_on_the_seeds_of_the_first_plan(turned):
    cells = grid(LONG)
    plans = plans_of(cells, {0, 1, 2})
    table = summary(flat(plans[::-1] if turned else plans, keyed(cells)), layout()).set_index("row")
    first = summary(flat([plan_of(grid(SCORES))], keyed(grid(SCORES))), layout()).set_index("row")
    every = summary(flat([plan_of(cells)], keyed(cells)), layout()).set_index("row")
    for name in ("over kd", "over student alone"):
        for end in ("", " low", " high", " p", " n", " df"): assert np.allclose(table[name + end].astype(float), first[name + end].astype(float), equal_nan=True), end
        for end in ("", " low", " high"): assert np.allclose(table[f"all {name}{end}"].astype(float), every[name + end].astype(float), equal_nan=True)
    assert (table.added == 2).all() and (table.n == 5).all() and np.allclose(table["last"], every["last"]) and np.allclose(table["block sd"], first["block sd"], equal_nan=True)
    assert not np.isclose(table.loc["gram", "over kd"], every.loc["gram", "over kd"])


def test_one_plan_adds_nothing_and_plans_without_a_number_are_the_first():
    cells = grid(LONG)
    for plans in ([plan_of(cells)], plans_of(cells, {0, 1, 2}, (0, 0)), plans_of(cells, set(range(5)))):
        table = summary(flat(plans, keyed(cells)), layout())
        assert (table.added == 0).all() and table["all over kd"].isna().all() and (table["over kd n"].dropna() == 5).all()


def test_a_row_that_is_first_asked_for_later_has_all_its_seeds():
    cells = grid(LONG)
    early = [cell for cell in cells if cell[2] != "gram" and cell[0]["config"]["seed"] < 3]
    table = summary(flat([plan_of(early, recorded=0), plan_of(cells, recorded=3)], keyed(cells)), layout()).set_index("row")
    assert table.loc["gram", "added"] == 0 and table.loc["kd", "added"] == 2 and table.loc["gram", "over kd n"] == 3


def test_another_section_has_its_own_first_plan():
    cells = grid(LONG)
    few = [cell for cell in cells if cell[0]["config"]["seed"] < 3]
    table = summary(flat([plan_of(few, recorded=0), plan_of(cells, recorded=1, preset="fast")], keyed(cells)), layout())
    assert (table.added == 0).all() and sorted(table.n.unique()) == [3, 5]


def test_added_seeds_are_told(tmp_path):
    cells, own = grid(LONG), layout()
    plans = plans_of(cells, {0, 1, 2})
    table = laid_out(plans, keyed(cells), own)[1]
    texts = readable(table, own).set_index("row")
    assert texts.loc["KD", "last epoch"].endswith("(3 + 2)") and last_texts(table)[0].endswith("(3 + 2)")
    assert "] (3)" in texts.loc["Gram KD", "over kd"] and texts.loc["Gram KD", "over kd, all seeds"].count("[") == 1 and "*" not in "".join(texts["over kd, all seeds"])
    assert "added after a first look" in reading(table, own) and "all seeds" in log_text(plans, keyed(cells), own)
    once = laid_out([plan_of(cells)], keyed(cells), own)[1]
    assert [*over_columns(once, own)] == ["over student alone", "over kd"] and "first look" not in reading(once, own)
    write_report(tmp_path, plans, keyed(cells), own)
    assert "3 + 2" in (tmp_path/"table.md").read_text(encoding="utf-8")


def test_later_runs_are_those_that_the_first_plan_of_their_cell_lacks():
    frame = pd.DataFrame([("kd", "a", 2), ("kd", "b", 2), ("kd", "c", 5), ("kd", "a", 5), ("at", "d", 5), ("at", "e", 7)], columns=["row", "key", "recorded"])
    assert added_later(frame, ["row"]).tolist() == [False, False, True, False, False, True]
