"The figures and tables that look inside networks, run as a user runs them at a tiny size, and their numbers computed a second time."
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from papermill import inspect_notebook
from torch import nn

from kdnb.analysis.cam import Maps, grad_cam, map_numbers
from kdnb.analysis.compare import other_images, between, compared, outputs, rows_of, teachers, untrained
from kdnb.analysis.layers import DEBIASED, EXACT, block_layers, cka_of, meeting
from kdnb.analysis.logits import logit_differences
from kdnb.analysis.normalisation import normalisation_specs, tried
from kdnb.analysis.small import plain
from kdnb.analysis.transfer import Transfer, probe_numbers, target_names
from kdnb.data.images import load_images, resized
from kdnb.experiments.crd_benchmark import CRDBenchmark
from kdnb.experiments.experiment import Table
from kdnb.report.measures import COLUMNS, read_measures
from kdnb.registry import InputError, models
from notebooks import papermill

ROOT = Path(__file__).resolve().parents[2]
TINY = {"data": "digits", "epochs": "1", "seeds": "1", "device": "cpu", "reports": "reports"}
PAIR = {"pair": "resnet14-resnet8"}
# notebooks that share a store one after the other
CHAINS = [{"lee2025_fig2": {"loss": "gram", "teacher": "ce"}, "lee2025_table5": {"teacher": "ce", "normalize": "none,both", "tau": "0.002", "weight": "0.001"}},
          {"dcd_fig2": PAIR | {"loss": "kd", "seeds": "2"}, "dcd_fig3": PAIR | {"loss": "kd"}, "dcd_table2": PAIR | {"loss": "kd", "probe": "4"},
           "ckd_fig10": PAIR | {"loss": "kd", "stage": "2", "count": "2"}}]
TABLE = Table("dcd_fig2", "dcd", ("table1",), "dcd, Figure 2", {"kd": "KD"}, ("resnet14-resnet8",))
SMALL = {"table": TABLE, **PAIR, "loss": "kd", "protocol": "matched", "data": "digits", "device": "cpu"}
NAMES = [name for chain in CHAINS for name in chain]
MEASURES = {"lee2025_fig2": {DEBIASED, EXACT}, "lee2025_table5": {"diverged, percent of runs"}, "dcd_fig2": {"difference of correlation, mean absolute"},
            "dcd_fig3": {"shared nearest 10"}, "dcd_table2": {"linear probe, batch normalisation frozen"}, "ckd_fig10": {"correlation with the teacher's map"}}
CONTROLS = {"lee2025_fig2": {"student", "untrained", "other images"}, "lee2025_table5": set(), "dcd_fig2": {"student", "teacher"}, "dcd_fig3": {"student", "untrained", "other images"},
            "dcd_table2": {"student", "teacher", "untrained"}, "ckd_fig10": {"student", "untrained"}}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "A folder in which every notebook was run, and what papermill said."
    folder, said = tmp_path_factory.mktemp("inside"), {}
    def run(chain):
        for name, given in chain.items():
            code, output = papermill(folder, name, **TINY | given)
            said[name] = output if code else ""
    with ThreadPoolExecutor(min(2, os.cpu_count())) as pool: list(pool.map(run, CHAINS))
    return folder, said


