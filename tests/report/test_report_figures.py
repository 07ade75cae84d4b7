"Figures of a report: what they draw, that labels fit, and what is said about them in words."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_report_cells import PAIR, SCORES, grid, layout

from kdnb.registry import InputError
from kdnb.report.cells import PRINTED, flat, laid_out
from kdnb.report.curves import alt_curves, curves_of, figure_curves, mean_curve, spaced
from kdnb.report.example import diverged, keyed, many_losses, plan_of, three_runs, two_pairs
from kdnb.report.figures import alt_cells, alt_over, figure_cells, figure_over, figures_of
from kdnb.report.looks import png, wrapped
from kdnb.style import COLOURS, look


@pytest.fixture(autouse=True)
def closed():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def drawn(scores, printed=pd.DataFrame(), **config):
    cells = grid(scores, **config)
    return *laid_out([plan_of(cells)], keyed(cells), layout(printed)), keyed(cells), layout(printed)


def inside(figure):
    "Whether all texts lie within the figure, and no two names of lines on each other."
    figure.canvas.draw()
    renderer, (width, height) = figure.canvas.get_renderer(), figure.bbox.size
    texts = [t for t in figure.findobj(plt.Text) if t.get_visible() and t.get_text()]
    ticks = [t for ax in figure.axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]   # a tick outside an axis is not drawn
    boxes = [t.get_window_extent(renderer) for t in texts if t not in ticks]
    boxes += [t.get_window_extent(renderer) for ax in figure.axes if ax.axison for t in ax.get_yticklabels() if t.get_text() and t.get_visible() and not t.get_text()[:1].isdigit()]
    return all(b.x0 > -1 and b.y0 > -1 and b.x1 < width + 1 and b.y1 < height + 1 for b in boxes)


