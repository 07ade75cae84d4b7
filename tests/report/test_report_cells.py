"Plans and results made by hand: cells, means, spreads, differences, the paper's numbers and the order of rows."
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from kdnb.registry import InputError
from kdnb.report.cells import (PRINTED, SECTION, Layout, differences, distinct, divided, flat, further_scores, laid_out, of_section, other_code,
                               sections_of, slug, summary, title, titles)
from kdnb.report.example import DIGITS, config_of, diverged, keyed, many_losses, plan_of, result_of, scores_of, three_runs, two_pairs
from kdnb.report.paired import compare_rows, interval, p_value

NAMES = {"teacher": "Teacher", "student": "Student alone", "kd": "KD", "gram": "Gram KD"}
REFERENCES = {"student alone": "student", "kd": "kd"}
OBJECTIVES = {"ce": "cross-entropy", "supcon": "SupCon"}
PAIR = "resnet14", "resnet8"


def layout(printed=pd.DataFrame(), **other):
    return Layout(**{"title": "Made-up numbers", "names": NAMES, "references": REFERENCES, "objectives": OBJECTIVES, "printed": printed} | other)


def table_of(cells, printed=pd.DataFrame(), **plan): return summary(flat([plan_of(cells, **plan)], keyed(cells)), layout(printed))


def grid(scores, **config):
    "Cells of a pair: scores by row, a list over seeds (None: not run)."
    cells = []
    for row, values in scores.items():
        for seed, last in enumerate(values):
            if last is None: continue
            teacher = config_of("resnet14", seed, **config)
            own = {"teacher": teacher, "student": config_of("resnet8", seed)}.get(row) or config_of("resnet8", seed, row, teacher)
            cells.append((result_of(own, last), row if row in ("teacher", "student") else "distilled", row, *PAIR))
    return cells


SCORES = {"teacher": [95.0, 96.0, 94.5], "student": [88.1, 88.9, 87.2], "kd": [89.0, 90.1, 87.9], "gram": [90.2, 90.4, 89.9], "at": [87.9, 89.2, 87.0]}


def test_means_and_sample_spreads_are_those_of_the_seeds_and_of_the_right_epoch():
    table = table_of(grid(SCORES)).set_index("row")
    for row, values in SCORES.items():
        at = table.loc[row]
        assert at.n == 3
        for name, shift in (("last", 0), ("best", 0.5), ("selected", -0.25)):
            assert np.isclose(at[name], np.mean(values) + shift) and np.isclose(at[f"{name}_sd"], np.std(values, ddof=1))


def test_differences_of_two_rows_agree_with_scipy_seed_by_seed():
    for name, reference in REFERENCES.items():
        rows, few = ["gram"], {row: SCORES[row] for row in dict.fromkeys(("teacher", "student", reference, "gram"))}
        few = few if name == "student alone" else {row: few[row] for row in ("kd", "gram")}
        table = table_of(grid(few)).set_index("row")
        tests = {row: scipy.stats.ttest_rel(SCORES[row], SCORES[reference]) for row in rows}
        for row in rows:
            assert np.isclose(table.loc[row, f"over {name}"], np.mean(np.subtract(SCORES[row], SCORES[reference])))
            low, high = tests[row].confidence_interval(0.95)
            assert np.allclose(table.loc[row, [f"over {name} low", f"over {name} high"]].astype(float), [low, high])
            assert table.loc[row, f"over {name} n"] == 3
        others = table[f"over {name} p"].notna().sum()   # Holm's correction of the smallest of them
        assert np.isclose(table.loc["gram", f"over {name} p"], min(1, others * tests["gram"].pvalue)) and others == 1
        assert table.loc[[row for row in ("teacher", reference) if row in few], f"over {name}"].isna().all()


def test_seeds_are_paired_whatever_their_order_and_only_where_both_were_run():
    table = table_of(grid({"student": SCORES["student"], "gram": [None, 90.4, 89.9]})[::-1]).set_index("row")
    found = np.subtract([90.4, 89.9], [88.9, 87.2])
    assert np.isclose(table.loc["gram", "over student alone"], found.mean()) and table.loc["gram", "over student alone n"] == 2
    assert np.allclose(table.loc["gram", ["over student alone low", "over student alone high"]].astype(float), interval(found))
    exchanged = table_of(grid(SCORES | {"gram": [90.4, 90.2, 89.9]})).set_index("row")
    same = table_of(grid(SCORES)).set_index("row")
    assert np.isclose(exchanged.loc["gram", "last"], same.loc["gram", "last"])
    assert not np.isclose(exchanged.loc["gram", "over kd high"], same.loc["gram", "over kd high"])


