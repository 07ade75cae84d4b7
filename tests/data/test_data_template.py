"A new data set is one new notebook: the template, filled in as it says, has its name everywhere."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import made
from kdnb.data.files import Source, read_folders

ROOT = Path(__file__).resolve().parents[2]
SHAPES = Source("shapes", "Shapes", ("cat", "dog"), None, (3, 16, 16), 2, True, "shapes", ("train",), ("test",), read_folders, ("shapes/**/*.parquet",))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The project with one more notebook."
    folder = tmp_path_factory.mktemp("project")
    for name in ("nbs", "kdnb"): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"settings.ini", folder)
    before = {path: path.read_bytes() for path in (folder/"kdnb").rglob("*.py")}
    notebook = json.loads((ROOT/"nbs/data/sets/_template.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).replace("name", "shapes").replace("Name", "Shapes")
        cell["source"] = re.sub(r"(?m)^# (default_exp|export)", r"#| \1", text)
    (folder/"nbs/data/sets/60_shapes.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=folder, check=True, timeout=600)
    changed = [path for path in (folder/"kdnb").rglob("*.py") if path.read_bytes() != before.get(path)]
    assert {path.name for path in changed} == {"shapes.py", "_modidx.py"}
    return folder


def python(project, code, **environment):
    environment = os.environ | {"PYTHONPATH": str(project), "KDNB_CACHE": str(project/"cache")} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("write", [made.write_own, made.write_shards], ids=["folders of PNG files", "parquet shards"])
def test_a_data_set_from_the_template_loads_by_its_name(project, tmp_path, write):
    x = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), np.uint8)
    write(tmp_path, SHAPES, (x[:6], [0, 1] * 3), (x[6:], [0, 1]))
    code = ("import kdnb; assert kdnb.__file__.startswith(__import__('os').getcwd()), kdnb.__file__\n"
            "from kdnb.data.images import load_images; images = load_images('shapes')\n"
            "assert load_images('auto', 'shapes').fingerprint == images.fingerprint\n"
            "print(images.identity, images.shape, images.train_y.bincount().tolist(), images.classes)")
    done = python(project, code, KDNB_DATA=str(tmp_path))
    assert done.stdout.strip() == "shapes 6/0/2 (3, 16, 16) [3, 3] ('cat', 'dog')", done.stderr


def test_its_name_is_known_and_its_files_are_asked_for(project, tmp_path):
    done = python(project, "from kdnb.data.images import load_images; load_images('shape')", KDNB_DATA=str(tmp_path))
    assert "unknown data set 'shape'. Did you mean 'shapes'? Known: auto, cifar10" in done.stderr
    done = python(project, "from kdnb.data.images import load_images; load_images('shapes')", KDNB_DATA=str(tmp_path))
    assert "Shapes was not found under" in done.stderr and "put its folder shapes there, with train, test" in done.stderr
