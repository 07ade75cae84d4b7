"What is written twice agrees: modules and notebooks, requirements and pins, README and its notebook."
import configparser
import json
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pyflakes.api
import pytest
import yaml
from nbdev.clean import clean_nb
from execnb.nbio import nb2dict, read_nb
from pyflakes.reporter import Reporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in (ROOT/"kdnb").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))


def name(path): return str(path.relative_to(ROOT))


def test_modules_are_what_the_notebooks_export(tmp_path):
    for folder in ("nbs", "kdnb"): shutil.copytree(ROOT/folder, tmp_path/folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"settings.ini", tmp_path)
    for module in MODULES: (tmp_path/module.relative_to(ROOT)).unlink()
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True, timeout=600)
    made = {str(p.relative_to(tmp_path)): p.read_text(encoding="utf-8") for p in (tmp_path/"kdnb").rglob("*.py")}
    assert made == {name(p): p.read_text(encoding="utf-8") for p in (ROOT/"kdnb").rglob("*.py")}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebook_is_clean(notebook):
    before = json.loads(notebook.read_text(encoding="utf-8"))
    nb = read_nb(notebook)
    clean_nb(nb, allowed_cell_metadata_keys=["tags"], clean_ids=True)
    assert nb2dict(nb)["cells"] == before["cells"]
    assert before["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebook_keeps_the_house_rules(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    first = "".join(cells[0]["source"])
    assert cells[0]["cell_type"] == "markdown" and first.startswith("# ") and "\n> " in first, "opens with a heading and a claim"
    assert notebook.stat().st_size < 150_000, "150 KB at most"
    assert not any("import *" in c for c in code)
    lines = [c.splitlines() for c in code]
    assert not [line for cell in lines for line in cell if len(line) > 110], "lines of code of about 100 characters"
    if "tables" in notebook.parts:
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        assert len(tagged) == 1 and len(cells) <= 20
        assert not any(re.search(r"(?m)^\s*(def|class) ", c) for c in code), "a table notebook has no functions"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_module_has_every_name_it_uses(module):
    lines = StringIO()
    pyflakes.api.check(module.read_text(encoding="utf-8"), name(module), Reporter(lines, lines))
    assert not [line for line in lines.getvalue().splitlines() if "undefined name" in line or "imported but unused" in line]


def pinned():
    lines = (ROOT/"constraints.txt").read_text().splitlines()
    return {re.split(r"[=<>;\s]", line)[0].lower().replace("_", "-"): line for line in lines if line and not line.startswith("#")}


def test_every_requirement_is_pinned_once_and_names_no_host():
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    wanted = [re.split(r"[=<>;\s]", line)[0].lower() for line in ini["DEFAULT"]["requirements"].split("\n") if line.strip()]
    pins = pinned()
    assert set(wanted) <= pins.keys()
    assert all("==" in line for line in pins.values())
    assert "://" not in (ROOT/"constraints.txt").read_text()


def test_conda_installs_this_project_at_the_same_pins():
    environment = yaml.safe_load((ROOT/"environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-e ."], "setup.py hands constraints.txt to pip"
    assert "constraints.txt" in (ROOT/"setup.py").read_text()


def test_readme_is_what_its_notebook_says(tmp_path):
    out = tmp_path/"README.md"
    subprocess.run([sys.executable, ROOT/"tools/readme.py", out], check=True, timeout=600)
    assert out.read_text(encoding="utf-8") == (ROOT/"README.md").read_text(encoding="utf-8")
