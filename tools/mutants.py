"""Plants faults in the package, one at a time, and writes which of them the tests find: `uv run --with cosmic-ray==8.7.0 python tools/mutants.py`.

Cosmic Ray makes the faults; a fixed seed draws them, evenly over the modules and never two in one place. Each is planted in a copy of
the repository, in the module and in its notebook; then run the tests of TESTS that concern it and, where they find nothing, the notebook. What
survives stands in reports/mutants.md with a reason, which people write into reports/mutants.csv. `--again` runs only what survived before."""
import argparse
import ast
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pandas as pd
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT/"reports"/"mutants.csv"
SLOW = ("compiled_network or few_channels or two_ranks or commit_is or killed_at or split_the_work or out_of_memory_makes or full_disk or "
        "altered_tensor or papermills_log or watched_notebook")  # they start processes of their own
RECORDS = ("tests/engine/test_execute.py", "tests/engine/test_numbers.py", "tests/engine/test_records.py")
TRAINING = ("tests/engine/test_execute.py", "tests/engine/test_numbers.py", "tests/engine/test_training.py", "tests/engine/test_records.py")
TESTS = {
    "kdnb/engine/progress.py": ("tests/engine/test_progress.py",),
    "kdnb/engine/queue.py": ("tests/engine/test_queue.py", *RECORDS),
    "kdnb/engine/execute.py": (*TRAINING, "tests/engine/test_unbreakable.py"),
    "kdnb/engine/provenance.py": RECORDS, "kdnb/engine/run.py": RECORDS, "kdnb/engine/metrics.py": RECORDS,
    "kdnb/engine/learner.py": (*TRAINING, "tests/engine/test_damage.py"), "kdnb/engine/teacher_cache.py": (*TRAINING, "tests/engine/test_damage.py"),
    "kdnb/engine/*.py": TRAINING,
    "kdnb/scores.py": ("tests/test_scores.py",),
    "kdnb/store.py": ("tests/test_store.py", "tests/engine/test_queue.py", "tests/engine/test_records.py", "tests/engine/test_damage.py"),
    "kdnb/data/pickles.py": ("tests/data/test_pickles.py", "tests/data/test_data.py", "tests/data/test_damaged.py"),
    "kdnb/data/corruptions.py": ("tests/data/test_corruptions.py",),
    "kdnb/data/views.py": ("tests/data/test_views.py",),
    "kdnb/data/files.py": ("tests/data/test_files.py", "tests/data/test_data.py", "tests/data/test_images.py"),
    "kdnb/data/*.py": ("tests/data/test_images.py", "tests/data/test_data.py"),
    "kdnb/report/paired.py": ("tests/report/test_report_paired.py", "tests/report/test_report_cells.py"),
    "kdnb/report/cells.py": ("tests/report/test_report_cells.py",),
    "kdnb/report/measures.py": ("tests/report/test_report_measures.py",),
    "kdnb/report/text.py": ("tests/report/test_report_text.py",),
    "kdnb/report/write.py": ("tests/report/test_report_write.py",),
    "kdnb/report/example.py": ("tests/report/test_report_example.py", "tests/report/test_report_cells.py"),
    "kdnb/report/*.py": ("tests/report/test_report_looks.py", "tests/report/test_report_figures.py")}
LEFT_OUT = ("VariableReplacer", "VariableInserter",              # need names to be told
            "ExceptionReplacer",                                 # fails where several exceptions are named
            "_Eq_Is", "NotEq_IsNot", "_Is_Eq", "IsNot_NotEq")    # equality and identity are the same for None, words and small numbers
COLUMNS = ["module", "operator", "place", "line", "was", "became", "outcome", "seconds", "reason"]


def modules():
    "The modules to be tested and the tests of each, by the first pattern that fits."
    found = {}
    for pattern, tests in TESTS.items():
        for path in sorted(ROOT.glob(pattern)):
            if path.name != "__init__.py": found.setdefault(str(path.relative_to(ROOT)), [t for t in tests if (ROOT/t).exists()])
    return found


def places_of_types(source):
    "Where annotations begin and end: a mutant there computes nothing else."
    nodes = [getattr(node, name, None) for node in ast.walk(ast.parse(source)) for name in ("annotation", "returns")]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None]


def candidates(source):
    "All mutants of a source, by place: line, column, operator and the number of its occurrence."
    nodes, types, found = list(ast_nodes(get_ast(source))), places_of_types(source), {}
    for name in operator_names():
        if name.endswith(LEFT_OUT): continue
        positions = [place for node in nodes for place in get_operator(name)().mutation_positions(node)]
        for number, (begin, _) in enumerate(positions):
            if not any(first <= begin <= last for first, last in types): found.setdefault(begin, []).append((name, number))
    return found


