"A new loss and a new network are one new notebook each: the template, filled in as it says, has its name everywhere."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
START = ("import torch\nfrom kdnb.data.images import load_images\nfrom kdnb.registry import losses, models\nfrom kdnb.checks import check_loss, check_model\n"
         "import kdnb; assert kdnb.__file__.startswith(__import__('os').getcwd()), kdnb.__file__\n")
LOSS = START + """
from kdnb.experiments.experiment import Table
from kdnb.experiments.lee2025 import Lee2025
p = Lee2025(table=Table("t", "lee2025", ("table5",), "T", {"gram": "gram"}), loss="l1", data="digits", seeds=1, reports="r", device="cpu")
print(check_loss("l1"), sum(run.method == "l1" for run in p.runs))
"""
NETWORK = START + """
from kdnb.engine.learner import Learner
from kdnb.engine.run import Phase, Run
from kdnb.engine.train import Teachers, train_epoch, views_for
images = load_images("digits")
for objective, kinds in (("ce", ("classify",)), ("supcon", ("contrast", "linear"))):
    phases = tuple(Phase(kind, 1, 256, 0.05) for kind in kinds)
    learner = Learner(Run("tower", objective, phases, images.identity, 0), images)
    while not learner.done: train_epoch([learner], images, views_for(learner.current, images), Teachers())
    assert learner.diverged is None
print(check_model("tower"), len(learner.history))
"""


def filled(template, name):
    "The template's text with its name in the place of `name`, and directives in the place of comments."
    notebook = json.loads(template.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        text = re.sub(r"(?m)^# (default_exp|export)", r"#| \1", "".join(cell["source"]))
        text = re.sub(r"\bname(?=_loss)|(?<=\.)name\b|\bname(?=\()|(?<=[\"`])name(?=[\"`])", name, text)
        cell["source"] = re.sub(r"\bName\b", name.capitalize(), text)
    return json.dumps(notebook)


@pytest.mark.parametrize("folder,notebook,name,script,said", [
    ("losses", "23_l1", "l1", LOSS, "l1 keeps the contract 2"), ("models", "85_tower", "tower", NETWORK, "tower keeps the contract 2")])
def test_what_comes_from_a_template_needs_one_new_notebook(tmp_path, folder, notebook, name, script, said):
    for part in ("nbs", "kdnb", "papers"): shutil.copytree(ROOT/part, tmp_path/part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"settings.ini", tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path/"kdnb").rglob("*.py")}
    (tmp_path/f"nbs/{folder}/{notebook}.ipynb").write_text(filled(ROOT/f"nbs/{folder}/_template.ipynb", name), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    def python(code): return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    exported = python("from nbdev.doclinks import nbdev_export; nbdev_export()")
    assert exported.returncode == 0, exported.stderr
    new = {path.name for path in (tmp_path/"kdnb").rglob("*.py") if path.read_bytes() != before.get(path)}
    assert new == {f"{name}.py", "_modidx.py"}
    done = python(script)
    assert done.stdout.strip().endswith(said), done.stdout + done.stderr
