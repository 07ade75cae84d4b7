"The benchmark notebook, run as a user runs it: by papermill, at the smallest size."
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdnb.registry import losses

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT/"nbs/benchmarks"
TINY = ["-p", "rounds", "1", "-p", "steps", "1", "-p", "images", "2000"]


def papermill(folder, *arguments, notebook="cpu"):
    "papermill's exit code and output, run in a folder that is not the project's."
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS/f"{notebook}.ipynb"), str(folder/"out.ipynb"), "--no-progress-bar", "--start-timeout", "600", *arguments]
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
    one_teacher = {name for name in losses.names() if losses.build(name).source == "teacher" and "attention" not in losses.build(name).needs}
    tables = {f"{pair} {way}" for pair in ("56→20", "32x4→8x4") for way in ("one", "shared", "cached")}
    wanted = {("input", case) for case in ("NCHW", "channels last", "two views")}
    wanted |= {("table", case) for case in tables} | {("step_overhead", name) for name in one_teacher}
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


def test_losses_are_measured_beside_their_formulas(tmp_path):
    code, output = papermill(tmp_path, "-p", "rounds", "1", "-p", "largest", "256", "-p", "bank", "2000", "-p", "reports", "reports", notebook="losses")
    assert code == 0, output[-3000:]
    table = pd.read_csv(tmp_path/"reports/benchmarks/losses.csv")
    assert set(table.benchmark) == {"supcon", "ckd", "gram", "rkd", "crd"} and (np.isfinite(table.ratio) & (table.ratio > 0)).all()
    assert "crd" in (tmp_path/"reports/benchmarks/losses.md").read_text(encoding="utf-8")


def test_the_cost_of_bf16_is_taken_seed_by_seed(tmp_path):
    code, output = papermill(tmp_path, "-p", "seeds", "2", "-p", "epochs", "1", "-p", "reports", "reports", notebook="precision")
    assert code == 0, output[-3000:]
    row = pd.read_csv(tmp_path/"reports/precision/precision.csv").iloc[0]
    assert abs(row["fp32 (%)"] - row["bf16 (%)"] - row["cost of bf16 (points)"]) < 0.01 and row["from"] <= row["to"]


def test_the_cost_of_a_start_is_told_beside_what_is_there_anyway(tmp_path):
    code, output = papermill(tmp_path, "-p", "rounds", "1", "-p", "reports", "reports", notebook="start")
    assert code == 0, output[-3000:]
    table = pd.read_csv(tmp_path/"reports/benchmarks/start.csv").set_index("case")
    assert list(table.index) == ["imports", "with engine and report", "refused word", "finished table"]
    assert (table["CPU s here"] == table.lowest).all() and (table.torch > 0).all() and set(table.target) == {0.5, 1.5, 4.5}
    assert "at most 1.5" in (tmp_path/"reports/benchmarks/start.md").read_text(encoding="utf-8")


def test_reports_and_the_ledger_are_measured_each_in_a_process(tmp_path):
    code, output = papermill(tmp_path, "-p", "sizes", "20", "-p", "claims", "20", "-p", "reports", "reports", notebook="reports")
    assert code == 0, output[-3000:]
    table = pd.read_csv(tmp_path/"reports/benchmarks/reports.csv")
    assert table.case.tolist() == ["first", "unchanged", "one section changed", "as many empty figures", "ledger"] and (table.seconds > 0).all() and (table.MB > 50).all()
    assert "fig_reports.png" in (tmp_path/"reports/benchmarks/reports.md").read_text(encoding="utf-8")


def test_without_a_gpu_there_is_nothing_to_decide(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, output = papermill(tmp_path, "-p", "reports", "reports", notebook="gpu")
    assert code != 0 and "Without a GPU there is nothing to decide; -p device cpu tries the benchmark out." in output and not (tmp_path/"reports/benchmarks/gpu.md").exists()


def test_the_benchmark_for_a_gpu_runs_on_a_cpu_and_decides_nothing_there(tmp_path):
    small = ["-p", "students", "2", "-p", "steps", "1", "-p", "batch", "8", "-p", "rounds", "1", "-p", "device", "cpu"]
    code, output = papermill(tmp_path, *small, "-p", "reports", "reports", notebook="gpu")
    assert code == 0, output[-3000:]
    table, text = pd.read_csv(tmp_path/"reports/benchmarks/gpu.csv"), (tmp_path/"reports/benchmarks/gpu.md").read_text(encoding="utf-8")
    assert table.groupby("network", sort=False).way.apply(list).to_dict() == dict.fromkeys(["resnet20", "resnet8x4", "wrn_16_2"], ["in turn", "2 processes", "batched"])
    assert (np.isfinite(table["times as fast"]) & (table["ms a student-step"] > 0)).all()
    assert "decides nothing" in text and "Decided" not in text and "left out" not in text


def test_what_a_loss_takes_more_than_another_is_a_ratio_of_each_round(tmp_path):
    code, output = papermill(tmp_path, "-p", "rounds", "1", "-p", "imagenet", "0", "-p", "reports", "reports", notebook="steps")
    assert code == 0, output[-3000:]
    table = pd.read_csv(tmp_path/"reports/benchmarks/steps.csv")
    assert set(table.benchmark) == {"step", "loss"} and {"crd", "reviewkd"} <= set(table.case[table.against == "ckd"])
    assert (table.lowest <= table.ratio).all() and (table.ratio <= table.highest).all() and table.machine.str.contains("1 thread").all()
    assert "crd" in (tmp_path/"reports/benchmarks/steps.md").read_text(encoding="utf-8")
