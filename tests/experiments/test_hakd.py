"hakd across architectures: the traps of its two projectors, networks with published weights and images of their own, and its four notebooks run as a user runs them."
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from torchvision import models as published

from kdnb.analysis.bias import Alignment, BiasMaps, Frequencies, chosen_radii, coverage, printed
from kdnb.data.images import load_images
from kdnb.data.views import Views
from kdnb.engine.execute import How, execute, load_net
from kdnb.engine.learner import Learner
from kdnb.engine.run import Entry, Phase, Plan, Run, weighted
from kdnb.engine.frozen import frozen
from kdnb.engine.train import Teachers, train_epoch, views_for
from kdnb.experiments.experiment import PLACEBO, paper_numbers
from kdnb.experiments.hakd import HAKD, PAPER, PRESETS, shown
from kdnb.losses.pca_gl import Neighbourhoods, coins
from kdnb.models.pretrained import Adapted, Expected, expected, network
from kdnb.registry import InputError, losses
from kdnb.report.cells import printed_for
from kdnb.store import Store
from notebooks import experiment_of, papermill

TABLE = experiment_of("hakd_table1")[1]
VIT = "vit_tiny_4@image_size=8"
PHASE = Phase("classify", 1, 64, 0.02, 0.2)


@pytest.fixture(scope="module")
def images(): return load_images("digits").split(validation=200, train=256, test=200)


@pytest.fixture(scope="module")
def taught(images):
    "A transformer, frozen, a run distilled from it with pca_gl, and the learner before its training."
    teacher = Run(VIT, "ce", (PHASE,), images.identity, 0)
    torch.manual_seed(0)
    net = frozen(network(VIT, images))
    run = replace(teacher, net="resnet8", terms=(weighted("pca_gl"),), teacher=teacher)
    return run, net, Learner(run, images, net)


# ---- H1 to H9: what is trained, what is not, and in which order

def test_projectors_are_in_the_optimiser_and_change(taught, images):
    run, net, learner = taught
    mine = {name: p for name, p in learner.terms.named_parameters()}
    assert {name.split(".")[1] for name in mine} == {"qkv", "linear"}
    held = {id(p) for group in learner.optimiser.param_groups for p in group["params"]}
    assert all(id(p) in held for p in mine.values())
    before, teacher = ({k: v.clone() for k, v in m.items()} for m in (mine, net.state_dict()))
    train_epoch([learner], images, views_for(PHASE, images), Teachers({run.teacher.key: net}))
    assert learner.diverged is None
    assert all((p - before[name]).abs().max() > 1e-6 for name, p in mine.items())
    assert all(v.equal(teacher[k]) for k, v in net.state_dict().items())


