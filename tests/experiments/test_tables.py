"Every table's notebook: short, its parameters declared once, its pairs and rows where the reader looks."
import ast
from dataclasses import fields
from types import SimpleNamespace

import pytest

from kdnb.experiments.experiment import Experiment
from kdnb.registry import models
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
