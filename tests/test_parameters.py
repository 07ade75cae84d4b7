"A notebook's parameters are handed on by name; what papermill was given in vain, and numbers beyond reason, are refused in one sentence."
import os
import subprocess
import sys

import nbformat
import pytest

from kdnb.parameters import assigned, check_names, counted, declared, given, injected, typed, words
from kdnb.registry import InputError

CELL = "loss: str = 'all'  # one loss, several, or all\nseeds: int = None  # number of seeds"
INJECTED = "# Parameters\nloss = \"gram\"\n"


def test_names_of_cells():
    assert assigned("a = 1\nb: int = 2\nc, d = 3, 4\ne.f = 5\nfor g in (): pass") == ["a", "b"]
    assert injected(["", "x = 1"]) == [] and injected(["", CELL, INJECTED, "# Parameters\nseeds = 1\n"]) == ["seeds"]
    assert [typed(source) for source in (CELL, "", "x = 1", "x: int", "%time", "# only a comment", "x: int = 1; y = 2")] == [True] + [False] * 6


@pytest.mark.parametrize("history,names", [
    (["", "import os", CELL, "x = 1"], ["loss", "seeds"]),
    (["", CELL, INJECTED], ["loss", "seeds"]),
    (["", "a = 1\nb = 2", INJECTED, CELL], ["a", "b"]),  # an injected cell says for certain where the parameters are
    (["", CELL, "loss: str = 'all'\nside: int = 8"], ["loss", "side"]),
    (["", "x = 1"], [])])
def test_the_parameters_cell_is_found(history, names): assert declared(history) == names


def test_given_hands_on_what_is_there():
    namespace = {"In": ["", CELL], "loss": "kd", "seeds": 3, "other": 1}
    assert given(namespace) == {"loss": "kd", "seeds": 3}
    assert given(namespace, ("loss", "device")) == {"loss": "kd"}
    assert given({"loss": "kd", "other": 1}, ["loss"]) == {"loss": "kd"}, "a script has no history"
    with pytest.raises(InputError, match="no parameters cell"): given({"loss": "kd"})


def test_an_unknown_parameter_is_refused_with_the_nearest_one():
    history = ["", CELL, "# Parameters\nlosss = \"gram\"\n"]
    for call in (lambda: given({"In": history}), lambda: check_names(["loss", "seeds"], history)):
        with pytest.raises(InputError, match="unknown parameter 'losss'. Did you mean 'loss'\\? Known: loss, seeds.$"): call()
    check_names()  # no kernel: nothing was injected


@pytest.mark.parametrize("arguments,says", [((), "{'loss': 'all', 'seeds': None}"), (("-p", "seeds", "3"), "{'loss': 'all', 'seeds': 3}"),
                                            (("-p", "sedes", "3"), "unknown parameter 'sedes'. Did you mean 'seeds'?")])
def test_papermill_and_given(tmp_path, arguments, says):
    cells = [nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("from kdnb.parameters import given\nprint(given(globals()))")]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, tmp_path/"in.ipynb")
    done = subprocess.run([sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--log-output", "--no-progress-bar", "--start-timeout", "600", *arguments],
                          cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=600)
    assert says in done.stderr and (done.returncode == 0) == (says[0] == "{")


@pytest.mark.parametrize("name,value,says", [
    ("seeds", 10**9, "seeds=1000000000 is too large: 1,000 is the most"),
    ("epochs", 10**30, "epochs=1000000000000000000000000000000 is too large: 100,000 is the most"),
    ("batch", 10**12, "batch=1000000000000 is too large: 1,000,000 is the most"),
    ("batch", 0, "batch=0 is not a whole number of at least 1"),
    ("seeds", 2.0, "seeds=2.0 is not a whole number"), ("seeds", True, "seeds=True"), ("seeds", "3", "seeds='3'")])
def test_numbers_beyond_reason_are_refused(name, value, says):
    with pytest.raises(InputError, match=says): counted(name, value)


def test_a_number_of_thousands_of_digits_is_refused_too():
    with pytest.raises(InputError, match="epochs=a number of thousands of digits is too large"): counted("epochs", 10**6000)


def test_numbers_within_reason_are_kept():
    assert [counted("seeds", 1000), counted("epochs", 240), counted("side", 10**6), counted("side", 0, least=0), counted("seeds", 5, most=5)] == [1000, 240, 10**6, 0, 5]
    with pytest.raises(InputError, match="4 is the most"): counted("seeds", 5, most=4)


def test_words_are_kept_in_order_and_once(): assert words("loss", " kd, gram,kd ") == ["kd", "gram"]
