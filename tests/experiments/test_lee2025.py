"The first table's notebook, run as a user runs it: by papermill, at a tiny size, really trained."
import json
import os
import shutil
import signal
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from kdnb.experiments.lee2025 import Lee2025
from kdnb.registry import InputError, losses
from made import write_levels
from notebooks import TABLES, experiment_of, papermill

NAME = "cifar10_supcon"
TABLE = experiment_of(NAME)[1]
TINY = {"data": "digits", "epochs": 1, "seeds": 1, "device": "cpu", "reports": "r"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder in which the row of gram was run."
    folder = tmp_path_factory.mktemp("table")
    code, output = papermill(folder, NAME, "--log-output", loss="gram", **TINY)
    assert code == 0, output[-3000:]
    return folder, output


def records(folder): return {p.stem: json.loads(p.read_text()) for p in (folder/"r/runs").glob("*.json")}


def test_a_row_is_trained_and_reported_beside_kd(trained):
    folder, output = trained
    found = records(folder)
    assert len(found) == 8 and all(0 < r["scores"]["top1"]["last"] <= 100 and r["seconds"] > 0 for r in found.values())
    assert sorted((r["role"], r["row"]) for r in found.values()) == sorted([("teacher", "teacher"), ("student", "student"), ("distilled", "gram"), ("distilled", "kd")] * 2)
    report = folder/"r"/NAME
    table = pd.read_csv(report/"table.csv")
    assert len(table) == 8 and set(table.n) == {1} and set(table.row) == {"teacher", "student", "gram", "kd"}
    text = (report/"table.md").read_text()
    assert "Gram KD" in text and "KD (Hinton)" in text and "convention" in text
    assert "93.79" not in text and "paper" not in next(line for line in text.splitlines() if line.startswith("| row")), "other data and networks: no paper's column"
    assert len(list(report.glob("fig_*.png"))) == 3 and text.count("![") == 3 and "![]" not in text


def test_the_log_has_lines_of_epochs_and_ends_with_the_table(trained):
    folder, output = trained
    assert "run 1 of 8" in output and "classify 1/1" in output and "left" in output
    assert "IPython.core.display" not in output
    table = output[output.rindex("Student alone"):]
    assert "Gram KD" in table and "r/cifar10_supcon/table.md" in table


def test_the_executed_notebook_shows_table_and_figure(trained):
    nb = nbformat.read(trained[0]/f"{NAME}.ipynb", 4)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    shown = " ".join(str(o.get("data", o.get("text", ""))) for o in outputs)
    assert "Gram KD" in shown and "digits" in shown
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 1
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in outputs)


def test_another_loss_adds_its_row_and_trains_nothing_again(trained, tmp_path):
    shutil.copytree(trained[0]/"r", tmp_path/"r")
    before = records(tmp_path)
    code, output = papermill(tmp_path, NAME, loss="mse,gram+kd", **TINY)
    assert code == 0, output[-3000:]
    after = records(tmp_path)
    assert len(after) == 12 and all(after[k] == before[k] for k in before)
    table = pd.read_csv(tmp_path/"r"/NAME/"table.csv")
    assert {"gram", "mse", "gram+kd", "kd"} <= set(table.row)


def test_another_optimiser_is_one_word(tmp_path):
    code, output = papermill(tmp_path, NAME, loss="gram", optimiser="adamw", teacher="ce", **TINY)
    assert code == 0, output[-3000:]
    assert {r["optimiser"] for r in records(tmp_path).values()} == {"adamw"}
    assert {phase["lr"] for r in records(tmp_path).values() for phase in r["config"]["phases"]} == {1e-3}
    assert "adamw" in (tmp_path/"r"/NAME/"table.md").read_text()


@pytest.mark.parametrize("spoil,says", [
    (lambda store: (store/"runs/extra.json").write_text("{not json"), ""),
    (lambda store: swap(store, "resnet8_w4", "resnet8"), "weights of the network"),
    (lambda store: cut_short(weights_of(store, "resnet8", "supcon")), "truncated"),
    (lambda store: alter(store, "resnet8"), "was altered"),
])
def test_a_damaged_file_is_never_used(trained, tmp_path, spoil, says):
    shutil.copytree(trained[0]/"r", tmp_path/"r")
    spoil(tmp_path/"r")
    before = sorted(p.name for p in (tmp_path/"r/runs").iterdir())
    code, output = papermill(tmp_path, NAME, loss="mse", **TINY)
    if not says: assert code == 0, "a file that no plan names disturbs nobody"
    else:
        assert code != 0 and says in output and "InputError" in output
        assert sorted(p.name for p in (tmp_path/"r/runs").iterdir()) == before


