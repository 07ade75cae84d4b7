"The rules of the house: small cells, each shown; few arguments; rooms in a row, and notebooks that lie where their modules lie."
import ast
import importlib.util
import json
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in (ROOT/"kdnb").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
ROOMS = ["ground", "data", "losses", "models", "engine", "report", "experiments", "analysis", "bench"]
GROUND = ["errors", "sources", "registry", "style", "contract", "scores", "checks", "store", "parameters", "publish"]


def name(path): return str(path.relative_to(ROOT))


def no(broken):
    broken = list(broken)
    assert not broken, "\n" + "\n".join(map(str, broken))


# cells

@lru_cache(maxsize=None)
def code_cells(path):
    "The sources of a notebook's code cells."
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def only_imports(source):
    "Whether a cell has nothing but imports; a magic is something else."
    try: body = ast.parse(source).body
    except SyntaxError: return False
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


def only_parameters(source):
    "Whether a cell has nothing but names with a type and a value, as papermill's cell of parameters."
    try: body = ast.parse(source).body
    except SyntaxError: return False
    return all(isinstance(node, ast.AnnAssign) for node in body)


def size(source):
    "The lines of code in a cell: neither empty nor a comment."
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def first_line(source):
    "The line that a cell starts with, directives, decorators and comments left out."
    return next((line for line in source.splitlines() if line.strip() and line[0] not in "#@"), "")


def unshown(path):
    "The longest run of exported cells in which nothing is shown or asserted, and the first line of its last cell."
    longest, run, last = 0, 0, ""
    for source in code_cells(path):
        if only_imports(source): continue
        run = run + 1 if source.startswith("#| export") else 0
        if run > longest: longest, last = run, first_line(source)
    return longest, last


def test_cells_are_small():
    by_notebook = {path: [size(source) for source in code_cells(path)] for path in NOTEBOOKS}
    every = sorted(n for own in by_notebook.values() for n in own)
    middle, p90 = median(every), quantiles(every, n=10)[-1]
    heaviest = sorted(((median(own), name(path)) for path, own in by_notebook.items() if own), reverse=True)[:15]
    told = "\n".join(f"  median {n:g}: {path}" for n, path in heaviest)
    assert middle <= 5 and p90 <= 20, f"median {middle}, nine tenths up to {p90} lines of {len(every)} cells; the notebooks with the longest:\n{told}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_no_cell_is_long(notebook):
    no(f"{name(notebook)}: {size(source)} lines from {first_line(source)!r}" for source in code_cells(notebook)
       if size(source) > 25 and not only_imports(source) and not only_parameters(source) and not re.search(r"(?m)^class ", source))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_what_is_defined_is_shown(notebook):
    run, last = unshown(notebook)
    assert run <= 4, f"{name(notebook)} exports {run} cells in a row, up to {last!r}, before anything is shown or asserted"


# functions

@lru_cache(maxsize=None)
def tree(path): return ast.parse(path.read_text(encoding="utf-8"))


def arguments(function):
    "The names of what a function takes, itself and its class left out."
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
    return [a.arg for a in every if a.arg not in ("self", "cls")]


def test_no_function_takes_more_than_eight_arguments():
    functions = [(path, node) for path in MODULES for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    no(f"{name(path)}: {node.name} takes {len(arguments(node))}" for path, node in functions if len(arguments(node)) > 8)


def test_every_public_function_and_class_says_what_it_does():
    defined = [(path, node) for path in MODULES for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    no(f"{name(path)}: {node.name} has no docstring" for path, node in defined if not node.name.startswith("_") and not ast.get_docstring(node))


# rooms

def module(path): return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path):
    "The modules of kdnb that a module imports, at its top or later."
    package, found = module(path).rpartition(".")[0], set()
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom): continue
        source = "." * node.level + (node.module or "")
        whole = importlib.util.resolve_name(source, package)
        if whole == "kdnb" or whole.startswith("kdnb."):
            inner = {f"{whole}.{alias.name}" for alias in node.names} & KNOWN
            found |= inner or ({whole} & KNOWN)
    return found


KNOWN = {module(path) for path in MODULES}
ARROWS = {module(path): imports(path) for path in MODULES}


def room(of):
    first = of.split(".")[1]
    return "ground" if first in GROUND else first


def test_no_import_goes_in_a_circle():
    done, circles = set(), []
    def visit(node, way):
        if node in way: return circles.append(" -> ".join([*way[way.index(node):], node]))
        if node in done: return
        for other in sorted(ARROWS[node]): visit(other, [*way, node])
        done.add(node)
    for node in ARROWS: visit(node, [])
    no(circles)


def test_rooms_import_from_the_left():
    assert {room(of) for of in ARROWS} <= set(ROOMS), "a new room needs its place in ROOMS"
    no(f"{a} imports {b}" for a, found in ARROWS.items() for b in sorted(found) if ROOMS.index(room(b)) > ROOMS.index(room(a)))


# notebooks and modules

@lru_cache(maxsize=None)
def exported_to(path):
    "The module that a notebook exports, or None."
    found = [m[1] for source in code_cells(path) if (m := re.search(r"(?m)^#\| default_exp (\S+)", source))]
    return found[0] if found and not path.name.startswith("_") else None


def test_notebooks_lie_where_their_modules_lie():
    broken = []
    for path in NOTEBOOKS:
        target = exported_to(path)
        if target is None: continue
        *folders, last = target.split(".")
        if path.parent != ROOT.joinpath("nbs", *folders) or not re.fullmatch(rf"\d\d_{last}", path.stem):
            broken.append(f"{name(path)} exports kdnb.{target}")
    no(broken)


def test_each_module_has_one_notebook():
    sources = defaultdict(list)
    for path in NOTEBOOKS:
        if exported_to(path): sources[f"kdnb.{exported_to(path)}"].append(name(path))
    no([*(f"{m} comes from no notebook" for m in sorted(KNOWN - sources.keys())), *(f"{m} comes from {', '.join(own)}" for m, own in sources.items() if len(own) > 1)])


def test_numbers_give_the_order_of_reading():
    numbers = {f"kdnb.{exported_to(path)}": path.name[:2] for path in NOTEBOOKS if exported_to(path)}
    backwards = [f"{a} ({numbers[a]}) imports {b} ({numbers[b]})" for a, found in ARROWS.items() for b in sorted(found)
                 if a in numbers and b in numbers and a.rpartition(".")[0] == b.rpartition(".")[0] and numbers[b] >= numbers[a]]
    by_folder = defaultdict(list)
    for path in NOTEBOOKS: by_folder[path.parent, path.name[:2]].append(path)
    twice = [f"{a[0].name} and {a[1].name} have one number" for a in by_folder.values() if len(a) > 1 and a[0].name[:2].isdigit()]
    no(backwards + twice)


def test_tests_lie_in_the_rooms_that_they_test():
    rooms = {path.parent.relative_to(ROOT/"kdnb").parts[0] for path in MODULES if path.parent != ROOT/"kdnb"}
    no(f"tests/{room} has no test" for room in sorted(rooms) if not list((ROOT/"tests"/room).glob("test_*.py")))
