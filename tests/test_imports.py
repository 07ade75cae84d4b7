"Importing kdnb is cheap: what only notebooks, figures, tables or files need is imported where it is used; a wrong word is refused soon."
import resource
import subprocess
import sys

ABSENT = ["IPython", "platformdirs", "matplotlib", "pandas", "scipy", "sklearn", "torchvision", "pyarrow", "tensorboard", "timm"]
LIGHT = ["kdnb", "kdnb.registry", "kdnb.parameters", "kdnb.engine.progress"]
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
for name in {LIGHT + SOUND}:
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


def test_a_misspelt_word_is_refused_in_little_more_than_the_packages_take():
    refused = """
from kdnb.experiments.experiment import Table
from kdnb.experiments.lee2025 import Lee2025
from kdnb.registry import InputError
try: Lee2025(table=Table("t", "lee2025", ("table1",), "T", {"gram": "Gram"}), loss="grm")
except InputError: pass
"""
    assert seconds(refused) < 1.5 * seconds("import torch, torchvision, pandas, matplotlib.pyplot, scipy.stats")
