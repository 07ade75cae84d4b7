"What a run is called by, what a result records, and where both lie."
import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

import kdnb.engine.provenance as provenance
import kdnb.engine.run as module
from kdnb.data.images import Identity, load_images
from kdnb.engine.execute import How, execute
from kdnb.engine.metrics import metrics
from kdnb.engine.provenance import code_digest, code_now, code_of, statements
from kdnb.engine.run import Entry, Phase, Plan, Run, Weighted, decisive, key_of, optimised, weighted
from kdnb.registry import InputError, losses
from kdnb.store import Store, predictions

DATA = Identity("digits", 1000, 200, 300, "0123456789ab")
PHASE = Phase("classify", 2, 64, 0.1)
TEACHER = Run("resnet20", "ce", (PHASE,), DATA, 0)
RUN = Run("resnet8", "ce", (PHASE,), DATA, 0, terms=(Weighted("kd", 0.9, (("T", 2.0),)),), teacher=TEACHER)
IMAGES = load_images("digits").split(validation=100, train=128, test=100)


def small(**changes): return replace(Run("resnet8", "ce", (replace(PHASE, epochs=1),), IMAGES.identity, 0), **changes)


def plan_of(*runs, table="toy", role="student"):
    return Plan(table, tuple(Entry(run, role, role, "resnet14", run.net) for run in runs), "quick", IMAGES.identity)


def test_keys_are_what_they_were():
    "A key that moves has every committed result trained again: it may only do so with ENGINE."
    assert module.ENGINE == 4
    assert (TEACHER.key, RUN.key) == (key_of(TEACHER.config), key_of(RUN.config)) == ("2ff0737bccb88d06", "896adf10791372af")


def test_a_new_field_with_a_default_leaves_every_key_as_it_was(monkeypatch):
    @dataclass(frozen=True)
    class LongerPhase(Phase): clip: float = 0.0
    @dataclass(frozen=True)
    class LongerTerm(Weighted): until: int = 0
    @dataclass(frozen=True)
    class LongerRun(Run): averaged: bool = False
    for name, kind in (("Phase", LongerPhase), ("Weighted", LongerTerm), ("Run", LongerRun)): monkeypatch.setattr(module, name, kind)
    def longer(run):
        own = {f.name: getattr(run, f.name) for f in dataclasses.fields(Run)}
        phases = tuple(LongerPhase(**dataclasses.asdict(p)) for p in run.phases)
        terms = tuple(LongerTerm(t.loss, t.weight, t.options, t.warmup) for t in run.terms)
        return LongerRun(**own | {"phases": phases, "terms": terms, "teacher": run.teacher and longer(run.teacher)})
    assert longer(RUN).key == RUN.key and longer(RUN).config["averaged"] is False
    assert replace(longer(RUN), averaged=True).key != RUN.key
    assert replace(longer(RUN), phases=(LongerPhase("classify", 2, 64, 0.1, clip=1.0),)).key != RUN.key


def test_defaults_are_never_changed():
    assert module.defaults(Phase) == {"warmup": 0.0, "shape": "cosine", "cuts": [], "optimiser": "sgd@nesterov=True", "weight_decay": 5e-4, "tau": 0.1,
                                      "evaluations": 20}
    assert module.defaults(Weighted) == {"weight": 1.0, "options": [], "warmup": 0}
    assert module.defaults(Run) == {"precision": "fp32", "cross_entropy": 1.0, "terms": [], "teacher": None, "peer": None}


def test_a_label_is_no_part_of_a_key(monkeypatch):
    before = RUN.key
    monkeypatch.setattr(Run, "label", property(lambda self: "another name"))
    assert RUN.key == before and "label" not in json.dumps(decisive(RUN.config))


