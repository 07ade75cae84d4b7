"The benchmark's tables, run as a user runs them at a tiny size, and what their cells are against what the publications say."
import ast
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from kdnb.experiments.crd_benchmark import ASSISTANTS, METHODS, OTHER, SAME, TABLES, parameters, plan, refusal, rows
from kdnb.registry import InputError, losses, models
from kdnb.report.cells import paper_cell, paper_numbers
from notebooks import papermill

TABLES_FOLDER = Path(__file__).resolve().parents[1]/"nbs/tables"
TINY = {"data": "digits", "epochs": "1", "device": "cpu", "reports": "reports", "pair": "resnet14-resnet8"}
ROWS = {"ckd_table1": "kd,ckd,takd", "ckd_table6": "ckd@positives=class,crd", "ckd_table7": "all", "ckd_table8": "kd,ckd", "ckd_fig7": "ckd@tau=0.5,ckd@tau=1",
        "ckd_fig8": "ckd@batch=32,ckd@batch=128", "ckd_fig9": "kd,crd", "dcd_table1": "ab,dcd,crd+kd", "dcd_fig4": "dcd@alpha=0,dcd+kd",
        "dcd_fig5": "dcd@alpha=0.5@weight=1,dcd@alpha=5@weight=1", "supcrd": "supcrd,supcrd_lw@variant=f"}
PAIRS = {"ckd_table1": "resnet56-resnet20"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "A folder in which every table was run, and what papermill said."
    folder = tmp_path_factory.mktemp("tables")
    def run(name): return papermill(folder, name, **TINY | {"loss": ROWS[name], "pair": PAIRS.get(name, TINY["pair"])})
    with ThreadPoolExecutor(min(4, os.cpu_count())) as pool: said = dict(zip(ROWS, pool.map(run, ROWS)))
    return folder, said


def test_every_table_has_its_notebook(): assert set(ROWS) == set(TABLES) and all((TABLES_FOLDER/f"{name}.ipynb").exists() for name in TABLES)


@pytest.mark.parametrize("name", ROWS)
def test_a_table_is_trained_and_reported(executed, name):
    folder, said = executed
    code, output = said[name]
    assert code == 0, output[-3000:]
    report = folder/"reports"/name
    table, text = pd.read_csv(report/"table.csv"), (report/"table.md").read_text()
    specs = list(TABLES[name].rows) if ROWS[name] == "all" else ROWS[name].split(",")
    distilled = table[table.role == "distilled"]
    assert set(distilled.method) == {"+".join(term.split("@")[0] for term in spec.split("+")) for spec in specs}
    for protocol in ("matched", "as-published"):
        assert distilled.section.str.startswith(protocol).sum() == len(specs)
        assert (table[table.section.str.startswith(protocol)].role == "student").sum() == 1
    assert (table.role == "teacher").sum() == 1 and (table["last"] > 0).all() and table.gap.isna().all()
    assert "nothing here compares with the paper" in text and ("RepDistiller" in text)
    nb = nbformat.read(folder/f"{name}.ipynb", 4)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in outputs)


def test_what_was_trained_is_what_the_protocols_say(executed):
    runs = [json.loads(p.read_text())["config"] for p in (executed[0]/"reports/ckd_table1/runs").glob("*.json")]
    ckd = {run["protocol"].split(",")[0]: run["phases"][0] for run in runs if [p["loss"] for p in run["parts"]] == ["ckd"]}
    assert {name: (phase["epochs"], phase["shape"]) for name, phase in ckd.items()} == {"matched": (1, "step"), "as-published": (2, "cosine")}
    takd, = [run for run in runs if [p["loss"] for p in run["parts"]] == ["takd"]]
    assert [takd["net"], takd["teacher"]["net"], takd["teacher"]["teacher"]["net"]] == ["resnet20", "resnet44", "resnet56"]
    assert (pd.read_csv(executed[0]/"reports/ckd_table1/table.csv").role == "assistant").sum() == 1
    table = pd.read_csv(executed[0]/"reports/ckd_table1/table.csv")
    assert set(table[table.method == "ckd"].paper) == {72.12} and set(table[table.role == "teacher"].paper) == {72.34}