def test_no_gradient_reaches_the_teacher(images):
    net, student = network(VIT, images).train(), network("resnet8", images)
    x, y = torch.randn(4, *images.shape), torch.arange(4)
    term = losses.build("pca_gl")
    s, t = student(x), net(x)
    assert all(a.requires_grad for a in t.attention)
    term.prepare(s, t)
    term(s, t, y, y).backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in term.parameters())
    assert any(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("spec", ["vit_tiny_4", "vit_tiny_16@image_size=64"])
def test_tokens_follow_the_patches_row_by_row_without_class_token(images, spec):
    torch.manual_seed(0)
    net = network(spec + "@block=1", images).eval()
    inner, size = net, (32 if "tiny_4" in spec else 64)
    x = torch.randn(1, 1, size, size)
    with torch.no_grad(): out = inner(x)
    h, w = out.stem.shape[2:]
    patch = size // h
    assert [a.shape[1] for a in out.attention] == [h * w] * 3 and out.maps[0].shape[2:] == (h, w)
    row, column = 1, w - 1
    moved = x.clone()
    moved[..., row * patch:(row + 1) * patch, column * patch:(column + 1) * patch] += 1
    with torch.no_grad(): other = inner(moved)
    for a, b in zip(out.attention, other.attention):   # block 1 sees embedded patches, one each
        assert ((a - b).abs().amax((0, 2)) > 1e-6).nonzero().flatten().tolist() == [row * w + column]
    assert ((out.stem - other.stem).abs().amax((0, 1)) > 1e-6).nonzero().tolist() == [[row, column]]


def test_every_image_and_entry_has_its_own_coin():
    toss = coins(0.5, 3 * 4 * 12, 0, 0, torch.arange(500))
    per_matrix = toss.view(500, 4, 3, 12).double().mean((1, 3))    # of Q, K and V
    assert 0.3 < per_matrix.min() or ((per_matrix > 0.1) & (per_matrix < 0.9)).all()
    assert not torch.equal(toss[0], toss[1]) and not toss.equal(coins(0.5, 144, 0, 1, torch.arange(500)))


def test_a_group_is_a_neighbourhood_of_4_by_4():
    layer = Neighbourhoods(2, 3, (14, 14))
    assert layer.grid == (4, 4) and len(layer.weight) == 16
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(16.)[:, None].expand(-1, 3))
    where = layer(torch.zeros(1, 2, 14, 14))[0, 0]
    assert all(where[i, j] == i // 4 * 4 + j // 4 for i in range(14) for j in range(14))


def asked(tmp_path, **given):
    "The table as it was asked for, on digits."
    return HAKD(table=TABLE, **{"data": "digits", "device": "cpu", "reports": str(tmp_path/"reports")} | given)


def test_the_loss_is_on_from_the_first_epoch_and_has_no_ramp(tmp_path):
    p = asked(tmp_path, loss="pca_gl", corruption="none", preset="paper", seeds=1)
    run, = [entry.run for entry in p.plans[0].entries if entry.row == "pca_gl"]
    assert run.phases[0].epochs == 10 and [run.terms[0].at(epoch) for epoch in range(10)] == [0.2] * 10
    term = run.terms[0].build()
    assert (term.part, term.p, term.values, term.heads, term.side) == ("both", 0.5, False, 1, 4)
    longer = asked(tmp_path, loss="pca_gl", corruption="none", preset="paper", seeds=1, epochs=200).runs
    assert {r.phases[0].epochs for r in longer} == {200} and not {r.key for r in longer} & {r.key for r in p.runs}


# ---- networks with images and weights of their own

def test_a_network_sees_what_it_was_made_for(images):
    class Shown(torch.nn.Module):
        def forward(self, x): return x
    raw = images.test_x[:30]
    x = Views(raw, images, pad=0, flip=False).batch(0, 0, torch.arange(30))
    made_for = expected("wide_resnet101_2", "IMAGENET1K_V1")
    assert made_for == Expected(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
    by_hand = tv.normalize(tv.resize(raw.float().expand(-1, 3, -1, -1) / 255, [224, 224], antialias=True), made_for.mean, made_for.std)
    assert Adapted(Shown(), images, made_for)(x).allclose(by_hand, atol=1e-5)
    small = Expected(5, images.mean, images.std)
    by_hand = tv.resize(x, [5, 5], antialias=True)
    assert Adapted(Shown(), images, small)(x).allclose(by_hand, atol=1e-5)
    assert not F.interpolate(x, (5, 5), mode="bilinear").allclose(by_hand, atol=0.1)  # smoothed


def test_clip_has_its_own_normalisation():
    made_for = expected("vit_clip", "openai")
    assert made_for.size == 224 and made_for.mode == "bicubic" and made_for.mean[0] == pytest.approx(0.4815, abs=1e-4)
    assert expected("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").size == 384


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A folder of published files, with a stand-in for those of ResNet-18, and no connection."
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path/"hub"))
    def nothing(*a, **k): raise OSError("no connection")
    monkeypatch.setattr("torch.hub.download_url_to_file", nothing)
    folder = tmp_path/"hub/checkpoints"
    folder.mkdir(parents=True)
    yield folder
    torch.hub.set_dir(before)


def executed_alone(run, images, store):
    "The results of a plan that asks for one distilled run: its teacher's, where it is trained for it, is among them."
    entry = Entry(run, "distilled", "kd", run.teacher.net, run.net)
    return execute(Plan("toy", (entry,), "quick", images.identity), images, store, How(live=False))


