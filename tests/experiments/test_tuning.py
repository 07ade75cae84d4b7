"Weights are tuned on validation images with seeds that no table reports, a grid whose edge wins is extended, and tables of the same setting, and of no other, use what was found."
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdnb.experiments.experiment as experiment
from kdnb.data.images import load_images
from kdnb.experiments.crd_benchmark import CRDBenchmark
from kdnb.experiments.hakd import HAKD
from kdnb.experiments.lee2025 import Lee2025
from kdnb.experiments.tuned import FOLDER, Setting, Tuned, read_tuned, tuned_csv
from kdnb.experiments.tuning import Sweep, SweptLee2025, Tuning, best_step, is_bracketed, next_steps, tuned_rows, untied, validated, weight_at
from kdnb.parameters import MOST
from kdnb.publish import publish
from kdnb.registry import InputError
from kdnb.store import Store
from notebooks import experiment_of, papermill

TABLE, LEE = experiment_of("weights")[1], experiment_of("cifar10_supcon")[1]
DIGITS = load_images("digits")
ROW = Tuned("mse", "ce", 0.5, "", 40.0, True, 1, "1097/200", "0.17: 30.00; 0.5: 40.00; 1.5: 20.00")


def tuning(folder, **given): return Tuning(table=TABLE, **{"data": "digits", "device": "cpu", "reports": str(folder), "teacher": "ce", "loss": "mse", "epochs": 1} | given)


def lee(folder, **given): return Lee2025(table=LEE, **{"data": "digits", "device": "cpu", "reports": str(folder), "teacher": "ce", "loss": "mse", "epochs": 1, "seeds": 1} | given)


def write(folder, p, *rows):
    "Puts a file of tuned weights for a table's setting into a folder of reports."
    setting = p.setting(p.pairs_on(p.images)[0], p.images)
    path = folder/FOLDER/f"{setting.name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tuned_csv(setting, rows))
    return path


def weights(p, protocol=None): return {e.row: e.run.terms[0].weight for e in p.plans[0].entries if e.role == "distilled" and protocol in (None, e.protocol)}


# ---- the grid

def climbed(accuracy, most=99):
    tried = {}
    while steps := next_steps(tried, most): tried |= {step: accuracy(step) for step in steps}
    return tried


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(-20, 20), st.floats(0.1, 5), st.floats(0.1, 5))
def test_a_single_hill_is_climbed_to_its_top_and_bracketed(top, left, right):
    tried = climbed(lambda step: -left * (top - step) if step < top else -right * (step - top))
    assert best_step(tried) == top and is_bracketed(tried) and {top - 1, top, top + 1} <= set(tried)
    assert set(tried) == set(range(min(-1, top - 1), max(1, top + 1) + 1)), "nothing is tried that need not be"


def test_an_edge_that_wins_is_extended_until_enough_was_tried():
    assert sorted(climbed(lambda step: step, 6)) == [-1, 0, 1, 2, 3, 4] and not is_bracketed(climbed(lambda step: step, 6))
    assert sorted(climbed(lambda step: -step, 4)) == [-2, -1, 0, 1]
    lost = climbed(lambda step: -math.inf if step > -3 else float(step), 9)
    assert best_step(lost) == -3 and is_bracketed(lost), "what diverged is worse than anything, so smaller weights are tried"
    assert not is_bracketed(climbed(lambda step: -math.inf, 5)) and len(climbed(lambda step: -math.inf, 5)) == 5


def test_of_equal_accuracies_the_one_next_to_the_centre_is_taken():
    assert best_step({-1: 1.0, 0: 1.0, 1: 1.0}) == 0 and best_step({-1: 2.0, 0: 1.0, 1: 2.0}) == -1
    assert [weight_at(0.3, step) for step in (-1, 0, 1)] == [0.1, 0.3, 0.9] and weight_at(30000, 1) == 90000