def weights_of(store, net, objective):
    key, = [r["key"] for r in (json.loads(p.read_text()) for p in (store/"runs").glob("*.json"))
            if r["config"]["net"] == net and r["config"]["objective"] == objective and not r["config"]["terms"]]
    return store/"weights"/f"{key}.safetensors"


def swap(store, source, target): shutil.copy(weights_of(store, source, "ce"), weights_of(store, target, "ce"))


def cut_short(path): path.write_bytes(path.read_bytes()[:-100])


def alter(store, net):
    path = store/"runs"/f"{weights_of(store, net, 'ce').stem}.json"
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1'))


def test_an_unknown_parameter_stops_papermill(tmp_path):
    code, output = papermill(tmp_path, NAME, lossx="gram", **TINY)
    assert code != 0 and "unknown parameter 'lossx'. Did you mean 'loss'?" in output
    assert not (tmp_path/"r").exists()


def test_cifar10_images_are_really_trained_on(tmp_path, monkeypatch):
    write_levels(tmp_path/"data", 200, 100)
    monkeypatch.setenv("KDNB_DATA", str(tmp_path/"data"))
    code, output = papermill(tmp_path, NAME, loss="supcon", teacher="ce", **TINY | {"data": "cifar10"})
    assert code == 0, output[-3000:]
    text = (tmp_path/"r"/NAME/"table.md").read_text()
    assert "200 training and 100 test images instead of 50000" in text and "part of cifar10" in text


WRONG = [({"loss": "grm"}, "Did you mean 'gram'"), ({"loss": "gram,"}, "loss"), ({"loss": 3}, "loss=3"), ({"teacher": "supcn"}, "supcon"),
         ({"data": "cifar"}, "cifar10"), ({"preset": "quik"}, "quick"), ({"seeds": 0}, "seeds=0"), ({"seeds": 1.5}, "seeds=1.5"), ({"seeds": 10**9}, "seeds"),
         ({"seeds": "2"}, "seeds='2'"), ({"epochs": -1}, "epochs=-1"), ({"epochs": True}, "epochs=True"), ({"batch": 0}, "batch=0"), ({"precision": "fp16"}, "bf16"),
         ({"deterministic": 1}, "deterministic=1"), ({"weight": -1.0}, "weight=-1.0"), ({"optimiser": "adam"}, "adamw"), ({"optimiser": "adamw@lr=0"}, "lr=0"),
         ({"weight": "x"}, "weight='x'"), ({"loss": "supcon", "tau": 0}, "tau=0"), ({"loss": "gram", "tau": 1.0}, "tau was given"),
         ({"on": "logit"}, "logits"), ({"normalize": "all"}, "'both'"), ({"loss": "gram", "normalize": "teacher"}, "gram"),
         ({"device": "tpu"}, "device='tpu'"), ({"device": "cuda:9"}, "cuda:9"), ({"force": "true"}, "force='true'"), ({"reports": 7}, "reports=7"),
         ({"tensorboard": 7}, "tensorboard=7"), ({"speed": "streams@count=0"}, "count=0"), ({"speed": None}, "speed=None"), ({"speed": "graphs+quick"}, "tf32"), ({"loss": "pca_gl"}, "transformer"), ({"loss": "ckd@as=printed"}, "as is for tables of the CRD benchmark")]


@pytest.mark.parametrize("given,says", WRONG)
def test_a_wrong_value_is_one_sentence_and_touches_nothing(tmp_path, given, says):
    with pytest.raises(InputError) as caught: Lee2025(table=TABLE, **{"data": "digits", "reports": str(tmp_path/"reports")} | given).plans
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path/"reports").exists()


