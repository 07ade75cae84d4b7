"Measures by hand: one number per row, kept over calls, reported with their spread."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_report_text import rendered

from kdnb.registry import InputError
from kdnb.report.measures import COLUMNS, About, described, measure_tables, measured, pivoted, read_measures, spread_text, write_measures

WHAT = {"data": "digits", "preset": "quick", "changes": "", "protocol": "", "teacher": "resnet14", "student": "resnet8", "objective": "ce", "method": "gram",
        "measure": "CKA", "place": "stage 1", "seed": 0, "key": "k0"}
VALUES = [0.50, 0.56, 0.71]
ROWS = [WHAT | {"seed": seed, "key": f"k{seed}", "value": value} for seed, value in enumerate(VALUES)]


def test_the_columns_are_the_sections_fields_and_no_sentence():
    assert COLUMNS == ["data", "preset", "changes", "protocol", "teacher", "student", "objective", "method", "measure", "place", "seed", "value", "key"]


@pytest.mark.parametrize("column", COLUMNS[:10] + ["seed"])
def test_a_number_takes_the_place_of_the_one_that_agrees_in_all_columns(column):
    again = measured([ROWS[0] | {"value": 0.9}], measured(ROWS))
    assert len(again) == 3 and again.value.tolist() == [0.56, 0.71, 0.9]
    assert len(measured([ROWS[0] | {column: 7 if column == "seed" else "other"}], measured(ROWS))) == 4
    lacking = {name: value for name, value in ROWS[0].items() if name != column}
    with pytest.raises(InputError, match=f"lack {column}"): measured([lacking])


def test_mean_spread_and_number():
    assert spread_text(pd.Series(VALUES), 3) == f"{np.mean(VALUES):.3f} ± {np.std(VALUES, ddof=1):.3f} (3)"
    assert spread_text(pd.Series(VALUES[:1])) == "0.50 (1)" and spread_text(pd.Series([0.5, np.nan])) == "–" == spread_text(pd.Series([], dtype=float))


def test_a_column_for_each_place_and_a_row_for_each_network():
    rows = ROWS + [row | {"place": "stage 2", "value": row["value"] / 2} for row in ROWS] + [ROWS[0] | {"method": "kd"}]
    found = pivoted(measured(rows), {("gram", "stage 2"): 0.25}, 3).set_index("method")
    assert found.loc["gram", "stage 2"] == f"{np.mean(VALUES) / 2:.3f} ± {np.std(VALUES, ddof=1) / 2:.3f} (3) [0.250]" and found.loc["kd", "stage 2"] == "–"
    assert "student" in pivoted(measured(ROWS + [ROWS[0] | {"student": "vgg8"}])) and "student" not in pivoted(measured(ROWS))


def test_numbers_of_earlier_calls_stay(tmp_path):
    about = About("Made up", "How to read.", (("estimator", "a|b", "ours"),), ("small *images*", "small *images*"), decimals=3)
    write_measures(tmp_path, about, ROWS[:2])
    found = write_measures(tmp_path, about, [ROWS[2], ROWS[0] | {"preset": "fast"}], {"layers": plt.figure()})
    assert len(found) == 4 and read_measures(tmp_path).value.tolist() == found.value.tolist() and read_measures(tmp_path).preset.tolist()[-1] == "fast"
    text = (tmp_path/"table.md").read_text(encoding="utf-8")
    assert "## CKA: digits (quick)" in text and "## CKA: digits (fast)" in text and text.count("small \\*images\\*") == 1 and "How to read." in text
    assert f"{np.mean(VALUES):.3f} ± {np.std(VALUES, ddof=1):.3f} (3)" in text and (tmp_path/"fig_layers.png").exists() and "a\\|b" in text
    assert rendered(text).tags.count("img") == 1
    plt.close("all")


def test_a_file_of_the_old_columns_is_refused_and_kept(tmp_path):
    old = "section,teacher,student,objective,method,measure,place,seed,value,key\n"
    (tmp_path/"measures.csv").write_text(old)
    with pytest.raises(InputError, match="its columns should be data, preset, changes, protocol"): write_measures(tmp_path, About("x"), ROWS)
    assert (tmp_path/"measures.csv").read_text() == old and not (tmp_path/"table.md").exists()


def test_a_figure_says_what_it_shows(tmp_path):
    figure, ax = plt.subplots()
    ax.set(title="gram", xlabel="stage", ylabel="CKA")
    figure.suptitle("All layers")
    assert described(figure) == "All layers; gram: CKA by stage"
    write_measures(tmp_path, About("x"), ROWS, {"a": figure, "b": (figure, "Higher in [1].")})
    text = (tmp_path/"table.md").read_text(encoding="utf-8")
    assert "![All layers; gram: CKA by stage](fig_a.png)" in text and "![Higher in \\[1\\].](fig_b.png)" in text
    plt.close("all")


def test_sections_come_in_the_order_of_their_numbers_and_are_named_by_preset_protocol_and_changes():
    rows = [ROWS[0] | {"data": "z", "preset": "", "protocol": ""}, ROWS[0] | {"data": "a", "changes": "epochs 1", "protocol": "matched"}, ROWS[0]]
    headings = [text for text in measure_tables(measured(rows), About("x")) if text.startswith("## ")]
    assert headings == ["## CKA: z", "## CKA: a (quick, matched, epochs 1)", "## CKA: digits (quick)"]