def test_a_first_stage_was_trained(executed):
    runs = [json.loads(p.read_text()) for p in (executed[0]/"reports/dcd_table1/runs").glob("resnet8-ab-*.json")]
    assert [[record["phase"] for record in run["history"]] for run in runs] == [["initial", "classify"]]


@pytest.mark.parametrize("name", [*ROWS, "_template"])
def test_a_table_is_short_and_defines_nothing(name):
    cells = nbformat.read(TABLES_FOLDER/f"{name}.ipynb", 4).cells
    assert len(cells) <= 20 and sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    for cell in cells:
        if cell.cell_type == "code": assert not [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


def test_a_wrong_pair_stops_papermill_with_one_sentence(tmp_path):
    code, output = papermill(tmp_path, "ckd_table1", **TINY | {"pair": "resnet56-resnet21"})
    assert code == 1 and "InputError: unknown pair 'resnet56-resnet21'. Did you mean 'resnet56-resnet20'?" in output
    assert not (tmp_path/"reports").exists()


WRONG = [({"pair": "resnet56"}, "unknown pair 'resnet56'"), ({"pair": 3}, "pair=3"), ({"protocol": "matchd"}, "Did you mean 'matched'"), ({"loss": "ckdd"}, "Did you mean 'ckd'"),
         ({"loss": "ckd@tao=1"}, "Did you mean 'tau'"), ({"loss": "ckd@tau=0"}, "tau=0"), ({"loss": "ckd@tau"}, "'ckd@tau' is not made of"), ({"loss": "ckd+"}, "'ckd+' is not made of"),
         ({"loss": "kd@weight=-1"}, "weight=-1"), ({"loss": "kd@batch=0"}, "batch=0"), ({"loss": "takd", "pair": "resnet14-resnet8"}, "takd needs a network between"),
         ({"loss": "fsp", "pair": "vgg13-mobilenet_v2"}, "fsp cannot be run for vgg13-mobilenet_v2"), ({"data": "cifar"}, "cifar10"), ({"preset": "quik"}, "quick"),
         ({"alpha": 0}, "alpha=0"), ({"epochs": 0}, "epochs=0"), ({"precision": "fp16"}, "bf16"), ({"table": "ckd_table9"}, "Did you mean")]


@pytest.mark.parametrize("given,says", WRONG)
def test_a_wrong_value_is_one_sentence_and_touches_nothing(tmp_path, given, says):
    with pytest.raises(InputError) as caught: parameters(**{"table": "ckd_table1", "data": "digits", "reports": str(tmp_path/"reports")} | given)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.json"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    "The runs of a row at the paper's length, by protocol."
    folder = str(tmp_path_factory.mktemp("reports"))
    def runs(spec, pair, table="ckd_table1", **given):
        p = parameters(table, loss=spec, pair=pair, preset="paper", data="digits", seeds=1, device="cpu", reports=folder, **given)
        found = [run for run in plan(p) if run.net == p.pairs[0].student and (run.parts or spec == "")]
        return {name: run for run in found for name in run.protocol.split(", ")[0].split(" and ")}
    return runs


# row, pair, protocol: weights, weight of the cross-entropy, warm-up; epochs, batch, learning rate, shape, Nesterov
PLAIN, SLOW = (240, 64, 0.05, "step", False), (240, 64, 0.01, "step", False)
FACTS = [
    ("kd", SAME[0], "matched", [0.9], 0.1, 0, PLAIN), ("kd", "vgg13-mobilenet_v2", "as-published", [0.9], 0.1, 0, SLOW),
    ("crd", SAME[0], "as-published", [0.8], 1, 0, PLAIN), ("crd+kd", SAME[0], "matched", [0.8, 1], 1, 0, PLAIN), ("dcd", SAME[3], "as-published", [1], 1, 0, PLAIN),
    ("dcd+kd", "wrn_40_2-shufflenet_v1", "matched", [1, 1], 1, 0, SLOW), ("at", SAME[5], "matched", [1000], 1, 0, PLAIN), ("sp", SAME[5], "matched", [3000], 1, 0, PLAIN),
    ("cc", SAME[5], "matched", [0.02], 1, 0, PLAIN), ("pkt", SAME[5], "matched", [30000], 1, 0, PLAIN), ("fitnet", SAME[5], "matched", [100], 1, 0, PLAIN),
    ("rkd", SAME[5], "matched", [1], 1, 0, PLAIN), ("vid", SAME[5], "matched", [1], 1, 0, PLAIN), ("nst", SAME[5], "matched", [50], 1, 0, PLAIN),
    ("ofd", SAME[5], "matched", [1e-3], 1, 0, PLAIN), ("dkd", SAME[0], "as-published", [1], 1, 20, PLAIN), ("wsld", SAME[0], "matched", [2.25], 1, 0, PLAIN),
    ("ckd", "resnet56-resnet20", "as-published", [10], 1, 0, (480, 64, 0.05, "cosine", False)), ("ckd", "resnet110-resnet32", "as-published", [10], 1, 0, (480, 64, 0.05, "cosine", False)),
    ("ckd", "resnet32x4-resnet8x4", "as-published", [100], 1, 0, (480, 64, 0.05, "cosine", False)), ("ckd", "wrn_40_2-wrn_40_1", "as-published", [50], 1, 0, (480, 32, 0.05, "cosine", False)),
    ("ckd", "vgg13-mobilenet_v2", "as-published", [50], 1, 0, (480, 32, 0.01, "cosine", False)), ("ckd", "resnet32x4-shufflenet_v2", "as-published", [100], 1, 0, (480, 64, 0.01, "cosine", False)),
    ("ckd", "resnet32x4-shufflenet_v1", "as-published", [100], 1, 0, (480, 32, 0.01, "cosine", False)), ("ckd", "vgg13-mobilenet_v2", "matched", [50], 1, 0, SLOW),
    ("reviewkd", "resnet56-resnet20", "as-published", [0.6], 1, 20, (240, 128, 0.1, "step", True)), ("reviewkd", "resnet32x4-shufflenet_v2", "as-published", [8], 1, 20, (240, 128, 0.02, "step", True)),
    ("reviewkd", "vgg13-vgg8", "matched", [5], 1, 20, PLAIN), ("ckd@weight=3@batch=256", SAME[0], "as-published", [3], 1, 0, (480, 256, 0.05, "cosine", False)),
    ("gram", SAME[0], "matched", [1], 1, 0, PLAIN),
]


@pytest.mark.parametrize("spec,pair,protocol,weights,gamma,warmup,training", FACTS)
def test_a_row_is_what_its_publication_says(asked, spec, pair, protocol, weights, gamma, warmup, training):
    run = asked(spec, pair)[protocol]
    phase = run.phases[-1]
    assert ([part.alpha for part in run.parts], run.gamma, run.parts[0].warmup) == (weights, gamma, warmup)
    assert (phase.epochs, phase.batch, phase.lr, phase.shape, phase.nesterov) == training and (phase.momentum, phase.weight_decay) == (0.9, 5e-4)


def test_options_per_pair(asked):
    def option(spec, pair, name): return dict(asked(spec, pair)["matched"].parts[0].options)[name]
    assert [option("ckd", pair, "tau") for pair in SAME + OTHER] == [1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1]
    assert [option("dkd", pair, "beta") for pair in SAME + OTHER] == [2, 2, 8, 6, 6, 6, 8, 8, 6, 8, 8]
    assert option("dcd", SAME[0], "alpha") == 0.5 and option("dcd@alpha=0", SAME[0], "alpha") == 0 and option("ckd@tau=0.5", SAME[4], "tau") == 0.5


def test_the_schedule_falls_after_150_180_and_210_epochs(asked):
    phase = asked("kd", SAME[0])["matched"].phases[0]
    rates = [phase.rate((epoch + 0.5) / 240) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])


