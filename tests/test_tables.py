"The table notebook, run as a user runs it: by papermill, at a tiny size, really trained."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from kdnb.data.files import write_shard
from kdnb.experiments.lee2025 import parameters
from kdnb.registry import InputError, losses

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT/"nbs/tables/cifar10_supcon.ipynb"
TINY = ["-p", "data", "digits", "-p", "epochs", "1", "-p", "seeds", "1", "-p", "device", "cpu"]


def papermill(folder, *arguments, **environment):
    "papermill's exit code and output, run in a folder that is not the project's."
    command = [sys.executable, "-m", "papermill", str(TABLE), str(folder/"out.ipynb"), "--no-progress-bar", "--start-timeout", "600", "--log-output", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder in which the row of gram was run."
    folder = tmp_path_factory.mktemp("table")
    code, output = papermill(folder, "-p", "loss", "gram", *TINY, "-p", "reports", "reports")
    assert code == 0, output[-3000:]
    return folder, output


def records(folder):
    return {p.stem: json.loads(p.read_text()) for p in (folder/"reports/cifar10_supcon/runs").glob("*.json")}


def test_a_row_is_trained_and_reported(trained):
    folder, output = trained
    found = records(folder)
    assert len(found) == 6 and all(0 < r["last"]["test"] <= 100 and r["seconds"] > 0 for r in found.values())
    assert {r["config"]["net"] for r in found.values()} == {"resnet14", "resnet8"}
    report = folder/"reports/cifar10_supcon"
    table = pd.read_csv(report/"table.csv")
    assert len(table) == 6 and set(table.n) == {1} and table.last_sd.isna().all()
    assert table[(table.method == "gram") & (table.objective == "supcon")].paper.item() == 94.37
    text = (report/"table.md").read_text()
    assert "nothing here compares with the paper" in text and "Gram KD" in text and "convention" in text
    assert len(list(report.glob("fig_*.png"))) == 3
    assert "classify 1/1" in output, "a line per epoch reaches papermill's output"


def test_the_executed_notebook_shows_table_banner_and_figures(trained):
    nb = nbformat.read(trained[0]/"out.ipynb", 4)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    shown = " ".join(str(o.get("data", o.get("text", ""))) for o in outputs)
    assert "nothing here compares with the paper" in shown and "Gram KD" in shown and "94.37" in shown
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in outputs)


def test_another_loss_adds_its_row_and_trains_nothing_again(trained, tmp_path):
    shutil.copytree(trained[0]/"reports", tmp_path/"reports")
    before = records(tmp_path)
    code, output = papermill(tmp_path, "-p", "loss", "mse,gram+kd", *TINY, "-p", "reports", "reports")
    assert code == 0, output[-3000:]
    after = records(tmp_path)
    assert len(after) == 10 and all(after[k] == before[k] for k in before)
    table = pd.read_csv(tmp_path/"reports/cifar10_supcon/table.csv")
    assert {"gram", "mse", "gram+kd"} <= set(table.method)


@pytest.mark.parametrize("spoil,says", [
    (lambda report: (report/"runs/extra.json").write_text("{not json"), "extra.json"),
    (lambda report: swap(report, "resnet8-ce", "resnet14-ce"), "the network resnet8"),
    (lambda report: cut_short(next(report.glob("weights/resnet14-supcon*"))), "truncated"),
])
def test_a_damaged_file_stops_the_table_before_training(trained, tmp_path, spoil, says):
    shutil.copytree(trained[0]/"reports", tmp_path/"reports")
    spoil(tmp_path/"reports/cifar10_supcon")
    before = sorted(p.name for p in (tmp_path/"reports").rglob("*.json"))
    code, output = papermill(tmp_path, "-p", "loss", "mse", *TINY, "-p", "reports", "reports")
    assert code != 0 and says in output and "InputError" in output
    assert sorted(p.name for p in (tmp_path/"reports").rglob("*.json")) == before


def swap(report, source, target):
    source, target = (next(report.glob(f"weights/{name}*")) for name in (source, target))
    shutil.copy(source, target)


def cut_short(path): path.write_bytes(path.read_bytes()[:-100])


def test_an_unknown_parameter_stops_papermill(tmp_path):
    code, output = papermill(tmp_path, "-p", "lossx", "gram", *TINY, "-p", "reports", "reports")
    assert code != 0 and "unknown parameter 'lossx'. Did you mean 'loss'?" in output
    assert not (tmp_path/"reports").exists()


