"What a report says in Markdown and in plain text: columns, escaping, notes, settings, other code."
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import mistune
import numpy as np
import pandas as pd
import pytest
from test_report_cells import PAIR, SCORES, grid, layout

from kdnb.registry import InputError
from kdnb.report.cells import PRINTED, flat, laid_out, of_section, sections_of, summary
from kdnb.report.example import DIGITS, config_of, diverged, keyed, many_losses, plan_of, result_of, scores_of, three_runs, two_pairs
from kdnb.report.measures import COLUMNS, About, write_measures
from kdnb.report.write import write_report
from kdnb.report.text import (blocks, block_texts, code_text, difference_text, escape, labels, log_text, markdown, missing_text, notes_text, overviews, plain, readable,
                              reading, score_text, settings_text, show, statements, verdict_text)

NASTY = ["a|b", "*star* **bold**", "_under_ __score__ snake_case", "`code`", "<b>tag</b> <script>alert(1)</script>", "a & b &amp; c", "[link](http://x)",
         "![image](x.png)", "[ref]: http://x", "$x$ and $$y$$", "# heading", "- item", "+ item", "1. item", "2) item", "12. item", "345) item", "~~gone~~", "back\\slash", "--- ", "a\nb\n\nc",
         "](x) ]", "<!-- comment -->", "[0.1, 0.2] *"]