def test_first_stages_last_30_epochs_at_a_constant_rate(asked):
    first, second = asked("ab", SAME[0])["matched"].phases
    assert (first.kind, first.epochs, first.rate(0.99), second.kind, second.epochs) == ("initial", 30, 0.05, "classify", 240)


def test_what_is_the_same_under_both_protocols_is_one_run(asked):
    kd, ckd = asked("kd", SAME[0]), asked("ckd", SAME[0])
    assert kd["matched"].key == kd["as-published"].key and ckd["matched"].key != ckd["as-published"].key
    assert kd["matched"].teacher.key == ckd["as-published"].teacher.key
    assert asked("ckd", SAME[0], protocol="matched")["matched"].key == ckd["matched"].key


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_every_pair_has_runs_or_a_reason(tmp_path, name):
    p = parameters(name, pair="all", data="digits", seeds=1, device="cpu", reports=str(tmp_path))
    runs = plan(p)
    shape, classes = p.images.shape, len(p.images.classes)
    refused = {(pair.name, spec) for pair in p.pairs for spec in p.losses if refusal(pair, spec, shape, classes)}
    assert all(spec == "fsp" for _, spec in refused), refused
    teachers = [run for run in runs if run.protocol.startswith("teachers") and not run.teacher]
    assert len(teachers) == len({pair.teacher for pair in p.pairs}) and len({run.key for run in runs}) == len(runs)
    distilled = [run for run in runs if run.parts and run.protocol.split(",")[0] != "teachers"]
    assert len(distilled) >= len(p.pairs) * len(p.losses) - len(refused)


