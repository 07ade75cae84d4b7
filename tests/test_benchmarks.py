"The benchmark notebook, run as a user runs it: by papermill, at the smallest size."
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdnb.contract import VectorTerm
from kdnb.registry import losses

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT/"nbs/benchmarks/cpu.ipynb"
TINY = ["-p", "rounds", "1", "-p", "steps", "1", "-p", "images", "2000"]


def papermill(folder, *arguments):
    "papermill's exit code and output, run in a folder that is not the project's."
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(folder/"out.ipynb"), "--no-progress-bar", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "The folder of a report on all measurements."
    folder = tmp_path_factory.mktemp("benchmark")
    code, output = papermill(folder, *TINY, "-p", "reports", "reports")
    assert code == 0, output[-3000:]
    return folder/"reports/benchmarks"


def test_every_measurement_is_there_with_a_positive_finite_ratio(report):
    table = pd.read_csv(report/"cpu.csv")
    vectors = {name for name in losses.names() if isinstance(losses.build(name), VectorTerm)}
    tables = {f"{pair} {way}" for pair in ("56→20", "32x4→8x4") for way in ("shared", "cached")}
    wanted = {("input", case) for case in ("NCHW", "channels last", "two views")}
    wanted |= {("table", case) for case in tables} | {("step_overhead", name) for name in vectors}
    assert set(zip(table.benchmark, table.case)) == wanted and len(table) == len(wanted)
    assert (np.isfinite(table.ratio) & (table.ratio > 0) & (table.baseline_ms > 0) & (table.ms > 0) & (table.rounds == 1)).all()
    assert (table[table.benchmark == "table"].share_of_floor > 0).all()
    assert table.machine.str.contains("1 thread").all() and table.machine.str.contains("torch").all()


def test_the_report_names_machine_targets_and_figure(report):
    text = (report/"cpu.md").read_text(encoding="utf-8")
    assert "1 thread" in text and "at least 45" in text and "at most 1.02" in text and "fig_cpu.png" in text
    assert (report/"fig_cpu.png").stat().st_size > 5000
    assert sorted(p.name for p in report.iterdir()) == ["cpu.csv", "cpu.md", "fig_cpu.png"]


def test_a_wrong_parameter_stops_it_before_anything_is_measured(tmp_path):
    code, output = papermill(tmp_path, "-p", "round", "1")
    assert code != 0 and "rounds" in output and not (tmp_path/"reports").exists()
