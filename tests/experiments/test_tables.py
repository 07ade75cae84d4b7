"Every table's notebook: short, its parameters declared once, its pairs and rows where the reader looks."
import ast
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import nbformat
import pytest

from kdnb.experiments.experiment import PLACEBO, Experiment
from kdnb.registry import models
from kdnb.report.placebo import plainly
from notebooks import TABLES, cells, experiment_of, parameters_of

NAMES = sorted(p.stem for p in TABLES.glob("*.ipynb") if not p.stem.startswith("_") and p.stem != "claims")
OWN = {"loss", "teacher", "preset", "data", "corruption", "protocol", "epochs"}  # where a notebook's subject may have another default


@pytest.mark.parametrize("name", NAMES)
def test_the_cell_declares_what_the_experiment_checks(name):
    experiment, table = experiment_of(name)
    found, source = parameters_of(name)
    wanted = {f.name: f.default for f in fields(experiment) if f.name in experiment.names()}
    assert set(wanted) == set(found)
    assert {k for k in wanted if found[k] != wanted[k]} <= OWN
    assert all("#" in line for line in source.splitlines()), "every parameter has its sentence"


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_notebook_s_name_and_known_networks(name):
    _, table = experiment_of(name)
    assert {net for pair in table.pairs for net in pair.split("-")} <= set(models.names())
    assert table.title and table.rows


ALONE = {"ckd_fig9", "dcd_fig2", "supcrd_classes", "weights"}  # tables of costs, of logits and of classes, and one that tunes
COMPARE = [name for name in NAMES if name not in ALONE and not experiment_of(name)[0].__module__.startswith("kdnb.analysis")]  # others look inside their networks


@pytest.mark.parametrize("name", COMPARE)
def test_a_table_that_compares_losses_has_one_of_them_twice(name):
    experiment, table = experiment_of(name)
    asked = experiment(table=table, data="digits", preset="quick")
    alike = {}
    for entry in asked.entries(asked.images):
        if entry.row in PLACEBO: alike.setdefault((entry.teacher, entry.student, entry.protocol, entry.run.teacher, entry.run.seed), {})[entry.row] = entry.run
    assert alike and all(set(found) == set(PLACEBO) for found in alike.values())
    for found in alike.values():
        one, other = (replace(run, terms=()) for run in found.values())
        norm, cosine = (plainly([asdict(term) for term in run.terms], experiment.TWINS) for run in found.values())
        assert one == other and norm == cosine


@pytest.mark.parametrize("name", [*NAMES, "_template"])
def test_a_table_is_short_and_defines_nothing(name):
    own = cells(name)
    assert len(own) <= 20 and sum("parameters" in c.metadata.get("tags", []) for c in own) == 1
    for cell in own:
        if cell.cell_type == "code": assert not [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


def test_a_hostile_note_is_text_above_a_table():
    hostile = SimpleNamespace(sets=[None], notes=["<script>x</script> **a** | b\n# c"], refusals=lambda images: ["![](x) is refused"])
    shown = Experiment.banner.fget(hostile)
    assert shown.markdown == "> **&lt;script&gt;x&lt;/script&gt; \\*\\*a\\*\\* \\| b \\# c**\n>\n> ![\\](x) is refused"
    assert shown.plain == "<script>x</script> **a** | b\n# c\n\n![](x) is refused"


def test_the_study_asks_tables_for_what_they_take():
    found = {}
    for cell in nbformat.read(TABLES.parent/"03_study.ipynb", 4).cells:
        if cell.source.startswith(("small = ", "tables = ")): exec(cell.source.partition("\nforeseen")[0], found)
    assert [*found["study"]] == [*"abcd"]
    for part, (name, given) in found["study"].items():
        experiment, table = experiment_of(name)
        assert set(given) <= set(parameters_of(name)[0]) and (given["size"], given["teachers"]) == (16, 1)
        asked = experiment(table=table, device="cpu", **given | {"data": "digits", "size": None})
        assert len(asked.rows) >= 6
        if part not in found["tables"]: continue
        students = [entry for entry in asked.entries(asked.images) if entry.role in ("student", "distilled")]
        assert (len(asked.all_seeds), len({entry.run for entry in students if entry.run.seed == 0})) == found["tables"][part]
