"Importing kdnb is cheap: what only notebooks, figures, tables or files need is imported where it is used; a wrong word is refused soon."
import inspect
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdnb.data.files import data_sets
from kdnb.engine.metrics import metrics
from kdnb.engine.optimisers import optimisers
from kdnb.registry import InputError, Registry, losses, models
from kdnb.store import keys
from notebooks import TABLES, cells

ABSENT = ["IPython", "platformdirs", "matplotlib", "pandas", "scipy", "sklearn", "torchvision", "pyarrow", "tensorboard", "timm"]
LIGHT = ["kdnb", "kdnb.registry", "kdnb.parameters", "kdnb.engine.progress"]
EXPERIMENTS = ["kdnb.experiments.lee2025", "kdnb.experiments.crd_benchmark", "kdnb.experiments.hakd"]
HEAVY = ["torch", "IPython", "matplotlib", "pandas", "scipy", "sklearn", "torchvision", "pyarrow", "triton", "timm"]
SOUND = ["kdnb.contract", "kdnb.losses.kd", "kdnb.data.files", "kdnb.data.images", "kdnb.data.views", "kdnb.data.corruptions", "kdnb.data.sets.digits"]


def python(code):
    "What a fresh interpreter prints."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_modules_are_imported_where_other_packages_are_absent():
    code = f"""
import importlib, sys
for name in {ABSENT}: sys.modules[name] = None
for name in {LIGHT + SOUND + EXPERIMENTS}:
    try: importlib.import_module(name)
    except ImportError as e: print(name, "needs", str(e).split()[2].rstrip(";"))
"""
    assert python(code) == []


def test_nothing_heavy_is_imported_before_it_is_used():
    loaded = python(f"import sys, {', '.join(LIGHT)}\nprint(len(sys.modules), *[name for name in {['torch', 'numpy', *ABSENT]} if name in sys.modules])")
    assert loaded[1:] == [] and int(loaded[0]) < 200, "modules of Python's own library"
    assert python(f"import sys, {', '.join(SOUND)}\nprint(*[name for name in {ABSENT} if name in sys.modules])") == []


def test_a_loss_and_the_digits_need_no_notebook():
    code = """
import sys
for name in ("IPython", "platformdirs", "matplotlib", "pandas", "torchvision", "pyarrow"): sys.modules[name] = None
from kdnb.data.images import data_names, load_images
from kdnb.engine.progress import Progress, Shown
from kdnb.parameters import check_names, device_name, given, torch_device
from kdnb.registry import losses
check_names()
loss, seeds = "kd", 3
p = given(globals(), ["loss", "seeds"])
assert losses.build(p["loss"]) and device_name(torch_device("auto"))
print(load_images("digits").identity, Shown("**kd**"), *data_names())
"""
    assert python(code)[:3] == ["digits", "1297/0/500", "kd"]


def seconds(code):
    "The processor time of a fresh interpreter, the better of two."
    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return min(once(), once())


def test_an_experiment_is_imported_without_what_trains_draws_or_reports():
    loaded = python(f"import sys, {', '.join(EXPERIMENTS)}\nprint(len(sys.modules), *[name for name in {HEAVY} if name in sys.modules])")
    assert loaded[1:] == [] and int(loaded[0]) < 400, "modules of Python, numpy and Pillow"


def imports_of(name):
    "A table's code as far as its parameters are declared, without the cell that checks them, and the experiment's name."
    own = [c.source for c in cells(name) if c.cell_type == "code"]
    asked = next(i for i, source in enumerate(own) if ".asked(table" in source)
    return "\n".join(own[:asked]), own[asked].partition(" = ")[2].partition(".")[0]


TABLES_ASKED = sorted(p.stem for p in TABLES.glob("*.ipynb") if p.stem != "claims" and not p.stem.startswith("_"))
ALWAYS = [{"loss": "grm"}, {"loss": "kd@Q=2"}, {"loss": "kd@batch=0"}, {"loss": "kd@T"}, {"preset": "quik"}, {"precision": "fp16"}, {"device": "gpu"}, {"optimiser": "adan"},
          {"optimiser": "sgd@momentun=0.5"}, {"optimiser": "sgd@momentum=2"}, {"seeds": 1.5}, {"force": "yes"}, {"weight": -1}, {"reports": ""}, {"data": "cifar11"}]
OWN = {"Lee2025": [{"teacher": "supcn"}, {"loss": "kd", "tau": 0.1}], "CRDBenchmark": [{"pair": "resnet8-resnet9"}, {"protocol": "published"}],
       "HAKD": [{"teacher": "vit"}, {"transformer": "vit_tiny"}, {"tune": "some"}, {"corruption": "ocluded"}, {"part": "val"}]}