def test_rows_at_once_agree_with_one_at_a_time():
    values = np.random.default_rng(0).normal(0.1, 0.2, (50, 6))
    values[np.random.default_rng(1).random((50, 6)) < 0.4] = np.nan
    found = compare_rows(values)
    for i, row in enumerate(values):
        own = row[np.isfinite(row)]
        assert found["n"][i] == len(own)
        if len(own): assert np.isclose(found["mean"][i], own.mean()) and np.allclose([found["low"][i], found["high"][i]], interval(own))
        assert np.isclose(found["p"][i], p_value(own), equal_nan=True)


def test_one_seed_has_a_mean_and_a_difference_but_neither_spread_nor_interval():
    at = summary(flat(*three_runs()), layout()).set_index("row").loc["gram"]
    assert at["last"] == 91.0 and np.isnan(at.last_sd) and at["over student alone"] == 1.0
    assert at["over student alone low"] == -np.inf and np.isnan(at["over student alone p"]) and np.isnan(at["over kd"])


def test_a_divergence_is_a_result_without_a_mean_and_without_a_difference():
    cells = [(diverged(record), *rest) if rest[1] == "gram" and record["config"]["seed"] == 1 else (record, *rest) for record, *rest in grid(SCORES)]
    table = table_of(cells).set_index("row")
    at = table.loc["gram"]
    assert at.n == 3 and at.diverged == "1 of 3 diverged (NaN at epoch 1, step 3)" and at[["last", "best", "selected", "over kd"]].isna().all()
    assert np.isclose(table.loc["at", "over kd"], table_of(grid(SCORES)).set_index("row").loc["at", "over kd"])
    without = table_of([cell for cell in cells if cell[2] != "gram"]).set_index("row")   # a diverged row does not count among those that are corrected for
    assert table["over student alone p"].notna().sum() == 2 and np.isclose(table.loc["kd", "over student alone p"], without.loc["kd", "over student alone p"])


def test_a_diverged_reference_leaves_no_differences():
    cells = [(diverged(record), *rest) if rest[1] == "kd" and record["config"]["seed"] == 0 else (record, *rest) for record, *rest in grid(SCORES)]
    table = table_of(cells)
    assert table["over kd"].isna().all() and table["over student alone"].notna().sum() == 2


def test_differences_leave_out_what_only_one_side_has():
    values, there = np.array([[1.0, 2, 3], [0, 0, np.nan]]), np.array([[True, True, True], [True, True, False]])
    assert np.allclose(differences(values, there, np.array([1, -1])), [[1, 2, np.nan], [np.nan] * 3], equal_nan=True)
    assert np.isnan(differences(values, there | True, np.array([1, -1]))).all()


def test_both_pairs_have_all_their_rows_and_what_both_protocols_share_stands_under_both():
    plans, results = two_pairs()
    runs, table = laid_out(plans, results, layout())
    assert len(sections_of(table)) == 4
    for section in sections_of(table):
        part = of_section(table, section)
        assert part.row.tolist() == ["teacher", "student", "kd", "gram", "at"] and (part.n == 3).all()
        at = part.set_index("row")["last"]
        assert np.isclose(at.teacher, {"resnet20": 95.3, "resnet14": 92.3}[section["teacher"]])
        assert np.isclose(at.student, {"resnet14": 92.3, "resnet8": 88.3}[section["student"]])
        assert np.isclose(part.set_index("row").loc["gram", "over student alone"], 2.5) and np.isclose(part.set_index("row").loc["gram", "over kd"], 1.5)
    middle = runs[(runs.net == "resnet14") & runs.role.isin(["teacher", "student"])]
    assert set(middle[middle.student == "resnet14"].role) == {"student"} and set(middle[middle.student == "resnet8"].role) == {"teacher"}
    assert middle.key.nunique() == 3 and len(middle) == 12
    at = table[table.row == "at"].groupby("protocol").cell.unique()
    assert set(at["matched"]) & set(at["as-published"]) == set()


def test_no_row_is_counted_twice_where_plans_overlap():
    plans, results = two_pairs()
    half = plans[0] | {"entries": plans[0]["entries"][::2]}
    once, twice = (summary(flat(own, results), layout()) for own in (plans, [*plans, half]))
    pd.testing.assert_frame_equal(once, twice)


