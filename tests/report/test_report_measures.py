"Measures by hand: one number per row, kept over calls, reported with their spread."
import errno
import json
import os
import subprocess
import sys

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


WRITER = """
import json, sys
from kdnb.report.measures import About, write_measures
rows = json.loads(sys.argv[2])
print("ready", flush=True)
input()
for row in rows: write_measures(sys.argv[1], About("x"), [row])
"""


def test_two_processes_lose_none_of_each_other_s_numbers(tmp_path):
    parts = [[ROWS[0] | {"seed": seed, "value": seed / 100} for seed in range(first, 40, 2)] for first in (0, 1)]
    both = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, json.dumps(rows)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for rows in parts]
    for process in both: assert process.stdout.readline() == "ready\n"
    for process in both: print(file=process.stdin, flush=True)
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(read_measures(tmp_path).seed) == list(range(40)) and "(40)" in (tmp_path/"table.md").read_text(encoding="utf-8")
    assert {p.name for p in tmp_path.iterdir()} == {"measures.csv", "table.md"}


def test_a_folder_that_is_only_read_keeps_its_report_and_the_numbers_are_given(tmp_path, monkeypatch, capsys):
    write_measures(tmp_path, About("x"), ROWS[:2])
    before, real = {p: p.read_bytes() for p in tmp_path.iterdir()}, os.open
    def opened(path, flags, *rest, **more):
        if flags & os.O_CREAT: raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **more)
    monkeypatch.setattr(os, "open", opened)
    assert len(write_measures(tmp_path, About("x"), ROWS)) == 3 and "No report was written" in capsys.readouterr().out
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.parametrize("value", ["many", "inf", "-inf", "NaN!"])
def test_a_value_that_is_no_number_is_refused(tmp_path, value):
    measured(ROWS).assign(value=value).to_csv(tmp_path/"measures.csv", index=False)
    with pytest.raises(InputError, match="measures.csv has the value .* no number. Delete it"): write_measures(tmp_path, About("x"), ROWS)


def test_a_folder_or_bytes_in_the_file_s_place_are_refused(tmp_path):
    (tmp_path/"measures.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="measures.csv is not a file of measures"): read_measures(tmp_path)
    (tmp_path/"measures.csv").unlink()
    (tmp_path/"measures.csv").mkdir()
    with pytest.raises(InputError, match="measures.csv is not a file of measures"): read_measures(tmp_path)


def test_sections_come_in_the_order_of_their_numbers_and_are_named_by_preset_protocol_and_changes():
    rows = [ROWS[0] | {"data": "z", "preset": "", "protocol": ""}, ROWS[0] | {"data": "a", "changes": "epochs 1", "protocol": "matched"}, ROWS[0]]
    headings = [text for text in measure_tables(measured(rows), About("x")) if text.startswith("## ")]
    assert headings == ["## CKA: z", "## CKA: a (quick, matched, epochs 1)", "## CKA: digits (quick)"]