def test_what_diverged_everywhere_has_no_weight():
    lost, some = (Sweep("mse", "mse", "", objective, 1.0, tried) for objective, tried in (("ce", {0: -math.inf}), ("supcon", {-1: 1.0, 0: 2.0, 1: -math.inf})))
    found, = tuned_rows([lost, some], 1, "")
    assert (found.objective, found.weight, found.bracketed) == ("supcon", 1.0, True) and "-inf" in found.tried


def test_the_accuracy_is_that_of_validation_at_the_last_epoch():
    history = [{"val": {"top1": 90.0}, "test": {"top1": 1.0}}, {"val": {"top1": 40.0}, "test": {"top1": 99.0}}]
    assert validated({"outcome": "finished", "history": history}) == 40.0 and validated({"outcome": "NaN at epoch 2", "history": history[:1]}) == -math.inf


# ---- what is run

@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    "A folder in which weights were tuned as a user does, twice, and what was said."
    folder = tmp_path_factory.mktemp("tuned")
    asked = {"data": "digits", "device": "cpu", "reports": "r", "loss": "mse,norm,cosine", "epochs": 2, "most": 4, "temperatures": "1,4"}
    said = [papermill(folder, "weights", "--log-output", **asked) for _ in range(2)]
    assert [code for code, _ in said] == [0, 0], said[0][1][-3000:]
    return folder, [output for _, output in said]


def test_no_seed_of_a_sweep_can_be_reported(tuned):
    runs = [json.loads(path.read_text()) for path in (tuned[0]/"r/runs").glob("*.json")]
    assert {run["config"]["seed"] for run in runs} == {MOST["seeds"]}
    with pytest.raises(InputError, match="1,000 is the most"): lee(tuned[0], seeds=MOST["seeds"] + 1)
    assert max(lee(tuned[0], seeds=MOST["seeds"]).all_seeds) < MOST["seeds"]
    assert not any(run["role"] == "student" for run in runs), "students alone teach nothing about weights"


def test_a_sweep_goes_on_where_it_was(tuned):
    first, second = tuned[1]
    assert "runs were trained now; 0 were found" in first and "0 runs were trained now" in second and "run 1 of" not in second


def test_the_file_says_what_was_tried_and_the_report_has_it(tuned):
    p = Tuning(table=TABLE, data="digits", device="cpu", reports=str(tuned[0]/"r"), epochs=2, loss="mse")
    path = tuned[0]/"r"/FOLDER/"lee2025-quick-epochs-2-hidden-digits-resnet8-resnet8_w4.csv"
    rows = {(row.row, row.objective): row for row in read_tuned(path, p.first.setting(p.pair_used, p.images))}
    assert set(rows) == {(row, objective) for row in ("mse", "norm", "cosine", "kd") for objective in ("ce", "supcon")}
    for row in rows.values():
        tried = [tuple(map(float, pair.split(": ")[-2:])) for pair in row.tried.replace(" | ", "; ").split("; ")]
        times = 2 if row.row == "cosine" else 1
        assert row.accuracy == max(accuracy for _, accuracy in tried) and (pytest.approx(row.weight / times), row.accuracy) in tried and 3 <= len(tried) <= 8
        assert row.options.startswith("T=") == (row.row == "kd") and row.images == "1097/200" and row.seeds == 1
    for objective in ("ce", "supcon"):
        norm, cosine = rows["norm", objective], rows["cosine", objective]
        assert cosine.weight == 2 * norm.weight and cosine.accuracy == norm.accuracy, "one loss at weights of 1 and 2 is a placebo"
    text = (tuned[0]/"r"/FOLDER/"table.md").read_text()
    assert "resnet8 → resnet8" in text and path.name.replace("_", "\\_") in text.replace("_", "\\_") and "## Settings" in text and "1 seed from 1000 on" in text


