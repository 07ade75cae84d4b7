"The benchmark's tables, run as a user runs them at a tiny size, and what their cells are against what the publications say."
import json
import os
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pandas as pd
import pytest

from kdnb.experiments.crd_benchmark import ASSISTANTS, METHODS, PROTOCOLS, CRDBenchmark
from kdnb.experiments.experiment import paper_numbers, printed
from kdnb.registry import InputError, losses, models
from notebooks import experiment_of, papermill

TINY = {"data": "digits", "epochs": 1, "seeds": 1, "device": "cpu", "reports": "r", "pair": "resnet14-resnet8"}
ROWS = {"ckd_table1": "kd,ckd,takd", "ckd_table6": "ckd@positives=class,crd", "ckd_table7": "all", "ckd_table8": "kd,ckd", "ckd_fig7": "ckd@tau=0.5,ckd@tau=1",
        "ckd_fig8": "ckd@batch=32,ckd@batch=128", "ckd_fig9": "kd,crd", "dcd_table1": "ab,dcd,crd+kd", "dcd_fig4": "dcd@alpha=0,dcd+kd",
        "dcd_fig5": "dcd@alpha=0.5@weight=1,dcd@alpha=5@weight=1", "supcrd": "supcrd,supcrd_lw@variant=f"}
PAIRS = {"ckd_table1": "resnet56-resnet20"}
TABLES = {name: experiment_of(name)[1] for name in ROWS}
TABLE1 = TABLES["ckd_table1"]
SAME, OTHER = TABLE1.pairs[:6], TABLE1.pairs[6:]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "A folder in which every table was run, and what papermill said."
    folder = tmp_path_factory.mktemp("tables")
    def run(name): return papermill(folder, name, **TINY | {"loss": ROWS[name], "pair": PAIRS.get(name, TINY["pair"])})
    with ThreadPoolExecutor(min(4, os.cpu_count())) as pool: said = dict(zip(ROWS, pool.map(run, ROWS)))
    return folder, said


@pytest.mark.parametrize("name", ROWS)
def test_a_table_is_trained_and_reported(executed, name):
    folder, said = executed
    code, output = said[name]
    assert code == 0, output[-3000:]
    table, text = pd.read_csv(folder/"r"/name/"table.csv"), (folder/"r"/name/"table.md").read_text()
    specs = {*(TABLES[name].rows if ROWS[name] == "all" else ROWS[name].split(",")), "kd"}
    for protocol in PROTOCOLS:
        own = table[table.protocol == protocol]
        assert set(own[own.role == "distilled"].row) == specs
        assert (own.role == "student").sum() == (own.role == "teacher").sum() == 1
    assert (table["last"] > 0).all() and "RepDistiller" in text
    nb = nbformat.read(folder/f"{name}.ipynb", 4)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in outputs)


def test_tables_share_their_runs(executed):
    "Teacher, student and kd of one pair were trained once for ten tables."
    runs = [json.loads(p.read_text()) for p in (executed[0]/"r/runs").glob("*.json")]
    alone = [r for r in runs if r["config"]["net"] in ("resnet14", "resnet8") and not r["config"]["terms"]]
    assert len(alone) == 2 and sum(r["row"] == "kd" and r["config"]["net"] == "resnet8" for r in runs) == 1


def test_what_was_trained_is_what_the_protocols_say(executed):
    store = executed[0]/"r"
    runs = {r["key"]: r for r in (json.loads(p.read_text()) for p in (store/"runs").glob("*.json"))}
    plan, = [json.loads(p.read_text()) for p in (store/"plans/ckd_table1").glob("*.json")]
    ckd = {e["protocol"]: runs[e["run"]]["config"]["phases"][0] for e in plan["entries"] if e["row"] == "ckd"}
    assert {name: (phase["epochs"], phase["shape"]) for name, phase in ckd.items()} == {"matched": (1, "step"), "as-published": (2, "cosine")}
    takd = next(runs[e["run"]]["config"] for e in plan["entries"] if e["row"] == "takd")
    assert [takd["net"], takd["teacher"]["net"], takd["teacher"]["teacher"]["net"]] == ["resnet20", "resnet44", "resnet56"]
    table = pd.read_csv(store/"ckd_table1/table.csv")
    assert set(table[table.role == "assistant"].net) == {"resnet44"}


