"A second report: what did not change is neither drawn nor written, and all numbers are those of a slow computation."
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_report_cells import layout

import kdnb.report.figures as figures
import kdnb.report.paired as paired
import kdnb.report.write as write
from kdnb.report.cells import divided, laid_out, needed, sections_of
from kdnb.report.example import many_losses, result_of, three_runs, two_pairs
from kdnb.report.figures import figures_of, mark_of
from kdnb.report.looks import marked, png
from kdnb.report.text import log_text, show
from kdnb.report.write import slugs, write_report
from kdnb.store import write_changed


@pytest.fixture
def drawn(monkeypatch):
    "The figures that are drawn, one after the other."
    found, own = [], write.png
    monkeypatch.setattr(write, "png", lambda *given: found.append(given) or own(*given))
    return found


def times(folder): return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def changed(results, net, row, by=1.0):
    "Results in which the runs of a network that are taught by a loss reached more."
    def own(record):
        config = record["config"]
        if config["net"] != net or [term["loss"] for term in config["terms"]] != [row]: return record
        return result_of(config, record["scores"]["top1"]["last"] + by)
    return {key: own(record) for key, record in results.items()}


def test_a_second_report_of_unchanged_results_writes_and_draws_nothing(tmp_path, drawn, monkeypatch):
    plans, results = two_pairs()
    write_report(tmp_path, plans, results, layout(), {})
    before = times(tmp_path)
    assert len(drawn) == 12 and len(before) == 14
    calls, own = [], write.laid_out
    monkeypatch.setattr(write, "laid_out", lambda *given: calls.append(1) or own(*given))
    write_report(tmp_path, plans, dict(reversed(results.items())), layout(), {})
    assert times(tmp_path) == before and len(drawn) == 12 and len(calls) == 1


def test_a_changed_section_redraws_its_own_figures_only(tmp_path, drawn):
    plans, results = two_pairs()
    write_report(tmp_path, plans, results, layout())
    before = times(tmp_path)
    write_report(tmp_path, plans, changed(results, "resnet8", "at"), layout())   # `at` is trained otherwise under each protocol
    after = times(tmp_path)
    new = {name for name in after if after[name] != before[name]}
    sections = sections_of(laid_out(plans, results, layout())[1])
    wanted = {name for section, name in zip(sections, slugs(sections)) if section["student"] == "resnet8"}
    assert new == {"table.md", "table.csv", *(f"fig_{kind}_{name}.png" for kind in ("cells", "over", "curves") for name in wanted)} and len(drawn) == 12 + 6


def test_a_run_that_only_took_longer_changes_no_figure(tmp_path, drawn):
    plans, results = three_runs()
    write_report(tmp_path, plans, results, layout())
    write_report(tmp_path, plans, {key: record | {"seconds": 99.0, "device": "another, 1 thread(s)"} for key, record in results.items()}, layout())
    assert len(drawn) == 3 and "99.0" in (tmp_path/"table.md").read_text()


@pytest.mark.parametrize("harm", [lambda content: None, lambda content: content[:-20], lambda content: content[:200] + b"?" + content[201:], lambda content: b"", lambda content: b"no PNG"])
def test_a_deleted_or_damaged_figure_is_drawn_again(tmp_path, drawn, harm):
    plans, results = three_runs()
    write_report(tmp_path, plans, results, layout())
    path = next(tmp_path.glob("fig_over_*.png"))
    content, before = path.read_bytes(), times(tmp_path)
    path.unlink()
    if harm(content) is not None: path.write_bytes(harm(content))
    write_report(tmp_path, plans, results, layout())
    assert path.read_bytes() == content and len(drawn) == 4
    assert {name for name, when in times(tmp_path).items() if when != before[name]} == {path.name}


def test_a_figure_of_other_drawing_code_is_drawn_again(tmp_path, drawn, monkeypatch):
    plans, results = three_runs()
    write_report(tmp_path, plans, results, layout())
    monkeypatch.setattr(figures, "drawn_by", lambda: "another version")
    write_report(tmp_path, plans, results, layout())
    assert len(drawn) == 6


def test_a_report_that_was_cut_off_is_completed(tmp_path, monkeypatch):
    plans, results = two_pairs()
    write_report(tmp_path/"whole", plans, results, layout())
    own, left = write.write_whole, [5]
    def full(path, content):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        own(path, content)
    monkeypatch.setattr(write, "write_whole", full)
    with pytest.raises(KeyboardInterrupt): write_report(tmp_path/"cut", plans, results, layout())
    monkeypatch.setattr(write, "write_whole", own)
    write_report(tmp_path/"cut", plans, results, layout())
    assert {p.name: p.read_bytes() for p in (tmp_path/"cut").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path/"whole").iterdir()}