def drawn(module, count):
    "So many mutants of a module, in different places, always the same ones."
    source = (ROOT/module).read_text(encoding="utf-8")
    places = candidates(source)
    shuffled = sorted(places, key=lambda begin: random.Random(f"{module} {begin}").random())
    for begin in shuffled[:count]:
        name, number = random.Random(f"{begin} {module}").choice(places[begin])
        code = mutate_code(source, get_operator(name)(), number)
        changed = [(a, b) for a, b in zip(source.splitlines(), code.splitlines()) if a != b] or [("", "")]
        yield {"module": module, "operator": name.removeprefix("core/"), "place": number, "line": begin[0],
               "was": changed[0][0].strip(), "became": changed[0][1].strip()}, code


def cells(source):
    "The cells of an exported module: notebook, id and text of each."
    parts = re.split(r"(?m)^# %% (\S+\.ipynb) #(\S+)\n", source)
    return list(zip(parts[1::3], parts[2::3], (text.strip("\n") for text in parts[3::3])))


class Copy:
    "A copy of the repository, in which mutants are planted."
    def __init__(self, folder):
        self.root, self.now, self.passed = Path(folder), int(time.time()), []  # the tests that passed without a mutant
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True, check=True)
        for name in listed.stdout.splitlines():
            if not (ROOT/name).exists(): continue
            (self.root/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/name, self.root/name)
        subprocess.run("git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -qm copy", cwd=self.root, shell=True, check=True)

    def write(self, name, text):
        "Writes a file, newer than any compiled form of it."
        self.now += 2
        (self.root/name).write_text(text, encoding="utf-8")
        os.utime(self.root/name, (self.now, self.now))

    def plant(self, module, code):
        "Writes a module's code, and its changed cell into the notebook; gives the notebook."
        source = (ROOT/module).read_text(encoding="utf-8")
        before, after = cells(source), cells(code)
        notebook = next((ROOT/module).parent/path for path, _, _ in before).resolve().relative_to(ROOT)
        content = json.loads((ROOT/notebook).read_text(encoding="utf-8"))
        changed = {number: text for (_, number, old), (_, _, text) in zip(before, after) if old != text}
        for cell in content["cells"]:
            if cell["id"] in changed: cell["source"] = ["#| export\n", *changed[cell["id"]].splitlines(True)]
        self.write(module, code)
        self.write(notebook, json.dumps(content))
        return str(notebook)


def tested(*tests):
    "Runs tests; gives pytest's exit status."
    import pytest
    return int(pytest.main(["-x", "-q", "-o", "addopts=", "-p", "no:xdist", "-p", "no:nbval", "-p", "no:cacheprovider", "-k", f"not ({SLOW})", *tests]))


def texts(outputs):
    "What outputs say in words."
    said = [o.get("text", o.get("data", {}).get("text/plain", "")) for o in outputs]
    return ["".join(text) for text in said]


def shown(notebook, expected):
    """Runs a notebook, whose asserts may fail; compares what its cells say with what they said without a mutant, where that is what is
    stored. `expected` is a file, written where it is not there yet."""
    from execnb.shell import CaptureShell
    shell, found = CaptureShell(Path(notebook).parent), {}
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        found[cell["id"]] = texts(shell.run("".join(cell["source"])))
        if shell.exc: return print(shell.exc) or 1
        if not expected.exists() and found[cell["id"]] != texts(cell["outputs"]): del found[cell["id"]]
    if not expected.exists(): expected.write_text(json.dumps(found))
    return int(any(found[number] != said for number, said in json.loads(expected.read_text()).items()))


def child(root, seconds, log, work, arguments):
    "Does work in this process, which is a fork that has torch already, in a copy; its exit status is the work's."
    os.setsid()
    os.chdir(root)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = str(root)
    os.environ["KDNB_REPORTS"], os.environ["KDNB_CACHE"] = f"{root}/.reports", f"{root}/.cache"
    try: code = work(*arguments)
    except BaseException: code = traceback.print_exc() or 1
    sys.stdout.flush()
    os._exit(code)