def test_a_first_stage_was_trained(executed):
    runs = [json.loads(p.read_text()) for p in (executed[0]/"r/runs").glob("*.json")]
    assert [[record["phase"] for record in run["history"]] for run in runs if run["row"] == "ab"] == [["initial", "classify"]]


def test_pairs_that_share_a_network_have_all_their_rows(tmp_path):
    code, output = papermill(tmp_path, "ckd_table1", loss="kd", **TINY | {"pair": "resnet20-resnet14,resnet14-resnet8", "protocol": "matched"})
    assert code == 0, output[-3000:]
    table = pd.read_csv(tmp_path/"r/ckd_table1/table.csv")
    for teacher, student in (("resnet20", "resnet14"), ("resnet14", "resnet8")):
        own = table[(table.teacher == teacher) & (table.student == student)]
        assert sorted(own.role) == ["distilled", "student", "teacher"] and own[own.role == "distilled"]["over student alone"].notna().all()
        assert (own[own.role == "teacher"].net.item(), own[own.role == "student"].net.item()) == (teacher, student)
    assert len(list((tmp_path/"r/runs").glob("*.json"))) == 5


def test_a_wrong_pair_stops_papermill_with_one_sentence(tmp_path):
    code, output = papermill(tmp_path, "ckd_table1", **TINY | {"pair": "resnet56-resnet21"})
    assert code == 1 and "InputError: unknown pair 'resnet56-resnet21'. Did you mean 'resnet56-resnet20'?" in output
    assert not (tmp_path/"r").exists()


WRONG = [({"pair": "resnet56"}, "unknown pair 'resnet56'"), ({"pair": 3}, "pair=3"), ({"protocol": "matchd"}, "Did you mean 'matched'"), ({"loss": "ckdd"}, "Did you mean 'ckd'"),
         ({"loss": "ckd@tao=1"}, "Did you mean 'tau'"), ({"loss": "ckd@tau=0"}, "tau=0"), ({"loss": "ckd@tau"}, "'ckd@tau' is not made of"), ({"loss": "ckd+"}, "'ckd+' is not made of"),
         ({"loss": "kd@weight=-1"}, "weight=-1"), ({"loss": "kd@batch=0"}, "batch=0"), ({"loss": "takd", "pair": "resnet14-resnet8"}, "takd needs a network between"),
         ({"loss": "fsp", "pair": "vgg13-mobilenet_v2"}, "fsp cannot be distilled from vgg13 to mobilenet_v2"), ({"data": "cifar"}, "cifar10"), ({"preset": "quik"}, "quick"),
         ({"loss": "kd+kd"}, "one term twice"), ({"loss": "ckd@tau=2+kd+ckd@tau=2"}, "one term twice"), ({"loss": "kd@T=4@T=5"}, "an option of 'kd' twice"),
         ({"batch": 1098}, "batch=1098 is more than the 1097 training images of hidden digits"), ({"loss": "ckd@batch=2000"}, "ckd@batch=2000: 2000 images are more than the 1097 of hidden digits"),
         ({"weight": 0}, "weight=0"), ({"epochs": 0}, "epochs=0"), ({"precision": "fp16"}, "bf16")]


@pytest.mark.parametrize("given,says", WRONG)
def test_a_wrong_value_is_one_sentence_and_touches_nothing(tmp_path, given, says):
    with pytest.raises(InputError) as caught: CRDBenchmark(table=TABLE1, **{"data": "digits", "reports": str(tmp_path/"reports")} | given).plans
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_network_may_teach_itself_and_a_loss_be_there_twice_with_other_options():
    p = CRDBenchmark(table=TABLE1, loss="ckd@tau=1+ckd@tau=2", pair="resnet8-resnet8", protocol="matched", data="digits", seeds=1, device="cpu")
    runs = {entry.role: entry.run for entry in p.plans[0].entries}
    assert runs["teacher"] == runs["student"] and len(p.plans[0].runs) == 3
    assert runs["distilled"].teacher == runs["teacher"] and runs["distilled"].net == runs["teacher"].net == "resnet8"