def test_everything_else_is_part_of_a_key():
    others = [replace(RUN, net="resnet14"), replace(RUN, seed=1), replace(RUN, precision="bf16"), replace(RUN, cross_entropy=0.5),
              replace(RUN, data=replace(DATA, fingerprint="another")), replace(RUN, data=replace(DATA, train=999)), replace(RUN, peer="resnet14"),
              replace(RUN, terms=(Weighted("kd", 0.8, (("T", 2.0),)),)), replace(RUN, terms=(Weighted("kd", 0.9),)),
              replace(RUN, terms=(*RUN.terms, Weighted("mse"))), replace(RUN, teacher=replace(TEACHER, seed=1)), replace(RUN, objective="supcon"),
              *[replace(RUN, phases=(replace(PHASE, **{name: value}),)) for name, value in (
                  ("epochs", 3), ("batch", 32), ("lr", 0.2), ("warmup", 0.1), ("shape", "linear"), ("cuts", (0.5,)), ("weight_decay", 0.0), ("tau", 0.2))],
              replace(RUN, phases=(optimised(PHASE, "adamw"),)), replace(RUN, phases=(optimised(PHASE, "sgd@momentum=0.8"),))]
    assert len({run.key for run in [RUN, *others]}) == len(others) + 1


def test_options_that_are_the_losses_own_are_no_part_of_a_key():
    for name in losses.names():
        own = losses.build(name)
        assert weighted(name, 1.0, {o: getattr(own, o) for o in losses.options(name)}) == Weighted(losses.canonical(name)), name


def test_a_result_says_what_it_is(tmp_path):
    teacher = small(net="resnet14")
    student = small(terms=(Weighted("mse", 0.01),), teacher=teacher)
    plan = Plan("toy", (Entry(student, "distilled", "mse", "resnet14", "resnet8", "matched"),), "quick", IMAGES.identity, {"epochs": 1}, "A note.")
    record = execute(plan, IMAGES, Store(tmp_path), How(live=False))[student.key]
    wanted = {"schema": 2, "role": "distilled", "row": "mse", "teacher": "resnet14", "student": "resnet8", "protocol": "matched", "preset": "quick",
              "changes": {"epochs": 1}, "note": "A note.", "objective": "ce", "optimiser": "sgd@nesterov=True", "outcome": "finished", "wording": "weight 0.01, normalize none, on logits"}
    assert {name: record[name] for name in wanted} == wanted
    assert record["data"] == {"name": "digits", "train": 128, "validation": 100, "test": 100, "fingerprint": IMAGES.fingerprint[:12]}
    assert record["scores"]["top1"]["last"] == record["history"][-1]["test"]["top1"] and record["epochs"]["last"] == 1
    right = (predictions(record) == IMAGES.test_y.numpy()).mean()
    assert abs(100 * right - record["scores"]["top1"]["last"]) < 1e-3 and len(json.dumps(record["predictions"])) < 20_000
    assert set(record["code"]) == {"engine", "loss mse", "network resnet8", "network resnet14"} and record["code"] == code_now([record])


def test_a_divergence_has_no_scores(tmp_path):
    wild = small(phases=(replace(PHASE, epochs=1, lr=1e30),))
    record = execute(plan_of(wild), IMAGES, Store(tmp_path), How(live=False))[wild.key]
    assert record["outcome"].startswith("NaN at epoch 1") and record["scores"] == {} and predictions(record) is None


def test_two_tables_share_a_run_and_train_it_once(tmp_path):
    run, store = small(), Store(tmp_path)
    first = execute(plan_of(run, table="one"), IMAGES, store, How(live=False))
    second = execute(plan_of(run, table="two", role="teacher"), IMAGES, store, How(live=False))
    assert first == second and len(list((tmp_path/"runs").iterdir())) == 1
    assert [store.plans(table)[0]["entries"][0]["role"] for table in ("one", "two")] == ["student", "teacher"]


def test_what_is_published_is_found_and_not_written_to(tmp_path):
    run = small()
    execute(plan_of(run), IMAGES, Store(tmp_path/"reports"), How(live=False))
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path/"reports").rglob("*"))
    own = Store(tmp_path/"local", published=tmp_path/"reports")
    other = small(seed=1)
    found = execute(plan_of(run, other), IMAGES, own, How(live=False))
    assert set(found) == {run.key, other.key} and [p.stem for p in (tmp_path/"local/runs").iterdir()] == [other.key]
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path/"reports").rglob("*"))