def test_what_differs_in_data_preset_changes_or_protocol_is_another_section():
    cells = grid(SCORES)
    others = [{"preset": "fast"}, {"changes": {"epochs": 1}}, {"data": DIGITS | {"test": 299}}, {"data": DIGITS | {"fingerprint": "cd"}}, {"data": DIGITS | {"name": "d"}}]
    runs = flat([plan_of(cells), *(plan_of(cells, **other) for other in others)], keyed(cells))
    sections = sections_of(summary(runs, layout()))
    assert len(sections) == 6 and len({slug(section) for section in sections}) == 6 and len(set(titles(sections))) == 6
    assert len({title(section) for section in sections}) == 5   # the fingerprint is only told where it is needed
    assert "fingerprint" not in title(sections[0]) and sum("data cd" in name for name in titles(sections)) == 1
    assert all(len(part) == 5 for part in divided(summary(runs, layout())).values())


def test_a_file_name_is_short_whatever_the_names_are():
    section = dict.fromkeys(SECTION, "A very long name, with blanks/and more ") | {"teacher": "t"}
    assert len(f"fig_curves_{slug(section)}.png") < 60 and set(slug(section)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert distinct(["a", "b"], [section, section]) == ["a", "b"]


def test_a_distilled_cell_is_compared_with_the_reference_of_its_own_teachers_objective():
    cells = grid({"student": SCORES["student"], "kd": SCORES["kd"], "gram": SCORES["gram"]})
    late = {"kd": [80.0, 81.0, 82.0], "gram": [85.0, 85.5, 86.0]}
    cells += grid(late, objective="supcon")
    for seed, last in enumerate([70.0, 70.5, 71.5]):
        cells.append((result_of(config_of("resnet8", seed, objective="supcon"), last), "student", "student", *PAIR))
    table = table_of(cells).set_index(["row", "objective"])
    assert np.isclose(table.loc[("gram", "supcon"), "over kd"], np.mean(np.subtract(late["gram"], late["kd"])))
    assert np.isclose(table.loc[("gram", "ce"), "over kd"], np.mean(np.subtract(SCORES["gram"], SCORES["kd"])))
    for row in ("kd", "gram"):   # a student alone is trained with the usual objective
        assert np.isclose(table.loc[(row, "supcon"), "over student alone"], np.mean(np.subtract(late[row], SCORES["student"])))
    assert np.isclose(table.loc[("student", "supcon"), "over student alone"], np.mean(np.subtract([70.0, 70.5, 71.5], SCORES["student"])))


def test_the_reference_with_most_seeds_is_taken_and_not_compared_with_another_of_its_row():
    cells = grid(SCORES)
    for seed in range(2):
        config = config_of("resnet8", seed, "kd", config_of("resnet14", seed))
        config["terms"][0]["weight"] = 3.0
        cells.insert(0, (result_of(config, 50.0), "distilled", "kd", *PAIR))
    table = table_of(cells)
    assert np.isclose(table.set_index("row").loc["gram", "over kd"], np.mean(np.subtract(SCORES["gram"], SCORES["kd"])))
    assert table[table.row == "kd"]["over kd"].isna().all() and table[table.row == "kd"].variant.tolist() == ["weight 1", "weight 3"]


def test_an_assistant_has_a_row_of_its_own_and_is_no_reference():
    cells = grid(SCORES)
    assistant = config_of("resnet10", 0, "kd", config_of("resnet14", 0))
    cells.append((result_of(assistant, 99.0), "assistant", "kd", *PAIR))
    table = table_of(cells)
    at = table[table.role == "assistant"].iloc[0]
    assert at["name"] == "assistant (resnet10)" and np.isnan(at["over student alone"]) and at.n == 1
    assert table[table.row == "kd"].n.tolist() == [3]


def test_rows_stand_in_the_layouts_order_and_others_behind_by_name():
    assert table_of(grid(dict(reversed(SCORES.items()))))["name"].tolist() == ["Teacher", "Student alone", "KD", "Gram KD", "at"]


def test_sections_with_a_papers_numbers_come_first():
    cells = grid(SCORES)
    printed = pd.DataFrame([["gram", *PAIR, "ce", "zebra", 90.0, 0.1, 5]], columns=PRINTED)
    plans = [plan_of(cells, data=DIGITS | {"name": name}) for name in ("apple", "zebra")]
    assert [section["data"] for section in sections_of(summary(flat(plans, keyed(cells)), layout(printed)))] == ["zebra", "apple"]
    assert [section["data"] for section in sections_of(summary(flat(plans, keyed(cells)), layout()))] == ["apple", "zebra"]


@pytest.mark.parametrize("column, other", [("row", "at"), ("teacher", "resnet20"), ("student", "vgg8"), ("objective", "supcon"), ("data", "cifar10")])
def test_a_printed_number_stands_beside_its_own_cell_alone(column, other):
    number = dict(zip(PRINTED, ["gram", *PAIR, "ce", "digits", 90.5, 0.2, 5]))
    table = table_of(grid(SCORES), pd.DataFrame([number])).set_index("row")
    assert table.paper.notna().sum() == 1 and table.loc["gram", ["paper", "paper_sd", "paper_n"]].tolist() == [90.5, 0.2, 5]
    assert np.isclose(table.loc["gram", "gap"], np.mean(SCORES["gram"]) - 90.5) and table.drop("gram").gap.isna().all()
    elsewhere = table_of(grid(SCORES), pd.DataFrame([number | {column: other}])).set_index("row")
    assert np.isnan(elsewhere.loc["gram", "paper"])
    for empty in ("", None, np.nan):
        assert table_of(grid(SCORES), pd.DataFrame([number | {column: empty}], dtype=object)).set_index("row").loc["gram", "paper"] == 90.5


def test_a_score_that_some_results_have_is_a_column_with_its_own_spread():
    cells = grid(SCORES)
    for i, (record, *_) in enumerate(cells): record["scores"]["top5"] = scores_of(97.0 + i)
    table = table_of(cells)
    assert further_scores(table) == ["top5"] and np.isclose(table.top5[0], 98.0) and np.isclose(table.top5_sd[0], 1.0)
    del cells[0][0]["scores"]["top5"]
    assert np.isnan(table_of(cells).top5[0]) and table_of(cells).top5[1:].notna().all()
    assert further_scores(table_of(grid(SCORES))) == []
    other = summary(flat([plan_of(cells)], keyed(cells), "top5"), layout(metric="top5"))
    assert np.isclose(other["last"][1], np.mean([100, 101, 102])) and further_scores(other) == ["top1"]


def test_an_epoch_without_a_score_is_missing_and_not_zero():
    plans, results = three_runs()
    for record in results.values(): record["scores"]["top1"]["selected"] = None
    table = summary(flat(plans, results), layout())
    assert table.selected.isna().all() and table["last"].notna().all()


def test_what_was_made_by_other_code_is_counted_by_run_and_by_name():
    runs = flat(*two_pairs())
    assert other_code(runs, None) == other_code(runs, {}) == other_code(runs, {"engine": "0a1b2c3d", "loss unheard": "x"}) == (0, {})
    assert other_code(runs, {"loss gram": "new"}) == (6, {"loss gram": 6})     # shared by two protocols, counted once
    assert other_code(runs, {"loss gram": "", "network resnet8": "new"}) == (18, {"loss gram": 6, "network resnet8": 15})
    assert other_code(runs, {"engine": "new"}) == (33, {"engine": 33})


@pytest.mark.parametrize("given, words", [
    ({"references": {"kd": "kdd"}}, "unknown row 'kdd'. Did you mean 'kd'?"),
    ({"names": {"teacher": "Teacher", "kd": "KD"}}, "unknown row 'student'"),
    ({"objectives": {}}, "at least one objective"),
    ({"printed": pd.DataFrame({"row": ["kd"], "value": [1.0]})}, "lack the columns teacher, student, objective, data, sd, n")])
def test_a_wrong_layout_is_refused(given, words):
    with pytest.raises(InputError) as caught: layout(**given)
    assert words in str(caught.value)


def test_an_unknown_score_or_objective_is_refused_with_the_known_ones():
    plans, results = three_runs()
    with pytest.raises(InputError, match="unknown score 'top9'. Did you mean 'top1'"): flat(plans, results, "top9")
    with pytest.raises(InputError, match="unknown objective 'ce'. Known: supcon"): laid_out(plans, results, layout(objectives={"supcon": "SupCon"}))
    with pytest.raises(InputError, match="of 3 runs that were asked for none has a result yet"): laid_out(plans, {}, layout())


def test_results_of_other_tables_are_left_alone():
    plans, results = three_runs()
    assert len(flat(plans, results | many_losses(3)[1])) == 3


def test_a_training_in_half_precision_says_so():
    cells = [(result_of(config_of("resnet8", 0, precision=precision), 90.0), "student", "student", *PAIR) for precision in ("fp32", "bf16")]
    table = table_of(cells)
    assert sorted(table.training) == ["7 epochs, batch 64", "7 epochs, batch 64, bf16"] and table.variant.tolist() == ["precision bf16", "precision fp32"]


def test_holm_is_per_section():
    cells, values = grid(SCORES), np.subtract(SCORES["gram"], SCORES["student"])
    few = [cell for cell in cells if cell[2] in ("student", "gram")]
    table = summary(flat([plan_of(cells), plan_of(few, preset="fast")], keyed(cells)), layout())
    at = table[table.row == "gram"].set_index("preset")["over student alone p"]
    alone = table_of(cells).set_index("row")["over student alone p"]
    assert np.isclose(at["fast"], p_value(values)) and np.isclose(at["quick"], alone["gram"]) and alone.notna().sum() == 3
