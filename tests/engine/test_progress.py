"Progress is told to whoever can see it: bars to a watched notebook, lines to a log or a terminal, tables that both can read."
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from kdnb.engine import progress
from kdnb.engine.progress import Board, Progress, Shown, duration, forecast, numbers, pace, plain_text, roughly, time_left

CELLS = ["""
from kdnb.engine.progress import Progress, Shown, say, tell
tell("12 runs are to be trained.")
p = Progress(100, 2)
p.begin("seed 0, <b>", 100)
for epoch in (1, 2):
    p.tick(25)
    p.epoch(f"seed 0, <b>: classify {epoch}/2, val 80.0 %, 3 s", {"kd": (epoch, 80.0), "mse": (epoch, 70.0)})
    p.end(1)
p.close("2 runs were trained.")
""", 'Shown("**Table**\\n\\n| a | bb |\\n|---|---|\\n| ccc | `d` |")']


def papermill(folder, **environment):
    "The log and the saved cells of a notebook that trains for show."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder/"in.ipynb")
    environment = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"} | environment
    done = subprocess.run([sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--log-output", "--no-progress-bar", "--start-timeout", "600"],
                          cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr + done.stdout, [cell["outputs"] for cell in json.loads((folder/"out.ipynb").read_text())["cells"]]


def test_papermills_log_has_the_lines_and_the_table_and_nothing_else(tmp_path):
    log, (trained, shown) = papermill(tmp_path)
    lines = log.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("12 runs"))
    assert re.fullmatch(r"run 1 of 2 · seed 0, <b>: classify 1/2, val 80.0 %, 3 s · .+ left", lines[first + 1])
    assert lines[first + 2].startswith("run 2 of 2 · seed 0, <b>: classify 2/2") and lines[first + 3] == "2 runs were trained."
    assert "Table\n\na    bb\n---  --\nccc  d\n" in log and "object" not in log
    assert [output["data"] for output in trained] == [{"text/plain": ["2 runs were trained."]}]
    assert "".join(shown[0]["data"]["text/markdown"]).startswith("**Table**")


def test_a_watched_notebook_has_bars_instead_of_lines(tmp_path):
    log, (trained, _) = papermill(tmp_path, JPY_SESSION_NAME="in.ipynb")
    assert "run 1 of 2" not in log and "2 runs were trained." in log and "12 runs are" in log
    assert len(trained) == 1


def test_a_terminal_gets_lines_without_ipython_or_matplotlib():
    code = "import sys\nfor name in ('IPython', 'matplotlib', 'torch'): sys.modules[name] = None\n" + "\n".join([CELLS[0], f"print({CELLS[1]})"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    lines = done.stdout.splitlines()
    assert lines[0] == "12 runs are to be trained." and lines[1].startswith("run 1 of 2 · seed 0") and lines[3:] == [
        "2 runs were trained.", "Table", "", "a    bb", "---  --", "ccc  d"]


def test_nothing_is_shown_where_nothing_is_wanted(capsys):
    p = Progress(10, 1, live=False)
    p.begin("a", 10), p.tick(5), p.epoch("line", {"a": (1, 2.0)}), p.end(1), p.close("closing")
    assert capsys.readouterr().out == ""


def test_runs_and_time_are_those_that_are_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    p = Progress(1000, 10, live=False)
    assert p.left == "starting" and p.place == "run 1 of 10"
    p.begin("group", 300)
    now[0] += 30
    p.tick(100)
    assert p.left == "4 min 30 s left"
    p.drop(4, 400)
    p.end(1)
    assert p.left == "2 min 30 s left" and p.place == "run 2 of 6"
    p.tick(700)  # more than was thought
    p.end(5)
    assert p.left == "0 s left" and p.place == "run 6 of 6"


def test_each_group_has_its_own_curves():
    p = Progress(10, 2, live=False)
    p.begin("one", 5)
    for epoch in (1, 2): p.epoch("line", {"a": (epoch, 50.0)})
    assert p.curves == {"a": [(1, 50.0), (2, 50.0)]}
    p.begin("two", 5)
    for i in range(20): p.epoch(f"line {i}", {})
    assert p.curves == {} and [line.split(" · ")[1] for line in p.lines] == [f"line {i}" for i in range(14, 20)]


@pytest.mark.parametrize("count", [1, 7, 8, 49])
def test_curves_differ_in_colour_dash_or_marker(count, monkeypatch):
    import matplotlib.figure
    kept = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *_, **__: kept.append(self))
    progress.curves_png({f"loss {i}": [(1, 50.0 + i), (2, 60.0)] for i in range(count)})
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in kept[0].axes[0].lines}) == count