def test_a_table_of_this_setting_uses_the_weights_and_says_so(tuned):
    p, other = (lee(tuned[0]/"r", epochs=epochs, loss="mse,cosine,kd", teacher="both") for epochs in (2, 3))
    rows = {(row, objective): one.weight for (row, objective), one in p.tuned(p.pairs_on(p.images)[0], p.images).items()}
    used = {(e.row, e.run.root.objective): e.run.terms[0] for e in p.plans[0].entries if e.role == "distilled"}
    assert {where: term.weight for where, term in used.items()} == {where: rows[where] for where in used}
    assert all(dict(used["kd", objective].options).get("T", 4.0) == p.tuned(p.pairs_on(p.images)[0], p.images)["kd", objective].given["T"] for objective in ("ce", "supcon"))
    said = {what: (value, source) for what, value, source in p.plans[0].settings}["weights, resnet8 → resnet8_w4"]
    assert "mse" in said[0] and "from SupCon" in said[0] and "validation images" in said[1] and "lee2025-quick-epochs-2" in said[1]
    assert not p.untuned(p.images) and not other.tuned(other.pairs_on(other.images)[0], other.images) and "not for this setting" in other.untuned(other.images)
    assert weights(other)["mse"] == 0.1


def test_what_is_published_holds_no_networks(tuned, tmp_path):
    made = publish(FOLDER, Store(tuned[0]/"r"), tmp_path)
    assert {path.suffix for path in made} == {".json", ".csv", ".md"} and tmp_path/FOLDER/"lee2025-quick-epochs-2-hidden-digits-resnet8-resnet8_w4.csv" in made


def test_test_images_have_no_part_in_it(tmp_path, monkeypatch):
    found = []
    for labels in (DIGITS.test_y, (DIGITS.test_y + 1) % 10):
        monkeypatch.setattr(experiment, "load_images", lambda *_: replace(DIGITS, test_y=labels))
        p = tuning(tmp_path/str(len(found)), most=3)
        found.append(p.rows_found(p.train(live=False)))
    assert found[0] == found[1] and {row.row for row in found[0]} == {"mse", "kd"}


def test_what_was_found_before_for_other_rows_stays(tmp_path):
    p = tuning(tmp_path)
    path = write(tmp_path, lee(tmp_path), replace(ROW, row="gram"), replace(ROW, weight=7.0))
    p.write(p.first.setting(p.pair_used, p.images), [ROW])
    assert [(row.row, row.weight) for row in read_tuned(path, lee(tmp_path).setting(p.pair_used, p.images))] == [("gram", 0.5), ("mse", 0.5)]


def test_the_benchmark_is_tuned_under_the_matched_protocol_alone(tmp_path):
    p = tuning(tmp_path, experiment="crd", loss="ckd,crd+kd", pair="resnet56-resnet20")
    assert {(sweep.spec, sweep.objective, sweep.centre) for sweep in p.sweeps} == {("ckd", "ce", 10.0), ("crd+kd", "ce", 0.8), ("kd", "ce", 0.9)}
    assert set(p.sweeps[1].asked(9)) == {"crd@weight=0.27+kd", "crd@weight=0.8+kd", "crd@weight=2.4+kd"}
    assert {entry.protocol for entry in p.plans[0].entries} == {"matched"} and p.first.setting(p.pair_used, p.images).experiment == "crd"


# ---- what tables do with it

def test_what_is_printed_is_not_tuned(tmp_path):
    write(tmp_path, crd(tmp_path), replace(ROW, row="ckd", weight=5.0))
    assert weights(crd(tmp_path, loss="ckd,ckd@as=printed"), "matched") == {"ckd": 5, "ckd@as=printed": 100, "kd": 0.9}


def crd(folder, **given):
    return CRDBenchmark(table=experiment_of("ckd_table1")[1], **{"data": "digits", "device": "cpu", "reports": str(folder), "loss": "ckd,crd,crd+kd,ckd@tau=0.5", "seeds": 1} | given)