def test_a_teacher_starts_from_published_weights_and_is_stored_without_them(hub, tmp_path, images):
    file = hub/Path(published.ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.manual_seed(3)
    source = published.resnet18()
    torch.save(source.state_dict(), file)
    spec, store = "resnet18_imagenet@weights=IMAGENET1K_V1@size=16", Store(tmp_path/"store")
    start = network(spec, images, start=True)
    assert start.net.stem[0].weight.equal(source.conv1.weight) and start.classifier.out_features == 10 and start.size == 16
    run = Run(spec, "ce", (replace(PHASE, kind="linear"),), images.identity, 0)
    student = replace(run, net="resnet8", phases=(PHASE,), terms=(weighted("kd", 0.9),), teacher=run)
    results = executed_alone(student, images, store)
    file.unlink()                                                  # never asked for again
    net = load_net(run, store, images, fold=False)
    assert net.net.stem[0].weight.equal(source.conv1.weight)       # the encoder was frozen
    assert not net.classifier.weight.equal(start.classifier.weight)
    again = replace(student, terms=(weighted("kd", 0.5),))
    assert executed_alone(again, images, store)[again.key]["outcome"] == "finished"
    assert [r["outcome"] for r in results.values()] == ["finished"] * 2


@pytest.mark.parametrize("spec", ["resnet18_imagenet@weights=IMAGENET1K_V1", "vit_clip@weights=openai"])
def test_a_missing_file_is_one_sentence_that_says_where_it_goes(hub, images, spec):
    with pytest.raises(InputError) as caught: network(spec, images, start=True)
    said = str(caught.value)
    assert "\n" not in said and "Put the file of https://" in said and str(hub) in said
    network(spec.replace("vit_clip@weights=openai", "vit_tiny_16@weights=augreg_in21k"), images)  # not needed to build


# ---- the plan

def test_what_differs_between_rows_is_loss_and_teacher_alone(tmp_path):
    p = asked(tmp_path, corruption="occluded", preset="fast", seeds=1)
    student, vit, cnn = (p.nets[role] for role in ("student", "transformer", "cnn"))
    runs = [run for run in p.runs if run.net == student]
    assert len({(r.phases, r.data, r.precision, r.seed) for r in runs}) == 1 and len(runs) == 13
    assert {r.teacher.net for r in runs if r.terms} == {vit, cnn}
    by_teacher = {t: {r.method for r in runs if r.terms and r.teacher.net == t} for t in (vit, cnn)}
    assert by_teacher[vit] == by_teacher[cnn] == {"pca_gl", "fitnet", "kd", *PLACEBO}
    refused = {row.spec: p.refused(row, (cnn, student), p.images) for row in p.rows}
    assert "needs a transformer" in refused["pca_gl"] and not refused["pca_gl@part=gl"]
    weights = {e.row: e.run.cross_entropy for e in asked(tmp_path, corruption="none", loss="kd,hint+kd").plans[0].entries}
    assert weights["kd"] == 0.1 and weights["hint+kd"] == weights["student"] == 1.0


def test_both_pairs_have_every_row(tmp_path):
    entries = asked(tmp_path, corruption="none").plans[0].entries
    found = {net: [e.row for e in entries if e.teacher == net] for net in ("vit_tiny_4", "wrn_16_2")}
    assert found == {"vit_tiny_4": ["teacher", "student", *TABLE.rows], "wrn_16_2": ["teacher", "student", "pca_gl@part=gl", "hint", "kd", *PLACEBO]}
    assert len({e.run.key for e in entries if e.row == "student"}) == 1


@pytest.mark.parametrize("given,lr,decay", [({}, 0.01, 0.0), ({"tune": "classifier"}, 0.1, 0.0), ({"optimiser": "adamw@lr=0.002"}, 0.0002, 0.0)])
def test_published_weights_are_tuned_gently(tmp_path, given, lr, decay):
    p = asked(tmp_path, corruption="none", preset="paper", seeds=1, **given)
    phase, own = p.phase(p.nets["cnn"]), p.phase(p.nets["student"])
    assert (phase.lr, phase.weight_decay, phase.kind) == (pytest.approx(lr), decay, "linear" if "tune" in given else "classify")
    assert own.kind == "classify" and own.weight_decay > 0 and p.plans[0].changes == given


def test_a_row_may_have_a_batch_of_its_own(tmp_path):
    runs = {e.row: e.run for e in asked(tmp_path, corruption="none", loss="hint@batch=16").plans[0].entries}
    assert runs["hint@batch=16"].phases[0].batch == 16 and runs["kd"].phases == runs["student"].phases


def test_corruptions_are_the_papers_unless_asked_for(tmp_path):
    p = asked(tmp_path)
    assert [images.name for images in p.sets] == ["digits as is", "digits occluded", "digits textured"]
    test = asked(tmp_path, corruption="occluded", part="test").images
    plain, both = p.sets[:2]
    assert test.name == "digits occluded (test only)" and test.train_x.equal(plain.train_x) and test.test_x.equal(both.test_x)
    assert not both.train_x.equal(plain.train_x) and len({i.fingerprint for i in (test, *p.sets)}) == 4
    large = replace(plain, name="stl10", train_x=plain.train_x.repeat(1, 1, 5, 5), val_x=plain.val_x.repeat(1, 1, 5, 5), test_x=plain.test_x.repeat(1, 1, 5, 5))
    assert [shown(large, "occluded", "both", side).name for side in (None, 40, 32)] == ["stl10 occluded", "stl10 occluded", "stl10 occluded at 32 x 32"]
    assert PAPER == {"cifar10": "none", "stl10": "occluded", "fashion_mnist": "textured"}


NAMES = {"cifar10": ["cifar10 as is"], "stl10": ["stl10 occluded", "stl10 occluded (test only)", "stl10 occluded (train only)"],
         "fashion_mnist": ["fashion_mnist textured", "fashion_mnist textured (test only)", "fashion_mnist textured (train only)"]}


def test_the_papers_numbers_stand_beside_its_networks(tmp_path):
    vit, cnn = "vit_b_16@weights=IMAGENET1K_SWAG_E2E_V1", "wide_resnet101_2"
    ours = asked(tmp_path, transformer=vit, cnn=cnn, student="resnet50_imagenet").printed
    found = {(r.data, r.teacher, r.row): r.value for r in ours.itertuples()}
    for dataset, names in NAMES.items():
        printed = paper_numbers("hakd", dataset).set_index(["teacher", "method"]).value
        for name in names:
            for net, theirs, row in ((vit, "vit_b_16", "pca_gl"), (cnn, "wide_resnet101_2", "hint"), (PRESETS["paper"].cnn, "wide_resnet101_2", "hint")):
                assert found[name, net, row] == printed[theirs, row] and found[name, net, "teacher"] == printed[theirs, "teacher"]
    assert {data for data, *_ in found} == {name for names in NAMES.values() for name in names}
    assert set(ours.objective) == {"ce"} and set(ours.row) == {"teacher", "pca_gl", "hint"}  # neither the student alone nor a part


def test_other_networks_have_no_numbers_of_the_paper(tmp_path):
    assert set(asked(tmp_path, preset="fast").printed.teacher) == {PRESETS["paper"].transformer, PRESETS["paper"].cnn}
    assert "resnet8" not in set(asked(tmp_path, transformer="vit_b_16", preset="fast").printed.student)


WRONG = [({"loss": "pcagl"}, "Did you mean 'pca_gl'"), ({"loss": "pca_gl@part=q"}, "part='q'"), ({"loss": "pca_gl", "teacher": "cnn"}, "needs a transformer"),
         ({"teacher": "vit"}, "transformer"), ({"transformer": "vit_b16"}, "Did you mean 'vit_b_16'"), ({"cnn": "wide_resnet101_2@weights=V9"}, "IMAGENET1K_V1"),
         ({"student": "resnet8@size=no"}, "size='no'"), ({"student": "wrn_16_2"}, "three networks"), ({"student": 8}, "student=8"), ({"data": "cifar100"}, "fashion_mnist"),
         ({"data": 3}, "data=3"), ({"corruption": "blurred"}, "'occluded'"), ({"corruption": True}, "corruption=True"), ({"part": "val"}, "test"), ({"preset": "quik"}, "quick"),
         ({"tune": "head"}, "classifier"), ({"weight": -1}, "weight=-1"), ({"epochs": 0}, "epochs=0"), ({"seeds": 1.5}, "seeds=1.5"), ({"precision": "fp16"}, "bf16"),
         ({"optimiser": "adam"}, "adamw"), ({"loss": "dml"}, "one trained teacher"), ({"loss": "takd"}, "one trained teacher")]


@pytest.mark.parametrize("given,says", WRONG)
def test_a_wrong_value_is_one_sentence_and_touches_nothing(tmp_path, given, says):
    with pytest.raises(InputError) as caught: asked(tmp_path, **{"corruption": "none"} | given).plans
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_report_shows_the_papers_numbers_where_data_and_networks_are_its_own(tmp_path):
    p = asked(tmp_path, preset="paper")
    cells = pd.DataFrame([(row, p.nets[role], student, "ce", data) for row in ("teacher", "pca_gl", "hint", "kd", "student") for role in ("transformer", "cnn")
                          for student in (p.nets["student"], "resnet8") for data in ("stl10 occluded", "stl10 as is", "part of stl10 occluded", "stl10 occluded at 32 x 32", "digits occluded")],
                         columns=["row", "teacher", "student", "objective", "data"])
    found = cells.assign(paper=printed_for(cells, p.printed).paper).dropna()
    assert set(found.data) == {"stl10 occluded"} and set(found.student) == {p.nets["student"]}
    assert {(r.row, r.teacher): r.paper for r in found.itertuples()} == {
        ("teacher", p.nets["transformer"]): 95.16, ("pca_gl", p.nets["transformer"]): 36.825, ("teacher", p.nets["cnn"]): 90.0, ("hint", p.nets["cnn"]): 26.65}


# ---- measures

def test_coverage_and_radii(images):
    even = torch.ones(3, 7, 7)
    assert coverage(even) == pytest.approx(1) and coverage(torch.eye(7)[None]) == pytest.approx(1 / 7)
    assert coverage(1e-30 * even) == pytest.approx(1) and coverage(0 * even).isnan()
    assert chosen_radii("3,1", images) == [1.0, 3.0] and chosen_radii("auto", images)[0] == 0
    assert chosen_radii("auto", images)[-1] == pytest.approx(4 * 2**0.5, abs=0.1)
    assert printed() == {("pca_gl", "initial"): 0.73, ("student", "initial"): 0.68}


FIGURE_WRONG = [(Frequencies, {"radii": "1,two"}, "not numbers"), (Frequencies, {"radii": "1,-1"}, "not numbers"), (Frequencies, {"teacher": "cnn"}, "teacher='cnn'"),
                (BiasMaps, {"stage": 9}, "stage=9"), (BiasMaps, {"stage": 0}, "stage=0"), (BiasMaps, {"stage": True}, "stage=True"), (BiasMaps, {"count": 0}, "count=0"),
                (Alignment, {"block": 3}, "block=3"), (Alignment, {"block": 10**6}, "block=1000000")]


@pytest.mark.parametrize("kind,given,says", FIGURE_WRONG)
def test_a_wrong_value_of_a_figure_is_one_sentence(tmp_path, kind, given, says):
    with pytest.raises(InputError) as caught: kind(table=TABLE, data="digits", corruption="none", device="cpu", reports=str(tmp_path/"reports"), **given)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---- the notebooks, as a user runs them

TINY = {"data": "digits", "corruption": "occluded", "epochs": "1", "seeds": "1", "device": "cpu", "reports": "reports", "transformer": VIT, "cnn": "resnet14"}
FIGURES = {"hakd_fig2": "low pass", "hakd_fig3": "linear CKA", "hakd_fig4": "share of the image"}
RUNS = 8  # three networks alone; pca_gl, hint and kd from the transformer; hint and kd from the other


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "A folder in which the table was run and then its figures, and what papermill said."
    folder = tmp_path_factory.mktemp("hakd")
    said = {"hakd_table1": papermill(folder, "hakd_table1", **TINY | {"loss": "pca_gl,hint"})}
    with ThreadPoolExecutor(min(3, os.cpu_count())) as pool: said |= dict(zip(FIGURES, pool.map(lambda name: papermill(folder, name, **TINY), FIGURES)))
    return folder, said


def shown_by(notebook):
    "The outputs of an executed notebook."
    return [o for c in nbformat.read(notebook, 4).cells if c.cell_type == "code" for o in c.outputs]


def test_the_table_is_trained_and_reported(executed):
    folder, said = executed
    assert said["hakd_table1"][0] == 0, said["hakd_table1"][1][-3000:]
    table, text = pd.read_csv(folder/"reports/hakd_table1/table.csv"), (folder/"reports/hakd_table1/table.md").read_text()
    assert sorted(table.role) == ["distilled"] * 5 + ["student"] * 2 + ["teacher"] * 2 and (table["last"] > 0).all()
    assert table.paper.isna().all() and table.gap.isna().all()     # neither data nor networks are the paper's
    assert {(r.teacher, r.row) for r in table.itertuples() if r.role == "distilled"} == {(VIT, "pca_gl"), (VIT, "hint"), (VIT, "kd"), ("resnet14", "hint"), ("resnet14", "kd")}
    assert table[table.role == "distilled"]["over student alone"].notna().all() and table[table.row == "hint"]["over kd"].notna().all()
    assert "digits occluded" in text and "not comparable with the paper's" in text and "Liu et al. 2022" in text
    runs = [json.loads(path.read_text()) for path in (folder/"reports/runs").glob("*.json")]
    assert len(runs) == RUNS and len({r["config"]["data"]["fingerprint"] for r in runs}) == 1


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_uses_the_tables_networks_and_is_reported(executed, name):
    folder, said = executed
    assert said[name][0] == 0, said[name][1][-3000:]
    report = folder/"reports"/name
    found, text = pd.read_csv(report/"measures.csv"), (report/"table.md").read_text()
    assert {"pca_gl", "hint", "hint from cnn", "student", "untrained", "cnn"} <= set(found.method) and FIGURES[name] in text
    keys = {path.stem for path in (folder/"reports/runs").glob("*.json")}
    assert set(found.key.dropna()) <= keys and len(keys) == RUNS   # nothing was trained for it
    assert list(report.glob("fig_*.png")) and (found.teacher == VIT).all()
    outputs = shown_by(folder/f"{name}.ipynb")
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in outputs)
    assert any(f"{RUNS} were found finished" in str(o) for o in outputs)
