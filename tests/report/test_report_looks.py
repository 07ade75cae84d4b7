"How figures look: what stands where, how large they are, and which colour is whose."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_report_cells import SCORES, layout
from test_report_figures import closed, drawn  # noqa: F401 - closed is a fixture

from kdnb.registry import InputError
from kdnb.report.cells import laid_out, of_section, sections_of
from kdnb.report.curves import curves_of, few_curves, many_curves, panels, points_of
from kdnb.report.example import many_losses, two_pairs
from kdnb.report.figures import figure_cells, figure_over
from kdnb.report.looks import counted, dot, explained, height, objectives_of, one_section, placed, wrapped
from kdnb.style import COLOURS, MARKERS


def test_numbers_of_things(): assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]


def test_a_figure_shows_one_section():
    runs, table = laid_out(*two_pairs(), layout())
    sections = sections_of(table)
    assert one_section(of_section(table, sections[0])) == sections[0]
    with pytest.raises(InputError, match=f"one section, not {len(sections)}"): one_section(table)


def test_dots_differ_by_objective():
    for i in (0, 1): assert dot(i) == {"color": COLOURS[i], "marker": MARKERS[i], "ls": "", "ms": 5}


def two_objectives():
    "The cells of the scores, and those of another objective beside them."
    runs, table, _, own = drawn(SCORES)
    other = table.assign(objective=[name for name in own.objectives if name != table.objective.iloc[0]][0])
    return pd.concat([table, other], ignore_index=True), own


def test_one_objective_is_on_the_line_and_two_are_beside_it():
    runs, table, _, own = drawn(SCORES)
    assert [y for _, y, _ in placed(table, own)] == pytest.approx(range(len(table)))
    both, own = two_objectives()
    first = [name for name in own.objectives].index(table.objective.iloc[0])
    found = placed(both, own)
    assert [y for _, y, _ in found[:len(table)]] == pytest.approx(np.arange(len(table)) + (0.14 if first else -0.14))
    assert [y for _, y, _ in found[len(table):]] == pytest.approx(np.arange(len(table)) + (-0.14 if first else 0.14))
    assert objectives_of(table, own) == [table.objective.iloc[0]] and objectives_of(both, own) == list(own.objectives)


def test_a_legend_is_there_for_two_objectives_alone():
    runs, table, _, own = drawn(SCORES)
    both, own = two_objectives()
    for part, legends in ((table, 0), (both, 1)):
        figure = plt.figure(layout="constrained")
        explained(figure, part, own)
        assert len(figure.legends) == legends
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(own.objectives.values()) and figure.legends[0].get_title().get_fontsize() == 8


def test_a_figure_grows_by_lines_and_is_read_from_above():
    runs, table, _, own = drawn(SCORES)
    both, _ = two_objectives()
    assert height(table) == pytest.approx(1.1 + 5 * 0.3) and height(table, 0.5) == pytest.approx(1.1 + 5 * 0.5) and height(both) == pytest.approx(1.4 + 5 * 0.3)
    long = table.assign(name=[*table.name[:-1], "a name that needs another line"])
    assert height(long) == pytest.approx(1.1 + 5 * (0.3 + 0.12 * wrapped("a name that needs another line").count("\n")))
    assert height(long) > height(table)
    figure = figure_cells(table, runs, own)
    assert figure.axes[0].get_ylim() == (4.5, -0.5) and tuple(figure.get_size_inches()) == pytest.approx((5.5, height(table)))
    assert figure_cells(table.assign(paper=90.0, paper_sd=0.2), runs, own).get_size_inches()[0] == 7.5
    names = [name for name in own.references if table[f"over {name}"].notna().any()]
    assert figure_over(table, own).get_size_inches()[0] == pytest.approx(2 + 2.75 * len(names))


def test_curves_have_room():
    runs, table = laid_out(*many_losses(3), layout())
    curves = [("a", "ce", [np.array([[1.0, 50.0], [2.0, 60.0]])]), ("b", "ce", [np.array([[1.0, 40.0], [2.0, 55.0]])])]
    figure = few_curves(curves, layout())
    assert tuple(figure.get_size_inches()) == (6.5, 3.2)
    names = [t for t in figure.axes[0].texts]
    low, high = figure.axes[0].get_xlim()
    assert [t.get_text() for t in names] == ["a", "b"] and all(t.xyann[0] == pytest.approx(2 + 0.04 * (2 - low)) for t in names)
    for count, wide in ((12, 4), (13, 6)):
        figure, axes = panels(count)
        assert len(axes) == count and tuple(figure.get_size_inches()) == pytest.approx((1.45 * wide, 1.0 + 1.18 * -(-count // wide)))
    assert panels(3, 2)[0].get_size_inches()[1] == pytest.approx(1.0 + 1.31)


def test_the_student_alone_is_dashed_in_grey():
    plans, results = many_losses(9)
    runs, table = laid_out(plans, results, layout())
    figure = many_curves(curves_of(table, runs, results, layout()), table, layout())
    dashed = [line for ax in figure.axes for line in ax.lines if line.get_linestyle() == "--" and line.get_linewidth() == 0.9]
    assert dashed and {line.get_color() for line in dashed} == {COLOURS[-1]}


def test_a_curve_has_the_epochs_that_were_rated():
    history = [{"test": None}, {"test": {"top1": 50.0}}, {"test": {"top5": 1.0}}, {"test": {"top1": 60.0, "top5": 90.0}}]
    assert points_of({"history": history}, "top1").tolist() == [[2, 50], [4, 60]] and points_of({"history": history[:1]}, "top1").shape == (0, 2)