@pytest.fixture(scope="module")
def looked_into(executed):
    "The networks of dcd_fig2 from its folder, without training."
    p = CRDBenchmark(seeds=2, epochs=1, reports=str(executed[0]/"reports"), **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (p.store.folder/"runs").iterdir()}
    results = p.train(weights=True, live=False)
    assert before == {path: path.stat().st_mtime_ns for path in (p.store.folder/"runs").iterdir()}, "nothing was trained"
    return p, compared(p.plans[0], results, p.store, p.images)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_measures_draws_and_reports(executed, name):
    folder, said = executed
    assert not said[name], said[name][-3000:]
    report = folder/"reports"/name
    found, text = read_measures(report), (report/"table.md").read_text()
    assert list(found.columns) == COLUMNS and MEASURES[name] <= set(found.measure) and CONTROLS[name] <= set(found.method)
    assert (found.preset == "quick").all() and found.changes.str.startswith("epochs 1").all() and found.data.str.contains("digits").all()
    assert "comparable with the paper" in text and "What decides these numbers" in text
    figures = list(report.glob("fig_*.png"))
    assert figures and all(f"({path.name})" in text and path.read_bytes()[:4] == b"\x89PNG" for path in figures)
    trained = found[found.key != ""]
    assert not set(trained.method) & {"untrained", "other images"}
    assert set(trained.key) <= {path.stem for path in (folder/"reports/runs").glob("*.json")}
    outputs = [o for c in nbformat.read(folder/f"{name}.ipynb", 4).cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == len(figures)
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_cell_is_a_help_page(name, caplog):
    known = inspect_notebook(str(ROOT/f"nbs/tables/{name}.ipynb"))
    assert not caplog.records, "a line that cannot be parsed is logged"
    assert {"data", "preset", "seeds", "epochs", "device", "reports", "force"} <= set(known) and all(one["help"] for one in known.values())


def test_runs_are_shared_by_all_tables(executed):
    records = [json.loads(path.read_text()) for path in (executed[0]/"reports/runs").glob("*.json")]
    labels = sorted(r["label"] for r in records if r["data"]["name"] == "hidden digits")
    kd = [label for label in labels if "-kd-" in label]
    assert len(records) == len({json.dumps(r["config"], sort_keys=True) for r in records})
    assert kd.count("resnet8-kd-from-ce-seed0") == kd.count("resnet8-kd-from-ce-seed1") == 1, "one a seed, however many tables of the benchmark ask for it"


# what the numbers are, computed in another way

def centred_rows(x): return x.flatten(1).double().numpy() - x.flatten(1).double().numpy().mean(0)


def literal_cka(x, y):
    "Kornblith et al. 2019, Eq. 3, with the matrices between images."
    k, l = (z @ z.T for z in map(centred_rows, (x, y)))
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def u_centred(x):
    "Székely and Rizzo 2014: the matrix whose inner products are unbiased."
    k = centred_rows(x) @ centred_rows(x).T
    np.fill_diagonal(k, 0)
    n, rows = len(k), k.sum(1)
    k = k - (rows[:, None] + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(k, 0)
    return k


def blockwise_cka(x, y, block):
    sums = np.zeros(3)
    for a, b in zip(x.split(block), y.split(block)):
        if len(a) == block: k, l = u_centred(a), u_centred(b); sums += (k * l).sum(), (k * k).sum(), (l * l).sum()
    return sums[0] / np.sqrt(sums[1] * sums[2])


def test_cka_of_networks_agrees_with_independent_formulations(looked_into):
    p, nets = looked_into
    x = plain(p.images.test_x, p.images)
    for c in nets[-1], *untrained(nets, p.images)[:1]:
        with torch.no_grad(): t, s = c.teacher(x), c.student(x)
        _, numbers = cka_of(c, x, block=50)
        for place, a, b in [("logits", t.logits, s.logits), ("embedding", t.embedding, s.embedding), ("stem", t.stem, s.stem)]:
            assert abs(numbers[DEBIASED, place] - blockwise_cka(a, b, 50)) < 1e-6
            a, b = (z.mean((2, 3)) if z.ndim == 4 else z for z in (a, b))
            assert abs(numbers[EXACT, place] - literal_cka(a, b)) < 1e-6
        with torch.no_grad(): first = F.relu(c.teacher.stages[1][0](t.maps[0]))
        expected = [blockwise_cka(a, s.maps[1], 50) for a in (first, t.maps[1])]
        assert abs(numbers[DEBIASED, "stage 2"] - np.mean(expected)) < 1e-6


def test_the_report_has_the_cka_of_its_networks(executed):
    found = read_measures(executed[0]/"reports/lee2025_fig2")
    value = found[found.measure == DEBIASED].set_index(["method", "place"]).value
    real = value[value.index.get_level_values("method") != "other images"]
    assert (real <= 1).all() and value["other images"].abs().max() < 0.1
    assert (real[real.index.get_level_values("place") == "stem"] > 0.8).all() and value["untrained", "embedding"] < value["student", "embedding"]
    apart = found[found.measure == f"{DEBIASED}, minus the student alone's"].set_index(["method", "place"]).value
    for place in ("stage 3", "logits"): assert apart["gram", place] == pytest.approx(value["gram", place] - value["student", place], abs=1e-12)


def test_the_correlations_and_their_differences_by_seed(executed, looked_into):
    p, nets = looked_into
    x = plain(p.images.test_x, p.images)
    found = read_measures(executed[0]/"reports/dcd_fig2").set_index(["measure", "method", "seed"]).value
    off = ~np.eye(10, dtype=bool)
    name, expected = "difference of correlation, mean absolute", {}
    for c in nets:
        s, t = (outputs(net, x).double().numpy() for net in (c.student, c.teacher))
        expected[c.method, c.what["seed"]] = np.abs(np.corrcoef(s.T) - np.corrcoef(t.T))[off].mean()
        assert found[name, c.method, c.what["seed"]] == pytest.approx(expected[c.method, c.what["seed"]], abs=1e-6)
    assert len(expected) == 4
    for seed in (0, 1): assert found[f"{name}, minus the student alone's", "kd", seed] == pytest.approx(expected["kd", seed] - expected["student", seed], abs=1e-6)
    text = (executed[0]/"reports/dcd_fig2/table.md").read_text()
    pair = [expected["kd", seed] for seed in (0, 1)]
    assert f"| kd | {np.mean(pair):.3f} ± {np.std(pair, ddof=1):.3f} (2) |" in text


def test_shared_neighbours_of_the_report(executed, looked_into):
    p, nets = looked_into
    c = next(c for c in nets if c.method == "kd" and c.what["seed"] == 0)
    x = plain(p.images.test_x, p.images)
    a, b = (outputs(net, x, "embedding").double() for net in (c.student, c.teacher))
    near = [[set((z - z[i]).norm(dim=1).argsort()[1:11].tolist()) for i in range(len(z))] for z in (a, b)]
    share = np.mean([len(one & other) / 10 for one, other in zip(*near)])
    found = read_measures(executed[0]/"reports/dcd_fig3").set_index(["measure", "method"]).value
    assert found["shared nearest 10", "kd"] == pytest.approx(share, abs=1e-3)


def test_a_diverged_run_is_a_row_without_a_value(executed):
    report = executed[0]/"reports"
    found = read_measures(report/"lee2025_table5")
    runs = {path.stem: json.loads(path.read_text()) for path in (report/"runs").glob("*.json")}
    runs = {key: run for key, run in runs.items() if run["row"].startswith("supcon@normalize")}
    accuracy = found[found.measure == "test accuracy, last epoch, percent"].set_index("key").value
    assert set(accuracy.index) == set(runs) and len(runs) == 4
    for key, run in runs.items(): assert np.isnan(accuracy[key]) if run["outcome"] != "finished" else accuracy[key] == run["scores"]["top1"]["last"]
    naive = {key: run["config"]["terms"][0]["options"].get("naive", False) for key, run in runs.items()}
    assert {naive[key] for key in accuracy[accuracy.isna()].index} == {True}, "the naive form diverges, the stable one does not"
    found = found[found.place == "naive form"].merge(found[found.place == "naive"], on=["key", "method"])
    assert (found.value_x.isna() == (found.value_y == 100)).all()
    row, = [line for line in (report/"lee2025_table5/table.md").read_text().splitlines() if line.startswith("| normalised: none |")][:1]
    assert "| – " in row


def test_the_errors_of_the_report_are_those_of_its_networks():
    torch.manual_seed(0)
    y = torch.arange(60) % 10
    s, t = (12 * F.normalize(6 * F.one_hot(y, 10) + torch.randn(60, 10)) for _ in range(2))
    found = tried(s, t, y).set_index(["normalised", "form", "precision"])
    assert np.isnan(found.error["none", "naive", "fp32"]) and "of anchors" in found.why["none", "naive", "fp32"]
    assert found.error["none", "stable", "fp32"] < 1e-4 and found.why["none", "stable", "fp32"] == ""
    assert found.error["none", "stable", "bf16"] > 0.04 and "rounded to multiples of" in found.why["none", "stable", "bf16"]
    huge = tried(100 * s, 100 * t, y).set_index(["normalised", "form", "precision"])
    assert "overflow" in huge.why["none", "stable", "fp16"]


# how networks are got and walked

def test_what_lost_its_weights_is_trained_again_and_the_same(looked_into, executed):
    p, nets = looked_into
    key = nets[-1].what["key"]
    p.store.path("weights", key).unlink()
    stamps = {path.stem: path.stat().st_mtime_ns for path in (p.store.folder/"runs").iterdir()}
    results = p.train(weights=True, live=False)
    changed = [stem for stem, stamp in stamps.items() if p.store.stamp(stem) != stamp]
    assert changed == [key]
    again = compared(p.plans[0], results, p.store, p.images)[-1]
    for (name, old), new in zip(nets[-1].student.state_dict().items(), again.student.state_dict().values()): assert old.equal(new), name


def test_blocks_of_torchvisions_networks():
    net, x = models.build("resnet18_imagenet", classes=10).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        seen, out = block_layers(net, x), net(x)
        first = net.stages[2][0](out.maps[1])
    assert seen["stage 3.1"].equal(first.flatten(1)) and seen["stage 3.2"].equal(out.maps[2].flatten(1))
    assert [name for name in seen if name.startswith("stage")] == [f"stage {i}.{j}" for i in range(1, 5) for j in (1, 2)]
    flat = models.build("vgg8", classes=10).eval()
    with torch.no_grad(): assert [name for name in block_layers(flat, x) if name.startswith("stage")] == [f"stage {i}.1" for i in range(1, len(flat(x).maps) + 1)]


def test_networks_of_other_depths_meet_from_the_deep_end():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = models.build("resnet8", channels=1).eval()
        def forward(self, x):
            out = self.net(x)
            return out._replace(maps=out.maps[1:])
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad(): t, s = block_layers(models.build("resnet14", channels=1).eval(), x), block_layers(Two(), x)
    places = meeting(t, s)
    names = {place: ([list(t)[i] for i in a], [list(s)[j] for j in b]) for place, (a, b) in places.items()}
    assert names["stage 2"] == (["stage 3.1", "stage 3.2"], ["stage 2.1"]) and names["stage 1"][0] == ["stage 2.1", "stage 2.2"]


def test_controls(looked_into):
    p, nets = looked_into
    x = plain(p.images.test_x[:6], p.images)
    with torch.no_grad(): assert other_images(nets[0].student)(x).logits.equal(nets[0].student(x.roll(1, 0)).logits)
    control, = logit_differences(teachers(nets)[0], p.images)[:1]
    assert 0 < control.abs().mean() < logit_differences(nets[0], p.images)[0].abs().mean()
    agreement = map_numbers(teachers(nets)[0], p.images, 1)
    assert agreement["correlation with the teacher's map", "last stage"] == pytest.approx(1)
    lost = replace(nets[0], diverged="NaN at epoch 1, step 1")
    assert np.isnan(rows_of([lost], [{("a", "b"): 1.0}])[0]["value"]) and len(rows_of([lost], [{("a", "b"): 1.0}])) == 1


def test_moving_normalisation_moves_in_a_loaded_network(looked_into):
    _, nets = looked_into
    assert any(isinstance(m, nn.BatchNorm2d) for m in nets[0].student.modules()), "not folded into convolutions"
    (frozen, _), (moving, _) = (next(iter(probe_numbers(nets[0], Transfer(probe=2, moving=m, **SMALL)).items())) for m in (False, True))
    assert frozen[0].endswith("frozen") and moving[0].endswith("moving") and frozen[1] == moving[1] == "hidden digits 5 to 9"
    source = Transfer(**SMALL).images
    assert source.name == "hidden digits 0 to 4" and source.test_y.max() == 4


def test_other_data_sets_come_at_the_size_of_the_students_images(monkeypatch):
    digits, asked = load_images("digits"), []
    monkeypatch.setattr("kdnb.analysis.transfer.load_images", lambda name: asked.append(name) or replace(digits, name=name))
    monkeypatch.setattr("kdnb.experiments.experiment.load_images", lambda *names: replace(resized(digits, 6), name="cifar100"))
    targets = Transfer(**SMALL | {"data": "cifar100"}).targets
    assert asked == list(targets) == ["stl10", "tiny_imagenet"]
    for images in targets.values():
        assert images.shape == (1, 6, 6) and len(images.train_y) == 1000 and len(images.test_y) == 500 and "resized" in images.note


def test_grad_cam_equals_the_library():
    golden = json.loads((ROOT/"tests/golden/analysis/grad_cam.json").read_text())
    net = models.build("wrn_16_2", classes=100).eval()
    for i, p in enumerate(net.parameters()): p.data = (torch.arange(p.numel(), dtype=p.dtype) * 0.37 + i).sin().view_as(p) * 0.2
    x = (torch.arange(2 * 3 * 32 * 32, dtype=torch.float32) * 0.01).sin().view(2, 3, 32, 32)
    def scaled(m): return (m - m.amin((1, 2), keepdim=True)) / (m - m.amin((1, 2), keepdim=True)).amax((1, 2), keepdim=True)
    for case in golden["cases"]:  # the library scales a map to 0 … 1, then to the image's size
        own = scaled(grad_cam(net, x, torch.tensor(case["classes"]), case["stage"]))
        own = scaled(F.interpolate(own[:, None], size=(32, 32), mode="bilinear")[:, 0])[:, ::8, ::8].flatten(1)
        assert own.allclose(torch.tensor(case["map"]), rtol=0, atol=1e-4)


# what is refused

def test_papermill_stops_at_another_tables_parameter_before_training(tmp_path):
    _, said = papermill(tmp_path, "lee2025_table5", **TINY | {"loss": "gram"})
    assert "InputError: unknown parameter 'loss'" in said and not list(tmp_path.rglob("*.json"))


def test_wrong_values_are_one_sentence():
    wrong = [lambda: between("block", 3, 4, 100), lambda: between("count", True, 1, 5), lambda: between("count", "2", 1, 5), lambda: Maps(stage=0, **SMALL),
             lambda: Transfer(target="stl10", **SMALL), lambda: normalisation_specs("studnt", "both"), lambda: normalisation_specs("all", "stabel"),
             lambda: normalisation_specs(3, "both"), lambda: target_names("stl11"), lambda: Maps(count=0, **SMALL), lambda: Transfer(probe=0, **SMALL)]
    for action in wrong:
        with pytest.raises(InputError) as caught: action()
        assert "\n" not in str(caught.value)