@pytest.mark.parametrize("name", ["cifar10_supcon", "ckd_fig7", "hakd_table1"])
def test_a_wrong_word_is_refused_where_pytorch_is_not_even_there(name):
    source, experiment = imports_of(name)
    wrong = ALWAYS + OWN[experiment]
    code = f"""
import sys
for name in {HEAVY}: sys.modules[name] = None
{source}
from kdnb.registry import InputError
for words in {wrong!r}:
    try: {experiment}(table=table, **words)
    except InputError: print("refused")
    except ImportError as e: print(words, e)
try: {experiment}.asked(table, {{"In": ["loss: str = 'all'", "# Parameters\\nlos = 'kd'"]}})
except InputError as e: print("refused" if "Did you mean 'loss'" in str(e) else e)
"""
    assert python(code) == ["refused"] * (len(wrong) + 1)


@pytest.mark.parametrize("name", TABLES_ASKED)
def test_a_table_draws_and_reports_only_after_its_parameters_were_checked(name):
    source, _ = imports_of(name)
    loaded = python(f"{source}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])")
    assert loaded == []


@pytest.mark.parametrize("registry", [losses, models, data_sets, optimisers, metrics, keys], ids=lambda r: r.kind)
def test_what_is_read_of_a_package_is_what_its_modules_register(registry):
    read = Registry(registry.kind, registry.package)
    told = {name: (read.canonical(name), found.options) for name, found in read._search().items()}
    for name in told: registry.get(name)
    own = {name: made for name, made in registry._factories.items() if made.__module__.startswith(registry.package)}
    assert set(told) == set(own) and {name: found for name, (found, _) in told.items() if found != name} == registry._aliases
    for name, (_, options) in told.items():
        given = {p.name: p.default for p in inspect.signature(own[name]).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        assert options is None and registry is models or list(options.items()) == list(given.items()), name


PACKAGE = {"__init__": "from kdnb.registry import Registry\nkites = Registry('kite', __name__)\n", "one": "from . import kites\n@kites.register('one', 'first')\ndef one(size=1): return 'one'\n",
           "loops": "from . import kites\nSIZES = {'a': print, 'b': print}\nfor size in SIZES: kites.register(f'kite_{size}')(lambda: 'kite')\n",
           "late": "from . import kites\nNAMES = [str(i) for i in range(2)]\nfor name in NAMES: kites.register(name)(lambda: 'late')\n", "two": "from . import kites\n"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A package of kites that can be changed before it is imported."
    folder = tmp_path/f"kites_{tmp_path.name}"
    folder.mkdir()
    for name, text in PACKAGE.items(): (folder/f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def kites(package):
    "The registry of the package."
    return __import__(package.name).kites


def test_only_the_module_of_a_name_is_imported(package):
    own = kites(package)
    assert own.names() == ["0", "1", "first", "kite_a", "kite_b", "one"], "modules whose text does not tell are imported"
    assert own.options("first") == {"size": 1} and own.canonical("first") == "one" and own.module("kite_a").endswith(".loops")
    assert {name.rpartition(".")[2] for name in sys.modules if name.startswith(f"{package.name}.")} == {"late"}
    assert own.build("one") == "one" and f"{package.name}.loops" not in sys.modules
    assert own.get("kite_b")() == "kite" and own.get("1")() == "late"


def test_two_modules_that_declare_one_name_are_refused_before_either_is_imported(package):
    (package/"two.py").write_text(PACKAGE["one"])
    with pytest.raises(InputError, match=f"two modules register the kite '(one|first)': {package.name}.one and {package.name}.two"): kites(package).names()


def test_a_name_that_was_registered_elsewhere_by_now_is_refused(package):
    own = kites(package)
    own.register("one")(test_only_the_module_of_a_name_is_imported)
    with pytest.raises(InputError, match="two modules register the kite 'one'"): own.get("one")


def test_a_misspelt_word_is_refused_in_less_than_pytorch_takes_to_start():
    refused = """
from kdnb.experiments.experiment import Table
from kdnb.experiments.lee2025 import Lee2025
from kdnb.registry import InputError
try: Lee2025(table=Table("t", "lee2025", ("table1",), "T", {"gram": "Gram"}), loss="grm")
except InputError: pass
"""
    assert seconds(refused) < seconds("import torch")


FINISHED = """
import sys
from kdnb.experiments.lee2025 import Lee2025
from kdnb.report.example import result_of
{source}
p = Lee2025(table=table, loss="gram", data="digits", epochs=1, seeds=1, device="cpu", reports={reports!r})
for run in {{run.key: run for run in p.runs + [run.teacher for run in p.runs if run.teacher]}}.values():
    p.store.finish(result_of(run.config, 90.0, key=run.key, objective=run.root.objective))
p.banner, p.settings
results = p.train(live=False)
p.report(results)
print("beyond:", *[name for name in {heavy} if name in sys.modules])
"""


def test_a_finished_table_is_shown_without_what_only_training_needs(tmp_path):
    source, _ = imports_of("cifar10_supcon")
    code = FINISHED.format(source=source, reports=str(tmp_path), heavy=["torch._dynamo", "torchvision", "triton", "sklearn", "torch.utils.flop_counter"])
    assert python(code)[-1] == "beyond:"


def test_the_environment_comes_with_byte_code():
    text = (Path(__file__).resolve().parents[1]/"pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["tool"]["uv"]["compile-bytecode"] is True