def asked(spec, pair, **given):
    "The runs of a row at the paper's length, by protocol."
    p = CRDBenchmark(table=TABLE1, loss=spec, pair=pair, preset="paper", data="digits", seeds=1, device="cpu", **given)
    return {entry.protocol: entry.run for entry in p.plans[0].entries if entry.row == spec}


# row, pair, protocol: weights, weight of the cross-entropy, warm-up; epochs, batch, learning rate, shape, optimiser
PLAIN, SLOW = (240, 64, 0.05, "step", "sgd"), (240, 64, 0.01, "step", "sgd")
COSINE = [(480, batch, lr, "cosine", "sgd") for batch, lr in ((64, 0.05), (32, 0.05), (64, 0.01), (32, 0.01))]
FACTS = [
    ("kd", SAME[0], "matched", [0.9], 0.1, 0, PLAIN), ("kd", "vgg13-mobilenet_v2", "as-published", [0.9], 0.1, 0, SLOW),
    ("crd", SAME[0], "as-published", [0.8], 1, 0, PLAIN), ("crd+kd", SAME[0], "matched", [0.8, 1], 1, 0, PLAIN), ("dcd", SAME[3], "as-published", [1], 1, 0, PLAIN),
    ("dcd+kd", "wrn_40_2-shufflenet_v1", "matched", [1, 1], 1, 0, SLOW), ("at", SAME[5], "matched", [1000], 1, 0, PLAIN), ("sp", SAME[5], "matched", [3000], 1, 0, PLAIN),
    ("cc", SAME[5], "matched", [0.02], 1, 0, PLAIN), ("pkt", SAME[5], "matched", [30000], 1, 0, PLAIN), ("fitnet", SAME[5], "matched", [100], 1, 0, PLAIN),
    ("rkd", SAME[5], "matched", [1], 1, 0, PLAIN), ("vid", SAME[5], "matched", [1], 1, 0, PLAIN), ("nst", SAME[5], "matched", [50], 1, 0, PLAIN),
    ("ofd", SAME[5], "matched", [1e-3], 1, 0, PLAIN), ("dkd", SAME[0], "as-published", [1], 1, 20, PLAIN), ("wsld", SAME[0], "matched", [2.25], 1, 0, PLAIN),
    ("ckd", "resnet56-resnet20", "as-published", [10], 1, 0, COSINE[0]), ("ckd", "resnet110-resnet32", "as-published", [10], 1, 0, COSINE[0]),
    ("ckd", "resnet32x4-resnet8x4", "as-published", [100], 1, 0, COSINE[0]), ("ckd", "wrn_40_2-wrn_40_1", "as-published", [50], 1, 0, COSINE[1]),
    ("ckd", "vgg13-mobilenet_v2", "as-published", [50], 1, 0, COSINE[3]), ("ckd", "resnet32x4-shufflenet_v2", "as-published", [100], 1, 0, COSINE[2]),
    ("ckd", "resnet32x4-shufflenet_v1", "as-published", [100], 1, 0, COSINE[3]), ("ckd", "vgg13-mobilenet_v2", "matched", [50], 1, 0, SLOW),
    ("reviewkd", "resnet56-resnet20", "as-published", [0.6], 1, 20, (240, 128, 0.1, "step", "sgd@nesterov=True")),
    ("reviewkd", "resnet32x4-shufflenet_v2", "as-published", [8], 1, 20, (240, 128, 0.02, "step", "sgd@nesterov=True")),
    ("reviewkd", "vgg13-vgg8", "matched", [5], 1, 20, PLAIN), ("ckd@weight=3@batch=256", SAME[0], "as-published", [3], 1, 0, (480, 256, 0.05, "cosine", "sgd")),
    ("gram", SAME[0], "matched", [1], 1, 0, PLAIN),
    ("ckd@as=printed", SAME[0], "matched", [100], 1, 0, PLAIN), ("ckd@as=printed", "wrn_40_2-wrn_40_1", "as-published", [100], 1, 0, (240, 64, 0.05, "cosine", "sgd")),
    ("ckd@as=printed", "resnet32x4-shufflenet_v2", "as-published", [100], 1, 0, (240, 32, 0.01, "cosine", "sgd")),
    ("ckd@as=printed", "vgg13-wrn_16_2", "as-published", [100], 1, 0, (240, 32, 0.01, "cosine", "sgd")),
    ("ckd@as=printed@batch=16@weight=3", "vgg13-vgg8", "as-published", [3], 1, 0, (240, 16, 0.05, "cosine", "sgd")),
    ("ckd@as=printed+kd", "vgg13-mobilenet_v2", "as-published", [100, 1], 1, 0, (240, 32, 0.01, "cosine", "sgd")),
    ("ckd@as=released", "vgg13-mobilenet_v2", "as-published", [50], 1, 0, COSINE[3])]