def test_a_student_of_a_published_teacher_without_weights_has_it_trained_again(tmp_path):
    teacher = small(net="resnet14")
    execute(plan_of(teacher), IMAGES, Store(tmp_path/"reports"), How(live=False))
    for path in (tmp_path/"reports/weights").iterdir(): path.unlink()
    student = small(terms=(Weighted("mse", 0.01),), teacher=teacher)
    own = Store(tmp_path/"local", published=tmp_path/"reports")
    assert set(execute(plan_of(student), IMAGES, own, How(live=False))) == {student.key, teacher.key}
    assert own.path("runs", teacher.key).exists()


def test_comments_and_docstrings_are_no_code():
    source = '"What it is."\ndef f(x):\n    "Doubles."\n    # why\n    return 2 * x  # twice\n'
    assert statements(source) == "def f(x):\n    return 2 * x"
    assert statements(source.replace("2 *", "3 *")) != statements(source)
    assert statements("x = '#no comment'\n") == "x = '#no comment'"


def test_a_changed_formula_is_noticed_by_name(monkeypatch):
    before, real = code_of(RUN), provenance.statements
    code_digest.cache_clear()
    monkeypatch.setattr(provenance, "statements", lambda source: real(source).replace("T**2", "T**3"))
    changed = {name for name, digest in code_of(RUN).items() if digest != before[name]}
    code_digest.cache_clear()
    assert changed == {"loss kd"}


def test_a_loss_answers_for_what_it_imports(monkeypatch):
    "crd_infonce is made of other modules of losses: its digest moves with theirs."
    before, real = provenance.piece("loss supcrd"), provenance.statements
    source = __import__("kdnb.losses.crd_infonce", fromlist=["x"]).__file__
    text = real(open(source, encoding="utf-8").read())
    code_digest.cache_clear()
    monkeypatch.setattr(provenance, "statements", lambda s: real(s) + ("#" if real(s) == text else ""))
    moved = provenance.piece("loss supcrd")
    code_digest.cache_clear()
    assert moved != before


def test_the_commit_is_this_repositorys(tmp_path):
    "Not that of another repository in which the package is installed."
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    (tmp_path/"kdnb").symlink_to(provenance.kdnb.__path__[0])
    code = ("import kdnb, kdnb.engine.provenance as p; from pathlib import Path\n"
            f"kdnb.__file__ = {str(tmp_path/'site'/'kdnb'/'__init__.py')!r}; Path(kdnb.__file__).parent.mkdir(parents=True)\nprint(p.commit())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == "None"


def test_a_new_metric_is_in_every_result(tmp_path):
    try:
        metrics.register("always")(lambda: lambda logits, y: (y >= 0).float())
        run = small()
        record = execute(plan_of(run), IMAGES, Store(tmp_path), How(live=False))[run.key]
        assert record["scores"]["always"] == {"last": 100.0, "best": 100.0, "selected": 100.0}
    finally: metrics._factories.pop("always")


def test_top5_counts_the_label_among_five():
    import torch
    logits = torch.arange(25.).repeat(3, 1)
    assert metrics.build("top5")(logits, torch.tensor([24, 20, 19])).tolist() == [1, 1, 0]


@pytest.mark.parametrize("spec", ["adam", "adamw@lr=-1", "sgd@momentum=2", "sgd+adamw", "adamw@speed=1", "sgd@momentum"])
def test_a_wrong_optimiser_is_one_sentence(spec):
    with pytest.raises(InputError) as caught: optimised(PHASE, spec)
    assert "\n" not in str(caught.value)


def test_predictions_of_many_classes_survive(tmp_path):
    from kdnb.store import packed
    drawn = np.random.default_rng(0).integers(0, 1000, 500)
    assert (predictions({"predictions": packed(drawn, 1000)}) == drawn).all()