def test_every_loss_has_a_plan(tmp_path):
    for loss in losses.names():
        if loss == "pca_gl": continue
        p = parameters("ckd_table1", loss=loss, data="digits", seeds=1, device="cpu", reports=str(tmp_path))
        assert any(run.parts and run.parts[0].loss == loss for run in plan(p)), loss


def test_what_the_data_name_is_registered():
    assert set(METHODS) <= set(losses.names()) and set(ASSISTANTS.values()) <= set(models.names())
    assert {net for table in TABLES.values() for pair in table.pairs for net in pair.split("-")} <= set(models.names())


def test_papers_numbers_reach_their_rows(tmp_path):
    def printed(name):
        p = parameters(name, data="digits", device="cpu", reports=str(tmp_path))
        numbers = paper_numbers(p.table.paper, "cifar100")
        return {(row.teacher, row.student, row.method): value for row in rows(p) if row.item and (value := paper_cell(numbers, row, "ce")["paper"]) == value}
    pairs = {pair: key for pair, key in printed("ckd_table1").items() if all(pair[:2])}
    assert len(pairs) == 11 * 11
    six, triples = printed("ckd_table6"), printed("ckd_table7")
    assert (six["resnet56", "resnet20", "ckd@positives=class"], six["resnet56", "resnet20", "ckd"]) == (69.93, 72.12)
    assert [triples["wrn_40_2", "wrn_16_2", f"ckd@triple={t}"] for t in ("s_t_s", "s_t_t", "t_s_s")] == [75.31, 75.88, 76.28]
    dcd = printed("dcd_table1")
    assert (dcd["wrn_40_2", "wrn_16_2", "dcd"], dcd["wrn_40_2", "wrn_16_2", "crd+kd"], dcd["wrn_40_2", "wrn_16_2", "dcd+kd"]) == tuple(
        paper_numbers("dcd", "cifar100").query("item == 'table1' and teacher == 'wrn_40_2' and student == 'wrn_16_2'").set_index("method").value[["dcd", "crd+kd", "dcd+kd"]])
    assert {spec for *_, spec in printed("ckd_fig7")} == {"ckd@tau=1"} and not printed("dcd_fig5")