@pytest.mark.parametrize("spec,pair,protocol,weights,cross_entropy,warmup,training", FACTS)
def test_a_row_is_what_its_publication_says(spec, pair, protocol, weights, cross_entropy, warmup, training):
    run = asked(spec, pair)[protocol]
    phase = run.phases[-1]
    assert ([term.weight for term in run.terms], run.cross_entropy, run.terms[0].warmup) == (weights, cross_entropy, warmup)
    assert (phase.epochs, phase.batch, phase.lr, phase.shape, phase.optimiser) == training and phase.weight_decay == 5e-4


def test_options_per_pair():
    def option(spec, pair, name): return getattr(asked(spec, pair)["matched"].terms[0].build(), name)
    assert [option("ckd", pair, "tau") for pair in SAME + OTHER] == [1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1]
    assert [option("dkd", pair, "beta") for pair in SAME + OTHER] == [2, 2, 8, 6, 6, 6, 8, 8, 6, 8, 8]
    assert option("dcd", SAME[0], "alpha") == 0.5 and option("dcd@alpha=0", SAME[0], "alpha") == 0 and option("ckd@tau=0.5", SAME[4], "tau") == 0.5


def test_as_printed_there_is_one_temperature_and_as_released_it_is_the_same_run():
    def run(spec, pair="vgg13-mobilenet_v2"): return asked(spec, pair)["as-published"]
    assert run("ckd@as=printed").terms[0].build().tau == 1 and run("ckd").terms[0].build().tau == run("ckd@as=released").terms[0].build().tau == 2
    assert run("ckd").key == run("ckd@as=released").key != run("ckd@as=printed").key


def test_the_list_of_choices_says_where_paper_and_code_disagree():
    def said(**given): return {what: value for what, value, _ in CRDBenchmark(table=TABLE1, data="digits", device="cpu", **given).plans[0].settings}
    text = said(pair="all", preset="paper")["ckd, printed and released"]
    for pair, what in {"resnet56-resnet20": "weight 100 / 10", "resnet110-resnet32": "weight 100 / 10", "wrn_40_2-wrn_40_1": "weight 100 / 50, tau 1 / 2, batch 64 / 32",
                       "vgg13-mobilenet_v2": "weight 100 / 50, tau 1 / 2", "resnet32x4-shufflenet_v2": "batch 32 / 64"}.items():
        assert f"{pair}: {what}" in text
    assert "480 epochs" in text and not any(f"{pair}:" in text for pair in ("resnet32x4-resnet8x4", "vgg13-vgg8", "wrn_40_2-shufflenet_v1")), "there they agree"
    assert "agree about these pairs" in said(pair="vgg13-vgg8")["ckd, printed and released"] and "ckd, printed and released" not in said(loss="crd")