def test_tuned_weights_are_the_matched_protocol_s(tmp_path):
    before = crd(tmp_path)
    assert weights(before, "matched") == weights(before, "as-published") == {"ckd": 100, "crd": 0.8, "crd+kd": 0.8, "ckd@tau=0.5": 100, "kd": 0.9}
    assert "CRD benchmark (CIFAR-100, 240 epochs) and not for this setting" in before.untuned(before.images)
    write(tmp_path, before, replace(ROW, row="ckd", weight=5.0), replace(ROW, row="crd+kd", weight=6.0), replace(ROW, row="crd", objective="supcon", weight=7.0))
    p = crd(tmp_path)
    assert weights(p, "as-published") == weights(before, "matched")
    assert weights(p, "matched") == {"ckd": 5, "crd": 0.8, "crd+kd": 6, "ckd@tau=0.5": 5, "kd": 0.9}
    said = p.untuned(p.images)
    assert "crd, matched" in said and "ckd, as-published" in said and "ckd, matched" not in said


def test_who_names_a_weight_has_it(tmp_path):
    write(tmp_path, lee(tmp_path), ROW)
    assert weights(lee(tmp_path))["mse"] == 0.5 and weights(lee(tmp_path, weight=3.0))["mse"] == 3.0
    p = lee(tmp_path, loss="mse@weight=2,kd@weight=1")
    assert weights(p)["mse@weight=2"] == 2 and p.untuned(p.images) == "The weights of kd were tuned for resnet8 → resnet8_w4 on hidden digits (lee2025, quick) and not for this setting."
    assert lee(tmp_path, weight=3.0).untuned(p.images) == ""


def test_options_that_were_tuned_give_way_to_those_that_are_asked_for(tmp_path):
    write(tmp_path, lee(tmp_path), replace(ROW, row="kd", options="T=8.0", weight=2.0))
    def options(row): return next(dict(e.run.terms[0].options) for e in lee(tmp_path, loss=row).plans[0].entries if e.row == row)
    assert options("kd") == {"T": 8.0} and options("kd@T=3") == {"T": 3}


def test_held_out_images_teachers_and_seeds_leave_a_setting_as_it_is(tmp_path):
    def name(**given):
        p = lee(tmp_path, **given)
        return p.setting(p.pairs_on(p.images)[0], p.images).name
    assert {name(**one) for one in ({}, {"validation": 0}, {"teachers": 1}, {"seeds": 3}, {"evaluations": 1}, {"weight": 2.0}, {"loss": "gram"}, {"size": 8})} == {name()}
    others = [{"epochs": 2}, {"lr": 0.2}, {"weight_decay": 0}, {"optimiser": "adamw"}, {"batch": 32}, {"preset": "fast"}, {"pair": "resnet20-resnet8"}, {"loss": "supcon", "tau": 0.5}]
    assert len({name(**one) for one in [{}, *others]}) == len(others) + 1
    long = Setting("lee2025", "fast", "optimiser " + "a" * 300, "x", "a", "b")
    assert len(long.name) < 130 and long.name != replace(long, student="c").name


def test_a_table_says_in_its_first_lines_that_no_weight_was_tuned_for_it(tmp_path):
    p = lee(tmp_path, pair="resnet14-resnet8")
    assert "tuned for resnet8 → resnet8_w4 on hidden digits" in p.banner.plain.splitlines()[0]
    p.report(p.train(live=False))
    assert "not for this setting" in (tmp_path/"cifar10_supcon/table.md").read_text().splitlines()[2]
    assert lee(tmp_path, epochs=None).untuned(p.images) == "", "the recipe's own setting"
    hakd = HAKD(table=experiment_of("hakd_table1")[1], data="digits", device="cpu", corruption="none")
    assert hakd.untuned(hakd.images).endswith("not for this setting, or not at all.")
    supcrd = CRDBenchmark(table=experiment_of("supcrd")[1], loss="supcrd", data="digits", device="cpu")
    assert supcrd.untuned(supcrd.images).endswith("not for this setting, or not at all.")