@pytest.fixture(scope="module")
def figure(): return png(figures_of(*parts())["over"].draw(), "a mark")


def parts():
    plans, results = many_losses(4)
    runs, table = laid_out(plans, results, layout())
    return table, runs, results, layout()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_damage_keeps_the_mark(tmp_path, figure, data):
    path = tmp_path/"fig.png"
    path.write_bytes(figure)
    assert marked(path) == "a mark"
    at = data.draw(st.integers(0, len(figure) - 5))   # the last four bytes are the checksum of nothing
    path.write_bytes(figure[:at] + bytes([figure[at] ^ data.draw(st.integers(1, 255))]) + figure[at + 1:])
    assert marked(path) != "a mark"
    path.write_bytes(figure[:at])
    assert marked(path) != "a mark"


@pytest.mark.parametrize("column", ["name", "variant", "last", "last_sd", "diverged", "paper", "paper_sd", "over kd", "over kd low", "over kd high", "over kd p", "student", "row"])
def test_whatever_a_figure_may_show_changes_its_mark(column):
    table, runs, _, own = parts()
    table = table.astype({column: object})
    other = table.copy()
    other.loc[3, column] = "another" if isinstance(table[column][3], str) else 1.25
    assert mark_of(table, runs, [], own) != mark_of(other, runs, [], own)


def test_words_and_curves_change_a_mark():
    table, runs, _, own = parts()
    curve = ("KD", "ce", [np.array([[1.0, 2.0]])])
    marks = [mark_of(table, runs, [], own), mark_of(table, runs, [curve], own), mark_of(table, runs, [(*curve[:2], [np.array([[1.0, 2.5]])])], own),
             mark_of(table, runs.assign(last=runs["last"] + 1), [], own), mark_of(table, runs, [], layout(score="top-5"))]
    assert len(set(marks)) == 5


def test_a_figure_has_the_pixels_that_matplotlib_saves(tmp_path):
    for kind, drawing in figures_of(*parts()).items():
        figure = drawing.draw()
        figure.savefig(tmp_path/"usual.png")
        plt.close(figure)
        (tmp_path/"ours.png").write_bytes(png(drawing.draw(), drawing.mark))
        assert np.array_equal(*(np.asarray(Image.open(tmp_path/name)) for name in ("usual.png", "ours.png"))), kind


def test_a_file_with_the_same_bytes_is_left_alone(tmp_path):
    path = tmp_path/"deep"/"file"
    write_changed(path, b"once")
    before = path.stat()
    write_changed(path, b"once")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_changed(path, b"twice")
    assert path.read_bytes() == b"twice"


def test_what_reports_need_of_a_result_gives_the_same_report(tmp_path):
    plans, results = two_pairs()
    for record in results.values(): record["history"][2]["test"] = record["history"][2]["val"] = None
    for name, own in (("all", results), ("needed", {key: needed(record | {"predictions": "many"}) for key, record in results.items()})):
        write_report(tmp_path/name, plans, own, layout())
    assert {p.name: p.read_bytes() for p in (tmp_path/"all").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path/"needed").iterdir()}


def test_cells_laid_out_before_are_not_laid_out_again(monkeypatch):
    plans, results = three_runs()
    laid = laid_out(plans, results, layout())
    wanted = show(plans, results, layout()), log_text(plans, results, layout())
    monkeypatch.setattr("kdnb.report.text.laid_out", None)
    assert (show(plans, results, layout(), laid=laid), log_text(plans, results, layout(), laid=laid)) == wanted


def slow_difference(values, other, taught):
    """Mean difference, interval and probability of two cells, one number after the other. `taught` has the cells of one table
    of blocks with both in it, or with one of the two where the other is a student alone."""
    n, x = len(values), np.array(taught)
    rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    df = (len(x) - 1) * (n - 1)
    variance = (rest**2).sum() / df
    if any(np.array_equal(other, row) for row in taught): error, of = (2 * variance / n)**0.5, df
    else:
        gaps = x.mean(0) - other
        parts = variance * (1 - 1 / len(x)) / n, np.var(gaps, ddof=1) / n
        error, of = sum(parts)**0.5, sum(parts)**2 / (parts[0]**2 / df + parts[1]**2 / (n - 1))
    mean = np.mean(values - other)
    half = scipy.stats.t.ppf(0.975, of) * error
    return mean, mean - half, mean + half, 2 * scipy.stats.t.sf(abs(mean) / error, of)