@pytest.mark.parametrize("seconds,says", [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3599.6, "1 h 00 min"), (90061, "25 h 01 min")])
def test_durations(seconds, says): assert duration(seconds) == says


@pytest.mark.parametrize("seconds,says", [(1, "1 minute"), (90, "2 minutes"), (5400, "90 minutes"), (5500, "2 hours"), (36 * 3600, "36 hours"), (40 * 3600, "2 days"), (4e7, "463 days")])
def test_estimates_have_one_unit(seconds, says): assert roughly(seconds) == f"about {says}"


def test_only_long_work_is_announced():
    assert forecast(599, 1000) == "" and "about 10 minutes" in forecast(600, 1)
    assert forecast(7 * 3600, 1260, "this CPU") == "1,260 runs are to be trained: they take about 7 hours on this CPU."


def test_the_pace_is_measured_after_a_first_step():
    now, calls = [0.0], []
    def step():
        now[0] += 0.25 if calls else 60  # the first one compiles
        calls.append(now[0])
    assert pace(step, 8, 1, lambda: now[0]) == 32 and len(calls) == 5
    assert pace(step, 8, 0, lambda: now[0]) == 32


def test_time_left():
    assert [time_left(*given) for given in ((5, 0, 10), (5, 5, 10), (5, 10, 10), (5, 11, 10))] == ["starting", "5 s left", "0 s left", "0 s left"]


@pytest.mark.parametrize("markdown,plain", [
    ("# A **title**", "A title"),
    ("> a claim with `code`", "a claim with code"),
    ("see [the report](reports/table.md) and ![a figure](a.png)", "see the report and a figure"),
    ("| a | b |\n|:--|--:|\n| long word | x<br>y |", "a          b\n---------  ----\nlong word  x; y"),
    ("| a \\| b | c |\n|---|---|\n| d | e |", "a | b  c\n-----  -\nd      e"),
    (f"| a | b |\n|---|---|\n| c | {'word ' * 20} |", f"a  b\n-  {'-' * 59}\nc  {('word ' * 12).strip()}\n   {('word ' * 8).strip()}"),
    ("before\n| a |\n|---|\n| b |\nafter", "before\na\n-\nb\nafter"),
    ("a * b and 2 ** 3 # no title", "a * b and 2 ** 3 # no title"),
    ("", "")])
def test_plain_text(markdown, plain): assert plain_text(markdown) == plain


def test_shown_has_both():
    both = Shown("**a**"), Shown("**a**", "b")
    assert [(repr(x), x._repr_markdown_()) for x in both] == [("a", "**a**"), ("b", "**a**")]


def test_the_board_has_every_number_of_a_record(tmp_path):
    record = {"phase": "classify", "epoch": 1, "loss": 2.5, "val": {"top1": 50.0, "top5": 90.0}, "test": None}
    assert numbers(record) == {"loss": 2.5, "val/top1": 50.0, "val/top5": 90.0}
    board = Board(tmp_path)
    board.add("run", 1, record)
    Board().add("run", 1, record)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert set(EventAccumulator(str(tmp_path/"run")).Reload().Tags()["scalars"]) == {"loss", "val/top1", "val/top5"}


@pytest.mark.parametrize("notebook,named,seen", [(True, True, True), (True, False, False), (False, True, False), (False, False, False)])
def test_a_notebook_is_watched_where_a_server_named_it(monkeypatch, notebook, named, seen):
    monkeypatch.setattr(progress, "in_notebook", lambda: notebook)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if named: monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert progress.watched() == seen


def test_bars_move_twice_a_second_at_most(monkeypatch):
    now, shown = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    p = Progress(100, 1, live=False)
    monkeypatch.setattr(p, "show", lambda: shown.append(now[0]) or setattr(p, "shown", now[0]))
    for now[0] in (100.0, 100.2, 100.5, 100.6, 101.0, 101.2): p.tick(1)
    assert shown == [100.0, 100.6, 101.2] and p.done == 6