def test_every_cell_has_its_seeds_its_mean_and_its_line():
    runs, table, _, own = drawn(SCORES)
    ax, = figure_cells(table, runs, own).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Teacher", "Student alone", "KD", "Gram KD", "at"] and inside(ax.figure)
    points = [sorted(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 3]
    for values in SCORES.values(): assert any(np.allclose(sorted(values), found) for found in points)
    means = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    for values in SCORES.values(): assert np.isclose(means, np.mean(values)).any()


def test_the_papers_numbers_stand_beside_only_where_there_are_any():
    printed = pd.DataFrame([["gram", *PAIR, "ce", "digits", 90.5, 0.2, 5]], columns=PRINTED)
    runs, table, _, own = drawn(SCORES, printed)
    figure = figure_cells(table, runs, own)
    assert len(figure.axes) == 2 and figure.axes[1].get_title() == "paper" and inside(figure)
    assert "the paper's numbers" in alt_cells(table, own) and "paper" not in alt_cells(*drawn(SCORES)[1::2])


def test_a_diverged_cell_is_named_and_keeps_its_line():
    cells = [(diverged(record), *rest) if rest[1] == "gram" else (record, *rest) for record, *rest in grid(SCORES)]
    runs, table = laid_out([plan_of(cells)], keyed(cells), layout())
    ax, = figure_cells(table, runs, layout()).axes
    assert [t.get_text() for t in ax.texts] == ["diverged"] and len(ax.get_yticklabels()) == 5
    assert "1 row with diverged runs" in alt_cells(table, layout())


def test_differences_are_filled_where_they_are_significant():
    runs, table, _, own = drawn(SCORES)
    figure = figure_over(table, own)
    assert [ax.get_title() for ax in figure.axes] == ["over student alone", "over kd"] and inside(figure)
    for ax, name in zip(figure.axes, own.references):
        dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
        want = table[table[f"over {name}"].notna()]
        assert np.allclose([line.get_xdata()[0] for line in dots], want[f"over {name}"])
        assert [line.get_markerfacecolor() != "white" for line in dots] == (want[f"over {name} p"] < 0.05).tolist()
    assert figure_over(table[table.row == "teacher"], own) is None


@pytest.mark.parametrize("losses, panels", [(3, 1), (6, 1), (7, 9), (13, 15)])
def test_curves_share_a_panel_while_they_can_be_told_apart(losses, panels):
    plans, results = many_losses(losses)
    runs, table = laid_out(plans, results, layout())
    figure = figure_curves(table, runs, results, layout())
    shown = [ax for ax in figure.axes if ax.axison]
    assert len(shown) == panels and inside(figure)
    names = [t.get_text() for t in shown[0].texts] if panels == 1 else [ax.get_title() for ax in shown]
    assert names == table["name"].tolist()
    if panels == 1: assert len({(line.get_color(), line.get_marker()) for line in shown[0].lines if line.get_marker() != "None"}) == losses + 2


def test_names_at_the_ends_of_curves_do_not_lie_on_each_other():
    plans, results = many_losses(6, seeds=1)
    runs, table = laid_out(plans, results, layout())
    figure = figure_curves(table, runs, results, layout())
    figure.canvas.draw()
    boxes = sorted((plt.Text.get_window_extent(t) for t in figure.axes[0].texts), key=lambda box: box.y0)  # without their lines
    assert all(high.y0 > low.y1 - 2 for low, high in zip(boxes, boxes[1:]))
    assert np.allclose(np.diff(np.sort(spaced([1.0, 1.0, 1.0, 5.0], 0.5))), [0.5, 0.5, 3.5]) and np.allclose(spaced([3.0, 1.0], 1.0), [3.0, 1.0])


def test_a_curve_is_the_mean_over_seeds_of_the_tests_that_were_made():
    cells = grid({"gram": [90.0, 94.0]})
    for record, *_ in cells: record["history"][2]["test"] = None
    runs, table = laid_out([plan_of(cells)], keyed(cells), layout())
    (_, objective, seeds), = curves_of(table, runs, keyed(cells), layout())
    found = mean_curve(seeds)
    assert objective == "ce" and found[:, 0].tolist() == [1, 2, 4, 5, 6, 7] and found[-1, 1] == 92.0
    for record, *_ in cells: record["history"] = [one | {"test": None} for one in record["history"]]
    assert figure_curves(table, runs, keyed(cells), layout()) is None and "curves" not in figures_of(table, runs, keyed(cells), layout())


def test_epochs_of_all_phases_are_counted():
    cells = grid({"gram": [90.0]})
    history = cells[0][0]["history"]
    cells[0][0]["history"] = [one | {"phase": "initial", "test": None} for one in history[:3]] + history
    runs, table = laid_out([plan_of(cells)], keyed(cells), layout())
    assert curves_of(table, runs, keyed(cells), layout())[0][2][0][:, 0].tolist() == [4, 5, 6, 7, 8, 9, 10]


def test_two_objectives_share_a_line_a_little_apart_and_are_explained():
    cells = grid({"kd": SCORES["kd"], "gram": SCORES["gram"], "student": SCORES["student"]}) + grid({"kd": SCORES["at"]}, objective="supcon")
    runs, table = laid_out([plan_of(cells)], keyed(cells), layout())
    figure = figure_cells(table, runs, layout())
    legend, = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["cross-entropy", "SupCon"] and inside(figure)
    heights = {round(float(line.get_ydata()[0]), 2) for line in figure.axes[0].lines if len(line.get_xdata()) == 3}
    assert heights == {-0.14, 0.86, 1.14, 1.86}


def test_alternative_texts_say_what_is_shown():
    runs, table, results, own = drawn(SCORES)
    assert alt_cells(table, own) == f"Test accuracy of 5 rows with 3 seeds each; highest: Gram KD {np.mean(SCORES['gram']):.1f} %; student alone 88.1 %; teacher 95.2 %."
    assert alt_over(table, own).startswith("Differences with 95 % intervals: over student alone, 2 of 3 rows above zero, ")
    assert alt_curves(curves_of(table, runs, results, own), own) == "Test accuracy by epoch, up to epoch 7, of 5 rows; highest at the end: Teacher 95.2 %."
    fewer = drawn(SCORES | {"at": [87.0, None, None]})[1]
    assert "with 1 to 3 seeds each" in alt_cells(fewer, own)


def test_a_figure_is_of_one_section():
    runs, table = laid_out(*two_pairs(), layout())
    with pytest.raises(InputError, match="one section, not 4"): figure_cells(table, runs, layout())


def test_long_labels_are_wrapped_between_words_options_and_losses():
    assert wrapped("ckd@tau=0.5@positives=class+kd", 16) == "ckd@tau=0.5\n@positives=class\n+kd" and wrapped("Student alone") == "Student alone"
    assert max(map(len, wrapped("Baseline (mse), weight 0.003, learning rate 0.05").splitlines())) <= 26


def test_figures_are_png_and_closed():
    runs, table = laid_out(*three_runs(), layout())
    assert png(figure_cells(table, runs, layout()))[:4] == b"\x89PNG" and not plt.get_fignums()


def test_forty_nine_lines_have_looks_of_their_own():
    assert len({tuple(map(str, look(i).values())) for i in range(49)}) == 49 and len({look(i)["marker"] for i in range(7)}) == len({str(look(i)["ls"]) for i in range(7)}) == len(COLOURS)
    assert flat([], {}).empty
