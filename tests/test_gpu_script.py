"The script for a GPU that is there for minutes: what is finished is kept and not done again, and what is not is told."
import json
import runpy
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1]/"tools/gpu.py"
PLAIN = "import sys\nsys.modules |= {name: None for name in ('IPython', 'papermill', 'platformdirs', 'nbdev')}\n"  # as where none is installed


def called(folder, *words):
    "The script's exit code, its output and its diary, where Jupyter and papermill are not installed."
    code = f"{PLAIN}import runpy\nsys.argv = [{str(SCRIPT)!r}, '--tiny', '--out', 'out', '--work', 'work', *{list(words)!r}]\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=900)
    diary = folder/"out/done.json"
    return done.returncode, done.stdout + done.stderr, json.loads(diary.read_text()) if diary.exists() else {}


def test_checks_are_made_once_and_kept(tmp_path):
    code, said, diary = called(tmp_path, "--only", "checks views,checks losses")
    assert code == 0 and "everything is done" in said and all(row["ok"] for row in diary.values()) and len(diary) == 2
    assert "162 views" in diary["checks views"]["gave"] and "of fp64" in diary["checks losses"]["gave"]
    code, said, again = called(tmp_path, "--only", "checks views", "--have", "out")
    assert code == 0 and "162" not in said and again == diary


@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN])
def test_a_job_is_stopped_when_its_time_is_over(tmp_path, interrupts):
    script = runpy.run_path(str(SCRIPT))
    diary = script["Diary"](tmp_path, None)
    before = signal.signal(signal.SIGINT, interrupts)
    try: script["attempt"]("endless", lambda: time.sleep(60), diary, time.monotonic() + 0.2)
    finally: assert signal.signal(signal.SIGINT, before) == interrupts
    assert json.loads((tmp_path/"done.json").read_text())["endless"]["gave"] == "out of time" and not diary.done("endless")


def test_a_job_without_time_is_left_and_told(tmp_path):
    code, said, diary = called(tmp_path, "--only", "checks views", "--minutes", "0.01")
    assert code == 1 and "no time left for checks views" in said and "1 left: checks views" in said and not diary


def test_a_table_is_trained_without_jupyter_and_its_results_are_packed(tmp_path):
    code, said, diary = called(tmp_path, "--only", "runs cifar10_supcon teacher=ce")
    assert code == 0 and [row["gave"] for row in diary.values()] == ["finished"]
    with tarfile.open(tmp_path/"out/results.tar.gz") as archive: names = archive.getnames()
    assert len([name for name in names if name.startswith("runs/") and name.endswith(".json")]) == 4 and "cifar10_supcon/table.md" in names


def test_results_that_came_back_are_not_trained_again(tmp_path):
    only = "--only", "runs cifar10_supcon teacher=ce"
    called(tmp_path, *only)
    (tmp_path/"out").rename(tmp_path/"earlier")
    (tmp_path/"work").rename(tmp_path/"gone")
    (tmp_path/"earlier/done.json").unlink()
    code, said, diary = called(tmp_path, *only, "--have", "earlier")
    assert code == 0 and "0 runs were trained now" in said


def test_a_failure_is_told_and_the_next_job_is_done(tmp_path):
    (tmp_path/"work").mkdir()
    (tmp_path/"work/results").write_text("a file in a folder's place")
    code, said, diary = called(tmp_path, "--only", "runs cifar10_supcon teacher=ce,checks views")
    assert code == 1 and diary["checks views"]["ok"]
    assert "InputError" in diary["runs cifar10_supcon teacher=ce loss=mse,kd"]["gave"]


def test_a_word_that_chooses_nothing_is_refused(tmp_path):
    code, said, diary = called(tmp_path, "--only", "cheks")
    assert code == 1 and "chooses none of" in said and not diary