def test_at_the_benchmark_s_own_setting_its_weights_are_tuned(monkeypatch):
    monkeypatch.setattr(experiment, "load_images", lambda *_: replace(DIGITS, name="cifar100", note=""))
    def said(**given):
        p = crd("r", **{"data": "auto", "preset": "paper"} | given)
        return p.untuned(p.images)
    assert said() == "" == said(pair="resnet56-resnet20", validation=0, teachers=1, protocol="as-published")
    assert "not for this setting" in said(epochs=20) and "not for this setting" in said(pair="resnet20-resnet8") and "not for this setting" in said(preset="fast")


@pytest.mark.parametrize("spoil", [lambda text: text.replace("0.5,", "much,", 1), lambda text: text.replace("0.5,", "-1,", 1), lambda text: text.replace("hidden", "other"), lambda text: text.split(",", 1)[1],
                                   lambda text: text.replace("setting,row", "row,setting"), lambda text: text + "\n\"", lambda text: "\0" + text])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, spoil):
    path = write(tmp_path, lee(tmp_path), ROW)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError) as caught: lee(tmp_path).plans
    assert path.name in str(caught.value) and "\n" not in str(caught.value) and "tune them again" in str(caught.value)


def test_a_user_s_own_file_goes_before_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    write(tmp_path/"reports", lee(tmp_path/"own"), replace(ROW, weight=3.0))
    assert weights(lee(tmp_path/"own"))["mse"] == 3.0
    write(tmp_path/"own", lee(tmp_path/"own"), replace(ROW, weight=4.0))
    assert weights(lee(tmp_path/"own"))["mse"] == 4.0


def test_networks_of_lee2025_may_be_others(tmp_path):
    p = lee(tmp_path, pair="resnet20-resnet8", teacher="both", loss="mse")
    assert {(e.role, e.run.net) for e in p.plans[0].entries} == {("teacher", "resnet20"), ("student", "resnet8"), ("distilled", "resnet8")}
    with pytest.raises(InputError, match="takd needs a network between resnet20 and resnet8"): lee(tmp_path, pair="resnet20-resnet8", loss="takd").plans
    for wrong in ("all", "resnet20", "resnet20-resnet9", "resnet20-resnet8,resnet20-resnet14", 3):
        with pytest.raises(InputError, match="pair"): lee(tmp_path, pair=wrong)


@pytest.mark.parametrize("given,says", [
    ({"experiment": "hakd"}, "unknown experiment 'hakd'"), ({"teacher": "cnn"}, "unknown teacher"), ({"validation": 0}, "validation=0 leaves no images"), ({"most": 2}, "most=2"),
    ({"loss": "kd@weight=2"}, "has a weight of its own"), ({"temperatures": "0"}, "temperatures=0"), ({"temperatures": "hot"}, "temperatures='hot'"), ({"pair": "a-b,c-d"}, "pair='a-b,c-d' is several words"),
    ({"loss": "pca_gl,pca_gl@part=gl"}, "transformer"), ({"experiment": "crd", "pair": "resnet20"}, "unknown pair"), ({"seeds": 0}, "seeds=0"), ({"size": 16}, "size=16")])
def test_a_wrong_value_is_one_sentence(tmp_path, given, says):
    with pytest.raises(InputError) as caught: tuning(tmp_path/"r", **given).train()
    assert says in str(caught.value) and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_the_one_teacher_of_a_table_teaches_its_sweep_and_is_named():
    asked = {"table": experiment_of("weights")[1], "data": "digits", "device": "cpu", "loss": "mse", "teacher": "ce", "seeds": 2, "teachers": 1}
    swept, table = SweptLee2025(**asked), Lee2025(**asked)
    taught = {run.root for run in swept.runs if run.terms}
    assert taught == {run.root for run in table.runs if run.terms} and {run.seed for run in taught} == {0}
    assert not {run.seed for run in swept.runs if run.terms} & {run.seed for run in table.runs if run.terms}
    for p in (swept, table): assert "from the teacher of seed 0, as all do" in str(p.plans[0].settings)