class Words(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.cells, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "td": self.cells.append("")

    def handle_data(self, data):
        self.text += data
        if self.cells: self.cells[-1] += data


def rendered(text):
    words = Words()
    words.feed(mistune.create_markdown(plugins=["table", "strikethrough", "math"], escape=False)(text))
    return words


def part_of(cells, printed=pd.DataFrame(), **plan):
    own = layout(printed)
    return summary(flat([plan_of(cells, **plan)], keyed(cells)), own), own


@pytest.mark.parametrize("text", NASTY)
def test_what_comes_from_data_is_shown_as_it_is_and_makes_no_markup(text):
    shown = " ".join(text.split())
    table = rendered(markdown(pd.DataFrame({"row": [text], "x": ["y"]})))
    assert table.cells[0].strip() == shown and set(table.tags) <= {"table", "thead", "tbody", "tr", "th", "td"} and len(table.cells) == 2
    line = rendered(f"> **head.** {escape(text)}")
    assert line.text.split(" ", 1)[1].strip() == shown and set(line.tags) == {"blockquote", "p", "strong"}
    alone = rendered(escape(text))
    assert alone.text.strip() == shown and set(alone.tags) <= {"p"}


def test_ordinary_names_and_numbers_stay_as_they_are():
    for text in ("crd_infonce", "93.51 ± 0.14 (5)", "+1.00 [0.75, 1.25]", "-1.07 [-1.78, -0.35]", "ckd@tau=0.5", "resnet14 → resnet8", "–"): assert escape(text) == text


def test_a_column_of_markdown_is_left_as_it_is():
    assert rendered(markdown(pd.DataFrame({"a": ["**x**"]}), raw=["a"])).tags.count("strong") == 1 and "strong" not in rendered(markdown(pd.DataFrame({"a": ["**x**"]}))).tags


def test_names_and_notes_of_a_report_are_escaped():
    cells = grid(SCORES)
    plans, own = [plan_of(cells, note="see <b>this</b> | *that*", preset="<i>q</i>")], layout(names={**layout().names, "kd": "K|D *x*"})
    found = rendered(show(plans, keyed(cells), own))
    assert "see <b>this</b> | *that*" in found.text and "K|D *x*" in found.text and "(<i>q</i>)" in found.text and not {"b", "i", "em"} & set(found.tags)
    assert len(found.cells) % 5 == 0


HOSTILE = "<script>alert(1)</script> | `x` ![](x) [l](http://x) $\\frac$ *b*\n# c\x1b[2J"
SHOWN = HOSTILE.replace("\n", " ").replace("\x1b", "\N{REPLACEMENT CHARACTER}")
HARMLESS = {"h1", "h2", "p", "strong", "em", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "img", "code"}


def test_what_a_terminal_obeys_is_not_written():
    assert escape("a\x1b[2Jb\x00\u202ec") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c"


def test_hostile_names_of_data_losses_networks_and_notes_are_text_in_a_report(tmp_path):
    cells = grid(SCORES)
    plans = [plan_of(cells, note=HOSTILE, preset=HOSTILE, settings=[[HOSTILE] * 3], changes={HOSTILE: HOSTILE}, data=DIGITS | {"name": HOSTILE})]
    own = layout(names={**layout().names, "kd": HOSTILE}, title=HOSTILE)
    write_report(tmp_path, plans, keyed(cells), own, {"loss kd": HOSTILE})
    text = (tmp_path/"table.md").read_text(encoding="utf-8")
    found = rendered(text)
    assert set(found.tags) <= HARMLESS and SHOWN in found.text and "\x1b" not in text
    assert found.tags.count("img") == text.count("](fig_") == len(list(tmp_path.glob("fig_*.png"))) > 0
    assert len(found.tags) > 50 and "script" not in found.tags


def test_hostile_texts_beside_measures_and_figures_are_text(tmp_path):
    figure, ax = plt.subplots()
    ax.set_title("<script>] | `x` ](y)")
    about = About(HOSTILE, notes=(HOSTILE,), settings=((HOSTILE,) * 3,))
    rows = [dict.fromkeys(COLUMNS, "a") | {"place": HOSTILE, "method": HOSTILE, "measure": HOSTILE, "value": 1.0, "seed": 0}]
    write_measures(tmp_path, about, rows, {"a": figure, "b": (figure, HOSTILE)})
    text = (tmp_path/"table.md").read_text(encoding="utf-8")
    found = rendered(text)
    assert set(found.tags) <= HARMLESS and "script" not in found.tags and SHOWN in found.text and found.tags.count("img") == 2


def test_a_score_has_its_spread_and_its_number():
    assert [score_text(93.514, 0.144, 5), score_text(93.5), score_text(93.5, n=1), score_text(np.nan, 1, 3)] == ["93.51 ± 0.14 (5)", "93.50", "93.50 (1)", "–"]
    assert difference_text(-1.5, -2.0, -1.0, 0.049) == "-1.50 [-2.00, -1.00] *" and difference_text(1.5, 1.0, 2.0, 0.05) == "+1.50 [1.00, 2.00]"
    assert difference_text(1.5, -np.inf, np.inf, np.nan) == "+1.50" and difference_text(np.nan, 1, 2, 0.01) == "–"


def test_the_columns_of_a_section():
    table, own = part_of(grid(SCORES))
    found = readable(table, own)
    assert list(found) == ["row", "last epoch", "over student alone", "over kd", "best epoch", "chosen by validation", "CPU seconds", "weight and options"]
    gram = found.set_index("row").loc["Gram KD"]
    mean, sd = np.mean(SCORES["gram"]), np.std(SCORES["gram"], ddof=1)
    assert gram["last epoch"] == f"{mean:.2f} ± {sd:.2f} (3)" and gram["best epoch"] == f"{mean + 0.5:.2f} ± {sd:.2f}"
    assert gram["chosen by validation"] == f"{mean - 0.25:.2f} ± {sd:.2f}" and gram["CPU seconds"] == "12.0" and gram["weight and options"] == "weight 1"
    assert "**" not in markdown(found)   # nothing is bold


def test_columns_that_only_some_sections_have():
    printed = pd.DataFrame([["gram", *PAIR, "ce", "digits", 90.5, 0.2, 5]], columns=PRINTED)
    found = readable(*part_of(grid(SCORES), printed)).set_index("row")
    assert found.loc["Gram KD", "paper"] == "90.50 ± 0.20 (5)" and found.loc["Gram KD", "gap"] == f"{np.mean(SCORES['gram']) - 90.5:+.2f}" and found.loc["KD", "gap"] == "–"
    cells = grid({"student": SCORES["student"]}) + grid({"kd": SCORES["kd"]}, objective="supcon")
    two = readable(*part_of(cells)).set_index("row")
    assert two["teacher's objective"].tolist() == ["own: cross-entropy", "SupCon"]
    for record, *_ in cells: record["scores"]["top5"] = scores_of(99.0)
    assert readable(*part_of(cells))["top5"].tolist() == ["99.00 ± 0.00"] * 2
    cells[0][0]["device"] = "a GPU"
    mixed = readable(*part_of(cells))
    assert "CPU/GPU seconds" in mixed and mixed.device.tolist() == ["a GPU; made-up CPU, 1 thread(s)", "made-up CPU, 1 thread(s)"]
    only = [(record | {"device": "a GPU"}, *rest) for record, *rest in cells]
    assert "GPU seconds" in readable(*part_of(only)) and "device" not in readable(*part_of(only))


@pytest.mark.parametrize("column, field, value", [("training", "training", "9 epochs, batch 64"), ("optimiser", "optimiser", "adamw")])
def test_training_and_optimiser_are_columns_where_students_differ(column, field, value):
    cells = grid(SCORES)
    teacher_differs = [(record | {field: value}, *rest) if rest[1] == "teacher" else (record, *rest) for record, *rest in cells]
    assert column not in readable(*part_of(teacher_differs))
    gram_differs = [(record | {field: value}, *rest) if rest[1] == "gram" else (record, *rest) for record, *rest in cells]
    assert readable(*part_of(gram_differs)).set_index("row").loc["Gram KD", column] == value
    alone_differs = [(record | {field: value}, *rest) if rest[1] == "student" else (record, *rest) for record, *rest in cells]
    assert column in readable(*part_of(alone_differs))


def test_a_difference_over_fewer_pairs_than_seeds_says_how_many():
    found = readable(*part_of(grid(SCORES | {"kd": [None, *SCORES["kd"][1:]]}))).set_index("row")
    assert "] (2)" in found.loc["Gram KD", "over kd"] and "(2)" not in found.loc["Gram KD", "over student alone"]


def test_a_divergence_is_shown_with_its_number_of_runs():
    plans, results = three_runs()
    results = {key: diverged(record) if record["config"]["terms"] else record for key, record in results.items()}
    table = laid_out(plans, results, layout())[1]
    assert readable(table, layout()).set_index("row").loc["Gram KD", "last epoch"] == "1 of 1 diverged (NaN at epoch 1, step 3)"
    assert "diverged" in reading(table, layout()) and "diverged" not in reading(laid_out(*three_runs(), layout())[1], layout())


def test_two_cells_of_a_row_are_told_apart():
    cells = grid({"student": SCORES["student"]})
    for weight in (1.0, 3.0):
        config = config_of("resnet8", 0, "gram", config_of("resnet14", 0))
        config["terms"][0]["weight"] = weight
        cells.append((result_of(config, 90.0), "distilled", "gram", *PAIR))
    table, own = part_of(cells)
    assert labels(table) == ["Student alone", "Gram KD, weight 1", "Gram KD, weight 3"] == readable(table, own)["row"].tolist()


def test_an_overview_has_a_column_for_each_pair_and_all_rows():
    plans, results = two_pairs()
    table = laid_out(plans, results, layout())[1]
    found = overviews(table, layout())
    assert list(found) == ["digits 1000/200/300 (quick, matched)", "digits 1000/200/300 (quick, as-published)"]
    for frame in found.values():
        assert list(frame) == ["row", "resnet20 → resnet14", "resnet14 → resnet8"] and frame.row.tolist() == ["Teacher", "Student alone", "KD", "Gram KD", "at"]
        assert frame.set_index("row").loc["Teacher"].tolist() == ["95.30 ± 0.30 (3)", "92.30 ± 0.30 (3)"] and "–" not in frame.to_numpy()
    assert overviews(of_section(table, sections_of(table)[0]), layout()) == {}
    printed = pd.DataFrame([["gram", *PAIR, "ce", "digits", 90.5, 0.2, 5]], columns=PRINTED)
    beside = overviews(laid_out(plans, results, layout(printed))[1], layout(printed))["digits 1000/200/300 (quick, matched)"].set_index("row")
    assert beside.loc["Gram KD", "resnet14 → resnet8"] == "90.80 ± 0.80 (3) [90.50]" and beside.loc["Gram KD", "resnet20 → resnet14"].endswith("[–]")


def test_each_note_and_each_set_of_settings_comes_once_with_what_it_concerns():
    plans = [plan_of([], note="small", preset=preset, settings=[["stem", value, "ours"]]) for preset, value in (("quick", "a"), ("fast", "b"), ("quick", "a"))]
    assert notes_text(plans) == "> **digits 1000/200/300 (quick); digits 1000/200/300 (fast).** small"
    text = settings_text(plans)
    assert text.count("| stem |") == 2 and text.count("**") == 4 and settings_text(plans[:1]).count("**") == 0
    assert notes_text([plan_of([])]) == "" and settings_text([plan_of([], settings=[])]) == ""


def test_other_code_is_named_with_its_runs():
    runs = flat(*three_runs())
    assert code_text(runs, None) == code_text(runs, {"engine": "0a1b2c3d"}) == ""
    assert code_text(runs, {"loss gram": "new", "engine": "new"}) == (
        "3 runs were made by other code than the present one: engine (3 runs), loss gram (1 run). `-p force True` trains them again.")
    assert code_text(runs, {"loss gram": ""}) == "1 run was made by other code than the present one: loss gram (1 run). `-p force True` trains it again."
    plans, results = three_runs()
    assert "loss gram (1 run)" in show(plans, results, layout(), {"loss gram": "new"}) and "loss gram (1 run)" in log_text(plans, results, layout(), {"loss gram": "new"})


def test_what_lacks_a_result_is_counted():
    plans, results = two_pairs()
    assert missing_text(plans, results) == "" and missing_text(plans, dict([*results.items()][:30])) == "3 of 33 runs have no result yet."


def test_how_to_read_speaks_only_of_what_is_there():
    plans, results = two_pairs()
    bare = reading(laid_out(plans, results, layout())[1], layout())
    assert "*over student alone* and *over kd* give" in bare and "paper" not in bare and "Further" not in bare
    assert "The column *over student alone* gives" in reading(laid_out(*three_runs(), layout())[1], layout())
    printed = pd.DataFrame([["gram", *PAIR, "ce", "digits", 90.5, 0.2, 5]], columns=PRINTED)
    assert "paper's number" in reading(laid_out(plans, results, layout(printed))[1], layout(printed))
    assert not re.search(r"do(es)? not compare|flatters|answers", bare)


def test_plain_text_is_aligned_and_no_wider_than_asked():
    plans, results = many_losses(12)
    text = log_text(plans, results, layout())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 160 and not re.search(r"[|*`]{2}|&lt;", text)
    starts = [line.index("95.") for line in lines if re.match(r"loss\d\d +9", line) and "95." in line]
    assert len(set(starts)) <= 1
    narrow = log_text(plans, results, layout(), width=60)
    assert max(map(len, narrow.splitlines())) <= 60 and narrow.count("loss05") > 1
    for word in ("last epoch", "over kd", "weight and options", "CPU seconds"): assert all(part in narrow for part in word.split())


def test_plain_text_folds_long_cells_and_repeats_the_first_column():
    frame = pd.DataFrame({"row": ["a", "b"], "x": ["word " * 30, "y"], "z": ["1", "2"]})
    text = plain(frame, 41)
    assert max(map(len, text.splitlines())) <= 41 and text.count("word") == 30 and len(re.findall(r"(?m)^b", text)) == 2
    assert plain(frame.iloc[:, :1]) == "row\n---\na\nb"


def test_the_asked_runs_alone_are_shown():
    plans, results = many_losses(4)
    own = plans[0] | {"entries": [entry for entry in plans[0]["entries"] if entry["row"] in ("teacher", "student", "kd")]}
    assert "loss01" in show(plans, results, layout()) and "loss01" not in show([own], results, layout())
    with pytest.raises(InputError, match="nothing to report"): show(plans, {}, layout())
    with pytest.raises(InputError, match="nothing to report"): log_text(plans, {}, layout())


def test_a_column_wider_than_the_page_has_a_block_of_its_own():
    assert blocks([10, 20, 100, 100, 5], 50) == [[0, 1], [0, 2], [0, 3], [0, 4]] and blocks([10, 100], 50) == [[0, 1]]


def test_a_plan_without_a_note_hides_none_of_the_others():
    plan = plan_of(grid(SCORES))
    assert "a word" in notes_text([plan | {"note": ""}, plan | {"note": "a word"}]) and notes_text([plan | {"note": ""}]) == ""


def test_a_whole_table_says_its_verdict_and_what_it_rests_on(tmp_path):
    rows = SCORES | {"at": [80.1, 80.9, 79.5], "kd": [88.2, 88.9, 87.4]}
    table, own = part_of(grid(rows))
    said, at = statements(table, own), table.set_index("row")
    assert said[0] == f"Over student alone: 3 rows, 5 %, Holm's correction. Above: Gram KD. Below: at. Not separable: 1." and len(said) == 4
    assert said[2] == (f"Seeds as blocks: 3 rows (cross-entropy): residual standard deviation {at.loc['kd', 'block sd']:.2f} with 4 degrees of freedom, "
                       f"Bartlett's p = {at.loc['kd', 'block p']:.2g}.")
    write_report(tmp_path, [plan_of(grid(rows))], keyed(grid(rows)), own, figures=False)
    for text in ((tmp_path/"table.md").read_text(encoding="utf-8"), show([plan_of(grid(rows))], keyed(grid(rows)), own), log_text([plan_of(grid(rows))], keyed(grid(rows)), own, width=10_000)):
        assert all(line in text.replace("\\", "") for line in said)


def test_rows_are_named_with_their_objective_where_there_are_several_and_two_rows_have_no_verdict():
    cells = grid({"student": SCORES["student"], "kd": SCORES["kd"], "gram": SCORES["gram"]}) + grid({"kd": [70.0, 70.2, 69.9]}, objective="supcon")
    table, own = part_of(cells)
    assert "Below: KD (SupCon)." in verdict_text(table, own, "student alone")
    few = part_of(grid({"student": SCORES["student"], "kd": SCORES["kd"]}))[0]
    assert statements(few, own) == [] == block_texts(few, own) and "paired t test" in reading(few, own)
