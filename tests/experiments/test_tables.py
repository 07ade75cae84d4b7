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


MEASURED = {"ckd_fig9", "ckd_fig10", "dcd_fig2", "dcd_fig3", "dcd_table2", "hakd_fig2", "hakd_fig3", "hakd_fig4", "hakd_noise",
            "lee2025_fig2", "lee2025_table5", "supcrd_classes", "weights"}  # tables that look inside networks which another table compares


@pytest.mark.parametrize("name", sorted({*NAMES} - MEASURED))
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
        if "study = {" in cell.source: exec(cell.source, found)
    assert [*found["study"]] == [*"abcd"]
    for name, given in found["study"].values():
        experiment, table = experiment_of(name)
        assert set(given) <= set(parameters_of(name)[0]) and (given["size"], given["teachers"]) == (16, 1)
        asked = experiment(table=table, device="cpu", **given | {"data": "digits", "size": None})
        assert len(asked.rows) >= 6