def test_cifar10_images_are_really_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 300)
    x = np.clip(rng.normal(128, 30, (300, 3, 32, 32)) + 8 * y[:, None, None, None], 0, 255).astype(np.uint8)
    write_shard(tmp_path/"data/cifar10/train-00000-of-00001.parquet", x[:200], y[:200], encoding="webp")
    write_shard(tmp_path/"data/cifar10/test-00000-of-00001.parquet", x[200:], y[200:], encoding="webp")
    code, output = papermill(tmp_path, "-p", "loss", "supcon", "-p", "data", "cifar10", "-p", "teacher", "ce", "-p", "epochs", "1",
                             "-p", "seeds", "1", "-p", "device", "cpu", "-p", "reports", "r", KDNB_DATA=str(tmp_path/"data"))
    assert code == 0, output[-3000:]
    assert "200 training and 100 test images instead of 50000" in (tmp_path/"r/cifar10_supcon/table.md").read_text()


WRONG = [({"loss": "grm"}, "Did you mean 'gram'"), ({"loss": "gram,"}, "loss"), ({"loss": 3}, "loss=3"), ({"teacher": "supcn"}, "supcon"),
         ({"data": "cifar"}, "cifar10"), ({"preset": "quik"}, "quick"), ({"seeds": 0}, "seeds=0"), ({"seeds": 1.5}, "seeds=1.5"),
         ({"seeds": "2"}, "seeds='2'"), ({"epochs": -1}, "epochs=-1"), ({"epochs": True}, "epochs=True"), ({"batch": 0}, "batch=0"), ({"precision": "fp16"}, "bf16"), ({"deterministic": 1}, "deterministic=1"), ({"alpha": -1.0}, "alpha=-1.0"),
         ({"alpha": "x"}, "alpha='x'"), ({"loss": "supcon", "tau": 0}, "tau=0"), ({"loss": "gram", "tau": 1.0}, "tau was given"),
         ({"on": "logit"}, "logits"), ({"normalize": "all"}, "'both'"), ({"loss": "gram", "normalize": "teacher"}, "gram"),
         ({"device": "tpu"}, "device='tpu'"), ({"device": "cuda:9"}, "cuda:9"), ({"force": "true"}, "force='true'"), ({"reports": 7}, "reports=7")]


@pytest.mark.parametrize("given,says", WRONG)
def test_a_wrong_value_is_one_sentence_and_touches_nothing(tmp_path, given, says):
    with pytest.raises(InputError) as caught: parameters(**{"data": "digits", "reports": str(tmp_path/"reports")} | given)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path/"reports").exists()


def test_an_unwritable_report_folder_is_one_sentence(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(InputError, match="cannot be written"): parameters(data="digits", reports=str(tmp_path/"file/below"))


def test_help_shows_every_parameter_with_a_sentence():
    done = subprocess.run([sys.executable, "-m", "papermill", "--help-notebook", str(TABLE)], capture_output=True, text=True, timeout=600)
    import inspect
    for name in inspect.signature(parameters).parameters:
        line = next(line for line in done.stdout.splitlines() if line.strip().startswith(f"{name}:"))
        assert len(done.stdout.split(f"{name}:")[1].split("\n")[1].strip()) > 20 or len(line) > 60


def test_every_loss_has_its_row_by_its_name_alone(tmp_path):
    names = [name for name in losses.names() if name != "pca_gl"]
    more = ["crd+kd", "dcd+kd", "ckd+reviewkd", "dkd+reviewkd", "ckd@triple=s_t_t"]
    code, output = papermill(tmp_path, "-p", "loss", ",".join(names + more), "-p", "teacher", "ce", *TINY, "-p", "reports", "reports")
    assert code == 0, output[-3000:]
    distilled = [r["config"] for r in records(tmp_path).values() if r["config"]["parts"] and r["config"]["net"] == "resnet8"]
    assert len(distilled) == len(names + more)
    assert {"+".join(p["loss"] for p in c["parts"]) for c in distilled} == {spec.split("@")[0] for spec in names + more}
    kinds = {c["parts"][0]["loss"]: [p["kind"] for p in c["phases"]] for c in distilled}
    assert {name for name, phases in kinds.items() if phases[0] == "initial"} == {"ab", "ft", "fsp"}


def test_a_loss_that_needs_a_transformer_says_so_before_anything_is_trained(tmp_path):
    code, output = papermill(tmp_path, "-p", "loss", "pca_gl", *TINY, "-p", "reports", "reports")
    assert code != 0 and "transformer" in output and not records(tmp_path)
