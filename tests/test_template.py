"A new loss is one new notebook: the template, filled in as it says, has its name everywhere."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_loss_from_the_template_needs_one_new_notebook(tmp_path):
    for folder in ("nbs", "kdnb", "papers"): shutil.copytree(ROOT/folder, tmp_path/folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"settings.ini", tmp_path)
    text = (ROOT/"nbs/losses/_template.ipynb").read_text(encoding="utf-8")
    text = re.sub(r'"# (default_exp|export)', r'"#| \1', text)
    text = text.replace("losses.name", "losses.l1").replace("name_loss", "l1_loss").replace('\\"name\\"', '\\"l1\\"').replace("class Name", "class L1")
    (tmp_path/"nbs/losses/23_l1.ipynb").write_text(text, encoding="utf-8")
    script = ("from nbdev.doclinks import nbdev_export; nbdev_export()\n"
              "import kdnb; assert kdnb.__file__.startswith(__import__('os').getcwd()), kdnb.__file__\n"
              "from kdnb.registry import losses; from kdnb.checks import check_loss\n"
              "from kdnb.experiments.lee2025 import parameters, plan\n"
              "p = parameters(loss='l1', data='digits', seeds=1, reports='r', device='cpu')\n"
              "print(check_loss('l1'), sum(run.method == 'l1' for run in plan(p)))")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip().endswith("l1 keeps the contract 2"), done.stdout + done.stderr