def slow_numbers(runs):
    "Mean, spread, difference, interval and corrected probability of each cell, one number after the other."
    found = {}
    for (section, rows) in divided(runs).items():
        by = {(role, row): cell.set_index("seed")["last"] for (role, row), cell in rows.groupby(["role", "row"])}
        taught = [values.to_numpy() for (role, _), values in by.items() if role == "distilled"]
        for at, values in by.items():
            found[section, *at] = {"last": np.mean(values), "last_sd": np.std(values, ddof=1)}
            for name, other in (("student alone", ("student", "student")), ("kd", ("distilled", "kd"))):
                if at[0] == "teacher" or at == other: continue
                pair = values.to_numpy(), by[other].loc[values.index].to_numpy()
                if at[0] == "student": numbers = [-1, -1, -1, 1] * np.array(slow_difference(*pair[::-1], taught))[[0, 2, 1, 3]]
                else: numbers = slow_difference(*pair, taught)
                found[section, *at] |= dict(zip((f"over {name}", f"over {name} low", f"over {name} high", f"over {name} p"), numbers))
        for name in ("student alone", "kd"):
            raw = sorted((numbers[f"over {name} p"], key) for key, numbers in found.items() if key[0] == section and f"over {name} p" in numbers)
            least = 0.0
            for i, (p, key) in enumerate(raw): found[key][f"over {name} p"] = least = min(1.0, max(least, p * (len(raw) - i)))
    return found


def test_all_numbers_are_those_of_a_slow_computation():
    plans, results = two_pairs()
    rng = np.random.default_rng(0)
    results = {key: result_of(record["config"], record["scores"]["top1"]["last"] + rng.normal(0, 0.5)) for key, record in results.items()}
    runs, table = laid_out(plans, results, layout())
    wanted, compared = slow_numbers(runs), 0
    for cell in table.to_dict("records"):
        section = tuple(cell[name] for name in ("data", "sizes", "fingerprint", "preset", "changes", "protocol", "teacher", "student"))
        for name, value in wanted[section, cell["role"], cell["row"]].items():
            assert np.isclose(cell[name], value, rtol=1e-9), (section, cell["row"], name)
            compared += 1
    assert len(table) == 20 and compared == 20 * 2 + 4 * (3 + 3) * 4


def test_quantiles_and_probabilities_are_those_of_scipys_distributions():
    rng, t = np.random.default_rng(0), scipy.stats.t
    for n in (2, 3, 5, 30):
        assert np.array_equal(paired.spreads(n), (scipy.stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, n - 1) / (n - 1))**0.5)
        for values in rng.normal(0.3, 0.2, (20, n)):
            spread = max(values.std(ddof=1), 0.01) / n**0.5
            assert paired.p_value(values) == 2 * t.sf(abs(values.mean()) / spread, n - 1)
            for level in (0.9, 0.95, 0.9975):
                half = t.ppf(0.5 + level / 2, n - 1) * spread
                assert paired.interval(values, level) == (values.mean() - half, values.mean() + half)
        shift, limit = 0.2 / 0.3 * n**0.5, t.ppf(0.975, n - 1) * paired.spreads(n)
        assert paired.power(0.2, 0.3, n) == (scipy.stats.norm.cdf(shift - limit) + scipy.stats.norm.cdf(-shift - limit)).mean()


def test_a_report_loads_neither_torch_nor_pyplot_nor_distributions_until_they_are_used(tmp_path):
    code = f"""
import sys
from kdnb.report.example import three_runs
from kdnb.report.measures import write_measures
from kdnb.report.write import write_report
from kdnb.report.cells import Layout
import pandas as pd
layout = Layout("T", {{"teacher": "T", "student": "S", "kd": "KD"}}, {{"student alone": "student"}}, {{"ce": "CE"}}, pd.DataFrame())
def loaded(): return [name for name in ("torch", "matplotlib.pyplot", "scipy.stats", "scipy.optimize") if name in sys.modules]
for i in range(2):
    before = loaded()
    write_report({str(tmp_path)!r}, *three_runs(), layout)
    print(before, loaded())
"""
    def run(): return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600).stdout.splitlines()
    first, again = run(), run()
    assert first[0] == "[] ['matplotlib.pyplot']" and again == ["[] []"] * 2
