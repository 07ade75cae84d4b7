"Any JSON value of any parameter of any table notebook is a plan or one sentence: no traceback, no folder left behind."
import ast
import json
import os
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from notebooks import TABLES

from kdnb.registry import InputError, losses, models

ASKED = sorted(path.stem for path in TABLES.glob("*.ipynb") if path.stem != "claims")
SMALL = {"data": "digits", "device": "cpu", "reports": "r"}

word = st.sampled_from([*losses.names(), *models.names(), "auto", "all", "both", "none", "cuda", "cpu", "adamw", "sgd", "digits", "cifar10", "r/s", "stl10"])
option = st.tuples(st.sampled_from(["T", "tau", "weight", "batch", "lr", "normalize", "K", "naive"]), st.one_of(st.integers(), st.floats(), st.text(max_size=4))).map("@{0[0]}={0[1]}".format)
spelt = st.lists(st.one_of(word, option, st.sampled_from(list("@+,-=. \n\0\ud800(["))), max_size=6).map("".join)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**9, 10**30), st.floats(), st.text(max_size=8), spelt, st.sampled_from(["x" * 5000, "[" * 5000, "kd@T=" + "9" * 400]))
value = st.recursive(plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)), max_leaves=4)


def opened(table):
    "The names in a table notebook down to its parameters, the parameters, and the class that checks them."
    cells = [cell for cell in json.loads((TABLES/f"{table}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    at = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    names = {}
    for source in sources[:at + 1]: exec(source, names)
    asked = sources[at + 1].splitlines()[0]
    return names, [node.target.id for node in ast.parse(sources[at]).body], asked


@pytest.mark.parametrize("table", ASKED)
def test_any_value_is_a_plan_or_a_sentence(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, parameters, asked = opened(table)
    assert len(parameters) >= 15 and ".asked(table, globals())" in asked

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(parameters), value)
    @example("loss", "gram+gram")
    @example("loss", "kd@T=4@T=5")
    @example("seeds", 10**9)
    @example("epochs", 10**30)
    @example("batch", 10**12)
    @example("reports", "a\0b")
    @example("tensorboard", __file__)
    @example("perplexity", 10**400)
    def holds(parameter, given_value):
        namespace = names | SMALL | {parameter: given_value}
        try:
            exec(asked, namespace)
            namespace["p"].banner, namespace["p"].plans
        except InputError as error:
            assert 10 < len(str(error)) <= 300 and "\n" not in str(error)
        assert os.listdir(tmp_path) == []

    holds()


def test_all_tables_are_tried_and_stand_on_the_front_page():
    front = (TABLES.parent/"index.ipynb").read_text(encoding="utf-8")
    assert {*ASKED} == {*re.findall(r"\(tables/(\w+)\.ipynb\)", front)} - {"claims"}


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(value)
def test_any_folder_of_claims_is_a_store_or_a_sentence(folder):
    from kdnb.analysis.ledger import claims_store
    try: claims_store(folder)
    except InputError as error: assert len(str(error)) <= 300 and "\n" not in str(error)
