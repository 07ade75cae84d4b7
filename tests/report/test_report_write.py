"A report on disk: names of files, the order of its text, and what it takes away."
import re
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_report_cells import PAIR, SCORES, grid, layout
from test_report_text import rendered

import kdnb.report.write as write
from kdnb.registry import InputError
from kdnb.report.cells import PRINTED
from kdnb.report.example import DIGITS, keyed, many_losses, plan_of, three_runs, two_pairs
from kdnb.report.figures import Drawing
from kdnb.report.write import image, write_report


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    "The folder and the summary of two pairs under two protocols."
    folder = tmp_path_factory.mktemp("pairs")
    plans, results = two_pairs(note="Only *some* digits.")
    return folder, write_report(folder, plans, results, layout(), {"loss gram": "new"})


def test_a_report_has_a_table_for_people_one_for_programs_and_figures(pairs):
    folder, table = pairs
    names = sorted(path.name for path in folder.iterdir())
    assert names[-2:] == ["table.csv", "table.md"] and len(names) == 2 + 4 * 3 and max(map(len, names)) < 60
    assert all(re.fullmatch(r"fig_(cells|over|curves)_quick-(matched|as-published)-digits-[0-9a-f]{4}\.png", name) for name in names[:-2])
    numbers = pd.read_csv(folder/"table.csv", keep_default_na=False, na_values=[""])
    assert len(numbers) == len(table) == 20 and list(numbers) == list(table) and np.allclose(numbers["last"], table["last"])
    assert not any(isinstance(value, str) and len(value) > 200 for value in numbers.to_numpy().ravel())


def test_the_text_in_order(pairs):
    text = (pairs[0]/"table.md").read_text(encoding="utf-8")
    heads = re.findall(r"(?m)^##? (.*)$", text)
    assert heads == ["Made-up numbers", "All pairs", "resnet20 → resnet14 on digits 1000/200/300 (quick, matched)",
                     "resnet20 → resnet14 on digits 1000/200/300 (quick, as-published)", "resnet14 → resnet8 on digits 1000/200/300 (quick, matched)",
                     "resnet14 → resnet8 on digits 1000/200/300 (quick, as-published)", "Where the time went", "Settings"]
    assert " CPU seconds went 67 % into the trained networks' own steps, 8 % into teachers' answers, 4 % into input and 21 % into evaluation." in text
    assert text.count("Only \\*some\\* digits.") == 1 and text.count("Test accuracy in percent: mean") == 1 and text.count("| networks | small | ours |") == 1
    assert text.count("3 runs were made by other code than the present one: loss gram (3 runs). `-p force True` trains them again.") == 4
    assert text.count("Trained on: made-up CPU, 1 thread(s).") == 4 and "paper" not in text


def test_every_image_is_there_and_says_what_it_shows(pairs):
    text = (pairs[0]/"table.md").read_text(encoding="utf-8")
    images = re.findall(r"!\[(.*)\]\((.*)\)", text)
    assert len(images) == 12 and {name for _, name in images} == {path.name for path in pairs[0].glob("*.png")}
    assert all(len(alt.split()) > 8 and re.search(r"\d", alt) for alt, _ in images)
    assert rendered(text).tags.count("img") == 12


def test_a_text_for_an_image_cannot_break_out_of_it():
    words = rendered(image("a [b](http://x) ] <i> !", "fig.png"))
    assert words.tags.count("img") == 1 and not {"a", "i"} & set(words.tags)


def test_figures_of_sections_that_are_gone_go_and_other_files_stay(tmp_path):
    plans, results = three_runs()
    for name in ("fig_cells_old.png", "fig_curves_quick-on-old.png", "fig_mine.png", "notes.txt"): (tmp_path/name).touch()
    write_report(tmp_path, plans, results, layout())
    names = {path.name for path in tmp_path.iterdir()}
    assert "fig_cells_old.png" not in names and "fig_curves_quick-on-old.png" not in names and {"fig_mine.png", "notes.txt"} <= names


def test_the_same_report_is_written_twice_bit_by_bit(tmp_path):
    plans, results = three_runs()
    for name, own in (("a", results), ("b", dict(reversed(results.items())))): write_report(tmp_path/name, plans, own, layout())
    for path in (tmp_path/"a").iterdir(): assert (tmp_path/"b"/path.name).read_bytes() == path.read_bytes(), path.name


def test_a_report_of_nothing_is_refused_in_one_sentence_and_leaves_no_folder(tmp_path):
    plans, _ = three_runs()
    with pytest.raises(InputError) as caught: write_report(tmp_path/"report", plans, {}, layout())
    assert str(caught.value) == "there is nothing to report: of 3 runs that were asked for none has a result yet; train them first."
    assert not (tmp_path/"report").exists()


def test_a_part_of_the_results_says_what_is_missing(tmp_path):
    plans, results = three_runs()
    write_report(tmp_path, plans, dict([*results.items()][:2]), layout(), figures=False)
    assert "1 of 3 runs have no result yet." in (tmp_path/"table.md").read_text(encoding="utf-8") and not [*tmp_path.glob("*.png")]


def test_the_papers_columns_are_in_its_sections_alone(tmp_path):
    cells = grid(SCORES)
    printed = pd.DataFrame([["gram", *PAIR, "ce", "digits", 90.5, 0.2, 5]], columns=PRINTED)
    plans = [plan_of(cells), plan_of(cells, data=DIGITS | {"name": "part of digits"})]
    write_report(tmp_path, plans, keyed(cells), layout(printed), figures=False)
    heads = [line for line in (tmp_path/"table.md").read_text(encoding="utf-8").splitlines() if line.startswith("| row")]
    assert ["| paper | gap |" in line for line in heads] == [True, False]


def test_sections_that_differ_in_the_data_alone_keep_their_own_tables(tmp_path):
    cells = grid(SCORES)
    plans = [plan_of(cells, data=DIGITS | {"fingerprint": mark}) for mark in ("ab", "cd")]
    table = write_report(tmp_path, plans, keyed(cells), layout())
    text = (tmp_path/"table.md").read_text(encoding="utf-8")
    assert len(table) == 10 and text.count(", data ab") == text.count(", data cd") == 1 and len([*tmp_path.glob("*.png")]) == 6


def test_short_names_that_would_be_equal_become_longer(tmp_path, monkeypatch):
    own = write.slug
    monkeypatch.setattr(write, "slug", lambda section, digits=4: own(section, digits) if digits > 4 else "quick-digits-0000")
    monkeypatch.setattr(write, "figures_of", lambda *given: {"cells": Drawing(lambda: plt.figure(figsize=(1, 1)), "nothing", "mark")})
    write_report(tmp_path, *two_pairs(), layout())
    assert len([*tmp_path.glob("*.png")]) == 4


def test_cells_are_computed_once_and_a_thousand_results_take_seconds(tmp_path, monkeypatch):
    plans, results = many_losses(331)
    calls = []
    own = write.laid_out
    monkeypatch.setattr(write, "laid_out", lambda *given: calls.append(1) or own(*given))
    start = time.process_time()
    table = write_report(tmp_path, plans, results, layout(), {}, figures=False)
    assert time.process_time() - start < 10 and len(table) == 333 and len(calls) == 1


def test_numbers_are_written_with_four_decimals(tmp_path):
    table = write_report(tmp_path, *two_pairs(), layout())
    text = (tmp_path/"table.csv").read_text()
    assert re.search(r"\.\d{3,4}\b", text) and not re.search(r"\.\d{5}", text) and len(table)