@pytest.mark.parametrize("given,says", [({"loss": "ckd@as=written"}, "as='written' is not one of 'released', 'printed'"), ({"loss": "dcd@as=printed"}, "as is for ckd, whose paper and code disagree")])
def test_whose_word_is_taken_is_asked_of_ckd_alone(given, says):
    with pytest.raises(InputError, match=says): CRDBenchmark(table=TABLE1, data="digits", device="cpu", **given).plans


def test_a_sum_takes_each_loss_s_own_options():
    dcd, dkd = asked("dcd+dkd", SAME[2])["matched"].terms
    assert (dcd.build().alpha, dkd.build().alpha, dkd.build().beta) == (0.5, 1.0, 8.0)


def test_the_schedule_falls_after_150_180_and_210_epochs():
    phase = asked("kd", SAME[0])["matched"].phases[0]
    rates = [phase.rate((epoch + 0.5) / 240) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])


def test_first_stages_last_30_epochs_at_a_constant_rate():
    first, second = asked("ab", SAME[0])["matched"].phases
    assert (first.kind, first.epochs, first.rate(0.99), second.kind, second.epochs) == ("initial", 30, 0.05, "classify", 240)


def test_what_is_the_same_under_both_protocols_is_one_run():
    kd, ckd = asked("kd", SAME[0]), asked("ckd", SAME[0])
    assert kd["matched"].key == kd["as-published"].key and ckd["matched"].key != ckd["as-published"].key
    assert kd["matched"].teacher.key == ckd["as-published"].teacher.key
    assert asked("ckd", SAME[0], protocol="matched")["matched"].key == ckd["matched"].key


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_every_pair_has_runs_or_a_reason(name):
    p = CRDBenchmark(table=TABLES[name], pair="all", data="digits", seeds=1, device="cpu")
    pairs = p.pairs_on(p.images)
    refused = {(pair, row.spec) for pair in pairs for row in p.rows if p.refused(row, pair, p.images)}
    assert all(spec in ("fsp", "ckd@batch=2048") for _, spec in refused), refused
    entries = p.plans[0].entries
    assert len({e.run.key for e in entries if e.role == "teacher"}) == len({teacher for teacher, _ in pairs})
    for protocol in PROTOCOLS:
        assert {(e.teacher, e.student, e.row) for e in entries if e.role == "distilled" and e.protocol == protocol} == {
            (*pair, row.spec) for pair in pairs for row in p.rows if (pair, row.spec) not in refused}


def test_every_loss_has_a_plan():
    for loss in losses.names():
        if loss != "pca_gl": assert asked(loss, SAME[0])["matched"].terms[0].loss in (loss, "fitnet"), loss


def test_what_the_data_name_is_registered():
    assert set(METHODS) <= set(losses.names()) and set(ASSISTANTS.values()) <= set(models.names())


def test_papers_numbers_reach_their_rows():
    def numbers(name):
        found = printed(TABLES[name]).dropna(subset=["value"])
        return {(r.teacher, r.student, r.row): r.value for r in found.itertuples()}
    pairs = {key for key in numbers("ckd_table1") if key[2] not in ("teacher", "student")}
    assert len(pairs) == 11 * 11
    six, triples = numbers("ckd_table6"), numbers("ckd_table7")
    assert (six["resnet56", "resnet20", "ckd@positives=class"], six["resnet56", "resnet20", "ckd"], six["resnet56", "resnet20", "teacher"]) == (69.93, 72.12, 72.34)
    assert [triples["wrn_40_2", "wrn_16_2", f"ckd@triple={t}"] for t in ("s_t_s", "s_t_t", "t_s_s")] == [75.31, 75.88, 76.28]
    dcd, pair = numbers("dcd_table1"), ("wrn_40_2", "wrn_16_2")
    own = paper_numbers("dcd", "cifar100", ("table1",)).query("teacher == 'wrn_40_2' and student == 'wrn_16_2'").set_index("method").value
    assert all(dcd[*pair, row] == own[row] for row in ("dcd", "crd+kd", "dcd+kd"))
    assert {row for *_, row in numbers("ckd_fig7")} - {"teacher", "student"} == {"ckd@tau=1"} and not {
        row for *_, row in numbers("dcd_fig5")} - {"teacher", "student"}