def finds(copy, seconds, work, *arguments):
    """Whether work fails in the copy: "killed", "timeout" or "survived"; so many seconds of the processor are allowed, which other
    processes do not shorten, and twenty times as many of the clock."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(copy.root, seconds, copy.root/".log", work, arguments))
    process.start()
    process.join(20 * seconds)
    if process.is_alive(): os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL): return "timeout"
    return "killed" if process.exitcode else "survived"


def outcome(copy, module, code, tests, seconds):
    "What becomes of a mutant, and who found it; the notebook is first run without one."
    notebook, source = copy.plant(module, code), (ROOT/module).read_text(encoding="utf-8")
    found = finds(copy, seconds, tested, *tests) if tests else "survived"
    if found != "survived": return found
    expected = copy.root/f".{Path(notebook).stem}.json"
    if not expected.exists():
        copy.plant(module, source)
        if finds(copy, 4 * seconds, shown, notebook, expected) != "survived":
            print(f"{notebook} fails or takes long without a mutant: it is left out", flush=True)
            expected.write_text("")
        copy.plant(module, code)
    if not expected.read_text(): return found
    said = finds(copy, 4 * seconds, shown, notebook, expected)
    return "killed by its notebook" if said == "killed" else said


def percent(part, whole): return f"{100 * part / whole:.1f} %" if whole else "-"


def report(table):
    "The table for people."
    alive = table.outcome.eq("survived")
    text = ["# Faults planted in the package", "", f"{len(table)} faults were planted, one at a time; the tests found {(~alive).sum()} "
            f"({percent((~alive).sum(), len(table))}). What a module's notebook found was not found by the tests before it. "
            "A fault with which the tests take more than the processor's time allowed counts as found. Made by `uv run --with cosmic-ray==8.7.0 python tools/mutants.py`.", "",
            "| module | faults | found by tests | by the notebook | by time | survived |", "|---|---|---|---|---|---|"]
    for module, own in table.groupby("module"):
        counts = [own.outcome.eq(kind).sum() for kind in ("killed", "killed by its notebook", "timeout", "survived")]
        text.append(f"| {module} | {len(own)} | " + " | ".join(map(str, counts)) + " |")
    waiting = [module for module in modules() if module not in set(table.module)]
    if waiting: text += ["", f"Not tried yet: {', '.join(waiting)}."]
    text += ["", "## Survivors", "", "| module | line | was | became | why it survives |", "|---|---|---|---|---|"]
    def code(words): return "`" + str(words).replace("|", "\\|") + "`"
    for row in table[alive].itertuples():
        text.append(f"| {row.module} | {row.line} | {code(row.was)} | {code(row.became)} | {row.reason or 'not explained yet'} |")
    return "\n".join(text) + "\n"


def known(path=TABLE):
    "The table of an earlier call, if any."
    return pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame(columns=COLUMNS)


def write(rows):
    "Writes both tables."
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values(["module", "line", "operator", "place"], kind="stable")
    table.to_csv(TABLE, index=False, lineterminator="\n")
    TABLE.with_suffix(".md").write_text(report(table), encoding="utf-8")


def identity(row): return tuple(str(row[name]) for name in ("module", "operator", "place", "was", "became"))


def main():
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--each", type=int, default=12, help="mutants of each module")
    ask.add_argument("--only", default="", help="modules whose path has this text")
    ask.add_argument("--again", action="store_true", help="run only what survived; the rest stands as it is")
    ask.add_argument("--limit", type=int, default=30, help="seconds of the processor for the tests of a mutant, and for its notebook")
    asked, table, failed = ask.parse_args(), {identity(row): row for row in known().to_dict("records")}, []
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    import matplotlib.pyplot, pyarrow.parquet, pytest, scipy.stats, sklearn.manifold, tensorboard, torch, torchvision  # noqa: F401 - before the forks
    torch.set_num_threads(1)
    del os.environ["MPLBACKEND"]  # notebooks have their own
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(folder)
        for module, tests in modules().items():
            if asked.only in module and not tries(copy, module, tests, asked, table): failed.append(module)
    write(table.values())
    print(pd.DataFrame(table.values()).outcome.value_counts())
    if failed: sys.exit(f"not run: {', '.join(failed)}")


def tries(copy, module, tests, asked, table):
    "Tries the mutants of a module and puts what becomes of them into the table; False where its tests fail without one."
    mutants, source = [(row, code, identity(row)) for row, code in drawn(module, asked.each)], (ROOT/module).read_text(encoding="utf-8")
    for key in [key for key in table if key[0] == module and key not in {key for *_, key in mutants}]: del table[key]
    todo = [mutant for mutant in mutants if not (asked.again and table.get(mutant[2], {}).get("outcome", "survived") != "survived")]
    if todo and tests and tests not in copy.passed and finds(copy, 4 * asked.limit, tested, *tests) != "survived":
        print(f"{module}: its tests fail without a mutant:\n{(copy.root/'.log').read_text()[-3000:]}", flush=True)
        return False
    copy.passed.append(tests)
    for row, code, key in todo:
        start = time.monotonic()
        row |= {"outcome": outcome(copy, module, code, tests, asked.limit), "reason": table.get(key, {}).get("reason", "")}
        row["seconds"] = round(time.monotonic() - start, 1)
        print(f"{row['outcome']}, {row['seconds']} s: {module}:{row['line']} {row['was']}  ->  {row['became']}", flush=True)
        table[key] = row
        write(table.values())
    copy.plant(module, source)
    return True


if __name__ == "__main__": main()