def test_a_right_question_makes_no_folder_and_sets_nothing(tmp_path):
    import torch
    p = Lee2025(table=TABLE, data="digits", reports=str(tmp_path/"reports"), tensorboard=str(tmp_path/"curves"), deterministic=True)
    assert p.plans and not list(tmp_path.iterdir()) and not torch.are_deterministic_algorithms_enabled()


def test_an_unwritable_report_folder_is_one_sentence(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(InputError, match="reports=.*is not the path of a folder"): Lee2025(table=TABLE, data="digits", reports=str(tmp_path/"file/below"), loss="kd")


def test_every_loss_has_its_row_by_its_name_alone(tmp_path):
    names = [name for name in losses.names() if name not in ("pca_gl", "fsp")]  # a transformer, and equal widths, are not here
    more = ["crd+kd", "dcd+kd", "ckd+reviewkd", "dkd+reviewkd", "ckd@triple=s_t_t"]
    code, output = papermill(tmp_path, NAME, loss=",".join(names + more), teacher="ce", **TINY)
    assert code == 0, output[-3000:]
    distilled = {r["row"]: r["config"] for r in records(tmp_path).values() if r["role"] == "distilled"}
    table = pd.read_csv(tmp_path/"r"/NAME/"table.csv")
    assert set(names + more) <= set(table.row)
    first = {row for row, config in distilled.items() if config["phases"][0]["kind"] == "initial"}
    assert first == {"ab", "ft"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_table_that_is_asked_to_stop_says_how_to_go_on_and_goes_on(tmp_path, number):
    "The signal comes to the notebook's kernel, as Ctrl-C and a cluster's warning do, once training has begun."
    code = ("import os, signal, sys, json, kdnb.engine.execute as e\n"
            "from kdnb.experiments.lee2025 import Lee2025\nfrom kdnb.experiments.experiment import Table\n"
            f"t = Table('t', 'lee2025', ('table2',), 'T', {{'kd': 'KD'}}, dataset='cifar10')\n"
            f"p = Lee2025(table=t, data='digits', seeds=1, epochs=2, teacher='ce', reports={str(tmp_path)!r}, device='cpu')\n"
            "tick = e.Progress.tick\n"
            f"e.Progress.tick = lambda self, n: (os.kill(os.getpid(), {int(number)}) if len(sys.argv) > 1 and self.done > 0 else None, tick(self, n))\n"
            "p.train()\n")
    first = subprocess.run([sys.executable, "-c", code, "stop"], capture_output=True, text=True, timeout=600)
    assert first.returncode != 0 and "The same command goes on from here" in first.stdout + first.stderr
    assert list((tmp_path/"unfinished").glob("*.safetensors"))
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stderr


def test_a_user_s_runs_leave_the_clone_clean():
    "local/ is ignored by git; nothing else is written by default."
    root = TABLES.parents[1]
    if subprocess.run(["git", "rev-parse"], cwd=root, capture_output=True).returncode: return
    ignored = subprocess.run(["git", "check-ignore", "local/runs/a.json", "out.ipynb"], cwd=root, capture_output=True, text=True)
    assert ignored.stdout.split() == ["local/runs/a.json", "out.ipynb"]
    environment = {k: v for k, v in os.environ.items() if k != "KDNB_REPORTS"}
    asked = ("from kdnb.experiments.lee2025 import Lee2025\nfrom kdnb.experiments.experiment import ROOT, Table\n"
             "p = Lee2025(table=Table('t', 'lee2025', (), 'T', {}), data='digits')\n"
             "assert p.store.folder == ROOT/'local' and p.store.published == ROOT/'reports'")
    subprocess.run([sys.executable, "-c", asked], env=environment, check=True, timeout=600)


def test_the_first_minute_shows_what_distillation_is_about(tmp_path):
    "Ten seeds of what README's command runs on the embedded digits: the teacher is better, and kd teaches."
    p = Lee2025(table=TABLE, data="digits", loss="kd", teacher="ce", seeds=10, device="cpu", reports=str(tmp_path))
    runs = p.flat(p.train(live=False)).set_index("seed")
    teacher, alone, kd = (runs[runs.row == row]["last"] for row in ("teacher", "student", "kd"))
    assert teacher.mean() - alone.mean() >= 3 and (kd > alone).sum() >= 8
