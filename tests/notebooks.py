"Runs a table's notebook as a user does, and reads what it says of its table."
import re
import subprocess
import sys
from pathlib import Path

import nbformat

TABLES = Path(__file__).resolve().parents[1]/"nbs/tables"


def papermill(folder, name, *words, **given):
    "papermill's exit code and output, run in a folder that is not the project's."
    words = [*words, *[word for k, v in given.items() for word in ("-p", k, str(v))]]
    command = [sys.executable, "-m", "papermill", str(TABLES/f"{name}.ipynb"), str(folder/f"{name}.ipynb"), "--no-progress-bar", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    return done.returncode, done.stdout + done.stderr


def cells(name): return nbformat.read(TABLES/f"{name}.ipynb", 4).cells


def parameters_of(name):
    "The names and defaults of a notebook's parameters cell, and the cell's text."
    source = next(c.source for c in cells(name) if "parameters" in c.metadata.get("tags", []))
    found = {}
    exec(source, {}, found)
    return {k: v for k, v in found.items() if k != "__annotations__"}, source


def experiment_of(name):
    "The experiment's class and the table of a notebook."
    found = {}
    for cell in cells(name):
        if cell.cell_type == "code" and (cell.source.startswith(("import", "from")) or re.search(r"(?m)^table = Table\(", cell.source)):
            exec(cell.source, found)
    called = next(c.source for c in cells(name) if re.search(r"(?m)^p = \w+\.asked\(table", c.source))
    return found[re.search(r"p = (\w+)\.asked", called)[1]], found["table"]
